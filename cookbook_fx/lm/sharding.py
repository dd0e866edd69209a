"""Several devices of one host as one: how arrays are divided among them.

The devices stand in a grid of `data` x `fsdp`. Weights, adapters and moments are divided along
`fsdp`, by their longest axis that can be; the rows of a training batch along both. A layer's
weights are brought together where they are used and dropped again (Zhao et al. 2023,
arXiv:2304.11277). Sampling reads every weight for few rows: there each device keeps to its part of
the matrices, and of the heads, and only activations travel.

What has to travel is left to the compiler; all that is said here is where arrays lie. Without a
grid nothing is said, and a program is the one it would be otherwise.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from cookbook_fx.errors import ConfigurationError

DATA, FSDP = "data", "fsdp"
ROWS = (DATA, FSDP)
_Axes = str | tuple[str, ...] | None


def make_mesh(devices: Sequence[jax.Device], *, data: int, fsdp: int) -> Mesh | None:
    """A grid of devices; None for a single one, which needs none.

    Args:
        devices: those to use, as many as data x fsdp.
        data: parts a batch is divided into, each with the whole model's weights between them.
        fsdp: parts the weights are divided into.

    Raises:
        ConfigurationError: another number of devices, or no device.

    Example:
        >>> make_mesh(jax.devices()[:1], data=1, fsdp=1) is None
        True
    """
    if data < 1 or fsdp < 1 or data * fsdp != len(devices):
        raise ConfigurationError(
            f"a mesh of data={data} and fsdp={fsdp} takes {data * fsdp} devices, there are "
            f"{len(devices)}; the two numbers multiplied must give that"
        )
    if len(devices) == 1:
        return None
    return Mesh(np.asarray(devices).reshape(data, fsdp), (DATA, FSDP))


def device_count(mesh: Mesh | None) -> int:
    """How many devices share the rows of a batch."""
    return 1 if mesh is None else mesh.size


def divided(matrices: Any, mesh: Mesh | None) -> Any:
    """Divides matrices, stacked or not, along `fsdp`; to be called outside of `jit`.

    The arrays may be NumPy's: each device then gets its own part and no more.
    """
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, matrices)
    return jax.tree.map(lambda x: jax.device_put(x, _dividing(x.shape, mesh)), matrices)


def copied(tree: Any, mesh: Mesh | None) -> Any:
    """Gives every device all of an array; to be called outside of `jit`."""
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, tree)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def placed_rows(tree: Any, mesh: Mesh | None) -> Any:
    """Divides the leading axis among all devices; to be called outside of `jit`."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: jax.device_put(x, _named(mesh, x.shape, (ROWS,))), tree)


def kept_divided(matrices: Any, mesh: Mesh | None) -> Any:
    """`divided` for results inside of `jit`."""
    if mesh is None:
        return matrices
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, _dividing(x.shape, mesh)), matrices
    )


def gathered(tree: Any, mesh: Mesh | None) -> Any:
    """Brings weights together for use; inside of `jit`."""
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec())), tree
    )


def along(x: Array, mesh: Mesh | None, *axes: _Axes) -> Array:
    """Divides x along the grid's axes named for each of its own; inside of `jit`.

    An axis that cannot be divided evenly is not.
    """
    if mesh is None:
        return x
    placed: Array = jax.lax.with_sharding_constraint(x, _named(mesh, x.shape, axes))
    return placed


def _named(mesh: Mesh, shape: tuple[int, ...], axes: Sequence[_Axes]) -> NamedSharding:
    fitting = [
        axis if axis is not None and size % _parts(mesh, axis) == 0 else None
        for size, axis in zip(shape, axes, strict=False)
    ]
    return NamedSharding(mesh, PartitionSpec(*fitting))


def _parts(mesh: Mesh, axis: str | tuple[str, ...]) -> int:
    names = (axis,) if isinstance(axis, str) else axis
    return int(np.prod([mesh.shape[name] for name in names]))


def _dividing(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Along the longest axis that can be divided, the first of several; never along the layers."""
    matrix = range(max(0, len(shape) - 2), len(shape))
    possible = [axis for axis in matrix if shape[axis] % mesh.shape[FSDP] == 0]
    if not possible:
        return NamedSharding(mesh, PartitionSpec())
    chosen = max(possible, key=lambda axis: shape[axis])
    return NamedSharding(
        mesh, PartitionSpec(*(FSDP if axis == chosen else None for axis in range(len(shape))))
    )
