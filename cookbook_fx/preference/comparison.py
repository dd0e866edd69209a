"""Two completions of one prompt, which of them was preferred, and how people write that down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from cookbook_fx.chat import Conversation, Message, message_from_dict, message_to_dict
from cookbook_fx.chat.parts import shown
from cookbook_fx.errors import DataError

Label = Literal["A", "B", "Tie"]
LABELS: tuple[Label, ...] = ("A", "B", "Tie")
_SWAPPED: Mapping[Label, Label] = {"A": "B", "B": "A", "Tie": "Tie"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two completions of one prompt.

    Args:
        prompt_conversation: what both answer.
        completion_A: messages that continue it, the assistant's last.
        completion_B: the same.

    Raises:
        DataError: a completion does not end with a message of the assistant.

    Example:
        >>> short, long = (Message(role="assistant", content=text) for text in ("4.", "It is 4."))
        >>> question = Message(role="user", content="2 + 2?")
        >>> comparison = Comparison(
        ...     prompt_conversation=(question,), completion_A=(short,), completion_B=(long,))
        >>> comparison.swap().completion_A == (long,)
        True
    """

    prompt_conversation: Conversation
    completion_A: Conversation
    completion_B: Conversation

    def __post_init__(self) -> None:
        for name in ("completion_A", "completion_B"):
            completion = getattr(self, name)
            if not completion or completion[-1].role != "assistant":
                last = f"a message of the {completion[-1].role}" if completion else "no message"
                raise DataError(f"{name} must end with the assistant's message, got {last}")

    def swap(self) -> "Comparison":
        """The same with A and B exchanged."""
        return Comparison(
            prompt_conversation=self.prompt_conversation,
            completion_A=self.completion_B,
            completion_B=self.completion_A,
        )


class RankedCompletions(NamedTuple):
    """The completions by what is known of them; of a tie, in either order."""

    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledComparison:
    """A comparison and which of its completions was preferred; Tie for neither.

    Raises:
        DataError: the label is none of A, B and Tie.
    """

    comparison: Comparison
    label: Label

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise DataError(f"a label must be one of {', '.join(LABELS)}; got {shown(self.label)}")

    def swap(self) -> "LabeledComparison":
        """The same preference with A and B exchanged."""
        return LabeledComparison(comparison=self.comparison.swap(), label=_SWAPPED[self.label])

    @property
    def is_tie(self) -> bool:
        """Neither completion was preferred."""
        return self.label == "Tie"

    @property
    def ranked(self) -> RankedCompletions:
        """Which completion was chosen and which rejected; a tie has A first and means nothing."""
        ordered = self.comparison.swap() if self.label == "B" else self.comparison
        return RankedCompletions(ordered.completion_A, ordered.completion_B)


def labeled_comparison_from_dict(row: Mapping[str, Any]) -> LabeledComparison:
    """Reads one record of a file of preferences, in any of the usual forms.

    Args:
        row: either `{"comparison": {"prompt_conversation": [...], "completion_A": [...],
            "completion_B": [...]}, "label": "A", "B" or "Tie"}`, or `{"prompt": ..., "chosen": ...,
            "rejected": ...}`. Each of these is text, a message, or a list of messages; a message is
            `{"role": ..., "content": ...}` or ShareGPT's `{"from": "human", "value": ...}`. The
            prompt may stand under prompt, conversations, conversation, messages, question, or
            instruction and input, with a `system` text beside it; where chosen and rejected are
            whole conversations, it is what they begin with in common. Other keys are ignored.

    Raises:
        DataError: something is missing, of the wrong kind, or contradicts itself.

    Example:
        >>> row = {"prompt": "2 + 2?", "chosen": "4.", "rejected": "5."}
        >>> labeled = labeled_comparison_from_dict(row)
        >>> labeled.label, labeled.ranked.rejected[0].text
        ('A', '5.')
    """
    if "comparison" in row:
        return _from_comparison(row)
    if row.get("chosen") is None or row.get("rejected") is None:
        raise DataError(
            'a preference must be {"prompt": ..., "chosen": ..., "rejected": ...} or '
            f'{{"comparison": {{...}}, "label": ...}}; got the keys {shown(sorted(row))}'
        )
    prompt, found = _prompt(row)
    chosen = _messages(row["chosen"], "chosen", role="assistant")
    rejected = _messages(row["rejected"], "rejected", role="assistant")
    if found is None or chosen[0].role != "assistant" or rejected[0].role != "assistant":
        prompt, chosen, rejected = _split_off_prompt(prompt, chosen, rejected)
    comparison = Comparison(
        prompt_conversation=_with_system(row, prompt), completion_A=chosen, completion_B=rejected
    )
    return LabeledComparison(comparison=comparison, label="A")


