"""Reductions over the part of an array that counts; 0, not nan, where nothing does.

What stands where the mask is False is never looked at: nan and infinities there reach neither the
result nor the gradient. Everything is added up in at least float32, a row at a time and then over
rows, so that a sum over millions of tokens keeps its digits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

AnyArray = jax.Array | np.ndarray


def keep(
    values: Shaped[AnyArray, "*shape"], mask: Bool[AnyArray, "*shape"]
) -> Float[Array, "*shape"]:
    """The values where the mask is True and 0 elsewhere, as floats of at least 32 bits.

    Call it on what goes *into* a formula: selecting only from the result leaves the gradient nan
    wherever the formula has no finite one.

    Example:
        >>> keep(jnp.array([1, 2]), jnp.array([True, False])).tolist()
        [1.0, 0.0]
    """
    values = jnp.asarray(values)
    return jnp.where(mask, values, 0).astype(jnp.promote_types(values.dtype, jnp.float32))


def total(
    values: Shaped[AnyArray, "*shape"],
    mask: Bool[AnyArray, "*shape"],
    *,
    axis: int | None = None,
) -> Float[Array, "..."]:
    """Σ of the values that count; 0 where none does.

    Args:
        axis: the one to add along; None for all.

    Example:
        >>> float(total(jnp.array([1.0, jnp.nan]), jnp.array([True, False])))
        1.0
    """
    kept = keep(values, mask)
    if axis is not None:
        return jnp.sum(kept, axis=axis)
    return jnp.sum(jnp.sum(kept, axis=-1)) if kept.ndim else kept


def mean(
    values: Shaped[AnyArray, "*shape"],
    mask: Bool[AnyArray, "*shape"],
    *,
    axis: int | None = None,
) -> Float[Array, "..."]:
    """The mean of the values that count; 0 where none does.

    Args:
        axis: the one to average along; None for all.

    Example:
        >>> mean(jnp.array([[1, 3], [5, 7]]), jnp.array([[True, True], [False, False]]), axis=1)
        Array([2., 0.], dtype=float32)
    """
    count = total(mask, mask, axis=axis)
    return total(values, mask, axis=axis) / jnp.maximum(count, 1)
