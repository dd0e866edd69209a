"""DeepSeek V3.1's format, with and without reasoning.

    <｜begin▁of▁sentence｜>Be brief.<｜User｜>Hello<｜Assistant｜></think>Hi<｜end▁of▁sentence｜>

Nothing is trimmed and no newlines are added. System and developer messages stand at the start,
wherever they were said, with a blank line between them. A user's message has no end token. What
the assistant says to a tool's result has no header; which call a result answers is told by order
alone.

A response is asked for after `</think>`, or, where the model is to reason, after `<think>`:

    <｜Assistant｜><think>A greeting.</think>Hi<｜end▁of▁sentence｜>

What becomes of reasoning, by renderer:

    deepseekv3                    left out
    deepseekv3_disable_thinking   the same
    deepseekv3_thinking           asked for; left out of history, but where tools are called
    deepseekv3_keep_thinking      asked for; kept in history

A response to train on that was asked to reason and did not is written `<think></think>Hi`. What
follows a tool's result is not asked to reason, but may. Where the text of a response begins with
`<think>...</think>`, that is its reasoning; all other text that spells a token stays text.

A response is parsed as the message it was rendered from, but for call ids; white space before a
call; arguments that are no JSON object; images, which are refused; and `unparsed_tool_calls`,
which are rendered as text.

The layout is that of the chat template published with DeepSeek-V3.1, and the passage that
declares tools that of its model card; the template itself declares none.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from typing import NamedTuple

from cookbook_fx.chat import (
    ImagePart,
    Message,
    Part,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
    content_of,
    parse_json,
)
from cookbook_fx.errors import DataError
from cookbook_fx.renderers.layout import LayoutRenderer, Piece, only_text, until_end
from cookbook_fx.renderers.renderer import ParsedResponse, Renderer
from cookbook_fx.renderers.streaming import Stage, Stages, TextDelta, ThinkingDelta
from cookbook_fx.tokens import StopSequences, TextCodec, Tokenizer, text_codec

_INSTRUCTING = ("system", "developer")
_TOOLS_BEFORE = "\n\n## Tools\nYou have access to the following tools:\n\n"
_TOOLS_FORMAT = "\n\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
_TOOLS_AFTER = (
    "\n\nWhere:\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's "
    "Parameters Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces"
)
_INLINE_REASONING = re.compile("<think>(.*?)</think>", re.DOTALL)


def deepseekv3(tokenizer: Tokenizer) -> Renderer:
    """The renderer that asks for no reasoning, and leaves out what reasoning messages hold.

    Raises:
        ModelError: the tokenizer lacks one of the format's tokens.
    """
    return _renderer(tokenizer, name="deepseekv3", thinks=False, keeps=False)


def deepseekv3_disable_thinking(tokenizer: Tokenizer) -> Renderer:
    """`deepseekv3` by its longer name."""
    return _renderer(tokenizer, name="deepseekv3_disable_thinking", thinks=False, keeps=False)


def deepseekv3_thinking(tokenizer: Tokenizer) -> Renderer:
    """The renderer that asks for reasoning, and drops it once the conversation goes on.

    Raises:
        ModelError: the tokenizer lacks one of the format's tokens.
    """
    return _renderer(tokenizer, name="deepseekv3_thinking", thinks=True, keeps=False)


def deepseekv3_keep_thinking(tokenizer: Tokenizer) -> Renderer:
    """The renderer that asks for reasoning, and keeps it in history.

    Prompts extend one another as long as every response that was asked to reason did.

    Raises:
        ModelError: the tokenizer lacks one of the format's tokens.
    """
    return _renderer(tokenizer, name="deepseekv3_keep_thinking", thinks=True, keeps=True)


class _Marks(NamedTuple):
    """Ids of the format's structure."""

    start: int
    end: int
    user: int
    assistant: int
    think: int
    think_end: int
    calls: int
    calls_end: int
    call: int
    call_end: int
    separator: int
    result: int
    result_end: int


def _marks(codec: TextCodec) -> _Marks:
    return _Marks(
        start=codec.control("<｜begin▁of▁sentence｜>"),
        end=codec.control("<｜end▁of▁sentence｜>"),
        user=codec.control("<｜User｜>"),
        assistant=codec.control("<｜Assistant｜>"),
        think=codec.control("<think>"),
        think_end=codec.control("</think>"),
        calls=codec.control("<｜tool▁calls▁begin｜>"),
        calls_end=codec.control("<｜tool▁calls▁end｜>"),
        call=codec.control("<｜tool▁call▁begin｜>"),
        call_end=codec.control("<｜tool▁call▁end｜>"),
        separator=codec.control("<｜tool▁sep｜>"),
        result=codec.control("<｜tool▁output▁begin｜>"),
        result_end=codec.control("<｜tool▁output▁end｜>"),
    )


