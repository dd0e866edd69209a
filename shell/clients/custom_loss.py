"""Any loss of log-probabilities on any engine, differentiated here by JAX.

The engine is asked for a forward pass. The gradient of the loss by each log-probability is found
here, and sent back as the weights of a cross-entropy: -Σ w·log p with w = -∂loss/∂log p has the
gradient of the loss.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cookbook_fx.data import Datum, power_of_two
from cookbook_fx.errors import ConfigurationError, DataError
from shell.clients.convert import ForwardResult
from shell.clients.pending import Pending
from shell.clients.training import Trainer

Inputs = TypeVar("Inputs")
Metrics = TypeVar("Metrics")
CustomLoss = Callable[
    [Float[Array, "datum token ..."], Float[Array, "datum token ..."], Inputs],
    tuple[Float[Array, ""], Metrics],
]
"""(logprobs, weights, inputs) -> (loss, metrics), to be traced by JAX.

`logprobs` (nats) and `weights` hold each datum's targets in a row, with zeros behind them: a loss
gives the padding no part by counting targets in proportion to their weights. Of datums without
weights all targets have 1. `inputs` is the caller's, any pytree of arrays.
"""

# Widths are powers of two from here on: every new one compiles the loss anew.
_NARROWEST = 64


class CustomResult(NamedTuple, Generic[Metrics]):
    """What a pass with a loss of one's own gave.

    Fields:
        loss: its value.
        metrics: what it returned besides, as NumPy arrays.
        logprobs: per datum, the log-probability (nats) of each target.
    """

    loss: float
    metrics: Metrics
    logprobs: tuple[Float[np.ndarray, "..."], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CustomPass(Generic[Inputs, Metrics]):
    """A forward pass on its way, and the loss that its answer is for; `await` it for the result.

    The backward pass can only be sent once the forward pass is answered. Whatever has to come after
    it, an optimizer step above all, is submitted after `backward` has returned.
    """

    trainer: Trainer
    data: Sequence[Datum]
    loss: CustomLoss[Inputs, Metrics]
    forward: Pending[ForwardResult]

    async def backward(self, inputs: Inputs) -> Pending[CustomResult[Metrics]]:
        """Waits for the forward pass, differentiates, and submits the backward pass.

        Args:
            inputs: what the loss is told besides; it may have become known only now.

        Raises:
            DataError: a gradient is not a finite number.
            ServiceError: the forward pass failed.
        """
        result = await self.forward
        measured, data = await asyncio.to_thread(
            _differentiated, self.loss, self.data, result.logprobs, inputs
        )
        backward = self.trainer.forward_backward(data)

        def convert(answer: Any) -> CustomResult[Metrics]:
            backward.convert(answer)
            return measured

        return Pending(future=backward.future, convert=convert, doing=backward.doing)


def forward_backward_custom(
    trainer: Trainer,
    data: Sequence[Datum],
    loss: CustomLoss[Inputs, Metrics],
) -> CustomPass[Inputs, Metrics]:
    """Adds the gradients of a loss of one's own to those waiting for an optimizer step.

    The forward pass is submitted at once. Of several batches, all can be on their way before the
    first backward pass is:

        passes = [forward_backward_custom(trainer, batch, loss) for batch in batches]
        answers = [await each.backward(inputs) for each in passes]
        update = trainer.optim_step(adam)

    Args:
        trainer: whose weights to differentiate by.
        data: datums; of their columns the engine sees tokens, targets and weights.
        loss: as `CustomLoss` says. The same function compiles once for each size of batch, so
            what changes from batch to batch belongs into `inputs`.

    Raises:
        ConfigurationError: there are no data.
    """
    if not data:
        raise ConfigurationError("a custom loss needs at least one datum, got none")
    sent = [
        Datum(tokens=d.tokens, target_tokens=d.target_tokens, weights=_weights(d)) for d in data
    ]
    return CustomPass(trainer=trainer, data=sent, loss=loss, forward=trainer.forward(sent))


def _weights(datum: Datum) -> Float[np.ndarray, "..."]:
    if datum.weights is None:
        return np.ones(datum.target_tokens.shape, np.float32)
    return datum.weights


def _differentiated(
    loss: CustomLoss[Inputs, Metrics],
    data: Sequence[Datum],
    logprobs: Sequence[Float[np.ndarray, "..."]],
    inputs: Inputs,
) -> tuple[CustomResult[Metrics], list[Datum]]:
    """The loss, and the datums whose cross-entropy has its gradient."""
    value, metrics, gradients = jax.device_get(
        _value_and_gradients(
            loss, _padded(logprobs), _padded([_weights(datum) for datum in data]), inputs
        )
    )
    sent = []
    for index, (datum, gradient) in enumerate(zip(data, gradients, strict=True)):
        own = gradient[tuple(slice(size) for size in datum.target_tokens.shape)]
        if not np.isfinite(own).all():
            raise DataError(
                f"the loss is {value} and its gradient by the log-probabilities of datum {index} "
                "is not finite; nothing was sent to the engine"
            )
        sent.append(replace(datum, weights=-own))
    return CustomResult(float(value), metrics, tuple(logprobs)), sent


def _padded(columns: Sequence[Float[np.ndarray, "..."]]) -> Float[np.ndarray, "datum token ..."]:
    """Columns of different lengths as one array with zeros behind them."""
    width = max(_NARROWEST, power_of_two(max(len(column) for column in columns)))
    candidates = tuple(np.max([column.shape[1:] for column in columns], axis=0).astype(int))
    padded = np.zeros((len(columns), width, *candidates), np.float32)
    for row, column in zip(padded, columns, strict=True):
        row[tuple(slice(size) for size in column.shape)] = column
    return padded


@partial(jax.jit, static_argnames="loss")
def _value_and_gradients(
    loss: CustomLoss[Inputs, Metrics], logprobs: Array, weights: Array, inputs: Inputs
) -> tuple[Array, Metrics, Array]:
    (value, metrics), gradients = jax.value_and_grad(
        lambda varied: loss(varied, jnp.asarray(weights), inputs), has_aux=True
    )(logprobs)
    return value, metrics, gradients
