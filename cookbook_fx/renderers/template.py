"""Any model's format, as its tokenizer's own chat template writes it.

A chat template makes one text of the messages, and a tokenizer that reads the text takes whatever
spells a control token for one, no matter who said it. Here it is known of every letter whether it
was said or is the template's own, and control tokens are looked for in its own alone.

    <|im_start|>assistant⏎ ┆ Hello<|im_end|> ┆ ⏎
      the template's own     said and own      own

Where loss weights go is found from what the template writes. A response's output begins where the
prompt that asks for it ends, any other output with what is said. It goes on to the token that ends
a turn or, where there is none, to the next token or output. Text that the template adds of itself,
such as a default system prompt, or writes elsewhere than in its turn counts as header.

The tokens are those of the text, but that outputs are tokenized apart from their headers, as when
they are sampled. What a tag means cannot be told from a template: responses are parsed as text,
with reasoning and calls in it as the model wrote them.

Reasoning must stand before the text; images, and calls that could not be parsed, are refused. So
is whatever the template would drop without a word, but for reasoning in history, call ids, and
details of tools' declarations.
"""

import datetime
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

from cookbook_fx.chat import ImagePart, Message, TextPart, ToolCall, tool_to_dict
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers.layout import Layout, LayoutRenderer, Piece
from cookbook_fx.renderers.provenance import (
    ChatTemplate,
    Marks,
    Said,
    Written,
    chat_template,
    taken_apart,
    written,
)
from cookbook_fx.renderers.renderer import (
    ParsedResponse,
    ParseTermination,
    Renderer,
    TrainOnWhat,
)
from cookbook_fx.tokens import StopSequences, TextCodec, Tokenizer, text_codec


def template(
    tokenizer: Tokenizer,
    *,
    variables: Mapping[str, Any] | None = None,
    date: datetime.date | None = None,
) -> Renderer:
    """The renderer that follows the tokenizer's own chat template.

    Args:
        tokenizer: with a chat template.
        variables: what the template may ask for, such as `{"enable_thinking": False}`.
        date: what the template takes for today. There is none by default, never the clock's: a
            template then uses one of its own, or refuses.

    Raises:
        ConfigurationError: the tokenizer has no template, or one that cannot be followed: it
            refuses a plain question and answer, ends a response with no token, or writes for this
            tokenizer what `transformers` does not.
        ModelError: text cannot be told apart from control tokens in this tokenizer.
    """
    source = tokenizer.chat_template
    if not isinstance(source, str):
        raise ConfigurationError(
            "the tokenizer has no chat template, or several; set its `chat_template` to the Jinja "
            "text of one, or choose another renderer"
        )
    codec = text_codec(tokenizer)
    given = {**tokenizer.special_tokens_map, **(variables or {})}
    script = _script(chat_template(source, given, date=date), codec)
    try:
        script = _reading_alike(_trimming_alike(script))
        layout = _Template(script=script, facts=_facts(script, tokenizer.bos_token_id))
        # transformers' own text depends on the day.
        if "strftime_now" not in source:
            _check(layout, tokenizer, variables or {})
    except DataError as error:
        asks_the_clock = "strftime_now" in source and date is None
        raise ConfigurationError(
            f"the tokenizer's chat template cannot be followed: {error}"
            + ("; it may want to know the `date`, which must be given" if asks_the_clock else "")
        ) from error
    return LayoutRenderer(layout=layout, remembering=_remembering)


class _Source(NamedTuple):
    """Where a said text is from: the message, what it is of it, and whether it must be written.

    What `is_turn` tells of where the message is.
    """

    message: int
    what: str
    is_required: bool
    is_turn: bool = True


_Say = Callable[[str, _Source], str]


class _Marking(NamedTuple):
    """How text is marked, and where all that is marked is from."""

    marks: Marks
    sources: list[_Source]

    def say(self, text: str, source: _Source) -> str:
        self.sources.append(source)
        return Said(text, self.marks, len(self.sources) - 1)


def _plain(text: str, _: _Source) -> str:
    return text


class _Form(NamedTuple):
    """How a template is given messages.

    Args:
        say: makes what is said of a text.
        produced: which message is the response to train on.
        reads_text: arguments of calls are JSON text, not objects.
    """

    say: _Say
    produced: int | None
    reads_text: bool


