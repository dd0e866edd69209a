"""Reductions over the part of an array that counts; 0, not nan, where nothing does.

What stands where the mask is False is never looked at: nan and infinities there reach neither the
result nor the gradient. Sums are of at least float32, which XLA adds up as a tree, so that millions
of tokens keep their digits; counts are of integers, so that none is lost.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Shaped

AnyArray = jax.Array | np.ndarray


def keep(
    values: Shaped[AnyArray, "*shape"], mask: Bool[AnyArray, "*shape"], *, otherwise: float = 0
) -> Float[Array, "*shape"]:
    """The values where the mask is True and 0 elsewhere, as floats of at least 32 bits.

    Call it on what goes *into* a formula: selecting only from the result leaves the gradient nan
    wherever the formula has no finite one.

    Args:
        values: floats, integers or bools; integers beyond 2²⁴ are rounded to float32.
        mask: False where the value does not count.
        otherwise: what to put there in place of 0.

    Returns:
        float64 for float64, float32 for everything else.

    Example:
        >>> keep(jnp.array([1, 2]), jnp.array([True, False])).tolist()
        [1.0, 0.0]
    """
    values = jnp.asarray(values)
    # XLA on CPU does not vectorize a choice by bools, but does one by what a byte compares to.
    counts = jnp.asarray(mask).view(jnp.uint8) > 0
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return jnp.where(counts, values, otherwise)


def count(mask: Bool[AnyArray, "*shape"], *, axis: int | None = None) -> Integer[Array, "..."]:
    """How many positions count.

    Args:
        mask: True where a value counts.
        axis: the one to count along; None for all, also in an array without axes.

    Example:
        >>> int(count(jnp.array([True, False, True])))
        2
    """
    return jnp.sum(jnp.asarray(mask), axis=axis)


def total(
    values: Shaped[AnyArray, "*shape"],
    mask: Bool[AnyArray, "*shape"],
    *,
    axis: int | None = None,
) -> Float[Array, "..."]:
    """Σ of the values that count.

    Args:
        values: what to add up; see `keep`.
        mask: True where a value counts.
        axis: the one to add along; None for all, also in an array without axes.

    Returns:
        0 where nothing counts, as in an empty array.

    Example:
        >>> float(total(jnp.array([1.0, jnp.nan]), jnp.array([True, False])))
        1.0
    """
    return jnp.sum(keep(values, mask), axis=axis)


def mean(
    values: Shaped[AnyArray, "*shape"],
    mask: Bool[AnyArray, "*shape"],
    *,
    axis: int | None = None,
) -> Float[Array, "..."]:
    """The mean of the values that count: `total` / `count`.

    Args:
        values: what to average; see `keep`.
        mask: True where a value counts.
        axis: the one to average along; None for all, also in an array without axes.

    Returns:
        0 where nothing counts, as in an empty array.

    Example:
        >>> mean(jnp.array([[1, 3], [5, 7]]), jnp.array([[True, True], [False, False]]), axis=1)
        Array([2., 0.], dtype=float32)
    """
    return total(values, mask, axis=axis) / jnp.maximum(count(mask, axis=axis), 1)
