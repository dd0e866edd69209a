"""Responses parsed while they are sampled.

A response is read in stages: reasoning, text, and what comes out only once it is complete, such as
calls. Marks, tokens of the format, end a stage. What is certain of text and reasoning comes out at
once; white space at the end of what arrived waits, as formats drop some of it, and so does part of
a character or of a stop that is text.

Which stage comes next is all that a format has to say. What the response holds in the end is told
by parsing it, and where that is not what came out before, which no well-formed response does, a
`Revision` says so.
"""

import functools
from codecs import utf_8_decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, count
from typing import Any, NamedTuple

from cookbook_fx.chat import Message, ToolCall
from cookbook_fx.renderers.response import ParsedResponse
from cookbook_fx.tokens import StopSequences, TextCodec


class TextDelta(NamedTuple):
    """More of what is said."""

    text: str


class ThinkingDelta(NamedTuple):
    """More of the reasoning."""

    thinking: str


class Revision(NamedTuple):
    """What came out so far was otherwise: the response, all of it, is this."""

    message: Message


Delta = TextDelta | ThinkingDelta | ToolCall | Revision
"""A part of a response, as soon as it is certain; a call is complete."""


class Stage(NamedTuple):
    """A stretch of a response.

    Args:
        becomes: what its tokens come out as; None if they do not come out one by one.
        marks: the tokens that end it.
        holds_calls: calls come out when it ends, those that the format finds in its tokens alone.
        begun: its text without the white space that the format begins it with; None if it has none.
        ended: what is left of the text of the stage before without what stands before this one.
    """

    becomes: type[TextDelta] | type[ThinkingDelta] | None
    marks: frozenset[int] = frozenset()
    holds_calls: bool = False
    begun: Callable[[str], str] | None = None
    ended: Callable[[str], str] | None = None


class Stages(NamedTuple):
    """How a format's responses go from stage to stage.

    Args:
        marks: the tokens that end any stage.
        first: the stage that a response begins in, by the prompt it is sampled after, if known.
        following: the stage that follows one, by the tokens of that, of which the last is a mark,
            and the first the mark that began it, if there was one.
    """

    marks: frozenset[int]
    first: Callable[[Sequence[int] | None], Stage]
    following: Callable[[Stage, Sequence[int]], Stage]


_TEXT = Stage(TextDelta)


def text_alone() -> Stages:
    """The stages of formats whose responses are one text."""
    return Stages(frozenset(), lambda prompt: _TEXT, lambda stage, tokens: _TEXT)


class _Taken(NamedTuple):
    """Tokens of many updates, and those before them. `end` is how many there are, of all."""

    earlier: "_Taken | None"
    tokens: tuple[int, ...]
    end: int


# So that a response of many updates is few objects for Python's garbage collector to look at.
_TAKEN_TOGETHER = 24


class StreamState(NamedTuple):
    """What is known of a response so far. A value: going on from it twice does no harm.

    Args:
        deltas: what the last update made certain.
        stage: what the next token is part of; None once the response has stopped.
        waiting: text that is not certain yet.
        partial: the bytes of a character that is not complete.
        recent: the last tokens taken.
        earlier: those before them.
        begin: how many tokens stand before the stage and the mark that began it.
    """

    deltas: tuple[Delta, ...]
    stage: Stage | None
    waiting: str
    partial: bytes
    recent: tuple[int, ...]
    earlier: _Taken | None
    begin: int


# A NamedTuple is made by a function in Python, which is much of the time that a token takes.
_made: Callable[..., Any] = tuple.__new__
_state: Callable[[tuple[object, ...]], StreamState] = functools.partial(_made, StreamState)


