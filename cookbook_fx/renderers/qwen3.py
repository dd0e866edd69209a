"""Qwen3's format, as its chat template writes it: reasoning, tool calls and their results.

    <|im_start|>user⏎What is 17 × 3?<|im_end|>⏎
    <|im_start|>assistant⏎<think>⏎17 × 3 = 51⏎</think>⏎⏎51<|im_end|>

A query is a user's message, unless it holds nothing but a tool's response. A response that a
query precedes begins with a block of reasoning, if need be an empty one. What becomes of the
block once the conversation goes on is what the renderers differ in:

    qwen3                   before the last query there are no blocks; after it, in the steps of a
                            turn that calls tools, none that is empty
    qwen3_keep_thinking     it stays
    qwen3_disable_thinking  as qwen3, and the prompt ends with an empty block
    qwen3_instruct          the 2507 models write no blocks; reasoning that is given all the same
                            stands between bare tags, and is left out before the last query

Calls come last, each on lines of its own, arguments just as they are given. Results of calls made
together share one user's block. Whatever comes from outside the model is encoded as text alone;
in what the assistant says and reasons, the tags it writes itself (`<think>`, `<tool_call>`) are
tags, but reasoning cannot end its own block. Parsing goes by the tags' ids, never their spelling.

What is not read back as it was given: text that spells a tag, text after a call, newlines where
reasoning begins and ends and where text begins after it (instruct keeps them), a call's id,
arguments that are not an object, and text that is not in Unicode's normal form C.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
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
    parse_json,
    tool_to_dict,
)
from cookbook_fx.errors import DataError
from cookbook_fx.renderers.layout import LayoutRenderer, Piece, until_end
from cookbook_fx.renderers.renderer import ParsedResponse, Renderer
from cookbook_fx.renderers.streaming import Stage, Stages, TextDelta, ThinkingDelta
from cookbook_fx.tokens import StopSequences, TextCodec, Tokenizer, text_codec


def qwen3(tokenizer: Tokenizer) -> Renderer:
    """The renderer of the hybrid Qwen3 models, thinking.

    Raises:
        ModelError: the tokenizer lacks one of Qwen3's control tokens.
    """
    return _renderer(tokenizer, "qwen3")


def qwen3_keep_thinking(tokenizer: Tokenizer) -> Renderer:
    """As `qwen3`, with the reasoning kept in history, so that each prompt extends the one before.

    Raises:
        ModelError: the tokenizer lacks one of Qwen3's control tokens.
    """
    return _renderer(tokenizer, "qwen3_keep_thinking", keeps_thinking=True)


def qwen3_disable_thinking(tokenizer: Tokenizer) -> Renderer:
    """The renderer of the hybrid Qwen3 models, told not to think.

    A conversation whose final response no query precedes is refused, and so is training on the
    last response where it reasons or stands without the empty block that its prompt ends with.

    Raises:
        ModelError: the tokenizer lacks one of Qwen3's control tokens.
    """
    return _renderer(tokenizer, "qwen3_disable_thinking", disables_thinking=True)


def qwen3_instruct(tokenizer: Tokenizer) -> Renderer:
    """The renderer of the Qwen3 Instruct 2507 models, which do not think.

    Raises:
        ModelError: the tokenizer lacks one of Qwen3's control tokens.
    """
    return _renderer(tokenizer, "qwen3_instruct", frames=False)


class _Ids(NamedTuple):
    """The control tokens."""

    start: int
    end: int
    think: int
    end_think: int
    call: int
    end_call: int
    result: int
    end_result: int


_SOFT = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"
)  # fmt: skip


def _renderer(
    tokenizer: Tokenizer,
    name: str,
    *,
    frames: bool = True,
    keeps_thinking: bool = False,
    disables_thinking: bool = False,
) -> Renderer:
    codec = text_codec(tokenizer)
    ids = _Ids(*(codec.control(token) for token in ("<|im_start|>", "<|im_end|>", *_SOFT)))
    shown_as = {role: "user" if role == "tool" else role for role in ROLES}
    blank_line = codec.encode("\n\n")
    return LayoutRenderer(
        layout=_Qwen3(
            name=name,
            codec=codec,
            said_codec=codec.knowing(*_SOFT),
            # Reasoning cannot end its own block.
            reasoning_codec=codec.knowing(*(tag for tag in _SOFT if tag != "</think>")),
            ids=ids,
            headers={
                role: (ids.start, *codec.encode(f"{shown}\n")) for role, shown in shown_as.items()
            },
            newline=tuple(codec.encode("\n")),
            empty_block=(ids.think, *blank_line, ids.end_think, *blank_line),
            frames=frames,
            keeps_thinking=keeps_thinking,
            disables_thinking=disables_thinking,
        ),
        stages=partial(_stages, ids, frames=frames),
    )


def _stages(ids: _Ids, *, frames: bool) -> Stages:
    """`frames`: as in `_Qwen3`."""
    lines = "\n" if frames else ""
    text = Stage(TextDelta, frozenset((ids.think, ids.call)))
    answer = text._replace(
        begun=lambda said: said.lstrip(lines), ended=lambda thinking: thinking.rstrip(lines)
    )
    reasoning = Stage(
        ThinkingDelta, frozenset((ids.end_think,)), begun=lambda said: said.lstrip(lines)
    )
    call = Stage(
        None,
        frozenset((ids.end_call,)),
        holds_calls=True,
        ended=lambda said: said.removesuffix("\n"),
    )
    begun_by = {ids.think: reasoning, ids.end_think: answer, ids.call: call, ids.end_call: text}

    def first(prompt: Sequence[int] | None) -> Stage:
        tags = [token for token in prompt or () if token in (ids.think, ids.end_think)]
        return reasoning if frames and tags[-1:] == [ids.think] else text

    return Stages(frozenset(begun_by), first, lambda stage, tokens: begun_by[tokens[-1]])


class _Block(Enum):
    """What a response shows of its reasoning."""

    GIVEN = "the reasoning"
    EMPTY = "a block without any"
    NONE = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Qwen3:
    """One of the four layouts.

    Args:
        said_codec: for what the assistant says; knows the tags.
        reasoning_codec: for what it thinks.
        headers: by role, without the newline that follows the message before.
        frames: reasoning stands on lines of its own, and an empty block for none.
        keeps_thinking: history stays as it was produced.
        disables_thinking: the prompt holds the block, and it is empty.
    """

    name: str
    codec: TextCodec
    said_codec: TextCodec
    reasoning_codec: TextCodec
    ids: _Ids
    headers: Mapping[str, tuple[int, ...]]
    newline: tuple[int, ...]
    empty_block: tuple[int, ...]
    frames: bool
    keeps_thinking: bool
    disables_thinking: bool

    start = ()

    @property
    def has_extension_property(self) -> bool:
        return self.keeps_thinking

    @property
    def stop_sequences(self) -> StopSequences:
        return (self.ids.end,)

    def extends(self, messages: Sequence[Message]) -> bool:
        earlier = [i for i, message in enumerate(messages[:-1]) if message.role == "assistant"]
        if self.keeps_thinking or not earlier:
            return True
        # No response but the last has the block that its prompt ended with.
        return not self.disables_thinking and self._all_stay(messages, earlier)

    def _all_stay(self, messages: Sequence[Message], responses: Sequence[int]) -> bool:
        """Whether these responses stand here as they were produced."""
        queries = _queries(messages)
        for index in responses:
            reasons = self._reasons(self._parts(messages[index]))
            before = [query for query in queries if query < index]
            produced = self._block(index, before, reasons=reasons, is_final=True)
            if self._block(index, queries, reasons=reasons, is_final=False) != produced:
                return False
        return True

    def _block(
        self, index: int, queries: Sequence[int], *, reasons: bool, is_final: bool
    ) -> _Block:
        if queries and index < queries[-1] and not self.keeps_thinking:
            return _Block.NONE
        if reasons:
            return _Block.GIVEN
        has_query = bool(queries) and queries[0] < index
        is_shown = self.frames and has_query and (is_final or self.keeps_thinking)
        return _Block.EMPTY if is_shown else _Block.NONE

    def pieces(self, messages: Sequence[Message], *, is_complete: bool) -> list[Piece]:
        queries = _queries(messages)
        pieces = []
        for index, message in enumerate(messages):
            is_final = is_complete and index == len(messages) - 1
            if message.role == "assistant":
                piece = self._response(message, index, queries, is_final=is_final)
            elif message.role == "tool":
                piece = self._result(message, *messages[index + 1 : index + 2])
            else:
                piece = Piece(
                    message, self.headers[message.role], [*self._told(message), self.ids.end]
                )
            if index:
                is_same_block = message.role == messages[index - 1].role == "tool"
                header = () if is_same_block else piece.header
                piece = piece._replace(header=(*self.newline, *header))
            pieces.append(piece)
        return pieces

    def generation_header(self, role: str, messages: Sequence[Message]) -> Sequence[int]:
        newline = self.newline if messages else ()
        is_closed = self.disables_thinking and role == "assistant"
        return (*newline, *self.headers[role], *(self.empty_block if is_closed else ()))

    def _response(
        self, message: Message, index: int, queries: Sequence[int], *, is_final: bool
    ) -> Piece:
        if is_final and self.disables_thinking and not queries:
            raise DataError(
                f"{self.name} ends every prompt with an empty block of reasoning, and the format "
                "has none where there is no user's query; add one, or choose another renderer"
            )
        parts = self._parts(message)
        block = self._block(index, queries, reasons=self._reasons(parts), is_final=is_final)
        output = [*self._written(message, parts, block), self.ids.end]
        piece = Piece(message, self.headers["assistant"], output)
        if not self.disables_thinking:
            return piece
        if block is _Block.EMPTY:
            return piece._replace(supplied=len(self.empty_block))
        return piece._replace(
            unproducible=f"{self.name} ends every prompt with an empty block of reasoning, and "
            f"here the response shows {block.value}; take reasoning out of the data, and where a "
            "turn has several responses use build_supervised_examples"
        )

    def _written(self, message: Message, parts: Sequence[Part], block: _Block) -> list[int]:
        """What a response says, then its calls."""
        calls = [self._call(call) for call in message.tool_calls]
        calls += [self.said_codec.encode(call.raw_text) for call in message.unparsed_tool_calls]
        ids = list(self.empty_block) if block is _Block.EMPTY else []
        text, says, after_block = "", False, block is _Block.EMPTY
        for part in parts:
            if isinstance(part, TextPart):
                said = part.text.lstrip("\n") if after_block else part.text
                text, says, after_block = text + said, says or bool(said), False
            elif block is _Block.GIVEN and isinstance(part, ThinkingPart):
                bare = self._bare(part.thinking)
                if not bare:
                    continue
                ids += [*self.said_codec.encode(text), *self._thought(bare)]
                # Bare tags are part of what is said.
                text, says, after_block = ("\n\n", says, True) if self.frames else ("", True, False)
        ids += self.said_codec.encode(f"{text}\n" if calls and says else text)
        for number, call in enumerate(calls):
            ids += [*self.newline, *call] if number else call
        return ids

    def _reasons(self, parts: Sequence[Part]) -> bool:
        return any(isinstance(part, ThinkingPart) and self._bare(part.thinking) for part in parts)

    def _bare(self, thinking: str) -> str:
        """Reasoning without the lines that frame it."""
        return thinking.strip("\n") if self.frames else thinking

    def _thought(self, bare: str) -> list[int]:
        inside = f"\n{bare}\n" if self.frames else bare
        return [self.ids.think, *self.reasoning_codec.encode(inside), self.ids.end_think]

    def _call(self, call: ToolCall) -> list[int]:
        name = json.dumps(call.name, ensure_ascii=False)
        inside = f'\n{{"name": {name}, "arguments": {call.arguments}}}\n'
        return [self.ids.call, *self.codec.encode(inside), self.ids.end_call]

    def _result(self, message: Message, *after: Message) -> Piece:
        """A tool's result; the block ends with the last of several."""
        inside = self.codec.encode(f"\n{_text(message)}\n")
        ended = () if after and after[0].role == "tool" else (self.ids.end,)
        output = [self.ids.result, *inside, self.ids.end_result, *ended]
        return Piece(message, self.headers["tool"], output)

    def _told(self, message: Message) -> list[int]:
        """What system, developer and user say, and the tools they declare."""
        text = _text(message)
        if not message.tools:
            return self.codec.encode(text)
        before, between, example = _declaration(message.tools)
        return [
            *self.codec.encode(f"{text}\n\n{before}" if text else before),
            self.ids.call, self.ids.end_call, *self.codec.encode(between),
            self.ids.call, *self.codec.encode(example), self.ids.end_call,
        ]  # fmt: skip

    def _parts(self, message: Message) -> Sequence[Part]:
        """A response's parts; reasoning that its text holds is told apart, as in the template."""
        content = message.content
        if self.frames and isinstance(content, str) and "</think>" in content:
            return _parts_inline(content)
        _refuse_images(message)
        return message.parts

    def parse(self, tokens: list[int]) -> ParsedResponse:
        said, termination = until_end(tokens, self.ids.end)
        if len(said) == len(tokens):
            cut_off = Message(role="assistant", content=self.codec.decode(said))
            return ParsedResponse(cut_off, termination)
        return ParsedResponse(self._parsed(said), termination)

    def _parsed(self, said: list[int]) -> Message:
        parts: list[Part] = []
        calls: list[ToolCall] = []
        unparsed: list[UnparsedToolCall] = []
        spans = self._spans(said)
        openings = [None, *(span.opening for span in spans), None]
        for span, opened_before, opens_after in zip(spans, openings, openings[2:], strict=False):
            inside = self.codec.decode(said[span.begin : span.end])
            if span.opening == self.ids.think:
                parts.append(ThinkingPart(thinking=self._bare(inside)))
            elif span.opening == self.ids.call:
                try:
                    calls.append(_read_call(inside, is_closed=span.end < len(said)))
                except DataError as error:
                    raw_text = self.codec.decode(said[span.begin - 1 : span.end + 1])
                    unparsed.append(UnparsedToolCall(raw_text=raw_text, error=str(error)))
            else:
                if self.frames and opened_before == self.ids.think:
                    inside = inside.lstrip("\n")
                if opens_after == self.ids.call:
                    inside = inside.removesuffix("\n")
                parts.append(TextPart(text=inside))
        return Message(
            role="assistant",
            content=content_of(parts),
            tool_calls=tuple(calls),
            unparsed_tool_calls=tuple(unparsed),
        )

    def _spans(self, said: list[int]) -> list["_Span"]:
        """Blocks of reasoning and calls by their tags' ids, and the text between them.

        Inside a block only its own end counts. One that never ends runs to the end.
        """
        ids, spans, begin = self.ids, list[_Span](), 0
        think, call = _find(said, ids.think, 0), _find(said, ids.call, 0)
        if self.frames and min(think, call) > 0:
            end = _find(said, ids.end_think, 0)
            if end < min(think, call):
                # The block was opened in the prompt.
                spans.append(_Span(ids.think, 0, end))
                begin = end + 1
        while begin < len(said):
            think = _find(said, ids.think, begin) if think < begin else think
            call = _find(said, ids.call, begin) if call < begin else call
            found = min(think, call)
            if begin < found:
                spans.append(_Span(None, begin, found))
            if found == len(said):
                break
            opening, closing = (
                (ids.think, ids.end_think) if found == think else (ids.call, ids.end_call)
            )
            end = _find(said, closing, found + 1)
            spans.append(_Span(opening, found + 1, end))
            begin = end + 1
        return spans


