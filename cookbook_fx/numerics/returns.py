"""What is still to come: sums over the rest of a sequence, each step further ahead counting less.

Nothing is ever subtracted from or divided by a running total, so a sequence keeps its digits
whatever stands beside it in the batch.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Real, Shaped

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics import masked
from cookbook_fx.numerics.masked import AnyArray

# Positions a block holds: of 8 to 128 the fastest on CPU, and sequences that begin on a block
# leave only half of it empty on average. Batches are laid out with it (rl/batch.py).
BLOCK = 32
# For rows, the first that fills them: padding would cost a copy of everything.
ROW_BLOCKS = (BLOCK, 40, 24, 48, 16)


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
            beside plain rows; resets anywhere cost about five times as much.
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
        Sutton and Barto (2018), Reinforcement Learning, equations 3.8 and 3.9; Blelloch (1990),
        Prefix sums and their applications, for the way it is computed.
    """
    values = jnp.asarray(values)
    if not values.ndim:
        raise ConfigurationError("`values` must have an axis to sum along, got a scalar")
    values = values.astype(jnp.promote_types(jnp.result_type(values, gamma), jnp.float32))
    discount = jnp.asarray(gamma, values.dtype)
    if mask is not None:
        values = masked.keep(values, mask)
    if starts is None:
        sums = _of_rows(values, discount)
    elif starts.shape == values.shape:
        sums = _with_resets(values, discount, sequence_ends(jnp.asarray(starts)))
    elif starts.ndim and starts.shape == values.shape[:-1]:
        sums = _of_blocks(values, discount, jnp.asarray(starts))
    else:
        raise ConfigurationError(
            f"`starts` must have the shape of `values`, {values.shape}, or lack its last axis and "
            f"say which blocks begin a sequence; got {starts.shape}"
        )
    return sums if mask is None else masked.keep(sums, mask)


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


def _of_rows(values: Array, discount: Array, *, apart: int = 1, skip: int = 0) -> Array:
    """Σₗ γᵃˡ·xₜ₊ₗ₊ₛ for entries a = `apart` steps apart, leaving out the first s = `skip`.

    Inside blocks it is a product with the powers; what comes after a block is such a sum of the
    blocks' totals.
    """
    length = values.shape[-1]
    if not values.size:
        return values
    block = next((size for size in ROW_BLOCKS if length % size == 0), min(BLOCK, length))
    blocks = _padded(values, -length % block).reshape(*values.shape[:-1], -1, block)
    sums = _inside_blocks(blocks, discount, apart=apart, skip=skip)
    if length > block:
        totals = _inside_blocks(blocks, discount, apart=apart)[..., 0]
        following = _of_rows(totals, discount, apart=apart * block, skip=1)
        sums = _add_following(sums, following, discount, apart=apart, skip=skip)
    return sums.reshape(*values.shape[:-1], -1)[..., :length]


def _of_blocks(values: Array, discount: Array, starts: Array) -> Array:
    """Sums inside blocks, and after them sums of the blocks' totals that stop where they must."""
    if not values.size:
        return values
    inside = _inside_blocks(values, discount)
    ends = sequence_ends(starts)
    totals = _with_resets(inside[..., 0], discount, ends, apart=values.shape[-1])
    # Not a roll, over which XLA's simplifier goes in circles at some sizes and complains.
    following = jnp.where(ends, 0, _padded(totals[..., 1:], 1))
    return _add_following(inside, following, discount)


def _inside_blocks(blocks: Array, discount: Array, *, apart: int = 1, skip: int = 0) -> Array:
    position = jnp.arange(blocks.shape[-1])
    ahead = position[:, None] - position - skip
    weights = jnp.where(ahead >= 0, _power(discount, apart * jnp.maximum(ahead, 0)), 0)
    # Accelerators would otherwise multiply in half precision.
    return jnp.matmul(blocks, weights, precision=lax.Precision.HIGHEST)


def _add_following(
    sums: Array, following: Array, discount: Array, *, apart: int = 1, skip: int = 0
) -> Array:
    ahead = jnp.arange(sums.shape[-1] - skip, -skip, -1)
    return sums + following[..., None] * _power(discount, apart * ahead)


def _with_resets(values: Array, discount: Array, ends: Array, *, apart: int = 1) -> Array:
    """yₜ = xₜ + γᵃ·yₜ₊₁, and xₜ where a sequence ends: for pairs first, then inside them.

    `lax.associative_scan` would multiply up the powers of γ, and their rounding errors with them.
    """
    length = values.shape[-1]
    if length <= 1:
        return values
    values, ends = _padded(values, length % 2), _padded(ends, length % 2)
    weight = _power(discount, jnp.asarray(apart))
    first, second = values[..., ::2], values[..., 1::2]
    first_ends, second_ends = ends[..., ::2], ends[..., 1::2]
    pairs = first + jnp.where(first_ends, 0, weight * second)
    first_sums = _with_resets(pairs, discount, first_ends | second_ends, apart=2 * apart)
    following = _padded(first_sums[..., 1:], 1)
    second_sums = second + jnp.where(second_ends, 0, weight * following)
    interleaved = jnp.stack([first_sums, second_sums], axis=-1)
    return interleaved.reshape(*values.shape)[..., :length]


def _power(discount: Array, exponent: Array) -> Array:
    # With integer exponents it would be multiplied up, and lose digits that long sums need; and
    # the derivative of γ⁰ would be nan at γ = 0.
    power = discount ** jnp.maximum(exponent, 1).astype(discount.dtype)
    return jnp.where(exponent == 0, 1, power)


def _padded(array: Array, count: int) -> Array:
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, count)])


def sequence_ends(starts: Array) -> Array:
    """Where sequences end along the last axis: before each start, and at the last entry."""
    return jnp.roll(starts.at[..., :1].set(True), -1, axis=-1)
