"""Messages as the dictionaries people write them down as: OpenAI's chat format.

    {"role": "assistant", "content": "Let me look.", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]}

Read generously (what is absent, null and empty are the same; arguments may be text or an object;
reasoning may be a part or a key of its own), written in one form. Nothing is dropped in silence:
a key that would change the conversation and cannot be kept is refused.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cookbook_fx.chat.message import ROLES, Conversation, Message, content_of, declaring_tools
from cookbook_fx.chat.parts import (
    ImagePart,
    Part,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
    shown,
)
from cookbook_fx.errors import DataError

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Keys that carry something a model would read or learn. Any other extra key is taken for the
# file's own bookkeeping.
_REFUSED_KEYS = ("function_call", "audio", "refusal")


def conversation_from_dict(row: Mapping[str, Any]) -> Conversation:
    """Read one record of a conversation file.

    Args:
        row: `{"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}`. Each message as
            `message_from_dict` reads it. `tools`, where there are any, are declared by the first
            message if that is the system's or developer's, else by an empty system message put
            before it. Other keys are ignored.

    Raises:
        DataError: there are no messages, or one of them cannot be used as it is; the text says
            which, counting from 0.

    Example:
        >>> conversation_from_dict({"messages": [{"role": "user", "content": "Hi"}]})[0].text
        'Hi'
    """
    messages = row.get("messages")
    if not isinstance(messages, list | tuple):
        raise DataError(
            'a conversation must be {"messages": [{"role": ..., "content": ...}, ...]}; '
            f"got {shown(messages)} under messages"
        )
    if not messages:
        raise DataError("a conversation needs at least one message, got an empty list")
    conversation = tuple(_numbered(message, index) for index, message in enumerate(messages))
    return declaring_tools(conversation, _tools(row.get("tools")))


def conversation_to_dict(conversation: Sequence[Message]) -> dict[str, Any]:
    """The record `conversation_from_dict` reads back.

    Example:
        >>> conversation_to_dict([Message(role="user", content="Hi")])
        {'messages': [{'role': 'user', 'content': 'Hi'}]}
    """
    return {"messages": [message_to_dict(message) for message in conversation]}


def message_from_dict(message: Mapping[str, Any]) -> Message:
    """Read one message.

    Args:
        message: `role` and `content` (text, a list of parts, or null beside tool calls), and as
            the role has it: `tool_calls`, `reasoning_content` (or `reasoning`, `thinking`),
            `tool_call_id`, `name`, `tools`, `trainable`, `unparsed_tool_calls`. A part is
            `{"type": "text", "text": ...}`, `{"type": "thinking", "thinking": ...}` or
            `{"type": "image_url", "image_url": {"url": ...}}`.

    Raises:
        DataError: something is missing, of the wrong kind, or cannot be kept.

    Example:
        >>> message_from_dict({"role": "assistant", "content": None, "tool_calls": [
        ...     {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}).tool_calls
        (ToolCall(name='weather', arguments='{"city": "Oslo"}', id=None),)
    """
    for key in _REFUSED_KEYS:
        if message.get(key):
            raise DataError(f"`{key}` cannot be rendered; remove it or write it into `content`")
    role, trainable = message.get("role"), message.get("trainable")
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"`role` must be one of {', '.join(ROLES)}; got {shown(role)}")
    if trainable is not None and not isinstance(trainable, bool):
        raise DataError(f"`trainable` must be true, false or null, got {shown(trainable)}")
    calls = tuple(_tool_call(call) for call in _list(message, "tool_calls"))
    unparsed = tuple(_unparsed(call) for call in _list(message, "unparsed_tool_calls"))
    return Message(
        role=role,
        content=_content(message, may_be_absent=bool(calls or unparsed)),
        tool_calls=calls,
        unparsed_tool_calls=unparsed,
        tool_call_id=_text(message, "tool_call_id"),
        name=_text(message, "name"),
        tools=_tools(message.get("tools")),
        trainable=trainable,
    )


def message_to_dict(message: Message) -> dict[str, Any]:
    """The dictionary `message_from_dict` reads back; what is unsaid is left out.

    Parts are read back as `content_of` joins them, and an empty name or id as none.

    Example:
        >>> message_to_dict(Message(role="user", content="Hi"))
        {'role': 'user', 'content': 'Hi'}
    """
    content = message.content
    optional = {
        "tool_calls": [_tool_call_to_dict(call) for call in message.tool_calls],
        "unparsed_tool_calls": [
            {"raw_text": call.raw_text, "error": call.error} for call in message.unparsed_tool_calls
        ],
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "tools": [tool_to_dict(tool) for tool in message.tools],
        "trainable": message.trainable,
    }
    return {
        "role": message.role,
        "content": content if isinstance(content, str) else [_part_to_dict(p) for p in content],
    } | {key: value for key, value in optional.items() if value not in (None, [])}


def tool_from_dict(tool: Mapping[str, Any]) -> ToolSpec:
    """Read a tool's declaration, OpenAI's `{"type": "function", "function": {...}}` or its inside.

    Raises:
        DataError: it has no name, or a key is of the wrong kind.

    Example:
        >>> tool_from_dict({"name": "now", "description": "The time."}).parameters
        {'type': 'object', 'properties': {}}
    """
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f'a tool must be {{"name": ..., "parameters": ...}}, got {shown(tool)}')
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise DataError(f"a tool's `parameters` must be an object, got {shown(parameters)}")
    return ToolSpec(
        name=function["name"],
        description=_text(function, "description") or "",
        parameters=parameters,
    )


def tool_to_dict(tool: ToolSpec) -> dict[str, Any]:
    """The dictionary `tool_from_dict` reads back."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return {"type": "function", "function": function}


def _numbered(message: Any, index: int) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(
            f'message {index}: must be {{"role": ..., "content": ...}}, got {shown(message)}'
        )
    try:
        return message_from_dict(message)
    except DataError as error:
        raise DataError(f"message {index}: {error}") from error


def _content(message: Mapping[str, Any], *, may_be_absent: bool) -> str | tuple[Part, ...]:
    content = message.get("content")
    said_under = (_text(message, key) for key in _REASONING_KEYS)
    # Some servers write the same under two keys.
    reasoning = list(dict.fromkeys(said for said in said_under if said))
    if len(reasoning) > 1:
        raise DataError(f"the reasoning is given twice, otherwise: {shown(reasoning)}")
    if content is None and (may_be_absent or reasoning):
        content = ""
    if isinstance(content, str) and not reasoning:
        return content
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise DataError(f"`content` must be a string or a list of parts, got {shown(content)}")
    return content_of(
        [*(ThinkingPart(thinking=said) for said in reasoning), *(_part(p) for p in content)]
    )


def _part(part: Any) -> Part:
    match part:
        case {"type": "text", "text": str(text)}:
            return TextPart(text=text)
        case {"type": "thinking", "thinking": str(thinking)}:
            return ThinkingPart(thinking=thinking)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return ImagePart(image=url)
        case {"type": "image", "image": str(image)}:
            return ImagePart(image=image)
        case _:
            raise DataError(
                f"each part of `content` must be text, thinking or image_url; got {shown(part)}"
            )


def _part_to_dict(part: Part) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ThinkingPart():
            return {"type": "thinking", "thinking": part.thinking}
        case ImagePart():
            return {"type": "image_url", "image_url": {"url": part.image}}


def _tool_call(call: Any) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            'a tool call must be {"function": {"name": ..., "arguments": ...}}, '
            f"got {shown(call)}"
        )
    return ToolCall(
        name=function["name"], arguments=_arguments(function.get("arguments")), id=_text(call, "id")
    )


def _arguments(arguments: Any) -> str:
    if arguments is None or arguments == "":
        return "{}"
    if isinstance(arguments, str):
        return arguments
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"a call's arguments are not JSON: {error}") from error


def _tool_call_to_dict(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    said = {} if call.id is None else {"id": call.id}
    return said | {"type": "function", "function": function}


def _unparsed(call: Any) -> UnparsedToolCall:
    match call:
        case {"raw_text": str(raw_text), "error": str(error)}:
            return UnparsedToolCall(raw_text=raw_text, error=error)
        case _:
            raise DataError(
                f'an unparsed call must be {{"raw_text": ..., "error": ...}}, got {shown(call)}'
            )


def _tools(tools: Any) -> tuple[ToolSpec, ...]:
    if tools is not None and not isinstance(tools, list | tuple):
        raise DataError(f"`tools` must be a list, got {shown(tools)}")
    return tuple(tool_from_dict(tool) for tool in tools or ())


def _list(message: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = message.get(key)
    if value is not None and not isinstance(value, list | tuple):
        raise DataError(f"`{key}` must be a list, got {shown(value)}")
    return value or ()


def _text(message: Mapping[str, Any], key: str) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"`{key}` must be a string, got {shown(value)}")
    return value or None
