"""What is said by whom."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cookbook_fx.chat.parts import (
    Part,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
    check_unicode,
)
from cookbook_fx.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Args:
        role: who speaks, one of `ROLES`. Renderers write it into a header, so no other text
            is let in.
        content: what is said: text, or parts in the order they were produced.
        tool_calls: the assistant's calls, after what is said.
        unparsed_tool_calls: what the assistant wrote that looks like a call and is none.
        tool_call_id: the call that a tool's message answers.
        name: the tool whose message this is.
        tools: what the model is told it may call; the system's or developer's to say.
        trainable: whether to train on it, for `TrainOnWhat.CUSTOMIZED` alone; None is unsaid.

    Raises:
        DataError: the role is not one of `ROLES`, the content is not Unicode text, or the role is
            not the one to say what is said: only the assistant reasons and calls tools, only a
            tool has a tool's name and answers a call, only system and developer declare tools.

    Example:
        >>> Message(role="user", content="Good morning.").role
        'user'
        >>> reply = Message(role="assistant", content=(
        ...     ThinkingPart(thinking="Be polite."), TextPart(text="Good morning.")))
        >>> reply.text, reply.thinking
        ('Good morning.', 'Be polite.')
    """

    role: str
    content: str | tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    unparsed_tool_calls: tuple[UnparsedToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    trainable: bool | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"a role must be one of {', '.join(ROLES)}; got {self.role!r}")
        if isinstance(self.content, str):
            check_unicode(self.content, "the content")
        for said in (self.name, self.tool_call_id):
            check_unicode(said or "", "the tool's name or call")
        has_calls = bool(self.tool_calls or self.unparsed_tool_calls)
        if self.role != "assistant" and (has_calls or self.thinking):
            raise DataError(f"only the assistant reasons and calls tools, got a {self.role}'s")
        if self.role != "tool" and (self.name is not None or self.tool_call_id is not None):
            raise DataError(
                f"only a tool's message has a `name` or `tool_call_id`, got a {self.role}'s"
            )
        if self.role not in ("system", "developer") and self.tools:
            raise DataError(f"only system and developer declare tools, got a {self.role}'s")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as parts, whichever way it was given; none for an empty text."""
        if isinstance(self.content, str):
            return (TextPart(text=self.content),) if self.content else ()
        return self.content

    @property
    def text(self) -> str:
        """What is said, reasoning and images left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def thinking(self) -> str:
        """The reasoning, what is said left out."""
        if isinstance(self.content, str):
            return ""
        return "".join(part.thinking for part in self.content if isinstance(part, ThinkingPart))


Conversation = tuple[Message, ...]


def declaring_tools(conversation: Conversation, tools: Sequence[ToolSpec]) -> Conversation:
    """The conversation in which a model is told of tools from the start.

    Its first message declares them if that is the system's or developer's, else an empty system
    message put before it.

    Raises:
        DataError: the first message declares tools already.

    Example:
        >>> now = ToolSpec(name="now", description="The time.", parameters={"type": "object"})
        >>> [m.role for m in declaring_tools((Message(role="user", content="Hi"),), [now])]
        ['system', 'user']
    """
    if not tools:
        return conversation
    if not conversation or conversation[0].role not in ("system", "developer"):
        return (Message(role="system", content="", tools=tuple(tools)), *conversation)
    first, *rest = conversation
    if first.tools:
        raise DataError("tools are declared both beside the messages and in message 0")
    return (replace(first, tools=tuple(tools)), *rest)


def content_of(parts: Sequence[Part]) -> str | tuple[Part, ...]:
    """The shortest content that holds these parts: a string where they are text alone.

    Empty parts say nothing and are left out; neighboring texts become one.

    Example:
        >>> content_of([TextPart(text="Good "), TextPart(text="morning.")])
        'Good morning.'
    """
    kept: list[Part] = []
    for part in parts:
        match part:
            case TextPart(text="") | ThinkingPart(thinking=""):
                continue
            case TextPart(text=text) if kept and isinstance(kept[-1], TextPart):
                kept[-1] = TextPart(text=kept[-1].text + text)
            case _:
                kept.append(part)
    if all(isinstance(part, TextPart) for part in kept):
        return "".join(part.text for part in kept if isinstance(part, TextPart))
    return tuple(kept)