def _renderer(tokenizer: Tokenizer, *, name: str, thinks: bool, keeps: bool) -> Renderer:
    codec = text_codec(tokenizer)
    marks = _marks(codec)
    return LayoutRenderer(
        layout=_DeepSeekV3(codec=codec, marks=marks, name=name, thinks=thinks, keeps=keeps),
        stages=partial(_stages, marks, thinks=thinks),
    )


def _stages(marks: _Marks, *, thinks: bool) -> Stages:
    text = Stage(TextDelta, frozenset((marks.think, marks.calls, marks.call)))
    reasoning = Stage(ThinkingDelta, frozenset((marks.think_end,)))
    # A model may open the reasoning that its prompt opened already.
    opened = reasoning._replace(marks=frozenset((marks.think, marks.think_end)))
    section = Stage(None, frozenset((marks.calls_end,)), holds_calls=True, ended=str.rstrip)
    outside = Stage(None, frozenset((marks.call_end,)), ended=str.rstrip)
    begun_by = {marks.think: reasoning, marks.calls: section, marks.call: outside}

    def first(prompt: Sequence[int] | None) -> Stage:
        return opened if (prompt[-1] == marks.think if prompt else thinks) else text

    tokens = frozenset((*begun_by, marks.think_end, marks.calls_end, marks.call_end))
    return Stages(tokens, first, lambda stage, tokens: begun_by.get(tokens[-1], text))


