"""The decoder one token at a time: weights laid out for it, and a cache of keys and values.

Training runs its layers in a scan over stacked matrices, which compiles fast. Decoding reads every
matrix to multiply it with a few rows, and slicing a matrix out of the stack would mean reading it
twice; so here each layer has arrays of its own, with the adapter added in.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cookbook_fx.lm import rope
from cookbook_fx.lm.attention import attention
from cookbook_fx.lm.config import LMConfig
from cookbook_fx.lm.lora import LoRA, LowRank
from cookbook_fx.lm.transformer import gated, matmul, rms_norm
from cookbook_fx.lm.weights import LayerWeights, LMWeights


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


class Cache(eqx.Module):
    """Keys and values of every layer, one row a slot.

    Keys lie with their positions last and values with them first: the order in which the two
    products of attention read them.
    """

    keys: tuple[Float[Array, "slot kv_head head_dim length"], ...]
    values: tuple[Float[Array, "slot kv_head length head_dim"], ...]

    @property
    def slots(self) -> int:
        """How many sequences it holds."""
        return self.keys[0].shape[0]

    @property
    def length(self) -> int:
        """How many positions each of them has."""
        return self.keys[0].shape[3]


class Prefix(eqx.Module):
    """Keys and values of packed prompts, every layer."""

    keys: tuple[Float[Array, "token kv_head head_dim"], ...]
    values: tuple[Float[Array, "token kv_head head_dim"], ...]


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
            _merged_layer(weights.layers, adapter, jnp.asarray(layer))
            for layer in range(weights.config.num_layers)
        ),
        final_norm=weights.final_norm,
        head=weights.head if unembed is None else _merged_head(weights.head, unembed, scale=scale),
    )


@jax.jit
def _merged_layer(
    stacked: LayerWeights, adapter: LoRA | None, index: Int[Array, ""]
) -> DecodeLayer:
    base: LayerWeights = jax.tree.map(lambda array: array[index], stacked)

    def merged(matrix: Array, *pairs: LowRank | None) -> Array:
        present = [pair for pair in pairs if pair is not None]
        if adapter is None or not present:
            return matrix
        changes = [pair.a[index] @ pair.b[index] for pair in present]
        return (matrix + adapter.scale * jnp.concatenate(changes, axis=-1)).astype(matrix.dtype)

    return DecodeLayer(
        attention_norm=base.attention_norm,
        qkv=merged(base.qkv, *((adapter.query, adapter.key, adapter.value) if adapter else ())),
        output=merged(base.output, *((adapter.output,) if adapter else ())),
        query_norm=base.query_norm,
        key_norm=base.key_norm,
        mlp_norm=base.mlp_norm,
        gate_up=merged(base.gate_up, *((adapter.gate, adapter.up) if adapter else ())),
        down=merged(base.down, *((adapter.down,) if adapter else ())),
    )


@partial(jax.jit, static_argnames="scale")
def _merged_head(head: Array, unembed: LowRank, *, scale: float) -> Array:
    return (head + scale * (unembed.a @ unembed.b).T).astype(head.dtype)


def empty_cache(model: DecodeWeights, *, slots: int, length: int) -> Cache:
    """A cache without content."""
    config = model.config
    shape = slots, config.num_kv_heads
    dtype = jnp.promote_types(model.embedding.dtype, jnp.float32)
    layers = range(config.num_layers)
    return Cache(
        keys=tuple(jnp.zeros((*shape, config.head_dim, length), dtype) for _ in layers),
        values=tuple(jnp.zeros((*shape, length, config.head_dim), dtype) for _ in layers),
    )


def rearranged(cache: Cache, source: Int[Array, " slot"], *, length: int) -> Cache:
    """A cache with other slots and another length: slot i gets what slot `source[i]` held."""
    # One small program per array shape, called for each layer, compiles faster than one for all.
    return Cache(
        keys=tuple(_resized(each, source, length=length, axis=3) for each in cache.keys),
        values=tuple(_resized(each, source, length=length, axis=2) for each in cache.values),
    )


def placed(
    cache: Cache, prefix: Prefix, *, start: Int[Array, " slot"], count: Int[Array, " slot"]
) -> Cache:
    """Fills slot i with `count[i]` packed tokens from `start[i]` on; 0 leaves it alone."""
    # Each array's own small program, as in `rearranged`.
    return Cache(
        keys=tuple(
            _filled(old, new, start, count, order=(0, 2, 3, 1))
            for old, new in zip(cache.keys, prefix.keys, strict=True)
        ),
        values=tuple(
            _filled(old, new, start, count, order=(0, 2, 1, 3))
            for old, new in zip(cache.values, prefix.values, strict=True)
        ),
    )


@partial(jax.jit, static_argnames=("length", "axis"))
def _resized(array: Array, source: Array, *, length: int, axis: int) -> Array:
    taken = array[source]
    if length <= array.shape[axis]:
        return jax.lax.slice_in_dim(taken, 0, length, axis=axis)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, length - array.shape[axis])
    return jnp.pad(taken, padding)


@partial(jax.jit, static_argnames="order")
def _filled(old: Array, new: Array, start: Array, count: Array, *, order: tuple[int, ...]) -> Array:
    position = jnp.arange(old.shape[order.index(1)])
    token = jnp.clip(start[:, None] + position, 0, len(new) - 1)
    inside = position < count[:, None]
    return jnp.where(inside[:, :, None, None].transpose(order), new[token].transpose(order), old)


@jax.jit
def prefill(
    model: DecodeWeights,
    tokens: Int[Array, " token"],
    positions: Int[Array, " token"],
    segments: Int[Array, " token"],
) -> Prefix:
    """Keys and values of prompts laid end to end.

    Args:
        model: weights.
        tokens: ids, padded to one of a few lengths.
        positions: each token's place in its own prompt.
        segments: which prompt a token belongs to; a padding value of its own for padding.
    """
    config = model.config
    rotation = rope.angles(config, positions)
    x = _embedded(model, tokens)
    keys, values = [], []
    for layer in model.layers:
        query, key, value = _query_key_value(config, layer, x, rotation)
        keys.append(key)
        values.append(value)
        attended = attention(query[None], key[None], value[None], segments[None])[0]
        x = _attended_and_mixed(config, layer, x, attended)
    return Prefix(keys=tuple(keys), values=tuple(values))


def decode_step(
    model: DecodeWeights,
    cache: Cache,
    tokens: Int[Array, " slot"],
    positions: Int[Array, " slot"],
) -> tuple[Cache, Float[Array, "vocab slot"]]:
    """Reads one token a slot; what comes next, as logits.

    Args:
        model: weights.
        cache: holds the `positions[i]` tokens before, in slot i.
        tokens: the token to read.
        positions: its place in its sequence, counted from 0.
    """
    config = model.config
    rotation = rope.angles(config, positions)
    unseen = jnp.arange(cache.length) > positions[:, None]
    x = _embedded(model, tokens)
    keys, values = [], []
    for layer, old_keys, old_values in zip(model.layers, cache.keys, cache.values, strict=True):
        query, key, value = _query_key_value(config, layer, x, rotation)
        keys.append(_written(old_keys, key[..., None], positions, axis=3))
        values.append(_written(old_values, value[:, :, None], positions, axis=2))
        attended = _attend_one(query, keys[-1], values[-1], unseen)
        x = _attended_and_mixed(config, layer, x, attended)
    x = rms_norm(x, model.final_norm, eps=config.rms_norm_eps)
    logits = jnp.matmul(model.head, x.T.astype(model.head.dtype), preferred_element_type=x.dtype)
    return Cache(keys=tuple(keys), values=tuple(values)), logits


def _embedded(model: DecodeWeights, tokens: Array) -> Array:
    x = model.embedding[tokens]
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _query_key_value(
    config: LMConfig, layer: DecodeLayer, x: Array, rotation: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Queries, keys and values `[token, head, head_dim]`, the first two normed and turned."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    qkv = matmul(rms_norm(x, layer.attention_norm, eps=config.rms_norm_eps), layer.qkv)
    qkv = qkv.reshape(len(x), heads + 2 * kv_heads, config.head_dim)
    query, key, value = jnp.split(qkv, [heads, heads + kv_heads], axis=1)
    if layer.query_norm is not None and layer.key_norm is not None:
        query = rms_norm(query, layer.query_norm, eps=config.rms_norm_eps)
        key = rms_norm(key, layer.key_norm, eps=config.rms_norm_eps)
    return rope.rotate(query, *rotation), rope.rotate(key, *rotation), value


def _attended_and_mixed(config: LMConfig, layer: DecodeLayer, x: Array, attended: Array) -> Array:
    """The rest of a layer after attention: output projection and gated MLP, each added to x."""
    x = x + matmul(attended, layer.output)
    gate_up = matmul(rms_norm(x, layer.mlp_norm, eps=config.rms_norm_eps), layer.gate_up)
    return x + matmul(gated(gate_up), layer.down)


def _attend_one(query: Array, keys: Array, values: Array, unseen: Array) -> Array:
    """Attention of one query a slot over its cache, `[slot, head_x_dim]`."""
    slots, kv_heads, dim, _ = keys.shape
    grouped = query.reshape(slots, kv_heads, -1, dim) * dim**-0.5
    scores = jnp.einsum("skgd,skdl->skgl", grouped, keys)
    scores = jnp.where(unseen[:, None, None], -jnp.inf, scores)
    shares = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("skgl,skld->skgd", shares, values).reshape(slots, -1)


def _written(cached: Array, new: Array, positions: Array, *, axis: int) -> Array:
    """Puts each slot's new entry at its position."""
    if len(cached) == 1:
        # For one slot XLA's scatter costs more than the layer's attention.
        return jax.lax.dynamic_update_slice_in_dim(cached, new, positions[0], axis)
    slots = jnp.arange(len(cached))
    where = (
        (slots, slice(None), slice(None), positions)
        if axis == 3
        else (slots, slice(None), positions)
    )
    return cached.at[where].set(
        jnp.squeeze(new, axis), mode="promise_in_bounds", unique_indices=True
    )
