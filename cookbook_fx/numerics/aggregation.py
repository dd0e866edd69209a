"""Weights that turn a sum of token losses into a mean.

Engines add up the losses of a batch's tokens. Which mean is trained with is therefore a matter of
weights: multiply the advantages (or the loss weights) by one of these, and the sum of the token
losses is that mean. A sequence is one response; its tokens that do not count (prompt, padding) and
rows with nothing that counts, which are padding as a whole, have weight 0 and change no other.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Real

from cookbook_fx.numerics import masked
from cookbook_fx.numerics.masked import AnyArray


@jax.jit
def token_mean_weights(mask: Bool[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
    """wᵢₜ = mᵢₜ / Σm: every token weighs the same, so that long sequences weigh more. DAPO's.

    Args:
        mask: the tokens that are trained on, in any shape: one question's responses, over which
            the paper takes the mean, or a whole batch, padded or as one flat buffer.

    Returns:
        float32 weights of sum 1, or all 0 where nothing counts.

    Example:
        >>> token_mean_weights(jnp.array([[True, False, False], [True, True, True]])).tolist()
        [[0.25, 0.0, 0.0], [0.25, 0.25, 0.25]]

    Reference: Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.3.
    """
    return jnp.asarray(mask, jnp.float32) / jnp.maximum(masked.count(mask), 1)


@jax.jit
def sequence_mean_weights(
    mask: Bool[AnyArray, "*sequence token"],
) -> Float[Array, "*sequence token"]:
    """wᵢₜ = mᵢₜ / (G·Σₜmᵢₜ): the mean over G sequences of each one's mean over its tokens. GRPO's.

    Every sequence weighs the same, so that the tokens of long ones weigh less.

    Args:
        mask: the tokens that are trained on.

    Returns:
        float32 weights of sum 1, or all 0 where nothing counts. G leaves out the rows without any.

    Example:
        >>> sequence_mean_weights(jnp.array([[True, False], [True, True], [False, False]])).tolist()
        [[0.5, 0.0], [0.25, 0.25], [0.0, 0.0]]

    Reference: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, equation 3.
    """
    lengths = masked.count(mask, axis=-1)[..., None]
    return jnp.asarray(mask, jnp.float32) / jnp.maximum(lengths, 1) / _sequences(mask)


@jax.jit
def constant_length_weights(
    mask: Bool[AnyArray, "*sequence token"], *, length: Real[AnyArray, ""] | float
) -> Float[Array, "*sequence token"]:
    """wᵢₜ = mᵢₜ / (G·length): the mean over G sequences of their sums, by one constant. Dr. GRPO's.

    Every token weighs the same whatever else is in the batch, so that no length is favored; with
    `group_centered` advantages this is Dr. GRPO.

    Args:
        mask: the tokens that are trained on.
        length: above 0; the paper's code takes the most tokens a response may have.

    Returns:
        float32 weights, all 0 where nothing counts. G leaves out the rows without any.

    Example:
        >>> constant_length_weights(jnp.array([[True, False], [True, True]]), length=4).tolist()
        [[0.125, 0.0], [0.125, 0.125]]

    Reference: Liu et al. 2025, Understanding R1-Zero-like training, arXiv:2503.20783, section 3.2.
    """
    return jnp.asarray(mask, jnp.float32) / jnp.asarray(length, jnp.float32) / _sequences(mask)


def _sequences(mask: AnyArray) -> Integer[Array, ""]:
    """How many rows have something that counts; 1, to divide by, where none has."""
    return jnp.maximum(masked.count(jnp.any(mask, axis=-1)), 1)
