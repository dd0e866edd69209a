"""How much better a rollout did than the others of its group.

A group is the rollouts of one problem: the last axis. Ragged groups are padded and masked; what
stands at the padding is never looked at and its advantage is 0. Rewards may be integers or bools.

Every function answers in float32, or in float64 where the rewards are; gives a group of one, an
empty group and a group of equal rewards exactly 0; and leaves each group to itself: one whose
rewards hold an infinity or a nan becomes nan or infinite, and only that one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real, Shaped

from cookbook_fx.numerics import masked
from cookbook_fx.numerics.masked import AnyArray


@jax.jit
def group_centered(
    rewards: Shaped[AnyArray, "*group rollout"],
    *,
    mask: Bool[AnyArray, "*group rollout"] | None = None,
) -> Float[Array, "*group rollout"]:
    """Aᵢ = rᵢ - mean(r): the rewards of a group around their mean.

    GRPO without its division by the standard deviation. It is also Dr. GRPO's advantage; the other
    half of that method is the loss, summed with `constant_length_weights`.

    Args:
        rewards: of each rollout, real or bool.
        mask: False at padding; None where every group is full.

    Returns:
        Advantages that sum to 0 in each group; 0 at padding and for a group of one.

    Example:
        >>> group_centered(jnp.array([1, 0, 0, 1])).tolist()
        [0.5, -0.5, -0.5, 0.5]
        >>> group_centered(jnp.array([3.0, 1.0, 7.0]), mask=jnp.array([True, True, False])).tolist()
        [1.0, -1.0, 0.0]

    Reference: Liu et al. 2025, Understanding R1-Zero-like training, arXiv:2503.20783, section 3.2.
    """
    return _centered(rewards, _everywhere(rewards, mask))


@jax.jit
def group_normalized(
    rewards: Shaped[AnyArray, "*group rollout"],
    *,
    mask: Bool[AnyArray, "*group rollout"] | None = None,
    eps: Real[AnyArray, ""] | float = 1e-6,
) -> Float[Array, "*group rollout"]:
    """Aᵢ = (rᵢ - mean(r)) / (std(r) + eps): GRPO's advantage.

    The standard deviation is the population's, over n and not n - 1: the paper leaves it open, and
    so every group, whatever its size, has advantages of mean square 1. The sample's, as `torch.std`
    computes it, would make them √((n - 1) / n) as large.

    Args:
        rewards: of each rollout, real or bool.
        mask: False at padding; None where every group is full.
        eps: how far apart rewards must be to count as different; 0 is allowed.

    Returns:
        0 at padding, and for groups of one and of equal rewards.

    Example:
        >>> group_normalized(jnp.array([[1, 0, 0, 1], [1, 1, 1, 1]]), eps=0.0).tolist()
        [[1.0, -1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]

    Reference: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, section 4.1.2.
    """
    mask = _everywhere(rewards, mask)
    centered = _centered(rewards, mask)
    variance = masked.mean(jnp.square(centered), mask, axis=-1)[..., None]
    is_constant = variance == 0
    # The root has no finite gradient at 0, so that it is not taken there.
    std = jnp.sqrt(jnp.where(is_constant, 1, variance))
    return jnp.where(is_constant, 0, centered / (std + eps))


@jax.jit
def leave_one_out(
    rewards: Shaped[AnyArray, "*group rollout"],
    *,
    mask: Bool[AnyArray, "*group rollout"] | None = None,
) -> Float[Array, "*group rollout"]:
    """Aᵢ = rᵢ - mean(r without rᵢ) = n / (n - 1) · (rᵢ - mean(r)): RLOO's advantage.

    Args:
        rewards: of each rollout, real or bool.
        mask: False at padding; None where every group is full.

    Returns:
        Advantages that sum to 0 in each group; 0 at padding and for a group of one, which has no
        others.

    Example:
        >>> leave_one_out(jnp.array([[3.0, 1.0, 2.0]])).tolist()
        [[1.5, -1.5, 0.0]]

    Reference: Ahmadian et al. 2024, Back to basics, arXiv:2402.14740.
    """
    mask = _everywhere(rewards, mask)
    count = masked.count(mask, axis=-1)[..., None]
    return _centered(rewards, mask) * count / jnp.maximum(count - 1, 1)


@jax.jit
def max_rl(
    rewards: Shaped[AnyArray, "*group rollout"],
    *,
    mask: Bool[AnyArray, "*group rollout"] | None = None,
) -> Float[Array, "*group rollout"]:
    """Aᵢ = (rᵢ - mean(r)) / mean(r): the advantage of maximum likelihood reinforcement learning.

    For rewards of 0 and 1, which it is derived for, its policy gradient is that of log p(success)
    expanded to as many terms as the group has rollouts: rare successes weigh more.

    Args:
        rewards: of each rollout, 0 or more, or bool.
        mask: False at padding; None where every group is full.

    Returns:
        0 at padding, for a group of one and where the mean is 0. Also where it is negative: there
        the formula would favor the worse rollouts.

    Example:
        >>> max_rl(jnp.array([[1, 0, 0, 0], [0, 0, 0, 0]])).tolist()
        [[3.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]

    Reference: Tajwar et al. 2026, Maximum likelihood reinforcement learning, arXiv:2602.02710,
        algorithm 1.
    """
    mask = _everywhere(rewards, mask)
    mean = masked.mean(rewards, mask, axis=-1)[..., None]
    is_hopeless = jnp.isfinite(mean) & (mean <= 0)
    return jnp.where(is_hopeless, 0, _centered(rewards, mask) / jnp.where(is_hopeless, 1, mean))


def _everywhere(rewards: AnyArray, mask: AnyArray | None) -> AnyArray:
    """The mask itself, or one that XLA knows to be True throughout and folds away."""
    return jnp.ones(rewards.shape, bool) if mask is None else mask


def _centered(rewards: AnyArray, mask: AnyArray) -> Array:
    """Rewards around their group's mean, measured from its largest one.

    From there equal rewards are exactly 0 apart, and rewards on a large offset keep the digits in
    which they differ. The origin cancels, and so does its gradient.
    """
    # `max(where=mask)` would choose by bools: see `masked.keep`.
    candidates = masked.keep(rewards, mask, otherwise=-jnp.inf)
    largest = jnp.max(candidates, axis=-1, keepdims=True, initial=-jnp.inf)
    measured = masked.keep(rewards - jax.lax.stop_gradient(largest), mask)
    # Not `masked.mean`, which would mask once more what is 0 already: a quarter of the time.
    mean = jnp.sum(measured, axis=-1) / jnp.maximum(masked.count(mask, axis=-1), 1)
    return masked.keep(measured - mean[..., None], mask)
