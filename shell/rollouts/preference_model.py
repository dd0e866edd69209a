"""Models that say which of two completions is better."""

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from cookbook_fx.errors import ServiceError
from cookbook_fx.preference import (
    LABELS,
    Comparison,
    ComparisonRendererFromChatRenderer,
    Label,
)
from cookbook_fx.renderers import Renderer
from shell.clients import Sampler

# As many as engines tell; a model that was trained on labels has them among the first three.
_LIKELIEST = 20


@runtime_checkable
class PreferenceModel(Protocol):
    """Whatever compares two completions."""

    async def __call__(self, comparison: Comparison) -> float:
        """-1 where A is surely the better one, 1 where B is, 0 for neither."""


class LabelProbabilities(NamedTuple):
    """How likely each label is, of the three together.

    Fields:
        A: that A is preferred.
        B: that B is preferred.
        tie: that neither is.
    """

    A: float
    B: float
    tie: float

    @property
    def score(self) -> float:
        """The expected value of -1 for A, 1 for B and 0 for a tie."""
        return self.B - self.A


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreferenceModelFromChatRenderer:
    """A model trained to say a label after a comparison, as `ComparisonDataset` trains it.

    Its whole opinion is used, not only the likeliest label, so that it can be a little in favour.

    Args:
        renderer: the chat format it was trained in.
        sampler: the model.

    Raises:
        ModelError: the tokenizer does not tell the labels apart.
    """

    renderer: Renderer
    sampler: Sampler
    _comparisons: ComparisonRendererFromChatRenderer = field(init=False)

    def __post_init__(self) -> None:
        comparisons = ComparisonRendererFromChatRenderer(renderer=self.renderer)
        object.__setattr__(self, "_comparisons", comparisons)

    async def __call__(self, comparison: Comparison) -> float:
        """-1 where A is surely the better one, 1 where B is, 0 for neither."""
        return (await self.label_probabilities(comparison)).score

    async def label_probabilities(self, comparison: Comparison) -> LabelProbabilities:
        """How likely the model is to say each label, were it to say one of them.

        One request, where each label is one of the likeliest tokens; else one more for each label
        that is not, or that takes several tokens to be told from the others.

        Raises:
            ServiceError: the engine fails.
        """
        prompt = self._comparisons.build_generation_prompt(comparison)
        tokens = self._comparisons.label_tokens
        known: dict[Label, float] = {}
        if len(tokens["A"]) == 1:
            likeliest = await self.sampler.next_tokens(prompt, top_k=_LIKELIEST)
            found = dict(zip(likeliest.ids.tolist(), likeliest.logprobs.tolist(), strict=True))
            known = {
                label: found[tokens[label][0]] for label in LABELS if tokens[label][0] in found
            }
        asked = [label for label in LABELS if label not in known]
        async with asyncio.TaskGroup() as group:
            tasks = {
                label: group.create_task(self._logprob(prompt, tokens[label])) for label in asked
            }
        known |= {label: task.result() for label, task in tasks.items()}
        logprobs = np.array([known[label] for label in LABELS])
        if not np.isfinite(logprobs.max()):
            raise ServiceError(
                f"the engine's log-probabilities of {', '.join(LABELS)} are {logprobs.tolist()}; "
                "one of them at least must be a number"
            )
        shares = np.exp(logprobs - logprobs.max())
        return LabelProbabilities(*(shares / shares.sum()).tolist())

    async def _logprob(self, prompt: Int[np.ndarray, " token"], label: tuple[int, ...]) -> float:
        """The log-probability (nats) of a label's tokens after a prompt."""
        scored = await self.sampler.score(np.append(prompt, np.asarray(label, prompt.dtype)))
        return float(scored[-len(label) :].sum())
