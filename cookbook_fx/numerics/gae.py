"""Generalized advantage estimation: how much better each step went than the critic expected."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real, Shaped

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics.masked import AnyArray, keep
from cookbook_fx.numerics.returns import linear_recurrence, sequence_ends


@jax.jit
def generalized_advantages(
    rewards: Shaped[AnyArray, "*shape"],
    values: Shaped[AnyArray, "*shape"],
    *,
    gamma: float | Real[AnyArray, ""],
    lambda_: float | Real[AnyArray, ""],
    mask: Bool[AnyArray, "*shape"] | None = None,
    starts: Bool[AnyArray, "..."] | None = None,
    bootstrap: Shaped[AnyArray, "..."] | None = None,
) -> Float[Array, "*shape"]:
    """Advantages as sums of temporal-difference errors, those further ahead counting less.

    δₜ = rₜ + γ·vₜ₊₁ - vₜ and Aₜ = Σₗ (γλ)ˡ·δₜ₊ₗ, up to the end of the sequence that t belongs to.
    A + v are the λ-returns, what a critic is trained to predict.

    Args:
        rewards: r of each step.
        values: v, what the critic expects from each step on.
        gamma: γ in [0, 1], the discount.
        lambda_: λ in [0, 1]; 0 trusts the critic after one step, 1 never.
        mask: False at what is no step of the policy: observation tokens, padding. It is as if cut
            out, whatever it holds: no time passes there, and the next value is that of the next
            step. The answer there is 0.
        starts: where sequences begin, as in `discounted_sums`: None, of the rewards' own shape, or
            with one axis fewer.
        bootstrap: v after the last step, for episodes that were cut off rather than ended; None
            for 0. One for each row; with `starts`, an array of its shape that is read where a
            sequence ends: at its last position, or its last block.

    Returns:
        A, at least float32; 0 for sequences without a step.

    Raises:
        ConfigurationError: rewards without an axis, or anything else of another shape than these.

    Example:
        >>> rewards, values = jnp.array([0.0, 1.0]), jnp.array([0.5, 0.25])
        >>> generalized_advantages(rewards, values, gamma=1.0, lambda_=0.5).tolist()
        [0.125, 0.75]

    Reference:
        Schulman et al. (2016), High-dimensional continuous control using generalized advantage
        estimation, arXiv:1506.02438, equation 16.
    """
    rewards, values = jnp.asarray(rewards), jnp.asarray(values)
    starts = None if starts is None else jnp.asarray(starts)
    bootstrap = None if bootstrap is None else jnp.asarray(bootstrap)
    _check(rewards, values, mask, starts, bootstrap)
    if not rewards.size:
        return keep(rewards, jnp.ones(rewards.shape, bool))
    begins, after = _sequences(rewards.shape, starts, bootstrap)
    is_step = jnp.ones(begins.shape, bool) if mask is None else jnp.reshape(mask, begins.shape)
    rewards_kept = keep(rewards.reshape(begins.shape), is_step)
    expected = keep(values.reshape(begins.shape), is_step)

    upcoming = keep(_upcoming(expected, is_step, begins, after), is_step)
    errors = rewards_kept + gamma * upcoming - expected
    passed_on = jnp.where(is_step, jnp.asarray(gamma * lambda_, errors.dtype), 1)
    advantages = linear_recurrence(keep(errors, is_step), passed_on, starts=begins)
    return keep(advantages, is_step).reshape(rewards.shape)


def _sequences(
    shape: tuple[int, ...], starts: Array | None, bootstrap: Array | None
) -> tuple[Array, Array]:
    """Every layout as one: where along the last axis sequences begin, and v after they end."""
    nothing = jnp.zeros(shape)
    if starts is not None and starts.shape == shape:
        begins, after = starts, nothing if bootstrap is None else bootstrap
    else:
        begins = nothing.astype(bool).at[..., 0].set(True if starts is None else starts)
        after = nothing if bootstrap is None else nothing.at[..., -1].set(bootstrap)
    if starts is not None and starts.shape != shape:
        begins, after = (x.reshape(*shape[:-2], -1) for x in (begins, after))
    return begins, keep(after, sequence_ends(begins))


def _upcoming(expected: Array, is_step: Array, begins: Array, after: Array) -> Array:
    """v of the next step, or after the end: passed back over what is no step."""
    from_here = linear_recurrence(
        jnp.where(is_step, expected, after), jnp.where(is_step, 0, 1), starts=begins
    )
    return jnp.where(sequence_ends(begins), after, jnp.roll(from_here, -1, axis=-1))


def _check(
    rewards: Array,
    values: Array,
    mask: AnyArray | None,
    starts: Array | None,
    bootstrap: Array | None,
) -> None:
    for name, array in (("values", values), ("mask", mask)):
        if array is not None and array.shape != rewards.shape:
            raise ConfigurationError(
                f"`{name}` must have the shape of `rewards`, {rewards.shape}; got {array.shape}"
            )
    row_shape = rewards.shape[:-1]
    if not rewards.ndim:
        raise ConfigurationError("`rewards` must have an axis of steps, got a scalar")
    if starts is not None and starts.shape not in (rewards.shape, row_shape):
        raise ConfigurationError(
            f"`starts` must have the shape of `rewards`, {rewards.shape}, or lack its last axis; "
            f"got {starts.shape}"
        )
    wanted = row_shape if starts is None else starts.shape
    if bootstrap is not None and bootstrap.shape != wanted:
        raise ConfigurationError(
            f"`bootstrap` must have the shape of `starts`, or one value for each row without it: "
            f"{wanted}; got {bootstrap.shape}"
        )
