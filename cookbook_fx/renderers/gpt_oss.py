"""gpt-oss's format, called harmony: each thing said has a channel, and each call an address.

    <|start|>system<|message|>You are ChatGPT, ... Reasoning: low ...<|end|>
    <|start|>developer<|message|># Instructions⏎⏎Be brief.⏎⏎<|end|>
    <|start|>user<|message|>How cold is it in Oslo?<|end|>
    <|start|>assistant<|channel|>analysis<|message|>I must look.<|end|>
    <|start|>assistant to=functions.weather<|channel|>commentary <|constrain|>json
        <|message|>{"city": "Oslo"}<|call|>
    <|start|>functions.weather to=assistant<|channel|>commentary<|message|>3 °C<|end|>
    <|start|>assistant<|channel|>final<|message|>3 °C.<|return|>

without the newlines. A header is `<|start|>` and the speaker; channel and text are the output. The
final response of a training example ends with `<|return|>`, as it is sampled, and with `<|end|>`
once the conversation goes on; a call ends with `<|call|>` in both.

The system message is the renderer's own. What a conversation's system says goes to the developer's
message, and so do the tools it declares. Text beside a call goes to the commentary channel. History
shows the reasoning only of the steps after the last final response.

A response cannot be told from what it parses to where it makes several calls (sampling stops at the
first), where calls have ids or failed to parse, and where text and reasoning take turns (each
channel is written once). The layout is that of the chat template published with gpt-oss; where that
is silent, of openai-harmony 0.0.8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from cookbook_fx.chat import (
    ROLES,
    ImagePart,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
    content_of,
)
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers.layout import LayoutRenderer, Piece, only_text
from cookbook_fx.renderers.renderer import ParsedResponse, ParseTermination, Renderer
from cookbook_fx.renderers.streaming import Stage, Stages, TextDelta, ThinkingDelta
from cookbook_fx.renderers.typescript import function_type
from cookbook_fx.tokens import StopSequences, TextCodec, Tokenizer, text_codec

# A tool's own name follows; what a conversation's system says, its developer does.
_SPEAKERS = {role: role for role in ROLES} | {"system": "developer", "tool": ""}
_CALLS = "Calls to these tools must go to the commentary channel: 'functions'."
_FUNCTIONS = "functions."
_EFFORTS = ("low", "medium", "high")
_CHANNELS = ("analysis", "commentary", "final")
# The date of the examples in harmony's own guide.
_DATE = date(2025, 6, 28)


def gpt_oss(
    tokenizer: Tokenizer,
    *,
    reasoning: str | None = None,
    current_date: date = _DATE,
    keeps_reasoning: bool = False,
) -> Renderer:
    """The renderer with everything that can be chosen; `get_renderer`'s names choose `reasoning`.

    Args:
        tokenizer: one with harmony's control tokens.
        reasoning: the effort the system message asks for, low, medium or high. None is for no
            system message at all, but for the line that goes with declared tools.
        current_date: what the system message says today is, whatever day it is, so that the same
            conversation always makes the same tokens.
        keeps_reasoning: show the reasoning of all of history, which the model is not used to.

    Raises:
        ConfigurationError: there is no such effort.
        ModelError: the tokenizer lacks one of the control tokens.

    Example:
        In `my_formats.py`, for `get_renderer("my_formats:dated", tokenizer)` and, on the command
        line, `--renderer my_formats:dated`:

        >>> from datetime import date
        >>> from functools import partial
        >>> dated = partial(gpt_oss, reasoning="low", current_date=date(2026, 1, 31))
    """
    if reasoning not in (*_EFFORTS, None):
        raise ConfigurationError(
            f"`reasoning` must be one of {', '.join(_EFFORTS)} or None, got {reasoning!r}"
        )
    codec = text_codec(tokenizer)
    marks = _Marks(*(codec.control(f"<|{name.strip('_')}|>") for name in _Marks._fields))
    headers = {role: (marks.start, *codec.encode(name)) for role, name in _SPEAKERS.items()}
    channels = {name: (marks.channel, *codec.encode(name)) for name in _CHANNELS}
    as_json = (*codec.encode("commentary "), marks.constrain, *codec.encode("json"))
    system = _system_text(reasoning, current_date) if reasoning else ""
    layout = _GptOss(
        name=f"gpt_oss_{reasoning}_reasoning" if reasoning else "gpt_oss_no_sysprompt",
        codec=codec,
        marks=marks,
        headers=headers,
        openings={name: (*channel, marks.message) for name, channel in channels.items()},
        call_opening=(marks.channel, *as_json, marks.message),
        system=_system_piece(codec, marks, system),
        system_with_tools=_system_piece(codec, marks, f"{system}\n{_CALLS}".lstrip()),
        keeps_reasoning=keeps_reasoning,
        bounds=frozenset((marks.start, marks.end, marks.return_, marks.call)),
        usual={
            (*before, *channel): _Header(recipient=None, channel=name)
            for name, channel in channels.items()
            for before in ((), headers["assistant"])
        },
    )
    return LayoutRenderer(
        layout=layout, before_prefill=layout.before_prefill, stages=partial(_stages, layout)
    )


def gpt_oss_no_sysprompt(tokenizer: Tokenizer) -> Renderer:
    """`gpt_oss` without a system message."""
    return gpt_oss(tokenizer)


def gpt_oss_low_reasoning(tokenizer: Tokenizer) -> Renderer:
    """`gpt_oss` with a system message that asks for little reasoning, dated 2025-06-28."""
    return gpt_oss(tokenizer, reasoning="low")


def gpt_oss_medium_reasoning(tokenizer: Tokenizer) -> Renderer:
    """`gpt_oss` with a system message that asks for some reasoning, dated 2025-06-28."""
    return gpt_oss(tokenizer, reasoning="medium")


def gpt_oss_high_reasoning(tokenizer: Tokenizer) -> Renderer:
    """`gpt_oss` with a system message that asks for much reasoning, dated 2025-06-28."""
    return gpt_oss(tokenizer, reasoning="high")


def _system_text(reasoning: str, current_date: date) -> str:
    return (
        "You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\n"
        f"Current date: {current_date:%Y-%m-%d}\n\n"
        f"Reasoning: {reasoning}\n\n"
        "# Valid channels: analysis, commentary, final. "
        "Channel must be included for every message."
    )


def _stages(layout: "_GptOss") -> Stages:
    marks = layout.marks
    bounds = frozenset((marks.start, marks.end))
    header = Stage(None, bounds | {marks.message})

    def following(stage: Stage, tokens: Sequence[int]) -> Stage:
        if tokens[-1] != marks.message:
            return header
        match layout.parsed(list(tokens[tokens[0] == marks.end :])):
            case ThinkingPart():
                return Stage(ThinkingDelta, bounds)
            case TextPart(text=""):
                return Stage(TextDelta, bounds)
            case _:
                return Stage(None, bounds)

    return Stages(header.marks, lambda prompt: header, following)


class _Marks(NamedTuple):
    """The control tokens, named by what stands between `<|` and `|>`."""

    start: int
    end: int
    message: int
    channel: int
    constrain: int
    return_: int
    call: int


class _Header(NamedTuple):
    """What stands before a text: whom it is addressed to, and its channel."""

    recipient: str | None
    channel: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _GptOss:
    """
    Args:
        headers: by role.
        openings: what stands before a text, by channel.
        call_opening: what stands between the name of a tool and the arguments.
        system, system_with_tools: the renderer's own message, where it has one.
        bounds: what a message begins or ends with.
        usual: headers without a recipient, by their tokens.
    """

    name: str
    codec: TextCodec
    marks: _Marks
    headers: Mapping[str, tuple[int, ...]]
    openings: Mapping[str, tuple[int, ...]]
    call_opening: tuple[int, ...]
    system: tuple[Piece, ...]
    system_with_tools: tuple[Piece, ...]
    keeps_reasoning: bool
    bounds: frozenset[int]
    usual: Mapping[tuple[int, ...], _Header]

    start = ()
    has_extension_property = False

    @property
    def stop_sequences(self) -> StopSequences:
        return (self.marks.return_, self.marks.call)

    def extends(self, messages: Sequence[Message]) -> bool:
        responses = [i for i, message in enumerate(messages) if message.role == "assistant"]
        first = min(responses, default=len(messages))
        if _declare_tools(messages) != _declare_tools(messages[:first]):
            return False
        # A final response ends otherwise once something follows.
        return not any(_is_final(message) for message in messages[:-1])

    def pieces(self, messages: Sequence[Message], *, is_complete: bool) -> list[Piece]:
        is_response_last = bool(messages) and messages[-1].role == "assistant"
        produced = len(messages) - 1 if is_complete and is_response_last else len(messages)
        finals = (i for i, message in enumerate(messages[:produced]) if _is_final(message))
        last_final = max(finals, default=-1)
        pieces = list(self.system_with_tools if _declare_tools(messages) else self.system)
        called: dict[str | None, str] = {}
        for i, message in enumerate(messages):
            match message.role:
                case "assistant":
                    shows_reasoning = self.keeps_reasoning or i > last_final
                    piece = self._response(
                        message, shows_reasoning=shows_reasoning, is_produced=i == produced
                    )
                    called |= {call.id: call.name for call in message.tool_calls if call.id}
                case "tool":
                    piece = self._result(message, called)
                case "user":
                    piece = self._spoken(message, only_text(message, self.name))
                case _:
                    piece = self._instruction(message)
            pieces.append(piece)
        return pieces

    def _spoken(self, message: Message, text: str) -> Piece:
        output = [self.marks.message, *self.codec.encode(text), self.marks.end]
        return Piece(message, self.headers[message.role], output)

    def _instruction(self, message: Message) -> Piece:
        text = only_text(replace(message, tools=()), self.name)
        sections = f"# Instructions\n\n{text}\n\n" if text else ""
        if message.tools:
            sections += _declarations(message.tools)
        return self._spoken(message, sections) if sections else Piece(message, (), ())

    def _result(self, message: Message, called: Mapping[str | None, str]) -> Piece:
        name = message.name or called.get(message.tool_call_id)
        if name is None:
            raise DataError(
                f"{self.name} writes whose result a tool's message is: give it the tool's `name`, "
                "or as `tool_call_id` the id of an earlier call; got neither, with "
                f"tool_call_id={message.tool_call_id!r}"
            )
        address = f"{_address(name.removeprefix(_FUNCTIONS))} to=assistant"
        header = (*self.headers["tool"], *self.codec.encode(address))
        said = self.codec.encode(only_text(message, self.name))
        return Piece(message, header, [*self.openings["commentary"], *said, self.marks.end])

    def _response(self, message: Message, *, shows_reasoning: bool, is_produced: bool) -> Piece:
        marks, encode = self.marks, self.codec.encode
        if any(isinstance(part, ImagePart) for part in message.parts):
            raise DataError(
                f"{self.name} has no way to write images; remove it from the assistant's message "
                "or choose another renderer"
            )
        # What looked like a call and was none is the text it was.
        text = message.text + "".join(call.raw_text for call in message.unparsed_tool_calls)
        spans: list[list[int]] = []
        if message.thinking and shows_reasoning:
            spans.append([*self.openings["analysis"], *encode(message.thinking), marks.end])
        if _is_final(message):
            end = marks.return_ if is_produced else marks.end
            spans.append([*self.openings["final"], *encode(text), end])
        elif text:
            spans.append([*self.openings["commentary"], *encode(text), marks.end])
        for call in message.tool_calls:
            to = encode(f" to={_address(call.name)}")
            spans.append([*to, *self.call_opening, *encode(call.arguments), marks.call])
        header = self.headers["assistant"]
        first, *others = spans
        return Piece(message, header, [*first, *(t for span in others for t in (*header, *span))])

    def generation_header(self, role: str, messages: Sequence[Message]) -> Sequence[int]:
        return self.headers[role]

    def before_prefill(self, role: str, prefill: Sequence[int]) -> Sequence[int]:
        """A prefill without a channel of its own begins what is said."""
        if role == "tool" or self.marks.channel in prefill or self.marks.message in prefill:
            return ()
        return self.openings["final"] if role == "assistant" else (self.marks.message,)

    def parse(self, tokens: list[int]) -> ParsedResponse:
        # Marks have the highest ids, so that nearly every token is told from one by comparing.
        lowest, stop = min(self.bounds), self.stop_sequences
        bounds = [i for i, token in enumerate(tokens) if token >= lowest and token in self.bounds]
        stops = [i for i in bounds if tokens[i] in stop]
        if not stops:
            # Cut off, so that nothing tells a call from half a call.
            message = Message(role="assistant", content=self.codec.decode(tokens))
            return ParsedResponse(message, ParseTermination.MALFORMED)
        starts_here = (at + (tokens[at] == self.marks.end) for at in bounds if at < stops[0])
        cuts = sorted({0, stops[0], *starts_here})
        held = [self.parsed(tokens[begin:end]) for begin, end in pairwise(cuts)]
        message = Message(
            role="assistant",
            content=content_of([part for part in held if isinstance(part, Part)]),
            tool_calls=tuple(call for call in held if isinstance(call, ToolCall)),
            unparsed_tool_calls=tuple(c for c in held if isinstance(c, UnparsedToolCall)),
        )
        is_clean = len(stops) == 1
        return ParsedResponse(
            message, ParseTermination.STOP_SEQUENCE if is_clean else ParseTermination.MALFORMED
        )

    def parsed(self, span: list[int]) -> Part | ToolCall | UnparsedToolCall:
        """What one message is, its marks with it; the text it is if not as the format has it."""
        marks, decode = self.marks, self.codec.decode
        at = span.index(marks.message) if marks.message in span else len(span)
        header = self.usual.get(tuple(span[:at])) or self._header(span[:at])
        text = None
        if at < len(span):
            text = decode(span[at + 1 : len(span) - (span[-1] == marks.end)])
        if header.recipient is not None:
            return _parsed_call(header.recipient, text, decode(span))
        if text is not None and header.channel == "analysis":
            return ThinkingPart(thinking=text)
        if text is not None and header.channel in _CHANNELS:
            return TextPart(text=text)
        return TextPart(text=decode(span))

    def _header(self, tokens: list[int]) -> _Header:
        """The header of the assistant's own message; an empty one if it is another's, or none.

        The recipient stands on either side of the channel.
        """
        marks, decode = self.marks, self.codec.decode
        at = tokens.index(marks.channel) if marks.channel in tokens else len(tokens)
        before, after = tokens[:at], tokens[at + 1 :]
        if marks.constrain in after:
            after = after[: after.index(marks.constrain)]
        words = decode(before).removeprefix("<|start|>assistant").split()
        channel, *details = decode(after).split() or [""]
        recipients = [word for word in (*words, *details) if word.startswith("to=")]
        if any(word not in recipients for word in words) or len(recipients) > 1:
            return _Header(recipient=None, channel="")
        recipient = recipients[0].removeprefix("to=") if recipients else None
        return _Header(recipient=recipient, channel=channel)


def _system_piece(codec: TextCodec, marks: _Marks, text: str) -> tuple[Piece, ...]:
    if not text:
        return ()
    # Intentional: not the system's. Training on what system messages say is training on those of
    # the conversation.
    message = Message(role="developer", content=text)
    output = (marks.message, *codec.encode(text), marks.end)
    return (Piece(message, (marks.start, *codec.encode("system")), output),)


def _parsed_call(
    recipient: str, arguments: str | None, raw_text: str
) -> ToolCall | UnparsedToolCall:
    try:
        if arguments is None:
            raise DataError("no <|message|> stands between whom the call is to and its arguments")
        if not recipient.startswith(_FUNCTIONS):
            raise DataError(f"a call must be to=functions.NAME, got to={recipient}")
        name = recipient.removeprefix(_FUNCTIONS)
        _address(name)
        return ToolCall(name=name, arguments=arguments)
    except DataError as error:
        return UnparsedToolCall(raw_text=raw_text, error=str(error))


def _is_final(message: Message) -> bool:
    """Whether a message is a response that ends the assistant's turn."""
    return message.role == "assistant" and not message.tool_calls


def _declare_tools(messages: Sequence[Message]) -> bool:
    return any(message.tools for message in messages)


def _declarations(tools: Sequence[ToolSpec]) -> str:
    for tool in tools:
        _address(tool.name)
    types = "".join(f"{function_type(tool)}\n\n" for tool in tools)
    return f"# Tools\n\n## functions\n\nnamespace functions {{\n\n{types}}} // namespace functions"


def _address(name: str) -> str:
    """What a header calls a tool.

    Raises:
        DataError: a header cannot hold the name.
    """
    if "<|" in name or any(character.isspace() for character in name):
        raise DataError(
            "a tool's name must have no white space and no control token's text in it, "
            f"got {name!r}; rename the tool"
        )
    return f"{_FUNCTIONS}{name}"