def labeled_comparison_to_dict(labeled: LabeledComparison) -> dict[str, Any]:
    """The record `labeled_comparison_from_dict` reads back, in the form with a label."""
    comparison = labeled.comparison
    parts = {
        name: [message_to_dict(message) for message in getattr(comparison, name)]
        for name in ("prompt_conversation", "completion_A", "completion_B")
    }
    return {"comparison": parts, "label": labeled.label}


_PROMPT_KEYS = ("prompt", "conversations", "conversation", "messages", "question")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


def _from_comparison(row: Mapping[str, Any]) -> LabeledComparison:
    comparison, label = row["comparison"], row.get("label")
    names = ("prompt_conversation", "completion_A", "completion_B")
    if not isinstance(comparison, Mapping) or any(comparison.get(name) is None for name in names):
        raise DataError(f"`comparison` must hold {', '.join(names)}; got {shown(comparison)}")
    if label not in LABELS:
        raise DataError(f"`label` must be one of {', '.join(LABELS)}; got {shown(label)}")
    prompt, first, second = (
        _messages(comparison[name], name, role="user" if name == names[0] else "assistant")
        for name in names
    )
    return LabeledComparison(
        comparison=Comparison(prompt_conversation=prompt, completion_A=first, completion_B=second),
        label=label,
    )


def _prompt(row: Mapping[str, Any]) -> tuple[Conversation, str | None]:
    """What both answer and the key it stands under; nothing and None if the row does not say."""
    found = [key for key in _PROMPT_KEYS if row.get(key) is not None]
    if len(found) > 1:
        raise DataError(f"the prompt is given more than once, under {' and '.join(found)}")
    if found:
        return _messages(row[found[0]], found[0], role="user"), found[0]
    instruction = row.get("instruction")
    if instruction is None:
        return (), None
    asked = [instruction, row.get("input") or ""]
    if not all(isinstance(part, str) for part in asked):
        raise DataError(f"`instruction` and `input` must be text, got {shown(asked)}")
    text = "\n".join(part for part in asked if part)
    return (Message(role="user", content=text),), "instruction"


def _with_system(row: Mapping[str, Any], prompt: Conversation) -> Conversation:
    system = row.get("system") or ""
    if not isinstance(system, str):
        raise DataError(f"`system` must be text, got {shown(system)}")
    if not system:
        return prompt
    if prompt and prompt[0].role == "system":
        raise DataError("a system message is given both as `system` and in the conversation")
    return (Message(role="system", content=system), *prompt)


def _split_off_prompt(
    prompt: Conversation, chosen: Conversation, rejected: Conversation
) -> tuple[Conversation, Conversation, Conversation]:
    """The prompt and the completions of two whole conversations."""
    # What is left to compare has at least a message each, even if the two are the same.
    longest = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(longest) if chosen[i] != rejected[i]), longest)
    common = chosen[:shared]
    if not common:
        raise DataError(
            "there is no prompt: give one under `prompt`, or let `chosen` and `rejected` be "
            "conversations that begin alike"
        )
    if prompt and common[-len(prompt) :] != prompt:
        raise DataError(
            f"the prompt {shown(prompt[-1].text)} is not what `chosen` and `rejected` answer, "
            f"which is {shown(common[-1].text)}"
        )
    return common, chosen[shared:], rejected[shared:]


def _messages(value: Any, key: str, *, role: str) -> Conversation:
    """Text, one message or several, as messages; bare text is said by `role`."""
    if isinstance(value, str):
        return (Message(role=role, content=value),)
    given = [value] if isinstance(value, Mapping) else value
    if not isinstance(given, Sequence) or not given:
        raise DataError(f"`{key}` must be text or messages, got {shown(value)}")
    try:
        return tuple(_message(message) for message in given)
    except DataError as error:
        raise DataError(f"`{key}`: {error}") from error


def _message(message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(
            'a message must be {"role": ..., "content": ...} or {"from": ..., "value": ...}; '
            f"got {shown(message)}"
        )
    if "from" not in message:
        return message_from_dict(message)
    speaker, value = message["from"], message.get("value")
    role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None or not isinstance(value, str):
        raise DataError(
            f"`from` must be one of {', '.join(_SHAREGPT_ROLES)} and `value` text; "
            f"got {shown(speaker)} and {shown(value)}"
        )
    return Message(role=role, content=value)
