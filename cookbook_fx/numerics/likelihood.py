"""How well a model predicts tokens, from their log-probabilities.

Every function takes JAX arrays, under `jit`, `grad` and `vmap` too, and answers in JAX; given NumPy
arrays alone it answers in NumPy, without compiling anything. Log-probabilities are in nats. Where a
weight is 0 the log-probability is not looked at, so padding may hold anything, -inf included; where
it is not, -inf makes the likelihood infinitely bad and leaves the gradient finite.
"""

from math import log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer

from cookbook_fx.numerics.masked import AnyArray

# NumPy's sums over everything are scalars of a kind of their own.
Scalar = Float[AnyArray, ""] | np.floating


def weighted_nll(logprobs: Float[AnyArray, "*shape"], weights: Float[AnyArray, "*shape"]) -> Scalar:
    """-Σ wᵢ·log pᵢ, in nats: the cross-entropy loss as training engines sum it.

    Args:
        logprobs: of each target; anything where the weight is 0.
        weights: loss weight of each target, 0 at padding.

    Returns:
        0 for no tokens. At least float32.

    Example:
        >>> import numpy as np
        >>> float(weighted_nll(np.array([-1.0, -2.0, -np.inf]), np.array([1.0, 0.5, 0.0])))
        2.0
    """
    total: Scalar = -_sum(logprobs, weights)
    return total


def mean_nll(logprobs: Float[AnyArray, "*shape"], weights: Float[AnyArray, "*shape"]) -> Scalar:
    """-Σ wᵢ·log pᵢ / Σ wᵢ, in nats a token.

    Over a batch whose weights sum to 1 in each example this is the mean of the examples' means.

    Args:
        logprobs: of each target; anything where the weight is 0.
        weights: loss weight of each target, 0 at padding.

    Returns:
        0 where the weights sum to 0, as for no tokens. At least float32.

    Example:
        >>> import numpy as np
        >>> float(mean_nll(np.array([-1.0, -4.0]), np.array([2.0, 1.0])))
        2.0
    """
    xp = _namespace(weights)
    mean: Scalar = _ratio(weighted_nll(logprobs, weights), xp.sum(_wide(weights)))
    return mean


def example_mean_nll(
    logprobs: Float[AnyArray, "*datum token"], weights: Float[AnyArray, "*datum token"]
) -> Float[AnyArray, "*datum"]:
    """`mean_nll` of each row, in nats a token; 0 for rows whose weights sum to 0.

    Example:
        >>> import numpy as np
        >>> example_mean_nll(np.array([[-1.0, -3.0], [-5.0, 0.0]]), np.array([[1.0, 1.0], [0, 0]]))
        array([2., 0.])
    """
    xp = _namespace(weights)
    means: AnyArray = _ratio(-_sum(logprobs, weights, axis=-1), xp.sum(_wide(weights), axis=-1))
    return means


def entropy(logprobs: Float[AnyArray, "*token vocab"]) -> Float[AnyArray, "*token"] | np.floating:
    """-Σᵥ pᵥ·log pᵥ of each token's distribution, in nats.

    Args:
        logprobs: of the whole vocabulary, normalized: `jax.nn.log_softmax` of logits, never the
            logits themselves. Any of them may be -inf.

    Returns:
        From 0, certain, to log(vocab), uniform. A probability of 0 adds 0, and nothing to the
        gradient. At least float32.

    Example:
        >>> import numpy as np
        >>> float(entropy(np.array([-np.log(2), -np.log(2), -np.inf])) / np.log(2))
        1.0

    Reference:
        Shannon (1948), A mathematical theory of communication, section 6.
    """
    xp = _namespace(logprobs)
    is_impossible = logprobs == -xp.inf
    finite = xp.where(is_impossible, 0, _wide(logprobs))
    summands = xp.where(is_impossible, 0, xp.exp(finite) * -finite)
    nats: AnyArray | np.floating = xp.sum(summands, axis=-1)
    return nats


def perplexity(
    mean_nll_nats: Float[AnyArray, "*shape"] | np.floating | float,
) -> Float[AnyArray, "*shape"] | np.floating:
    """exp(NLL): as uncertain as a choice among so many equally likely tokens; 1 for no tokens.

    Reference:
        Jelinek et al. (1977), Perplexity: a measure of the difficulty of speech recognition tasks.

    Example:
        >>> import numpy as np
        >>> perplexity(np.log(np.array([1.0, 8.0])))
        array([1., 8.])
    """
    uncertainty: AnyArray | np.floating = _namespace(mean_nll_nats).exp(mean_nll_nats)
    return uncertainty


def bits_per_byte(
    logprobs: Float[AnyArray, "*shape"],
    counted: Bool[AnyArray, "*shape"],
    num_bytes: int | Integer[AnyArray, ""] | np.integer,
) -> Scalar:
    """-Σ log pᵢ / (ln 2 · bytes) over counted tokens: comparable across tokenizers.

    Args:
        logprobs: of each target; anything where it is not counted.
        counted: the targets that stand for text: not padding, not control tokens.
        num_bytes: UTF-8 bytes of the counted targets' text.

    Returns:
        0 where there are no bytes. At least float32.

    Reference:
        Gao et al. (2020), The Pile, section 3.1.

    Example:
        >>> import numpy as np
        >>> is_text = np.array([True, True, False])
        >>> float(bits_per_byte(np.log(np.array([0.5, 0.25, 0.5])), is_text, 6))
        0.5
    """
    counts = _namespace(counted).asarray(counted, logprobs.dtype)
    bits = -_sum(logprobs, counts) / log(2)
    a_byte: Scalar = _ratio(bits, _namespace(num_bytes).asarray(num_bytes, bits.dtype))
    return a_byte


def _sum(logprobs: AnyArray, weights: AnyArray, axis: int | None = None) -> Any:
    # Selecting before multiplying keeps 0 · -inf = nan out of the sum and of its gradient.
    xp = _namespace(logprobs, weights)
    selected = xp.where(weights != 0, _wide(logprobs), 0)
    return xp.sum(selected * xp.asarray(weights, selected.dtype), axis=axis)


def _ratio(numerator: Any, denominator: Any) -> Any:
    # The inner where keeps the division, and so its gradient, finite where it is not used.
    xp = _namespace(numerator, denominator)
    is_empty = denominator == 0
    safe = xp.asarray(xp.where(is_empty, 1, denominator), numerator.dtype)
    return xp.where(is_empty, 0, numerator / safe)


def _wide(array: AnyArray) -> Any:
    """At least float32: half precision cannot add up a sequence."""
    xp = _namespace(array)
    return array.astype(xp.promote_types(array.dtype, xp.float32))


def _namespace(*arrays: Any) -> Any:
    """`jax.numpy` where any of them is of it, `numpy` where none is."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np