class _Script(NamedTuple):
    """A template, and how its tokenizer reads what it writes.

    Args:
        controls: what its own text is searched for, with the white space that tokens swallow.
        ids: of the control tokens, by their text.
        spelled: what control tokens look like.
        trims: it trims what it put together, so marks must leave white space outside.
        reads_text: arguments of calls are given as JSON text, not as objects.
    """

    template: ChatTemplate
    codec: TextCodec
    controls: re.Pattern[str]
    ids: Mapping[str, int]
    spelled: re.Pattern[str]
    trims: bool = False
    reads_text: bool = False

    def conversation(
        self, messages: Sequence[Message], *, is_complete: bool = False
    ) -> "_Conversation":
        digest = hashlib.sha256(repr(tuple(messages)).encode()).hexdigest()[:32]
        marking = _Marking(
            marks=Marks(key=f"q{digest}", control=self.spelled, inside_space=self.trims),
            sources=[],
        )
        produced = len(messages) - 1 if is_complete else None
        try:
            return _Conversation(
                template=self.template,
                marking=marking,
                marked=_entries(messages, _Form(marking.say, produced, self.reads_text)),
                plain=_entries(messages, _Form(_plain, produced, self.reads_text)),
            )
        except RecursionError as error:
            raise DataError(
                "the arguments of a call or a tool's parameters are nested too deeply to be given "
                "to a chat template"
            ) from error

    def encode(self, text: Written, begin: int, end: int) -> list[int]:
        """Tokens of `text[begin:end]`; only the template's own text has control tokens."""
        ids: list[int] = []
        pending = ""
        for run, is_said in text.runs(begin, end):
            at = 0
            for token in () if is_said else self.controls.finditer(run):
                if before := pending + run[at : token.start()]:
                    ids += self.codec.encode(before)
                ids.append(self._id(token[0]))
                pending, at = "", token.end()
            pending += run[at:]
        return [*ids, *self.codec.encode(pending)] if pending else ids

    def own_controls(self, text: Written, begin: int, end: int) -> Iterator["_Token"]:
        """The control tokens that the template itself wrote in `text[begin:end]`."""
        at = begin
        for run, is_said in text.runs(begin, end):
            for token in () if is_said else self.controls.finditer(run):
                yield _Token(at + token.start(), at + token.end(), self._id(token[0]))
            at += len(run)

    def _id(self, token: str) -> int:
        return self.ids[token] if token in self.ids else self.ids[token.strip()]


class _Token(NamedTuple):
    begin: int
    end: int
    id: int


class _Entries(NamedTuple):
    """What a template is given: an entry a message (None: it only declares tools), and tools."""

    messages: list[dict[str, Any] | None]
    tools: list[dict[str, Any]] | None


class _Conversation(NamedTuple):
    """Messages as a template is given them, marked and plain."""

    template: ChatTemplate
    marking: _Marking
    marked: _Entries
    plain: _Entries

    def written(self, count: int, *, asks: bool) -> Written:
        """The first messages as the template writes them.

        Raises:
            DataError: it refuses them, or takes them apart.
        """
        return written(self._rendered(self.marked, count, asks=asks), self.marking.marks)

    def verified(self, *, asks: bool) -> Written:
        """All messages, once it is sure that nothing is amiss.

        Raises:
            DataError: as above; or something said is not written, or otherwise if it is not marked.
        """
        count = len(self.marked.messages)
        text = self.written(count, asks=asks)
        if text.text != self._rendered(self.plain, count, asks=asks):
            raise taken_apart()
        shown = {span.source for span in text.spans}
        for index, source in enumerate(self.marking.sources):
            if source.is_required and index not in shown:
                raise DataError(
                    f"the chat template never writes the {source.what} of message "
                    f"{source.message}; remove it, or choose another renderer"
                )
        return text

    def _rendered(self, entries: _Entries, count: int, *, asks: bool) -> str:
        given = [entry for entry in entries.messages[:count] if entry is not None]
        return self.template.write(given, entries.tools, asks=asks)

    def turns(self, text: Written) -> list["_Turn | None"]:
        """Of each message, where what it says begins and ends; None if it is not there.

        What stands before the turn of an earlier message is not in its turn.
        """
        turns: list[_Turn | None] = [None] * len(self.marked.messages)
        ordered = sorted(
            (source.message, span.begin, span.end)
            for span in text.spans
            if (source := self.marking.sources[span.source]).is_turn
        )
        at = 0
        for message, begin, end in ordered:
            if begin >= at:
                turn = turns[message]
                turns[message] = _Turn(begin if turn is None else turn.begin, end)
                at = end
        return turns


