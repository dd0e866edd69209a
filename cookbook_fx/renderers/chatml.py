"""ChatML as SmolLM2's own template writes it.

    <|im_start|>user⏎Hello<|im_end|>⏎<|im_start|>assistant⏎Hi<|im_end|>⏎

The header is `<|im_start|>role⏎`, the output text and `<|im_end|>`, and the newline after it
belongs to nobody. Content is tokenized apart from its header, as it is when it is sampled; so
where content begins with white space the template's tokens are others, for the same text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cookbook_fx.chat import ROLES, Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers.layout import LayoutRenderer, Piece, only_text, until_end
from cookbook_fx.renderers.renderer import ParsedResponse, Renderer
from cookbook_fx.tokens import StopSequences, TextCodec, Tokenizer, text_codec


def chatml(tokenizer: Tokenizer) -> Renderer:
    """The ChatML renderer of a tokenizer with `<|im_start|>` and `<|im_end|>`.

    Where the tokenizer's own template begins conversations that have no system message with one
    of its own, as SmolLM2's does, so does the renderer.

    Raises:
        ModelError: the tokenizer lacks one of the two tokens.
        ConfigurationError: the tokenizer has a template of another format.
    """
    codec = text_codec(tokenizer)
    start, end, newline = (
        codec.control("<|im_start|>"),
        codec.control("<|im_end|>"),
        codec.encode("\n"),
    )
    headers = {role: (start, *codec.encode(f"{role}\n")) for role in ROLES}
    default_system = _default_system(tokenizer)
    opening = None
    if default_system is not None:
        opening = Piece(
            Message(role="system", content=default_system, trainable=False),
            headers["system"],
            (*codec.encode(default_system), end),
            newline,
        )
    return LayoutRenderer(
        layout=_ChatML(
            codec=codec, headers=headers, end=end, newline=tuple(newline), opening=opening
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChatML:
    codec: TextCodec
    headers: Mapping[str, tuple[int, ...]]
    end: int
    newline: tuple[int, ...]
    opening: Piece | None

    name = "chatml"
    start = ()
    has_extension_property = True

    @property
    def stop_sequences(self) -> StopSequences:
        return (self.end,)

    def extends(self, messages: Sequence[Message]) -> bool:
        return True

    def pieces(self, messages: Sequence[Message], *, is_complete: bool) -> list[Piece]:
        pieces = [
            Piece(
                message,
                self.headers[message.role],
                [*self.codec.encode(only_text(message, self.name)), self.end],
                self.newline,
            )
            for message in messages
        ]
        has_system = bool(messages) and messages[0].role == "system"
        return pieces if has_system or self.opening is None else [self.opening, *pieces]

    def generation_header(self, role: str, messages: Sequence[Message]) -> Sequence[int]:
        return self.headers[role]

    def parse(self, tokens: list[int]) -> ParsedResponse:
        said, termination = until_end(tokens, self.end)
        message = Message(role="assistant", content=self.codec.decode(said))
        return ParsedResponse(message, termination)


def _default_system(tokenizer: Tokenizer) -> str | None:
    """The system text the tokenizer's template adds where a conversation has none."""
    if tokenizer.chat_template is None:
        return None
    probe = [{"role": "user", "content": "probe"}]
    written = tokenizer.apply_chat_template(probe, tokenize=False)
    before, user, after = written.partition("<|im_start|>user\nprobe<|im_end|>\n")
    system, end = "<|im_start|>system\n", "<|im_end|>\n"
    is_system = before.startswith(system) and before.endswith(end)
    if not user or after or (before and not is_system):
        raise ConfigurationError(
            f"the tokenizer's own chat template is not ChatML; for one user message it writes "
            f"{written!r}. Choose another renderer"
        )
    return before[len(system) : -len(end)] if before else None
