"""What is still to come: sums over the rest of a sequence, each step further ahead counting less.

Nothing is ever subtracted from or divided by a running total, so a sequence keeps its digits
whatever stands beside it in the batch.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Real, Shaped

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics.masked import AnyArray

# Positions a block holds: of 8 to 128 the fastest on CPU, and sequences that begin on a block
# leave only half of it empty on average. Batches are laid out with it (rl/batch.py).
BLOCK = 32


@jax.jit
def discounted_sums(
    values: Shaped[AnyArray, "*shape"],
    gamma: float | Real[AnyArray, ""],
    *,
    mask: Bool[AnyArray, "*shape"] | None = None,
    starts: Bool[AnyArray, "..."] | None = None,
) -> Float[Array, "*shape"]:
    """Discounted sums of what follows, along the last axis.

    yₜ = xₜ + γ·yₜ₊₁ = Σₗ γˡ·xₜ₊ₗ, up to the end of the sequence that t belongs to.

    Args:
        values: x, in one of three layouts that `starts` tells apart. Integers and half precision
            are added up as float32.
        gamma: γ in [0, 1], the same unit for every step; rounded to the values' precision.
        mask: False where x counts 0, whatever stands there (padding, nan), and the answer is 0.
            Time passes there all the same: what comes later is discounted for it.
        starts: where sequences begin.
            None: each row of the last axis is a sequence.
            Of the values' own shape: the last axis is a flat buffer of sequences, one beginning
            wherever this is True.
            With one axis fewer, `[..., block]` for values `[..., block, position]`: each block goes
            on where the one before it ends, unless a sequence begins with it. This is the layout
            for very large ragged batches, with blocks of `BLOCK` positions, and the fast one
            beside plain rows; resets anywhere cost several times as much.
            The first entry begins a sequence whether marked or not.

    Returns:
        y, at least float32; nothing for no values. An unmasked nan or infinity spoils the sequence
        it is in and no other.

    Raises:
        ConfigurationError: `values` without an axis, or `starts` of another shape than these.

    Example:
        >>> discounted_sums(jnp.array([1.0, 2.0, 4.0]), 0.5).tolist()
        [3.0, 4.0, 4.0]
        >>> starts = jnp.array([True, False, True])
        >>> discounted_sums(jnp.array([1.0, 2.0, 4.0]), 0.5, starts=starts).tolist()
        [2.0, 2.0, 4.0]

    Reference:
        Sutton and Barto (2018), Reinforcement Learning, equations 3.8 and 3.9. Blocks as in
        Blelloch (1990), Prefix sums and their applications, section 1.2.
    """
    values = jnp.asarray(values)
    values = values.astype(jnp.promote_types(jnp.result_type(values, gamma), jnp.float32))
    discount = jnp.asarray(gamma, values.dtype)
    if mask is not None:
        values = jnp.where(mask, values, 0)
    if starts is None:
        sums = _of_rows(values, discount)
    elif starts.shape == values.shape and values.ndim:
        sums = linear_recurrence(values, jnp.full_like(values, discount), starts=starts)
    elif starts.shape == values.shape[:-1] and starts.ndim:
        sums = _of_blocks(values, discount, jnp.asarray(starts))
    else:
        raise ConfigurationError(
            f"`starts` must have the shape of `values`, {values.shape}, or lack its last axis and "
            f"say which blocks begin a sequence; got {starts.shape}"
        )
    return sums if mask is None else jnp.where(mask, sums, 0)


@jax.jit
def linear_recurrence(
    values: Shaped[AnyArray, "*batch token"],
    coefficients: Shaped[AnyArray, "*batch token"],
    *,
    starts: Bool[AnyArray, "*batch token"] | None = None,
) -> Float[Array, "*batch token"]:
    """A linear recurrence from the end to the beginning, with a coefficient for every step.

    yₜ = xₜ + cₜ·yₜ₊₁, and yₜ = xₜ where a sequence ends.

    Discounted sums with discounts that vary, λ-returns and off-policy corrections are of this
    form. Where the coefficient is one and the same, `discounted_sums` is faster.

    Args:
        values: x.
        coefficients: c.
        starts: where sequences begin in the last axis; None for one sequence a row.

    Returns:
        y, at least float32. A sequence never reaches another, not even as nan.

    Example:
        >>> linear_recurrence(jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.25, 9.0])).tolist()
        [2.5, 3.0, 4.0]

    Reference:
        Blelloch (1990), Prefix sums and their applications, section 1.4.
    """
    values, coefficients = jnp.asarray(values), jnp.asarray(coefficients)
    dtype = jnp.promote_types(jnp.result_type(values, coefficients), jnp.float32)
    if starts is None:
        starts = jnp.zeros(values.shape, bool)
    steps = (values.astype(dtype), coefficients.astype(dtype), sequence_ends(jnp.asarray(starts)))
    # Reversing flips axes by their number from the front.
    sums: Array = lax.associative_scan(_join, steps, reverse=True, axis=values.ndim - 1)[0]
    return sums


Stretch = tuple[Array, Array, Array]


def _join(later: Stretch, earlier: Stretch) -> Stretch:
    """Two neighbouring stretches as one: its sum, its coefficient, whether a sequence ends in it.

    The flag, and not a coefficient of 0, cuts: 0 times the nan of another sequence would be nan.
    """
    later_sum, later_coefficient, later_ends = later
    sums, coefficient, ends = earlier
    return (
        sums + jnp.where(ends, 0, coefficient * later_sum),
        coefficient * later_coefficient,
        ends | later_ends,
    )


def _of_rows(values: Array, discount: Array, *, skip: int = 0) -> Array:
    """Σₗ γˡ·xₜ₊ₗ₊ₛ, s = `skip`: inside blocks, and of the blocks' totals in the same way."""
    length = values.shape[-1]
    if not values.size:
        return values
    block = min(BLOCK, length)
    padded = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -length % block)])
    blocks = padded.reshape(*values.shape[:-1], -1, block)
    sums = _inside_blocks(blocks, discount, skip=skip)
    if blocks.shape[-2] > 1:
        totals = _inside_blocks(blocks, discount)[..., 0]
        following = _of_rows(totals, discount**block, skip=1)
        sums = _add_following(sums, following, discount, skip=skip)
    return sums.reshape(padded.shape)[..., :length]