class _Turn(NamedTuple):
    begin: int
    end: int


def _entries(messages: Sequence[Message], form: _Form) -> _Entries:
    """The messages as templates expect them."""
    declaring = [index for index, message in enumerate(messages) if message.tools]
    if declaring not in ([], [0]):
        raise DataError(
            "a chat template declares tools once, at the start; declare all of them in message 0, "
            f"got some in message {declaring[-1]}"
        )
    # First, so that what they are known by does not depend on the messages that follow.
    tools = [
        _tool(tool_to_dict(tool), form.say) for index in declaring for tool in messages[index].tools
    ]
    return _Entries(
        [_entry(index, message, form) for index, message in enumerate(messages)], tools or None
    )


def _entry(index: int, message: Message, form: _Form) -> dict[str, Any] | None:
    _refuse_what_has_no_entry(index, message)
    if not _has_entry(message):
        return None
    say = form.say
    entry: dict[str, Any] = {"role": message.role}
    if message.thinking:
        # gpt-oss knows it by the second name.
        source = _Source(index, "reasoning", is_required=index == form.produced)
        reasoning = say(message.thinking, source)
        entry |= {"reasoning_content": reasoning, "thinking": reasoning}
    is_blank = not message.text.strip()
    entry["content"] = say(message.text, _Source(index, "text", is_required=not is_blank))
    aside = _Source(index, "tool's name", is_required=False, is_turn=False)
    for key, named in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if named is not None:
            entry[key] = say(named, aside)
    if message.tool_calls:
        entry["tool_calls"] = [_call(call, index, form) for call in message.tool_calls]
    return entry


def _has_entry(message: Message) -> bool:
    """Whether it does more than declare tools."""
    return bool(message.text or not message.tools)


def _refuse_what_has_no_entry(index: int, message: Message) -> None:
    texts = [isinstance(part, TextPart) for part in message.parts]
    refused = {
        "images": any(isinstance(part, ImagePart) for part in message.parts),
        "calls that could not be parsed": bool(message.unparsed_tool_calls),
        "reasoning after text": texts != sorted(texts),
    }
    for what, is_there in refused.items():
        if is_there:
            raise DataError(
                f"a chat template is not given {what}, as in message {index}; remove it, or "
                "choose another renderer"
            )


def _call(call: ToolCall, index: int, form: _Form) -> dict[str, Any]:
    say, source = form.say, _Source(index, "tool calls", is_required=True)
    parsed = call.parsed_arguments
    arguments = parsed if isinstance(parsed, dict) and not form.reads_text else call.arguments
    function = {
        "name": say(call.name, source),
        "arguments": _said_inside(arguments, say, source),
    }
    aside = source._replace(is_required=False, is_turn=False)
    identity = {} if call.id is None else {"id": say(call.id, aside)}
    return {**identity, "type": "function", "function": function}


def _tool(tool: dict[str, Any], say: _Say) -> dict[str, Any]:
    """A declaration; templates leave out what they do not know of one, but not its name."""
    name = _Source(0, "tools", is_required=True, is_turn=False)
    detail = name._replace(is_required=False)
    function = {
        key: say(value, name) if key == "name" else _said_inside(value, say, detail)
        for key, value in tool["function"].items()
    }
    return {**tool, "function": function}


def _said_inside(value: Any, say: _Say, source: _Source) -> Any:
    """A JSON value with all text in it said, keys included."""
    if isinstance(value, str):
        return say(value, source)
    if isinstance(value, Mapping):
        return {
            say(key, source._replace(is_required=False)): _said_inside(item, say, source)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_said_inside(item, say, source) for item in value]
    return value


class _Facts(NamedTuple):
    """What is found out of a template once.

    Args:
        start: what every text begins with, and belongs to no message.
        header: what a prompt ends with.
        stops: what ends a response.
        ends: what ends one, or stands there in history.
        before, after: what a response has around its text, its end apart.
    """

    start: str
    start_ids: tuple[int, ...]
    header: str
    stops: tuple[int, ...]
    ends: frozenset[int]
    before: str
    after: str


_QUESTION = Message(role="user", content="question")
_ANSWER = Message(role="assistant", content="answer")
_CALL = Message(
    role="assistant",
    content="",
    tool_calls=(ToolCall(name="tool", arguments='{"key": "value"}', id="123456789"),),
)
_SPACED = tuple(
    Message(role=role, content=f" \n {role} \n ") for role in ("system", "user", "assistant")
)


