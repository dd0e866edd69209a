"""What is said by whom, and the dictionaries people write it down as."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cookbook_fx.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")

# Keys that carry something a model would read or learn; dropping one would change the
# conversation without a word. Any other extra key is taken for the file's own bookkeeping.
_UNSUPPORTED_KEYS = (
    "tool_calls",
    "function_call",
    "tool_call_id",
    "name",
    "thinking",
    "reasoning",
    "reasoning_content",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Args:
        role: who speaks, one of `ROLES`. Renderers write it into a header, so no other text
            is let in.
        content: what is said.
        trainable: whether to train on it, for `TrainOnWhat.CUSTOMIZED` alone; None is unsaid.

    Raises:
        DataError: the role is not one of `ROLES`, or the content is not Unicode text.

    Example:
        >>> Message(role="user", content="Good morning.").role
        'user'
    """

    role: str
    content: str
    trainable: bool | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"a role must be one of {', '.join(ROLES)}; got {self.role!r}")
        if not _is_unicode(self.content):
            raise DataError(f"the content is not Unicode text: {_shown(self.content)}")


Conversation = tuple[Message, ...]


def conversation_from_dict(row: Mapping[str, Any]) -> Conversation:
    """Read one record of a conversation file.

    Args:
        row: `{"messages": [{"role": ..., "content": ..., "trainable": ...}, ...]}`. `trainable`
            may be absent or null. Other keys are ignored, except those that hold a part of the
            conversation, such as `tool_calls`: these must be absent, null or empty.

    Raises:
        DataError: there are no messages, or one of them cannot be used as it is; the text says
            which, counting from 0.

    Example:
        >>> conversation_from_dict({"messages": [{"role": "user", "content": "Hi"}]})
        (Message(role='user', content='Hi', trainable=None),)
    """
    messages = row.get("messages")
    if not isinstance(messages, list | tuple):
        raise DataError(
            'a conversation must be {"messages": [{"role": ..., "content": ...}, ...]}; '
            f"got {_shown(messages)} under messages"
        )
    if not messages:
        raise DataError("a conversation needs at least one message, got an empty list")
    return tuple(_message_from_dict(message, index) for index, message in enumerate(messages))


def message_to_dict(message: Message) -> dict[str, Any]:
    """The dictionary `conversation_from_dict` reads back; `trainable` only where it is said.

    Example:
        >>> message_to_dict(Message(role="user", content="Hi"))
        {'role': 'user', 'content': 'Hi'}
    """
    said = {} if message.trainable is None else {"trainable": message.trainable}
    return {"role": message.role, "content": message.content} | said


def _message_from_dict(message: Any, index: int) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(
            f'message {index}: must be {{"role": ..., "content": ...}}, got {_shown(message)}'
        )
    role, content, trainable = (message.get(key) for key in ("role", "content", "trainable"))
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(
            f"message {index}: `role` must be one of {', '.join(ROLES)}; got {_shown(role)}"
        )
    if not isinstance(content, str):
        raise DataError(f"message {index}: `content` must be a string, got {_shown(content)}")
    if not _is_unicode(content):
        raise DataError(f"message {index}: `content` is not Unicode text: {_shown(content)}")
    if trainable is not None and not isinstance(trainable, bool):
        raise DataError(
            f"message {index}: `trainable` must be true, false or null, got {_shown(trainable)}"
        )
    for key in _UNSUPPORTED_KEYS:
        if message.get(key):
            raise DataError(
                f"message {index}: `{key}` cannot be rendered; remove it or write it into `content`"
            )
    return Message(role=role, content=content, trainable=trainable)


def _is_unicode(text: str) -> bool:
    # JSON and the command line can bring in half a surrogate pair; no tokenizer reads one.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