def _of_blocks(values: Array, discount: Array, starts: Array) -> Array:
    """Sums in block layout: inside blocks, then a recurrence over their totals that can stop."""
    if not values.size:
        return values
    inside = _inside_blocks(values, discount)
    totals = linear_recurrence(
        inside[..., 0], jnp.full(starts.shape, discount ** values.shape[-1]), starts=starts
    )
    following = jnp.where(sequence_ends(starts), 0, jnp.roll(totals, -1, axis=-1))
    return _add_following(inside, following, discount)


def _inside_blocks(blocks: Array, discount: Array, *, skip: int = 0) -> Array:
    """The sums as far as the end of each block."""
    position = jnp.arange(blocks.shape[-1])
    ahead = position[:, None] - position - skip
    weights = jnp.where(ahead >= 0, discount ** jnp.maximum(ahead, 0).astype(blocks.dtype), 0)
    # Accelerators would otherwise multiply in half precision.
    return jnp.matmul(blocks, weights, precision=lax.Precision.HIGHEST)


def _add_following(sums: Array, following: Array, discount: Array, *, skip: int = 0) -> Array:
    block = sums.shape[-1]
    ahead = jnp.arange(block - skip, -skip, -1, dtype=sums.dtype)
    return sums + following[..., None] * discount**ahead


def sequence_ends(starts: Array) -> Array:
    """Where sequences end along the last axis: before each start, and at the last entry."""
    return jnp.roll(starts.at[..., :1].set(True), -1, axis=-1)
