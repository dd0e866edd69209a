"""The one crossing between the library's records and the SDK's: arrays in, arrays out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tinker
from jaxtyping import Float, Int

from cookbook_fx.data import Datum
from cookbook_fx.lm import AdamParams


class ForwardResult(NamedTuple):
    """What a forward or forward-backward pass measured.

    Fields:
        loss_sum: the loss summed over all targets of all datums; None from an engine that does
            not say, as SkyRL's.
        logprobs: per datum, the log-probability (nats) of each target.
    """

    loss_sum: float | None
    logprobs: tuple[Float[np.ndarray, "..."], ...]


class OptimResult(NamedTuple):
    """What the engine said of an optimizer step: measurements by the names it gives them."""

    metrics: dict[str, float]


class Sample(NamedTuple):
    """One completion: its tokens, their log-probabilities (nats), why it ended."""

    tokens: Int[np.ndarray, " token"]
    logprobs: Float[np.ndarray, " token"]
    stop_reason: str


def to_sdk_datum(datum: Datum) -> tinker.Datum:
    """A Datum as the SDK sends it; columns that are None are left out."""
    columns = {
        "target_tokens": datum.target_tokens.astype(np.int64),
        "weights": datum.weights,
        "logprobs": datum.logprobs,
        "advantages": datum.advantages,
    }
    return tinker.Datum(
        model_input=to_sdk_prompt(datum.tokens),
        loss_fn_inputs={name: column for name, column in columns.items() if column is not None},
    )


def to_sdk_prompt(tokens: Int[np.ndarray, " token"]) -> tinker.ModelInput:
    """Token ids as one chunk of text."""
    return tinker.ModelInput.from_ints(tokens.tolist())


def to_sdk_adam(adam: AdamParams) -> tinker.AdamParams:
    """The optimizer's settings of one step."""
    return tinker.AdamParams(
        learning_rate=adam.learning_rate,
        beta1=adam.beta1,
        beta2=adam.beta2,
        eps=adam.eps,
        weight_decay=adam.weight_decay,
        grad_clip_norm=adam.grad_clip_norm,
    )


def from_sdk_forward(output: tinker.ForwardBackwardOutput) -> ForwardResult:
    """Log-probabilities as arrays, in the order of the datums."""
    return ForwardResult(
        loss_sum=output.metrics.get("loss:sum"),
        logprobs=tuple(fields["logprobs"].to_numpy() for fields in output.loss_fn_outputs),
    )


def from_sdk_optim(response: tinker.OptimStepResponse) -> OptimResult:
    """The engine's measurements of a step; none is fine."""
    return OptimResult(metrics=dict(response.metrics or {}))


def from_sdk_samples(response: tinker.SampleResponse) -> tuple[Sample, ...]:
    """The completions in the order of the answer."""
    return tuple(
        Sample(
            tokens=_array(sequence.tokens_np, np.int32),
            logprobs=_array(sequence.logprobs_np, np.float32),
            stop_reason=str(sequence.stop_reason),
        )
        for sequence in response.sequences
    )


def to_sdk_data(data: Sequence[Datum]) -> list[tinker.Datum]:
    """A batch of datums, in order."""
    return [to_sdk_datum(datum) for datum in data]


def _array(values: np.ndarray | None, dtype: type[np.generic]) -> np.ndarray:
    # The SDK decodes an empty array as None.
    return np.zeros(0, dtype) if values is None else np.asarray(values, dtype)