@dataclass(frozen=True, slots=True, kw_only=True)
class _DeepSeekV3:
    """`thinks`: responses are asked to reason. `keeps`: history shows that they did."""

    codec: TextCodec
    marks: _Marks
    name: str
    thinks: bool
    keeps: bool

    # A late system message changes the start of every later prompt.
    has_extension_property = False

    @property
    def start(self) -> Sequence[int]:
        return (self.marks.start,)

    @property
    def stop_sequences(self) -> StopSequences:
        return (self.marks.end,)

    def extends(self, messages: Sequence[Message]) -> bool:
        roles = [message.role for message in messages]
        answered = roles.index("assistant") if "assistant" in roles else len(roles)
        if any(role in _INSTRUCTING for role in roles[answered:]):
            return False
        return not any(
            message.role == "assistant"
            and self._is_rewritten(message, follows_result=follows_result)
            for message, follows_result in _spoken(messages[:-1])
        )

    def _is_rewritten(self, message: Message, *, follows_result: bool) -> bool:
        """Whether history shows a response otherwise than it was produced."""
        if not self.thinks:
            return False
        parts = self._parts(message)
        if not follows_result:
            return not (self.keeps and _reasons_first(parts))
        reasons = any(isinstance(part, ThinkingPart) for part in parts)
        return reasons and not self.keeps and not message.tool_calls

    def pieces(self, messages: Sequence[Message], *, is_complete: bool) -> list[Piece]:
        final = messages[-1] if messages else None
        is_response_final = final is not None and final.role not in _INSTRUCTING
        spoken = list(_spoken(messages))
        produced = len(spoken) - 1 if is_complete and is_response_final else None
        pieces = [
            *self._instructions(messages),
            *(
                self._piece(message, follows_result=follows_result, is_produced=i == produced)
                for i, (message, follows_result) in enumerate(spoken)
            ),
        ]
        if final is not None and not is_response_final:
            # Its text stands at the start; here it says that no response is the last message.
            pieces.append(Piece(final, (), ()))
        return pieces

    def _piece(self, message: Message, *, follows_result: bool, is_produced: bool) -> Piece:
        marks = self.marks
        if message.role == "assistant":
            return self._response(message, follows_result=follows_result, is_produced=is_produced)
        said = self.codec.encode(only_text(message, self.name))
        if message.role == "tool":
            return Piece(message, (marks.result,), [*said, marks.result_end])
        return Piece(message, (marks.user,), said)

    def _instructions(self, messages: Sequence[Message]) -> list[Piece]:
        given = [message for message in messages if message.role in _INSTRUCTING]
        final = len(given) - 1
        return [
            # Text and blank line make common tokens, so the blank line counts as said.
            Piece(message, (), self._instruction(message, ending="" if i == final else "\n\n"))
            for i, message in enumerate(given)
        ]

    def _instruction(self, message: Message, *, ending: str) -> list[int]:
        if not message.tools:
            return self.codec.encode(only_text(message, self.name) + ending)
        text = only_text(replace(message, tools=()), self.name)
        marks, encode = self.marks, self.codec.encode
        declared = "\n".join(map(_declaration, message.tools))
        return [
            *encode(f"{text}{_TOOLS_BEFORE}{declared}{_TOOLS_FORMAT}"),
            *(marks.calls, marks.call, *encode("tool_call_name"), marks.separator),
            *(*encode("tool_call_arguments"), marks.call_end, marks.calls_end),
            *encode(_TOOLS_AFTER + ending),
        ]

    def _response(self, message: Message, *, follows_result: bool, is_produced: bool) -> Piece:
        marks = self.marks
        is_open = self.thinks and (self.keeps or is_produced)
        parts = self._parts(message)
        if not is_open and not (self.thinks and message.tool_calls):
            parts = [part for part in parts if isinstance(part, TextPart)]
        output: list[int] = []
        if self.thinks and is_produced and not follows_result and not _reasons_first(parts):
            output += (marks.think, marks.think_end)
        for part in _joined(parts):
            if isinstance(part, ThinkingPart):
                output += (marks.think, *self.codec.encode(part.thinking), marks.think_end)
            else:
                output += self.codec.encode(part.text)
        output += self._calls(message.tool_calls)
        output.append(marks.end)
        if follows_result:
            return Piece(message, (), output)
        if not is_open:
            return Piece(message, (marks.assistant, marks.think_end), output)
        return Piece(message, (marks.assistant,), output, supplied=int(output[0] == marks.think))

    def _parts(self, message: Message) -> list[TextPart | ThinkingPart]:
        """What a response says; reasoning that its text begins with, tags and all, is reasoning.

        What looked like a call and was none follows as the text it was.
        """
        parts: list[TextPart | ThinkingPart] = []
        for part in message.parts:
            if isinstance(part, ImagePart):
                raise DataError(
                    f"{self.name} has no way to write images; remove it from the assistant's "
                    "message or choose another renderer"
                )
            parts.append(part)
        if parts and isinstance(parts[0], TextPart):
            inline = _INLINE_REASONING.match(parts[0].text)
            if inline is not None:
                answer = TextPart(text=parts[0].text[inline.end() :])
                parts[:1] = [ThinkingPart(thinking=inline[1]), answer]
        return parts + [TextPart(text=call.raw_text) for call in message.unparsed_tool_calls]

    def _calls(self, calls: Sequence[ToolCall]) -> list[int]:
        if not calls:
            return []
        marks, encode = self.marks, self.codec.encode
        tokens = [marks.calls]
        for call in calls:
            tokens += (marks.call, *encode(call.name), marks.separator)
            tokens += (*encode(call.arguments), marks.call_end)
        return [*tokens, marks.calls_end]

    def generation_header(self, role: str, messages: Sequence[Message]) -> Sequence[int]:
        marks = self.marks
        if role in _INSTRUCTING:
            return ()
        if role != "assistant":
            return (marks.result if role == "tool" else marks.user,)
        spoken = (
            message.role for message in reversed(messages) if message.role not in _INSTRUCTING
        )
        if next(spoken, None) == "tool":
            return ()
        return (marks.assistant, marks.think if self.thinks else marks.think_end)

    def parse(self, tokens: list[int]) -> ParsedResponse:
        said, termination = until_end(tokens, self.marks.end)
        if len(said) == len(tokens):
            # Cut off, so that nothing tells reasoning from answer or a call from half a call.
            cut_off = Message(role="assistant", content=self.codec.decode(said))
            return ParsedResponse(cut_off, termination)
        return ParsedResponse(self._parsed(said), termination)

    def _parsed(self, said: list[int]) -> Message:
        if self.thinks and self._closes_what_the_prompt_opened(said):
            said = [self.marks.think, *said]
        parts: list[Part] = []
        calls: list[ToolCall | UnparsedToolCall] = []
        for mark, span in self._spans(said):
            if mark == self.marks.calls:
                calls += self._parsed_section(span)
            elif mark == self.marks.call:
                reason = "a call outside <｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>"
                calls.append(self._unparsed(span, reason))
            elif mark == self.marks.think:
                inside = span[1:-1] if span[-1] == self.marks.think_end else span[1:]
                parts.append(ThinkingPart(thinking=self.codec.decode(inside)))
            else:
                parts.append(TextPart(text=self.codec.decode(span)))
        return _message(parts, calls)

    def _closes_what_the_prompt_opened(self, tokens: list[int]) -> bool:
        marks = self.marks
        if marks.think_end not in tokens:
            return False
        return marks.think not in tokens[: tokens.index(marks.think_end)]

    def _spans(self, tokens: list[int]) -> Iterator[tuple[int | None, list[int]]]:
        """Reasoning and calls, marks included, after the mark they begin with; text after None."""
        marks = self.marks
        closings = {
            marks.think: marks.think_end,
            marks.calls: marks.calls_end,
            marks.call: marks.call_end,
        }
        if closings.keys().isdisjoint(tokens):
            yield None, tokens
            return
        openings = [index for index, token in enumerate(tokens) if token in closings]
        end = 0
        for start in openings:
            if start < end:
                continue
            if start > end:
                yield None, tokens[end:start]
            mark = tokens[start]
            try:
                end = tokens.index(closings[mark], start) + 1
            except ValueError:
                # A model that forgot to end its reasoning still means the calls it makes.
                calls = (i for i in openings if i > start and tokens[i] == marks.calls)
                end = next(calls, len(tokens)) if mark == marks.think else len(tokens)
            yield mark, tokens[start:end]
        if end < len(tokens):
            yield None, tokens[end:]

    def _parsed_section(self, span: list[int]) -> Iterator[ToolCall | UnparsedToolCall]:
        marks = self.marks
        if span[-1] != marks.calls_end:
            yield self._unterminated(span, marks.calls, marks.calls_end)
            return
        starts = [index for index, token in enumerate(span) if token == marks.call]
        if not starts:
            yield self._unparsed(span, "no call is inside")
            return
        yield from self._stray(span[1 : starts[0]])
        for start, stop in pairwise([*starts, len(span)]):
            chunk = span[start:stop]
            if marks.call_end not in chunk:
                yield self._unterminated(chunk, marks.call, marks.call_end)
                continue
            end = chunk.index(marks.call_end) + 1
            yield self._parsed_call(chunk[:end])
            yield from self._stray(chunk[end:])

    def _parsed_call(self, span: list[int]) -> ToolCall | UnparsedToolCall:
        separator = self.marks.separator
        if separator not in span:
            return self._unparsed(span, f"no {self.codec.decode([separator])} after the name")
        at = span.index(separator)
        name, arguments = self.codec.decode(span[1:at]), self.codec.decode(span[at + 1 : -1])
        if not name.strip():
            return self._unparsed(span, "the name is empty")
        try:
            is_object = isinstance(parse_json(arguments), dict)
        except DataError as error:
            return self._unparsed(span, f"Invalid JSON: {error.__cause__}")
        if not is_object:
            return self._unparsed(span, "the arguments are not an object")
        return ToolCall(name=name, arguments=arguments)

    def _stray(self, tokens: list[int]) -> Iterator[UnparsedToolCall]:
        text = self.codec.decode([token for token in tokens if token != self.marks.calls_end])
        if text.strip():
            yield UnparsedToolCall(raw_text=text, error="not inside a call")

    def _unterminated(self, span: list[int], opening: int, closing: int) -> UnparsedToolCall:
        spelled = [self.codec.decode([mark]) for mark in (opening, closing)]
        return self._unparsed(
            span,
            f"unterminated tool block: {spelled[0]!r} opened without a matching {spelled[1]!r}",
        )

    def _unparsed(self, span: list[int], error: str) -> UnparsedToolCall:
        return UnparsedToolCall(raw_text=self.codec.decode(span), error=error)


