"""Comparisons as conversations, for a model that says which completion it prefers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from cookbook_fx.chat import Conversation, Message
from cookbook_fx.errors import ModelError
from cookbook_fx.preference.comparison import LABELS, Comparison, Label, LabeledComparison
from cookbook_fx.renderers import Renderer, SupervisedExample


@runtime_checkable
class ComparisonRenderer(Protocol):
    """How a model is shown a comparison and says a label."""

    @property
    def label_tokens(self) -> Mapping[Label, tuple[int, ...]]:
        """Of each label, the tokens of a response up to the one that tells the labels apart.

        All are equally long, and nearly always a single token.
        """

    def build_generation_prompt(self, comparison: Comparison) -> Int[np.ndarray, " token"]:
        """What to say a label after."""

    def build_supervised_example(self, labeled: LabeledComparison) -> SupervisedExample:
        """The prompt and the label's tokens, with weights of 1 at these alone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComparisonRendererFromChatRenderer:
    """Writes a comparison as a conversation in a chat format.

    The prompt, `==== Completion A ====`, the one completion, `==== Completion B ====`, the other,
    `==== Preference ====`, these three said by the system; then the assistant says the label.

    Args:
        renderer: the chat format.
        label_tokens: as in `ComparisonRenderer`; found, not given.

    Raises:
        ModelError: the format does not write a response after its own prompt, or writes two labels
            alike.
    """

    renderer: Renderer
    label_tokens: Mapping[Label, tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        responses = {label: _response(label, self.renderer) for label in LABELS}
        longest = min(map(len, responses.values()))
        decisive = next(
            (n for n in range(1, longest + 1) if len({r[:n] for r in responses.values()}) == 3),
            None,
        )
        if decisive is None:
            raise ModelError(
                f"the tokenizer does not tell {', '.join(LABELS)} apart after a prompt of the "
                f"renderer {self.renderer.name}; choose another renderer"
            )
        tokens = {label: response[:decisive] for label, response in responses.items()}
        object.__setattr__(self, "label_tokens", MappingProxyType(tokens))

    def build_generation_prompt(self, comparison: Comparison) -> Int[np.ndarray, " token"]:
        """What to say a label after."""
        return self.renderer.build_generation_prompt(_conversation(comparison))

    def build_supervised_example(self, labeled: LabeledComparison) -> SupervisedExample:
        """The prompt and the label's tokens, with weights of 1 at these alone."""
        prompt = self.build_generation_prompt(labeled.comparison)
        label = np.asarray(self.label_tokens[labeled.label], prompt.dtype)
        weights = np.repeat(np.array([0, 1], np.float32), [len(prompt), len(label)])
        return SupervisedExample(np.concatenate([prompt, label]), weights)


def _conversation(comparison: Comparison) -> Conversation:
    def marked(text: str) -> Message:
        return Message(role="system", content=f"==== {text} ====")

    return (
        *comparison.prompt_conversation,
        marked("Completion A"),
        *comparison.completion_A,
        marked("Completion B"),
        *comparison.completion_B,
        marked("Preference"),
    )


def _response(label: Label, renderer: Renderer) -> tuple[int, ...]:
    """The tokens a model that says this label is to sample.

    Completions do not change them: formats write a response after the header of its turn.
    """
    said = Message(role="assistant", content="Yes.")
    asked = Message(role="user", content="Is it so?")
    conversation = _conversation(
        Comparison(prompt_conversation=(asked,), completion_A=(said,), completion_B=(said,))
    )
    prompt = renderer.build_generation_prompt(conversation).tolist()
    answered = (*conversation, Message(role="assistant", content=label))
    tokens: Sequence[int] = renderer.build_supervised_example(answered).tokens.tolist()
    if list(tokens[: len(prompt)]) != prompt:
        raise ModelError(
            f"the renderer {renderer.name} does not write a response just after its own prompt; "
            "comparisons need one that does"
        )
    return tuple(tokens[len(prompt) :])
