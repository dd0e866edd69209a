"""The decoder one token at a time: weights laid out for it, and a cache of keys and values.

Training runs its layers in a scan over stacked matrices, which compiles fast. Decoding reads every
matrix to multiply it with a few rows, and slicing a matrix out of the stack would mean reading it
twice; so here each layer has arrays of its own, with the adapter added in.

What comes out for a row depends on that row alone, to the last bit: not on how many others there
are, nor on the length of the cache. The libraries behind XLA choose the order of a sum by shapes,
so every sum here stands in one of a few shapes that were found to agree, or in an order that the
program fixes. tests/cookbook_fx/lm/test_reproducibility.py holds it to that.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cookbook_fx.lm import rope
from cookbook_fx.lm.attention import attention
from cookbook_fx.lm.config import LMConfig
from cookbook_fx.lm.folding import fold, in_turn
from cookbook_fx.lm.lora import LoRA, LowRank
from cookbook_fx.lm.sharding import DATA, FSDP, along, kept_divided
from cookbook_fx.lm.transformer import gated, matmul
from cookbook_fx.lm.weights import LayerWeights, LMWeights

# A product with a single row is summed in another order than one with several.
FEWEST_ROWS = 2
# So is a product of the head with more than this many rows at once, on CPUs.
_HEAD_ROWS = 16
# And one of a query with a block of keys that is larger than this.
_BLOCK_ENTRIES = 2**15


class DecodeLayer(eqx.Module):
    """One decoder layer; matrices are `[in, out]`, joined as in `LayerWeights`."""

    attention_norm: Float[Array, " hidden"]
    qkv: Float[Array, "hidden qkv"]
    output: Float[Array, "heads_x_dim hidden"]
    query_norm: Float[Array, " head_dim"] | None
    key_norm: Float[Array, " head_dim"] | None
    mlp_norm: Float[Array, " hidden"]
    gate_up: Float[Array, "hidden two_x_mlp"]
    down: Float[Array, "mlp hidden"]


class DecodeWeights(eqx.Module):
    """A model to sample from. `head` is the embedding itself where the two are tied."""

    config: LMConfig = eqx.field(static=True)
    embedding: Float[Array, "vocab hidden"]
    layers: tuple[DecodeLayer, ...]
    final_norm: Float[Array, " hidden"]
    head: Float[Array, "vocab hidden"]
    mesh: Mesh | None = eqx.field(static=True, default=None)


class Cache(eqx.Module):
    """Keys and values of every layer, one row a slot; positions are counted block by block.

    Keys lie with their positions last and values with them first: the order in which the two
    products of attention read them.
    """

    keys: tuple[Float[Array, "slot kv_head block head_dim place"], ...]
    values: tuple[Float[Array, "slot kv_head block place head_dim"], ...]

    @property
    def slots(self) -> int:
        """How many sequences it holds."""
        return self.keys[0].shape[0]

    @property
    def length(self) -> int:
        """How many positions each of them has."""
        return self.keys[0].shape[2] * self.keys[0].shape[4]


class Prefix(eqx.Module):
    """Keys and values of prompts, every layer."""

    keys: tuple[Float[Array, "prompt token kv_head head_dim"], ...]
    values: tuple[Float[Array, "prompt token kv_head head_dim"], ...]


def decode_weights(weights: LMWeights, adapter: LoRA | None) -> DecodeWeights:
    """Copies a model into one array a layer and matrix, adding scale · A · B where there is one.

    Costs the memory of the layers once more (and of the head, if the adapter has a part there).

    Args:
        weights: base model.
        adapter: merged into the copy; None for the base model.

    Example:
        >>> from cookbook_fx.lm.weights import random_tensors, weights_from_tensors
        >>> tiny = LMConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=2,
        ...     num_heads=2, num_kv_heads=1, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5,
        ...     max_position_embeddings=64, tie_word_embeddings=True, qk_norm=False)
        >>> model = decode_weights(
        ...     weights_from_tensors(tiny, random_tensors(tiny).__getitem__), None)
        >>> [layer.qkv.shape for layer in model.layers], model.head is model.embedding
        ([(8, 16), (8, 16)], True)
    """
    unembed = None if adapter is None else adapter.unembed
    scale = 1.0 if adapter is None else adapter.scale
    return DecodeWeights(
        config=weights.config,
        embedding=weights.embedding,
        layers=tuple(
            _merged_layer(weights.layers, adapter, jnp.asarray(layer), weights.mesh)
            for layer in range(weights.config.num_layers)
        ),
        final_norm=weights.final_norm,
        head=weights.head if unembed is None else _merged_head(weights.head, unembed, scale=scale),
        mesh=weights.mesh,
    )


@partial(jax.jit, static_argnames="mesh")
def _merged_layer(
    stacked: LayerWeights, adapter: LoRA | None, index: Int[Array, ""], mesh: Mesh | None
) -> DecodeLayer:
    base: LayerWeights = jax.tree.map(lambda array: array[index], stacked)

    def merged(matrix: Array, *pairs: LowRank | None) -> Array:
        present = [pair for pair in pairs if pair is not None]
        if adapter is None or not present:
            return matrix
        changes = [pair.a[index] @ pair.b[index] for pair in present]
        return (matrix + adapter.scale * jnp.concatenate(changes, axis=-1)).astype(matrix.dtype)

    layer = DecodeLayer(
        attention_norm=base.attention_norm,
        qkv=merged(base.qkv, *((adapter.query, adapter.key, adapter.value) if adapter else ())),
        output=merged(base.output, *((adapter.output,) if adapter else ())),
        query_norm=base.query_norm,
        key_norm=base.key_norm,
        mlp_norm=base.mlp_norm,
        gate_up=merged(base.gate_up, *((adapter.gate, adapter.up) if adapter else ())),
        down=merged(base.down, *((adapter.down,) if adapter else ())),
    )
    placed: DecodeLayer = jax.tree.map(lambda x: x if x.ndim == 1 else kept_divided(x, mesh), layer)
    return placed


@partial(jax.jit, static_argnames="scale")
def _merged_head(head: Array, unembed: LowRank, *, scale: float) -> Array:
    return (head + scale * (unembed.a @ unembed.b).T).astype(head.dtype)


def empty_cache(model: DecodeWeights, *, slots: int, length: int) -> Cache:
    """A cache without content; `length` is a power of two."""
    config = model.config
    block, place = _blocks(length, config.head_dim)
    dtype = jnp.promote_types(model.embedding.dtype, jnp.float32)
    layers, shape = range(config.num_layers), (slots, config.num_kv_heads, block)
    return Cache(
        keys=tuple(jnp.zeros((*shape, config.head_dim, place), dtype) for _ in layers),
        values=tuple(jnp.zeros((*shape, place, config.head_dim), dtype) for _ in layers),
    )


def rearranged(cache: Cache, source: Int[Array, " slot"], *, length: int) -> Cache:
    """A cache with other slots and another length: slot i gets what slot `source[i]` held."""
    # One small program per array shape, called for each layer, compiles faster than one for all.
    return Cache(
        keys=tuple(_resized(each, source, length=length, axes=(3, 4)) for each in cache.keys),
        values=tuple(_resized(each, source, length=length, axes=(4, 3)) for each in cache.values),
    )


def placed(
    cache: Cache, prefix: Prefix, *, source: Int[Array, " slot"], count: Int[Array, " slot"]
) -> Cache:
    """Fills slot i with the first `count[i]` tokens of prompt `source[i]`; 0 leaves it alone."""
    # Each array's own small program, as in `rearranged`.
    return Cache(
        keys=tuple(
            _filled(old, new, source, count, order=(0, 3, 1, 4, 2))
            for old, new in zip(cache.keys, prefix.keys, strict=True)
        ),
        values=tuple(
            _filled(old, new, source, count, order=(0, 3, 1, 2, 4))
            for old, new in zip(cache.values, prefix.values, strict=True)
        ),
    )


def _blocks(length: int, head_dim: int) -> tuple[int, int]:
    """How many blocks, and how many positions in each: both powers of two, as the length is."""
    place = length
    while place > 1 and place * head_dim > _BLOCK_ENTRIES:
        place //= 2
    return length // place, place


@partial(jax.jit, static_argnames=("length", "axes"))
def _resized(array: Array, source: Array, *, length: int, axes: tuple[int, int]) -> Array:
    dim_axis, place_axis = axes
    blocks, places = _blocks(length, array.shape[dim_axis])
    return _fitted(_fitted(array[source], blocks, axis=2), places, axis=place_axis)


def _fitted(array: Array, size: int, *, axis: int) -> Array:
    """Cuts an axis off, or fills it up with zeros."""
    if size <= array.shape[axis]:
        return jax.lax.slice_in_dim(array, 0, size, axis=axis)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, size - array.shape[axis])
    return jnp.pad(array, padding)


@partial(jax.jit, static_argnames="order")
def _filled(
    old: Array, new: Array, source: Array, count: Array, *, order: tuple[int, ...]
) -> Array:
    # Slot, block, place, key head and dimension of a head, in the order of the cache.
    blocks, places = old.shape[2], old.shape[order.index(2)]
    slots, _, *rest = new[source].shape
    taken = _fitted(new[source], blocks * places, axis=1).reshape(slots, blocks, places, *rest)
    position = jnp.arange(blocks * places).reshape(1, blocks, places, 1, 1)
    inside = position < count[:, None, None, None, None]
    return jnp.where(inside.transpose(order), taken.transpose(order), old)


@jax.jit
def prefill(model: DecodeWeights, tokens: Int[Array, "prompt token"]) -> Prefix:
    """Keys and values of prompts, each in a row of its own.

    Args:
        model: weights.
        tokens: ids, with anything behind the end of a prompt: it is not looked at.
    """
    config = model.config
    shape = (*tokens.shape, -1)
    rotation = rope.angles(config, jnp.tile(jnp.arange(tokens.shape[1]), len(tokens)))
    x = _embedded(model, tokens.reshape(-1))
    keys, values = [], []
    for layer in model.layers:
        query, key, value = (
            each.reshape(*shape, config.head_dim)
            for each in _query_key_value(config, layer, x, rotation)
        )
        keys.append(key)
        values.append(value)
        attended = attention(query, key, value, jnp.zeros_like(tokens))
        x = _attended_and_mixed(config, layer, x, attended.reshape(len(x), -1))
    return Prefix(keys=tuple(keys), values=tuple(values))


def decode_step(
    model: DecodeWeights,
    cache: Cache,
    tokens: Int[Array, " row"],
    positions: Int[Array, " row"],
) -> tuple[Cache, Float[Array, "vocab row"]]:
    """Reads one token a row; what comes next, as logits.

    Args:
        model: weights.
        cache: holds the `positions[i]` tokens before, in slot i.
        tokens: the token to read: one for each slot, but at least `FEWEST_ROWS`. Logits of rows
            beyond the slots mean nothing.
        positions: its place in its sequence, counted from 0.
    """
    config, slots = model.config, cache.slots
    rotation = rope.angles(config, positions)
    x = _embedded(model, tokens)
    keys, values = [], []
    for layer, old_keys, old_values in zip(model.layers, cache.keys, cache.values, strict=True):
        query, key, value = (each[:slots] for each in _query_key_value(config, layer, x, rotation))
        keys.append(_at_home(_written(old_keys, key, positions[:slots], place_axis=4), model.mesh))
        values.append(
            _at_home(_written(old_values, value, positions[:slots], place_axis=3), model.mesh)
        )
        attended = _attend_one(query, keys[-1], values[-1], positions[:slots])
        x = _attended_and_mixed(config, layer, x, _fitted(attended, len(x), axis=0))
        x = along(x, model.mesh, DATA)
    # Each row's token is drawn where all of its logits are.
    logits = _logits(model.head, _normed(x, model.final_norm, config))
    return Cache(keys=tuple(keys), values=tuple(values)), along(logits, model.mesh, None, DATA)


def _at_home(cached: Array, mesh: Mesh | None) -> Array:
    """Slots along one axis of the grid, heads along the other."""
    return along(cached, mesh, DATA, FSDP)


def _logits(head: Array, x: Array) -> Array:
    def of(rows: Array) -> Array:
        return jnp.matmul(head, rows.T.astype(head.dtype), preferred_element_type=x.dtype)

    def in_parts() -> Array:
        starts = range(0, len(x), _HEAD_ROWS)
        return jnp.concatenate([of(x[start : start + _HEAD_ROWS]) for start in starts], axis=1)

    logits: Array = jax.lax.platform_dependent(cpu=in_parts, default=lambda: of(x))
    return logits


def _embedded(model: DecodeWeights, tokens: Array) -> Array:
    x = model.embedding[tokens]
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _query_key_value(
    config: LMConfig, layer: DecodeLayer, x: Array, rotation: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Queries, keys and values `[token, head, head_dim]`, the first two normed and turned."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    qkv = matmul(_normed(x, layer.attention_norm, config), layer.qkv)
    qkv = qkv.reshape(len(x), heads + 2 * kv_heads, config.head_dim)
    query, key, value = jnp.split(qkv, [heads, heads + kv_heads], axis=1)
    if layer.query_norm is not None and layer.key_norm is not None:
        query = _normed(query, layer.query_norm, config)
        key = _normed(key, layer.key_norm, config)
    return rope.rotate(query, *rotation), rope.rotate(key, *rotation), value


def _attended_and_mixed(config: LMConfig, layer: DecodeLayer, x: Array, attended: Array) -> Array:
    """The rest of a layer after attention: output projection and gated MLP, each added to x."""
    x = x + matmul(attended, layer.output)
    gate_up = matmul(_normed(x, layer.mlp_norm, config), layer.gate_up)
    return x + matmul(gated(gate_up), layer.down)


def _normed(x: Array, scale: Array, config: LMConfig) -> Array:
    """`rms_norm` with a sum in an order of its own."""
    mean = fold(jnp.add, x * x) / x.shape[-1]
    return x * jax.lax.rsqrt(mean + config.rms_norm_eps) * scale.astype(x.dtype)


def _attend_one(query: Array, keys: Array, values: Array, positions: Array) -> Array:
    """Attention of one query a slot over its cache, `[slot, head_x_dim]`."""
    slots, kv_heads, blocks, dim, places = keys.shape
    grouped = query.reshape(slots, kv_heads, 1, -1, dim) * dim**-0.5
    # The same product for each block, whatever the number of blocks.
    grouped = jnp.broadcast_to(grouped, (slots, kv_heads, blocks, *grouped.shape[3:]))
    scores = jnp.einsum("skbgd,skbdp->skbgp", grouped, keys)
    unseen = jnp.arange(blocks * places).reshape(blocks, places) > positions[:, None, None]
    scores = jnp.where(unseen[:, None, :, None], -jnp.inf, scores)
    largest = in_turn(jnp.maximum, fold(jnp.maximum, scores), axis=2)
    shares = jnp.exp(scores - largest[:, :, None])
    total = in_turn(jnp.add, fold(jnp.add, shares), axis=2)
    mixed = in_turn(jnp.add, jnp.einsum("skbgp,skbpd->skbgd", shares, values), axis=2)
    return (mixed / total).reshape(slots, -1)


def _written(cached: Array, new: Array, positions: Array, *, place_axis: int) -> Array:
    """Puts each slot's new entry at its position."""
    places = cached.shape[place_axis]
    block, place = positions // places, positions % places
    if len(cached) == 1:
        # For one slot XLA's scatter costs more than the layer's attention.
        entry = jnp.expand_dims(new, (2, place_axis))
        start = (0, 0, block[0], *((0, place[0]) if place_axis == 4 else (place[0], 0)))
        return jax.lax.dynamic_update_slice(cached, entry, start)
    slots, everything = jnp.arange(len(cached)), slice(None)
    where = (
        (slots, everything, block, everything, place)
        if place_axis == 4
        else (slots, everything, block, place)
    )
    return cached.at[where].set(new, mode="promise_in_bounds", unique_indices=True)
