"""How well the weights predict held-out text."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.reports import EvaluationReport
from cookbook_fx.supervised import likelihood_report
from shell.clients import ForwardResult, Pending, Sampler, Trainer
from shell.rollouts.references import scores


class SubmittedEvaluation(NamedTuple):
    """An evaluation under way: what was sent and the answers to wait for."""

    data: tuple[Datum, ...]
    answers: tuple[Pending[ForwardResult], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NLLEvaluator:
    """Mean NLL and bits per byte of a fixed set of examples.

    Args:
        data: the held-out examples.
        byte_lengths: bytes of text of each token id, 0 for control tokens; without it there are no
            bits per byte.
        batch_size: examples in one request, so that a large set makes no giant one.
        name: what the measurements are filed under.

    Raises:
        ConfigurationError: there are no examples, or the batch size is below 1.
    """

    data: tuple[Datum, ...]
    byte_lengths: Int[np.ndarray, " vocab"] | None = None
    batch_size: int = 64
    name: str = "test"

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigurationError("an evaluation needs at least one example, got none")
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {self.batch_size}")

    def submit(self, trainer: Trainer) -> SubmittedEvaluation:
        """Sends the forward passes; they see the weights as of now, whenever they are awaited."""
        batches = [
            self.data[start : start + self.batch_size]
            for start in range(0, len(self.data), self.batch_size)
        ]
        return SubmittedEvaluation(
            data=self.data, answers=tuple(trainer.forward(batch) for batch in batches)
        )

    async def measure(self, submitted: SubmittedEvaluation) -> EvaluationReport:
        """Waits for the answers."""
        results = [await answer for answer in submitted.answers]
        logprobs = [value for result in results for value in result.logprobs]
        return EvaluationReport(
            name=self.name,
            likelihood=likelihood_report(submitted.data, logprobs, byte_lengths=self.byte_lengths),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplerNLLEvaluator:
    """The same numbers of weights that are not in training, such as a base model's.

    Each target is a token, not several with shares.

    Args:
        data: the held-out examples.
        byte_lengths: bytes of text of each token id, 0 for control tokens; without it there are no
            bits per byte.
        name: what the measurements are filed under.

    Raises:
        ConfigurationError: there are no examples.
    """

    data: tuple[Datum, ...]
    byte_lengths: Int[np.ndarray, " vocab"] | None = None
    name: str = "test"

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigurationError("an evaluation needs at least one example, got none")

    async def __call__(self, sampler: Sampler, *, seed: int) -> tuple[EvaluationReport]:
        """Scores the examples; the seed changes nothing."""
        sequences = [np.append(datum.tokens, datum.target_tokens[-1:]) for datum in self.data]
        logprobs = [row[1:] for row in await scores(sampler, sequences)]
        likelihood = likelihood_report(self.data, logprobs, byte_lengths=self.byte_lengths)
        return (EvaluationReport(name=self.name, likelihood=likelihood),)