class Finished(NamedTuple):
    """What was still to come out, and the whole response as `parse_response` has it."""

    deltas: tuple[Delta, ...]
    parsed: ParsedResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingParser:
    """Parses responses as their tokens arrive; it never changes itself.

    However the tokens are split, the deltas after the last `Revision`, or all if there is none,
    are the text, the reasoning and the calls of the message. Time and memory grow with the number
    of tokens and updates, and no faster.

    Args:
        parse: the format's parser of complete responses.
        codec: of the format's tokenizer. If it cannot spell tokens, all comes out in the end.
        stops: the format's stops.
        stages: how its responses go from stage to stage.
        prompt: what the response is sampled after, if known.

    Example:
        >>> def shown(renderer, sampled):
        ...     parser = renderer.streaming_parser()
        ...     state = parser.init()
        ...     for tokens in sampled:
        ...         state = parser.update(state, tokens)
        ...         yield from state.deltas
        ...     yield from parser.finish(state).deltas
    """

    parse: Callable[[list[int]], ParsedResponse]
    codec: TextCodec
    stops: StopSequences
    stages: Stages
    prompt: Sequence[int] | None = None
    _stop_tokens: frozenset[int] = field(init=False, repr=False)
    _bounds: frozenset[int] = field(init=False, repr=False)
    _stop_texts: tuple[str, ...] = field(init=False, repr=False)
    _spelled: Mapping[int, bytes] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tokens = frozenset(stop for stop in self.stops if isinstance(stop, int))
        texts = tuple(stop for stop in self.stops if isinstance(stop, str))
        object.__setattr__(self, "_stop_tokens", tokens)
        object.__setattr__(self, "_bounds", tokens | self.stages.marks)
        object.__setattr__(self, "_stop_texts", texts)
        object.__setattr__(self, "_spelled", self.codec.spelled)

    def init(self) -> StreamState:
        """The state before the first token."""
        return StreamState((), self.stages.first(self.prompt), "", b"", (), None, 0)

    def update(self, state: StreamState, tokens: Sequence[int]) -> StreamState:
        """Takes the tokens that follow, any number of them."""
        if self._bounds.isdisjoint(tokens):
            return self._continued(state, tokens)
        deltas: list[Delta] = []
        begin = 0
        for at in compress(count(), map(self._bounds.__contains__, tokens)):
            token = tokens[at]
            if token in self._stop_tokens or (state.stage and token in state.stage.marks):
                state = self._continued(state, tokens[begin:at])
                deltas += state.deltas
                state = self._marked(state, token)
                deltas += state.deltas
                begin = at + 1
        state = self._continued(state, tokens[begin:])
        return state._replace(deltas=(*deltas, *state.deltas))

    def finish(self, state: StreamState) -> Finished:
        """What is left to say once the last token has come."""
        tokens = _tokens(state, 0)
        parsed = self.parse(tokens)
        message = parsed.message
        all_text, all_thinking = message.text, message.thinking
        # The same came out however the tokens were split.
        came = self.update(self.init(), tokens).deltas
        text = "".join([delta.text for delta in came if isinstance(delta, TextDelta)])
        thinking = "".join([delta.thinking for delta in came if isinstance(delta, ThinkingDelta)])
        calls = tuple(delta for delta in came if isinstance(delta, ToolCall))
        if not (
            all_text.startswith(text)
            and all_thinking.startswith(thinking)
            and message.tool_calls[: len(calls)] == calls
        ):
            return Finished((Revision(message),), parsed)
        more_thinking, more_text = all_thinking[len(thinking) :], all_text[len(text) :]
        deltas = (
            *((ThinkingDelta(more_thinking),) if more_thinking else ()),
            *((TextDelta(more_text),) if more_text else ()),
            *message.tool_calls[len(calls) :],
        )
        return Finished(deltas, parsed)

    def _continued(self, state: StreamState, tokens: Sequence[int]) -> StreamState:
        """Takes tokens that do not end the stage."""
        _, stage, waiting, partial, recent, earlier, begin = state
        recent = (*recent, *tokens)
        if len(recent) > _TAKEN_TOGETHER:
            earlier, recent = _Taken(earlier, recent, _count(state) + len(tokens)), ()
        spelled = self._spelled
        if stage is None or stage.becomes is None or spelled is None:
            return _state(((), stage, waiting, partial, recent, earlier, begin))
        # One at a time is how most tokens arrive.
        data = (
            spelled[tokens[0]] if len(tokens) == 1 else b"".join(map(spelled.__getitem__, tokens))
        )
        if partial:
            data = partial + data
        text, used = utf_8_decode(data, "replace")
        is_over = False
        if self._stop_texts:
            certain, waiting, is_over = self._before_stop(waiting + text)
        elif visible := text.rstrip():
            certain, waiting = waiting + visible, text[len(visible) :]
        else:
            certain, waiting = "", waiting + text
        partial = data[used:]
        becomes = stage.becomes
        if certain and stage.begun is not None:
            certain, stage = stage.begun(certain), stage._replace(begun=None)
        deltas = (_made(becomes, (certain,)),) if certain else ()
        after = None if is_over else stage
        return _state((deltas, after, waiting, partial, recent, earlier, begin))

    def _before_stop(self, text: str) -> tuple[str, str, bool]:
        """What is certain of a text, what is not, and whether it holds a stop."""
        found = [at for at in map(text.find, self._stop_texts) if at >= 0]
        if found:
            return text[: min(found)].rstrip(), "", True
        begun = max(_overlap(text, stop) for stop in self._stop_texts)
        certain = text[: len(text) - begun].rstrip()
        return certain, text[len(certain) :], False

    def _marked(self, state: StreamState, mark: int) -> StreamState:
        """Takes a token that ends the stage."""
        stage, recent = state.stage, (*state.recent, mark)
        if stage is None or mark in self._stop_tokens:
            return StreamState((), None, "", b"", recent, state.earlier, state.begin)
        span = [*_tokens(state, state.begin), mark]
        following = self.stages.following(stage, span)
        deltas: tuple[Delta, ...] = ()
        if stage.holds_calls:
            stop = next(iter(self._stop_tokens))
            deltas = self.parse([*span, stop]).message.tool_calls
        elif stage.becomes is not None:
            rest = state.waiting + state.partial.decode(errors="replace")
            rest = stage.begun(rest) if stage.begun is not None else rest
            rest = following.ended(rest) if following.ended is not None else rest
            deltas = (stage.becomes(rest),) if rest else ()
        return StreamState(deltas, following, "", b"", recent, state.earlier, _count(state))


def _count(state: StreamState) -> int:
    """How many tokens were taken."""
    return len(state.recent) + (0 if state.earlier is None else state.earlier.end)


def _tokens(state: StreamState, begin: int) -> list[int]:
    """The tokens taken but the first, in order; looks at no more of them than it must."""
    held, earlier, first = [state.recent], state.earlier, _count(state) - len(state.recent)
    while first > begin and earlier is not None:
        held.append(earlier.tokens)
        first -= len(earlier.tokens)
        earlier = earlier.earlier
    return list(chain.from_iterable(reversed(held)))[begin - first :]


def _overlap(text: str, stop: str) -> int:
    """How long the longest end of a text is that a stop, not complete, begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
