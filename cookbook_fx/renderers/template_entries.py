"""Messages as chat templates are given them, what is said in them marked or plain."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cookbook_fx.chat import ImagePart, Message, TextPart, ToolCall, tool_to_dict
from cookbook_fx.errors import DataError


class Source(NamedTuple):
    """Where a said text is from: the message, what it is of it, and whether it must be written.

    What `is_turn` tells of where the message is.
    """

    message: int
    what: str
    is_required: bool
    is_turn: bool = True


Say = Callable[[str, Source], str]
"""Makes what a template is given of a text and where it is from."""


def plain(text: str, _: Source) -> str:
    """A way to `say` text: as it is."""
    return text


class Form(NamedTuple):
    """How a template is given messages.

    Args:
        say: makes what is said of a text.
        produced: which message is the response to train on.
        reads_text: arguments of calls are JSON text, not objects.
    """

    say: Say
    produced: int | None
    reads_text: bool


class Entries(NamedTuple):
    """What a template is given: an entry a message (None: it only declares tools), and tools."""

    messages: list[dict[str, Any] | None]
    tools: list[dict[str, Any]] | None


def entries(messages: Sequence[Message], form: Form) -> Entries:
    """The messages as templates expect them.

    Raises:
        DataError: a template cannot be given one of them.
    """
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
    return Entries(
        [_entry(index, message, form) for index, message in enumerate(messages)], tools or None
    )


def _entry(index: int, message: Message, form: Form) -> dict[str, Any] | None:
    _refuse_what_has_no_entry(index, message)
    if not has_entry(message):
        return None
    say = form.say
    entry: dict[str, Any] = {"role": message.role}
    if message.thinking:
        # gpt-oss knows it by the second name.
        source = Source(index, "reasoning", is_required=index == form.produced)
        reasoning = say(message.thinking, source)
        entry |= {"reasoning_content": reasoning, "thinking": reasoning}
    is_blank = not message.text.strip()
    entry["content"] = say(message.text, Source(index, "text", is_required=not is_blank))
    aside = Source(index, "tool's name", is_required=False, is_turn=False)
    for key, named in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if named is not None:
            entry[key] = say(named, aside)
    if message.tool_calls:
        entry["tool_calls"] = [_call(call, index, form) for call in message.tool_calls]
    return entry


def has_entry(message: Message) -> bool:
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


def _call(call: ToolCall, index: int, form: Form) -> dict[str, Any]:
    say, source = form.say, Source(index, "tool calls", is_required=True)
    parsed = call.parsed_arguments
    arguments = parsed if isinstance(parsed, dict) and not form.reads_text else call.arguments
    function = {
        "name": say(call.name, source),
        "arguments": _said_inside(arguments, say, source),
    }
    aside = source._replace(is_required=False, is_turn=False)
    identity = {} if call.id is None else {"id": say(call.id, aside)}
    return {**identity, "type": "function", "function": function}


def _tool(tool: dict[str, Any], say: Say) -> dict[str, Any]:
    """A declaration; templates leave out what they do not know of one, but not its name."""
    name = Source(0, "tools", is_required=True, is_turn=False)
    detail = name._replace(is_required=False)
    function = {
        key: say(value, name) if key == "name" else _said_inside(value, say, detail)
        for key, value in tool["function"].items()
    }
    return {**tool, "function": function}


def _said_inside(value: Any, say: Say, source: Source) -> Any:
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
