"""Reductions whose order the program fixes.

XLA picks the order of a sum by the size of the whole array, so the last bits of a row's sum would
depend on how many rows are computed beside it. Here they depend on the row alone.
"""

from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp
from jaxtyping import Array, Float


def fold(
    combine: Callable[[Array, Array], Array], x: Float[Array, "*batch size"]
) -> Float[Array, "*batch 1"]:
    """Combines the entries of the last axis: one half with the other, then the halves of that.

    Zeros behind the entries of a sum change no bit of it, as long as the size stays a power of two
    times the same number.

    Args:
        combine: an elementwise operation, such as `jnp.add`.
        x: at least one entry.

    Example:
        >>> fold(jnp.add, jnp.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])).tolist()
        [[7.0], [56.0]]
    """
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        folded = combine(x[..., :half], x[..., half : 2 * half])
        x = jnp.concatenate([folded, x[..., 2 * half :]], axis=-1) if x.shape[-1] % 2 else folded
    return x


def in_turn(
    combine: Callable[[Array, Array], Array], x: Float[Array, "..."], *, axis: int
) -> Float[Array, "..."]:
    """Combines the entries of an axis from first to last; the axis is gone.

    Example:
        >>> in_turn(jnp.maximum, jnp.array([[1.0, 5.0], [3.0, 2.0]]), axis=0).tolist()
        [3.0, 5.0]
    """
    return reduce(combine, jnp.unstack(x, axis=axis))
