"""How well the weights tell preferred completions from others, against a fixed reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.preference import (
    PairInputs,
    PreferenceObjective,
    PreferencePair,
    preference_loss,
    preference_report,
)
from cookbook_fx.reports import PreferenceEvaluationReport
from shell.clients import ForwardResult, Pending, Trainer


class ReferenceScores:
    """What completions' log-probabilities are under a model that stays as it is; asked for once.

    An engine's last bits depend on what it computes together. So pairs are always asked for in the
    same groups, and the numbers are the same in whatever order they are needed, by a run or by the
    one that continues it.

    Args:
        trainer: holds the reference's weights and is never trained; None for losses without a
            reference, which gives zeros.
        pairs: all there may be questions about.
        groups: the places in `pairs` that are asked for together; each place in one group.
    """

    def __init__(
        self,
        trainer: Trainer | None,
        pairs: Sequence[PreferencePair],
        *,
        groups: Sequence[Int[np.ndarray, " pair"]],
    ) -> None:
        self._trainer = trainer
        self._pairs = pairs
        self._groups = groups
        self._group_of = np.zeros(len(pairs), int)
        for number, group in enumerate(groups):
            self._group_of[group] = number
        self._scores = np.zeros((len(pairs), 2))
        self._asked: dict[int, Pending[ForwardResult] | None] = {}

    def ask(self, positions: Int[np.ndarray, " pair"]) -> None:
        """Sends what is not known of these pairs, without waiting."""
        if self._trainer is None:
            return
        for number in np.unique(self._group_of[positions]).tolist():
            if number not in self._asked:
                pairs = [self._pairs[place] for place in self._groups[number]]
                datums = [datum for pair in pairs for datum in pair.datums]
                self._asked[number] = self._trainer.forward(datums)

    async def at(self, positions: Int[np.ndarray, " pair"]) -> Float[np.ndarray, "pair 2"]:
        """The log-probabilities of these pairs' completions, chosen and rejected."""
        self.ask(positions)
        for number in np.unique(self._group_of[positions]).tolist():
            pending = self._asked.get(number)
            if pending is not None:
                group = self._groups[number]
                pairs = [self._pairs[place] for place in group]
                self._scores[group] = completion_sums(pairs, (await pending).logprobs)
                self._asked[number] = None
        return self._scores[positions]


def completion_sums(
    pairs: Sequence[PreferencePair],
    logprobs: Sequence[Float[np.ndarray, " token"]],
    *,
    average: bool = False,
) -> Float[np.ndarray, "pair 2"]:
    """Each completion's log-probability, of log-probabilities chosen, rejected, chosen and so on.

    Args:
        pairs: whose they are.
        logprobs: of each datum's targets, nats.
        average: means over a completion's tokens instead of sums.
    """
    datums = [datum for pair in pairs for datum in pair.datums]
    weights = [np.asarray(datum.weights, np.float64) for datum in datums]
    sums = [
        # Where the weight is 0 there may be anything.
        np.dot(np.where(weight == 0, 0, row.astype(np.float64)), weight)
        for row, weight in zip(logprobs, weights, strict=True)
    ]
    counts = [weight.sum() if average else 1.0 for weight in weights]
    return (np.array(sums) / np.array(counts)).reshape(-1, 2)


class SubmittedPreferences(NamedTuple):
    """An evaluation under way: the answers to wait for."""

    answers: tuple[Pending[ForwardResult], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreferenceEvaluator:
    """Loss, accuracy and rewards of a fixed set of pairs.

    Args:
        pairs: the held-out pairs.
        objective: the loss and its settings.
        reference: knows these pairs.
        batch_size: pairs in one request, so that a large set makes no giant one.
        name: what the measurements are filed under.

    Raises:
        ConfigurationError: there are no pairs, or the batch size is below 1.
    """

    pairs: tuple[PreferencePair, ...]
    objective: PreferenceObjective
    reference: ReferenceScores
    batch_size: int = 32
    name: str = "test"

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ConfigurationError("an evaluation needs at least one pair, got none")
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {self.batch_size}")

    def submit(self, trainer: Trainer) -> SubmittedPreferences:
        """Sends the forward passes; they see the weights as of now, whenever they are awaited."""
        self.reference.ask(np.arange(len(self.pairs)))
        batches = [
            self.pairs[start : start + self.batch_size]
            for start in range(0, len(self.pairs), self.batch_size)
        ]
        return SubmittedPreferences(
            tuple(trainer.forward([d for pair in batch for d in pair.datums]) for batch in batches)
        )

    async def measure(self, submitted: SubmittedPreferences) -> PreferenceEvaluationReport:
        """Waits for the answers."""
        logprobs = [row for answer in submitted.answers for row in (await answer).logprobs]
        inputs = PairInputs(
            reference=await self.reference.at(np.arange(len(self.pairs))),
            is_tie=np.array([pair.is_tie for pair in self.pairs]),
            settings=self.objective.all_settings,
        )
        completions = completion_sums(self.pairs, logprobs, average=self.objective.averages)
        _, metrics = preference_loss(completions, inputs, loss=self.objective.loss)
        return PreferenceEvaluationReport(
            name=self.name,
            preferences=preference_report(
                metrics,
                loss=self.objective.loss,
                num_tokens=sum(pair.num_tokens for pair in self.pairs),
            ),
        )