def _find(tokens: list[int], token: int, begin: int) -> int:
    """Where the token next stands; beyond the last if nowhere."""
    try:
        return tokens.index(token, begin)
    except ValueError:
        return len(tokens)


class _Span(NamedTuple):
    """`said[begin:end]`, inside a block that `opening` began; None for text between blocks."""

    opening: int | None
    begin: int
    end: int


def _queries(messages: Sequence[Message]) -> list[int]:
    """Which messages are a user's, and more than a tool's response."""
    return [
        index
        for index, message in enumerate(messages)
        if message.role == "user"
        and not (
            message.text.startswith("<tool_response>") and message.text.endswith("</tool_response>")
        )
    ]


def _parts_inline(content: str) -> list[Part]:
    """Text and the reasoning between its tags; the first may have been opened in the prompt."""
    text, *pieces = _THOUGHT.split(
        content if "<think>" in content.partition("</think>")[0] else f"<think>{content}"
    )
    parts: list[Part] = [TextPart(text=text)]
    for thinking, after in zip(pieces[::2], pieces[1::2], strict=True):
        parts += (ThinkingPart(thinking=thinking), TextPart(text=after.lstrip("\n")))
    return parts


def _text(message: Message) -> str:
    _refuse_images(message)
    return message.text


def _refuse_images(message: Message) -> None:
    if any(isinstance(part, ImagePart) for part in message.parts):
        raise DataError(
            f"Qwen3's text models have no way to read images; remove it from the {message.role}'s "
            "message, or choose another renderer"
        )