def _script(template: ChatTemplate, codec: TextCodec) -> _Script:
    # White space that some vocabularies add for indentation is text.
    added = [
        token
        for token in codec.complete.get_added_tokens_decoder().values()
        if not token.content.isspace()
    ]
    # A token that begins as another must be looked for first.
    added.sort(key=lambda token: len(token.content), reverse=True)
    spelled = "|".join(re.escape(token.content) for token in added)
    swallowing = "|".join(
        r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip for token in added
    )
    # Without any there is nothing to find.
    return _Script(
        template=template,
        codec=codec,
        controls=re.compile(swallowing or "(?!)"),
        ids={token.content: codec.control(token.content) for token in added},
        spelled=re.compile(spelled or "(?!)"),
    )


def _trimming_alike(script: _Script) -> _Script:
    """The script, told whether the template trims what it put together."""
    trimming = script._replace(trims=True)
    for spaced in (_SPACED, _SPACED[1:]):
        if not _follows(script, spaced) and _follows(trimming, spaced):
            return trimming
    return script


def _reading_alike(script: _Script) -> _Script:
    """The script, told in which form to give the arguments of calls.

    As text they stay as they were written; but some templates read objects alone, some text alone.
    """
    reading = script._replace(reads_text=True)
    as_object, as_text = _called(script), _called(reading)
    # Single quotes are Python's, where an object was written out as if it were text.
    is_object_bad = as_object is None or "'key'" in as_object
    return reading if as_text is not None and (is_object_bad or as_text == as_object) else script


def _called(script: _Script) -> str | None:
    """How a call is written; None if none can be."""
    try:
        return script.conversation([_QUESTION, _CALL]).verified(asks=False).text
    except DataError:
        return None


def _follows(script: _Script, messages: Sequence[Message]) -> bool:
    try:
        script.conversation(messages).verified(asks=False)
    except DataError:
        return False
    return True


def _facts(script: _Script, bos: int | None) -> _Facts:
    """
    Raises:
        DataError: the template refuses a question and an answer, or ends it with no token.
    """
    asked = script.conversation([_QUESTION, _ANSWER])
    text = asked.verified(asks=False)
    answer = asked.turns(text)[1]
    ends = list(script.own_controls(text, answer.end if answer else 0, len(text.text)))
    if answer is None or not ends:
        raise DataError(
            "it ends a response with no token, so sampling would not know where to stop"
        )
    prompt, history = asked.written(1, asks=True), asked.written(1, asks=False)
    begin = len(prompt.text) if text.begins_with(prompt) else answer.begin
    start = _start(script, bos)
    return _Facts(
        start=start,
        start_ids=(bos,) if start and bos is not None else (),
        header=prompt.text[len(history.text) :] if prompt.begins_with(history) else "",
        stops=tuple(dict.fromkeys([ends[0].id, *_end_of_call(script, ends[0].id)])),
        ends=frozenset([ends[0].id, *_end_in_history(script), *_end_of_call(script, ends[0].id)]),
        before=text.text[begin : answer.begin],
        after=text.text[answer.end : ends[0].begin],
    )


def _start(script: _Script, bos: int | None) -> str:
    """The text of the token that begins a sequence, if it does so and nothing else."""
    turns = [_QUESTION, _ANSWER, _QUESTION]
    text = script.conversation(turns).verified(asks=False)
    controls = list(script.own_controls(text, 0, len(text.text)))
    is_start = bool(controls) and controls[0].begin == 0 and controls[0].id == bos
    is_once = [token.id for token in controls].count(bos or 0) == 1
    return text.text[: controls[0].end] if is_start and is_once else ""


def _end_in_history(script: _Script) -> list[int]:
    turns = script.conversation([_QUESTION, _ANSWER, _QUESTION])
    text = turns.verified(asks=False)
    _, answer, after = turns.turns(text)
    if answer is None or after is None:
        return []
    return [token.id for token in script.own_controls(text, answer.end, after.begin)][:1]


def _end_of_call(script: _Script, end: int) -> list[int]:
    """What ends a response that calls a tool, where the template lets tools be called."""
    called = script.conversation([_QUESTION, _CALL])
    try:
        text = called.verified(asks=False)
    except DataError:
        return []
    call = called.turns(text)[1]
    after = [] if call is None else list(script.own_controls(text, call.end, len(text.text)))
    ids = [token.id for token in after]
    if end in ids:
        return [end]
    known = script.codec.complete.get_added_tokens_decoder()
    return [index for index in ids if known[index].special][:1]


