"""How well a model predicts a set of datums: the numbers of a training step or an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.data import Datum
from cookbook_fx.errors import DataError
from cookbook_fx.numerics import bits_per_byte, mean_nll


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelihoodReport:
    """Size of a set of datums and how likely its targets are.

    Args:
        num_sequences: datums.
        num_tokens: tokens the model read.
        num_loss_tokens: targets with a weight above 0, whatever the weights' scale.
        mean_nll: weighted mean, nats a token; the mean of the datums' means where each one's
            weights add up to 1. 0 where there is nothing to predict.
        bits_per_byte: over targets of text with a weight above 0, each counted once. None where
            the tokens' bytes are not known, or a position has several targets.
    """

    num_sequences: int
    num_tokens: int
    num_loss_tokens: int
    mean_nll: float
    bits_per_byte: float | None


def likelihood_report(
    datums: Sequence[Datum],
    logprobs: Sequence[Float[np.ndarray, "..."]],
    *,
    byte_lengths: Int[np.ndarray, " vocab"] | None = None,
) -> LikelihoodReport:
    """Sum up one batch or a whole held-out set.

    Args:
        datums: what was predicted.
        logprobs: of each datum's targets, in nats, in the shape of `target_tokens`.
        byte_lengths: bytes of text of each token id, 0 for control tokens, as
            `cookbook_fx.tokens.byte_lengths` finds them.

    Raises:
        DataError: logprobs do not fit the datums.
    """
    if [array.shape for array in logprobs] != [datum.target_tokens.shape for datum in datums]:
        raise DataError(
            "each datum needs logprobs in the shape of its targets, got "
            f"{[array.shape for array in logprobs]} for "
            f"{[datum.target_tokens.shape for datum in datums]}"
        )
    flat_logprobs = _flat([array.astype(np.float64) for array in logprobs])
    weights = _flat([_weights(datum) for datum in datums])
    is_counted = weights > 0
    bits = None
    if byte_lengths is not None and all(datum.target_tokens.ndim == 1 for datum in datums):
        num_bytes = byte_lengths[_flat([datum.target_tokens for datum in datums]).astype(np.int64)]
        is_text = is_counted & (num_bytes > 0)
        bits = float(bits_per_byte(flat_logprobs, is_text, int(num_bytes[is_text].sum())))
    return LikelihoodReport(
        num_sequences=len(datums),
        num_tokens=sum(datum.length for datum in datums),
        num_loss_tokens=int(is_counted.sum()),
        mean_nll=float(mean_nll(flat_logprobs, weights)),
        bits_per_byte=bits,
    )


def _weights(datum: Datum) -> Float[np.ndarray, "..."]:
    weights = np.ones(datum.target_tokens.shape) if datum.weights is None else datum.weights
    return weights.astype(np.float64)


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(array.ravel() for array in arrays)])