_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)


class _Declaration(NamedTuple):
    """How tools are declared: text, an empty call, text, and the shape of a call."""

    before: str
    between: str
    example: str


def _declaration(tools: Sequence[ToolSpec]) -> _Declaration:
    lines = "\n".join(json.dumps(tool_to_dict(tool), ensure_ascii=False) for tool in tools)
    return _Declaration(
        "# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within ",
        " XML tags:\n",
        '\n{"name": <function-name>, "arguments": <args-json-object>}\n',
    )


# A call as the renderer writes it, up to its arguments.
_CALL_HEAD = re.compile(r'\n?\{"name": ?("(?:[^"\\]|\\.)*"), ?"arguments": ?')


def _read_call(inside: str, *, is_closed: bool) -> ToolCall:
    """The call between two tags.

    Raises:
        DataError: there is none; why.
    """
    if not is_closed:
        raise DataError("Tool call never ends")
    return _call_as_written(inside) or _call_as_meant(inside)


def _call_as_written(inside: str) -> ToolCall | None:
    """The call with its arguments letter for letter, if it is laid out as the renderer does it."""
    head, body = _CALL_HEAD.match(inside), inside.removesuffix("\n")
    if head is None or not body.endswith("}"):
        return None
    arguments = body[head.end() : -1]
    try:
        call = ToolCall(name=parse_json(head[1]), arguments=arguments)
    except DataError:
        return None
    return call if arguments.lstrip().startswith("{") else None


def _call_as_meant(inside: str) -> ToolCall:
    try:
        call = parse_json(inside)
    except DataError as error:
        raise DataError(f"Tool call is not JSON: {error.__cause__}") from error
    if not isinstance(call, dict):
        raise DataError("Tool call is not a JSON object")
    name, arguments, call_id = call.get("name"), call.get("arguments"), call.get("id")
    if not isinstance(name, str) or not name:
        raise DataError("Missing or invalid 'name' field")
    if not isinstance(arguments, dict):
        raise DataError("Missing or invalid 'arguments' field")
    return ToolCall(
        name=name,
        arguments=json.dumps(arguments, ensure_ascii=False),
        id=call_id if isinstance(call_id, str) else None,
    )