def _check(layout: "_Template", tokenizer: Tokenizer, variables: Mapping[str, Any]) -> None:
    """
    Raises:
        DataError: `transformers` writes something else, or the tokens do not spell the text.
    """
    plain = [{"role": said.role, "content": said.text} for said in (_QUESTION, _ANSWER)]
    wanted = tokenizer.apply_chat_template(plain, tokenize=False, **variables)
    codec = layout.codec
    text = layout.script.conversation([_QUESTION, _ANSWER]).verified(asks=False).text
    if text != wanted:
        raise DataError(f"it writes {text!r} here, and {wanted!r} in `transformers`")
    tokens = (
        LayoutRenderer(layout=layout)
        .build_supervised_example([_QUESTION, _ANSWER], TrainOnWhat.ALL_TOKENS)
        .tokens
    )
    spelled, wanted = codec.decode(tokens.tolist()), codec.decode(codec.encode_trusted(wanted))
    if spelled != wanted:
        raise DataError(
            f"the tokens of pieces of {wanted!r} spell {spelled!r}; a tokenizer that adds spaces "
            "of its own cannot be used in pieces"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    """The layout of a template.

    Args:
        prompts: what was found to ask for a response to the first messages, by how many they are,
            where it is remembered: all conversations asked about begin alike.
    """

    script: _Script
    facts: _Facts
    prompts: dict[int, Written | None] | None = field(default=None, repr=False)

    name = "template"
    # Whether it holds depends on the messages; no template says.
    has_extension_property = False

    @property
    def codec(self) -> TextCodec:
        return self.script.codec

    @property
    def start(self) -> Sequence[int]:
        return self.facts.start_ids

    @property
    def stop_sequences(self) -> StopSequences:
        return self.facts.stops

    def extends(self, messages: Sequence[Message]) -> bool:
        turns = self.script.conversation(messages, is_complete=True)
        text = turns.verified(asks=False)
        cuts = self._cuts(turns, messages, text)
        final = len(messages) - 1
        return all(
            cut.is_asked and (i == final or self._stays(turns, messages[: i + 1], text))
            for i, cut in enumerate(cuts)
            if messages[i].role == "assistant"
        )

    def _stays(self, turns: "_Conversation", messages: Sequence[Message], text: Written) -> bool:
        """Whether the text begins with these messages as the last of them was produced."""
        try:
            produced = turns.written(len(messages), asks=False)
        except DataError:
            return False
        end = self._cuts(turns, messages, produced)[-1].end
        return text.begins_with(produced.until(end))

    def pieces(self, messages: Sequence[Message], *, is_complete: bool) -> list[Piece]:
        if not is_complete:
            # A template may write the last message otherwise where it asks for another, so a
            # prompt cannot be put together: all of it is the generation header.
            return []
        turns = self.script.conversation(messages, is_complete=True)
        text = turns.verified(asks=False)
        cuts = self._cuts(turns, messages, text)
        at, pieces = self._start_of(text), []
        for message, cut in zip(messages, cuts, strict=True):
            pieces.append(
                Piece(
                    message,
                    self.script.encode(text, at, cut.begin),
                    self.script.encode(text, cut.begin, cut.end),
                    unproducible=None if cut.is_asked else _UNPRODUCIBLE,
                )
            )
            at = cut.end
        trailer = self.script.encode(text, at, len(text.text))
        return [*pieces[:-1], pieces[-1]._replace(trailer=trailer)]

    def generation_header(self, role: str, messages: Sequence[Message]) -> Sequence[int]:
        if role == "assistant" and any(map(_has_entry, messages)):
            turns = self.script.conversation(messages)
            text = turns.verified(asks=True)
        else:
            turns, text = self._opened(messages, role)
        ids: list[int] = []
        at = self._start_of(text)
        for cut in self._cuts(turns, messages, text):
            ids += self.script.encode(text, at, cut.begin)
            ids += self.script.encode(text, cut.begin, cut.end)
            at = cut.end
        return [*ids, *self.script.encode(text, at, len(text.text))]

    def _start_of(self, text: Written) -> int:
        """How much of the text stands before all messages."""
        if not text.text.startswith(self.facts.start):
            raise DataError(
                f"the chat template begins this conversation without {self.facts.start!r}, and "
                "others with it; choose another renderer"
            )
        return len(self.facts.start)

    def _cuts(
        self, turns: "_Conversation", messages: Sequence[Message], text: Written
    ) -> list["_Cut"]:
        """Where each message's output is; one that has no turn has an empty one."""
        said = turns.turns(text)[: len(messages)]
        begins: list[int | None] = [turn and turn.begin for turn in said]
        asked = [True] * len(messages)
        for index, message in enumerate(messages):
            if message.role == "assistant":
                prompt = self._prompt(turns, messages[:index])
                asked[index] = prompt is not None and text.begins_with(prompt)
                if prompt is not None and asked[index]:
                    begins[index] = len(prompt.text)
                else:
                    begins[index] = self._after_header(text, said, index)
        cuts: list[_Cut] = []
        at = len(self.facts.start)
        for index, (begin, turn) in enumerate(zip(begins, said, strict=True)):
            begin = at if begin is None else max(at, begin)
            later = (b for b in islice(begins, index + 1, None) if b is not None)
            after = next(later, len(text.text))
            if begins[index] is not None:
                at = self._end(text, max(begin, turn.end if turn else begin), max(begin, after))
            cuts.append(_Cut(begin, max(begin, at), asked[index]))
        return cuts

    def _after_header(
        self, text: Written, said: Sequence["_Turn | None"], index: int
    ) -> int | None:
        """Where a response begins in history that is not as it was when it was asked for."""
        # Turns stand in order.
        before = next((turn.end for turn in reversed(said[:index]) if turn), 0)
        after = next((turn.begin for turn in said[index:] if turn), len(text.text))
        header = text.text.rfind(self.facts.header, before, after) if self.facts.header else -1
        turn = said[index]
        return header + len(self.facts.header) if header >= 0 else turn and turn.begin

    def _end(self, text: Written, after: int, limit: int) -> int:
        """Where an output ends whose last word ends at `after`."""
        controls = list(self.script.own_controls(text, after, limit))
        ends = (token.end for token in controls if token.id in self.facts.ends)
        return next(ends, controls[0].begin if controls else limit)

    def _prompt(self, turns: "_Conversation", messages: Sequence[Message]) -> Written | None:
        """What asks for a response to the first messages, if the template lets it be asked for."""
        if self.prompts is None:
            return self._found_prompt(turns, messages)
        if len(messages) not in self.prompts:
            self.prompts[len(messages)] = self._found_prompt(turns, messages)
        return self.prompts[len(messages)]

    def _found_prompt(self, turns: "_Conversation", messages: Sequence[Message]) -> Written | None:
        try:
            if any(map(_has_entry, messages)):
                return turns.written(len(messages), asks=True)
            return self._opened(messages, "assistant")[1]
        except DataError:
            return None

    def _opened(self, messages: Sequence[Message], role: str) -> tuple["_Conversation", Written]:
        """What stands before a message that a template can write but not ask for."""
        turns = self.script.conversation([*messages, Message(role=role, content="said")])
        text = turns.verified(asks=False)
        turn = turns.turns(text)[-1]
        if turn is None:
            raise DataError(f"the chat template gives a {role} no turn after this conversation")
        before = text.until(turn.begin)
        # Some formats open a response further than their prompts do.
        header = before.text.rfind(self.facts.header) if self.facts.header else -1
        if role == "assistant" and header >= 0:
            before = before.until(header + len(self.facts.header))
        return turns, before

    def parse(self, tokens: list[int]) -> ParsedResponse:
        stops = [index for index, token in enumerate(tokens) if token in self.facts.stops]
        said = self.codec.decode(tokens[: stops[0]] if stops else tokens)
        if stops:
            said = said.removeprefix(self.facts.before).removesuffix(self.facts.after)
        is_clean = len(stops) == 1
        return ParsedResponse(
            Message(role="assistant", content=said),
            ParseTermination.STOP_SEQUENCE if is_clean else ParseTermination.MALFORMED,
        )


def _remembering(layout: Layout) -> Layout:
    """One that renders each prompt once, for one conversation and its beginnings."""
    return replace(layout, prompts={}) if isinstance(layout, _Template) else layout


class _Cut(NamedTuple):
    """Where an output is, and whether the text up to there is the prompt that asks for it."""

    begin: int
    end: int
    is_asked: bool


_UNPRODUCIBLE = (
    "the chat template writes this response otherwise than its own prompt begins it, so it cannot "
    "be trained on as the last one; where the prompt opens the reasoning, give the response some "
    "as a part of its own, or choose another renderer"
)
