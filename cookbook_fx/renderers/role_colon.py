"""Roles in plain text, for base models that know no chat format.

    User: Hello⏎⏎Assistant: Hi⏎⏎User:

The header is `Role:`, the output a space, the text and a blank line. A response stops where the
next user would speak; the final message of a training example is followed by `User:`, to teach it.
Plain text can spell such a turn, and then nothing tells it from a real one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from cookbook_fx.chat import ROLES, Message
from cookbook_fx.renderers.layout import LayoutRenderer, Piece, only_text
from cookbook_fx.renderers.renderer import ParsedResponse, ParseTermination, Renderer
from cookbook_fx.renderers.streaming import Stage, Stages, TextDelta
from cookbook_fx.tokens import StopSequences, TextCodec, Tokenizer, text_codec

_STOP = "\n\nUser:"


def role_colon(tokenizer: Tokenizer) -> Renderer:
    """The plain-text renderer; begins with the tokenizer's BOS token, if it has one."""
    codec = text_codec(tokenizer)
    bos = tokenizer.bos_token_id
    return LayoutRenderer(
        layout=_RoleColon(
            codec=codec,
            headers={role: tuple(codec.encode(f"{role.capitalize()}:")) for role in ROLES},
            start=() if bos is None else (bos,),
            eos=tokenizer.eos_token_id,
        ),
        stages=partial(_stages, tokenizer.eos_token_id),
    )


def _stages(eos: int | None) -> Stages:
    # Where EOS is the last token it ends the response, and else it is text like any other.
    ends = frozenset(() if eos is None else (eos,))
    text = Stage(TextDelta, ends, begun=lambda said: said.removeprefix(" "))
    # What is held back may be the blank line at the end, which is not said.
    rest = Stage(None, ended=lambda said: "")
    return Stages(ends, lambda prompt: text, lambda stage, tokens: rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoleColon:
    codec: TextCodec
    headers: Mapping[str, tuple[int, ...]]
    start: tuple[int, ...]
    eos: int | None

    name = "role_colon"
    # A response ends with the next user's header; before any other role that header is not there.
    has_extension_property = False

    @property
    def stop_sequences(self) -> StopSequences:
        return (_STOP,)

    def extends(self, messages: Sequence[Message]) -> bool:
        return all(
            after.role == "user" for said, after in pairwise(messages) if said.role == "assistant"
        )

    def pieces(self, messages: Sequence[Message], *, is_complete: bool) -> list[Piece]:
        pieces = [
            Piece(
                message,
                self.headers[message.role],
                self.codec.encode(f" {only_text(message, self.name)}\n\n"),
            )
            for message in messages
        ]
        if is_complete and pieces:
            final = pieces[-1]
            pieces[-1] = final._replace(output=[*final.output, *self.headers["user"]])
        return pieces

    def generation_header(self, role: str, messages: Sequence[Message]) -> Sequence[int]:
        return self.headers[role]

    def parse(self, tokens: list[int]) -> ParsedResponse:
        has_eos = bool(tokens) and tokens[-1] == self.eos
        text = self.codec.decode(tokens[:-1] if has_eos else tokens)
        said, *rest = text.split(_STOP)
        if len(rest) > 1 or bool(rest) == has_eos:
            termination = ParseTermination.MALFORMED
        else:
            termination = ParseTermination.STOP_SEQUENCE if rest else ParseTermination.EOS
        # The stop begins with the blank line that ends the text.
        content = said.removeprefix(" ") if rest else said.removeprefix(" ").removesuffix("\n\n")
        return ParsedResponse(Message(role="assistant", content=content), termination)
