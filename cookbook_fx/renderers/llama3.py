"""Llama 3's format, without the preamble and the tools that 3.1's own template adds.

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>⏎⏎Hello<|eot_id|>

Text is written as it is, never trimmed, so that what was sampled is what is trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cookbook_fx.chat import ROLES, Message
from cookbook_fx.renderers.layout import LayoutRenderer, Piece, only_text, until_end
from cookbook_fx.renderers.renderer import ParsedResponse, Renderer
from cookbook_fx.tokens import StopSequences, TextCodec, Tokenizer, text_codec


def llama3(tokenizer: Tokenizer) -> Renderer:
    """The renderer of a tokenizer with Llama 3's control tokens.

    Raises:
        ModelError: the tokenizer lacks one of them.
    """
    codec = text_codec(tokenizer)
    before, after = codec.control("<|start_header_id|>"), codec.control("<|end_header_id|>")
    blank_line = codec.encode("\n\n")
    return LayoutRenderer(
        layout=_Llama3(
            codec=codec,
            start=(codec.control("<|begin_of_text|>"),),
            headers={role: (before, *codec.encode(role), after, *blank_line) for role in ROLES},
            end=codec.control("<|eot_id|>"),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Llama3:
    codec: TextCodec
    start: tuple[int, ...]
    headers: Mapping[str, tuple[int, ...]]
    end: int

    name = "llama3"
    has_extension_property = True

    @property
    def stop_sequences(self) -> StopSequences:
        return (self.end,)

    def extends(self, messages: Sequence[Message]) -> bool:
        return True

    def pieces(self, messages: Sequence[Message], *, is_complete: bool) -> list[Piece]:
        return [
            Piece(
                message,
                self.headers[message.role],
                [*self.codec.encode(only_text(message, self.name)), self.end],
            )
            for message in messages
        ]

    def generation_header(self, role: str, messages: Sequence[Message]) -> Sequence[int]:
        return self.headers[role]

    def parse(self, tokens: list[int]) -> ParsedResponse:
        said, termination = until_end(tokens, self.end)
        message = Message(role="assistant", content=self.codec.decode(said))
        return ParsedResponse(message, termination)
