"""What is found out of a chat template before it is used, by what it makes of a few messages."""

from collections.abc import Sequence
from typing import NamedTuple

from cookbook_fx.chat import Message, ToolCall
from cookbook_fx.errors import DataError
from cookbook_fx.renderers.template_script import Script


class Facts(NamedTuple):
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


QUESTION = Message(role="user", content="question")
ANSWER = Message(role="assistant", content="answer")
_CALL = Message(
    role="assistant",
    content="",
    tool_calls=(ToolCall(name="tool", arguments='{"key": "value"}', id="123456789"),),
)
_SPACED = tuple(
    Message(role=role, content=f" \n {role} \n ") for role in ("system", "user", "assistant")
)


def trimming_alike(script: Script) -> Script:
    """The script, told whether the template trims what it put together."""
    trimming = script._replace(trims=True)
    for spaced in (_SPACED, _SPACED[1:]):
        if not _follows(script, spaced) and _follows(trimming, spaced):
            return trimming
    return script


def reading_alike(script: Script) -> Script:
    """The script, told in which form to give the arguments of calls.

    As text they stay as they were written; but some templates read objects alone, some text alone.
    """
    reading = script._replace(reads_text=True)
    as_object, as_text = _called(script), _called(reading)
    # Single quotes are Python's, where an object was written out as if it were text.
    is_object_bad = as_object is None or "'key'" in as_object
    return reading if as_text is not None and (is_object_bad or as_text == as_object) else script


def _called(script: Script) -> str | None:
    """How a call is written; None if none can be."""
    try:
        return script.conversation([QUESTION, _CALL]).verified(asks=False).text
    except DataError:
        return None


def _follows(script: Script, messages: Sequence[Message]) -> bool:
    try:
        script.conversation(messages).verified(asks=False)
    except DataError:
        return False
    return True


def facts_of(script: Script, bos: int | None) -> Facts:
    """What there is to know of a template; `bos` is its tokenizer's token that begins sequences.

    Raises:
        DataError: the template refuses a question and an answer, or ends it with no token.
    """
    asked = script.conversation([QUESTION, ANSWER])
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
    return Facts(
        start=start,
        start_ids=(bos,) if start and bos is not None else (),
        header=prompt.text[len(history.text) :] if prompt.begins_with(history) else "",
        stops=tuple(dict.fromkeys([ends[0].id, *_end_of_call(script, ends[0].id)])),
        ends=frozenset([ends[0].id, *_end_in_history(script), *_end_of_call(script, ends[0].id)]),
        before=text.text[begin : answer.begin],
        after=text.text[answer.end : ends[0].begin],
    )


def _start(script: Script, bos: int | None) -> str:
    """The text of the token that begins a sequence, if it does so and nothing else."""
    turns = [QUESTION, ANSWER, QUESTION]
    text = script.conversation(turns).verified(asks=False)
    controls = list(script.own_controls(text, 0, len(text.text)))
    is_start = bool(controls) and controls[0].begin == 0 and controls[0].id == bos
    is_once = [token.id for token in controls].count(bos or 0) == 1
    return text.text[: controls[0].end] if is_start and is_once else ""


def _end_in_history(script: Script) -> list[int]:
    turns = script.conversation([QUESTION, ANSWER, QUESTION])
    text = turns.verified(asks=False)
    _, answer, after = turns.turns(text)
    if answer is None or after is None:
        return []
    return [token.id for token in script.own_controls(text, answer.end, after.begin)][:1]


def _end_of_call(script: Script, end: int) -> list[int]:
    """What ends a response that calls a tool, where the template lets tools be called."""
    called = script.conversation([QUESTION, _CALL])
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