def _spoken(messages: Sequence[Message]) -> Iterator[tuple[Message, bool]]:
    """What is said after the instructions, and whether it follows a tool's result."""
    previous = None
    for message in messages:
        if message.role not in _INSTRUCTING:
            yield message, previous == "tool"
            previous = message.role


def _reasons_first(parts: Sequence[Part]) -> bool:
    return bool(parts) and isinstance(parts[0], ThinkingPart)


def _joined(parts: Sequence[TextPart | ThinkingPart]) -> Iterator[TextPart | ThinkingPart]:
    """The parts with neighboring texts as one, to be tokenized as one."""
    for kind, group in groupby(parts, type):
        if kind is TextPart:
            yield TextPart(text="".join(part.text for part in group if isinstance(part, TextPart)))
        else:
            yield from group


def _declaration(tool: ToolSpec) -> str:
    parameters = json.dumps(tool.parameters, ensure_ascii=False)
    return f"### {tool.name}\nDescription: {tool.description}\n\nParameters: {parameters}"


def _message(parts: list[Part], calls: Sequence[ToolCall | UnparsedToolCall]) -> Message:
    if calls and parts and isinstance(parts[-1], TextPart):
        parts = [*parts[:-1], TextPart(text=parts[-1].text.rstrip())]
    return Message(
        role="assistant",
        content=content_of(parts),
        tool_calls=tuple(call for call in calls if isinstance(call, ToolCall)),
        unparsed_tool_calls=tuple(call for call in calls if isinstance(call, UnparsedToolCall)),
    )
