"""How well the weights predict held-out text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics import bits_per_byte, mean_nll
from shell.clients import ForwardResult, Pending, Trainer


class Likelihood(NamedTuple):
    """How likely targets were.

    Fields:
        mean_nll: -Σ w·log p / Σ w, in nats a token.
        bits_per_byte: over the targets with a weight that stand for text.
        num_sequences: datums.
        num_tokens: tokens read.
        num_loss_tokens: targets whose weight is not 0.
    """

    mean_nll: float
    bits_per_byte: float
    num_sequences: int
    num_tokens: int
    num_loss_tokens: int


def likelihood(
    data: Sequence[Datum],
    logprobs: Sequence[Float[np.ndarray, "..."]],
    *,
    byte_lengths: Int[np.ndarray, " vocab"],
) -> Likelihood:
    """Measures datums from the log-probabilities of their targets.

    Args:
        data: at least one datum.
        logprobs: per datum, in nats, as an engine gives them.
        byte_lengths: UTF-8 bytes of each token's text; 0 for control tokens.
    """
    weights = np.concatenate([_weights(datum).ravel() for datum in data])
    targets = np.concatenate([datum.target_tokens.ravel() for datum in data])
    values = np.concatenate([value.ravel() for value in logprobs])
    target_bytes = byte_lengths[targets]
    is_text = (weights > 0) & (target_bytes > 0)
    return Likelihood(
        mean_nll=float(mean_nll(values, weights)),
        bits_per_byte=float(bits_per_byte(values, is_text, int(target_bytes[is_text].sum()))),
        num_sequences=len(data),
        num_tokens=sum(datum.length for datum in data),
        num_loss_tokens=int(np.count_nonzero(weights)),
    )


class Submitted(NamedTuple):
    """An evaluation under way: what was sent and the answers to wait for."""

    data: tuple[Datum, ...]
    answers: tuple[Pending[ForwardResult], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NLLEvaluator:
    """Mean NLL and bits per byte of a fixed set of examples.

    Args:
        data: the held-out examples.
        byte_lengths: UTF-8 bytes of each token's text; 0 for control tokens.
        batch_size: examples in one request, so that a large set makes no giant one.
        name: what the measurements are filed under.

    Raises:
        ConfigurationError: there are no examples, or the batch size is below 1.
    """

    data: tuple[Datum, ...]
    byte_lengths: Int[np.ndarray, " vocab"]
    batch_size: int = 64
    name: str = "test"

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigurationError("an evaluation needs at least one example, got none")
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {self.batch_size}")

    def submit(self, trainer: Trainer) -> Submitted:
        """Sends the forward passes; they see the weights as of now, whenever they are awaited."""
        batches = [
            self.data[start : start + self.batch_size]
            for start in range(0, len(self.data), self.batch_size)
        ]
        return Submitted(data=self.data, answers=tuple(trainer.forward(batch) for batch in batches))

    async def measure(self, submitted: Submitted) -> Likelihood:
        """Waits for the answers."""
        results = [await answer for answer in submitted.answers]
        logprobs = [value for result in results for value in result.logprobs]
        return likelihood(submitted.data, logprobs, byte_lengths=self.byte_lengths)


def _weights(datum: Datum) -> Float[np.ndarray, "..."]:
    if datum.weights is None:
        return np.ones(datum.target_tokens.shape, np.float32)
    return datum.weights
