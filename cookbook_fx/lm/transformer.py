"""The decoder: packed tokens in, hidden states out; Llama and Qwen3."""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from cookbook_fx.lm import rope
from cookbook_fx.lm.config import LMConfig
from cookbook_fx.lm.lora import LoRA, LowRank
from cookbook_fx.lm.weights import LayerWeights, LMWeights

# What the backward pass keeps of each layer; the rest (norms, activations, attention weights) is
# cheaper to compute again than to write out and read back.
_KEPT = ("query", "key", "value", "attended", "middle", "gate_up")
# Above this many tokens even those are too much memory, and only the layer's input is kept.
_KEEP_UP_TO_TOKENS = 4096
# Queries are taken this many at a time, so that each block meets only the keys before its end.
_QUERY_BLOCK = 128


class Tokens(NamedTuple):
    """Packed model input: ids, place within the sequence, and a number per sequence of a row."""

    ids: Int[Array, "row token"]
    positions: Int[Array, "row token"]
    segments: Int[Array, "row token"]


def hidden_states(
    weights: LMWeights, adapter: LoRA | None, tokens: Tokens
) -> Float[Array, "row token hidden"]:
    """Runs every layer and the final norm; a token attends to earlier ones of its own segment.

    Activations are at least float32; matrices are multiplied in the dtype they are stored in.

    Args:
        weights: frozen base model.
        adapter: applied beside the base matrices; None for the base model alone.
        tokens: packed rows.
    """
    config = weights.config
    rotation = rope.angles(config, tokens.positions)

    def layer(x: Array, parameters: tuple[LayerWeights, LoRA | None]) -> tuple[Array, None]:
        base, lora = parameters
        x = x + _attention_block(config, base, lora, x, rotation, tokens.segments)
        x = checkpoint_name(x, "middle")
        return x + _mlp_block(config, base, lora, x), None

    keep = _KEPT if tokens.ids.size <= _KEEP_UP_TO_TOKENS else ()
    layer = jax.checkpoint(
        layer, policy=jax.checkpoint_policies.save_only_these_names(*keep), prevent_cse=False
    )
    x = weights.embedding[tokens.ids]
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x, _ = jax.lax.scan(layer, x, (weights.layers, _in_layers(adapter)))
    return rms_norm(x, weights.final_norm, eps=config.rms_norm_eps)


def rms_norm(
    x: Float[Array, "*batch size"], scale: Float[Array, " size"], *, eps: float
) -> Float[Array, "*batch size"]:
    """x / √(mean x² + eps) · scale, over the last axis.

    Example:
        >>> rms_norm(jnp.array([3.0, -3.0]), jnp.array([1.0, 2.0]), eps=0.0).tolist()
        [1.0, -2.0]
    """
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale.astype(x.dtype)


def matmul(
    x: Float[Array, "*batch in"], matrix: Float[Array, "in out"]
) -> Float[Array, "*batch out"]:
    """x · matrix, multiplied in the matrix's dtype, summed and returned in that of x."""
    return jnp.matmul(x.astype(matrix.dtype), matrix, preferred_element_type=x.dtype)


def project(
    x: Float[Array, "*batch in"],
    base: Float[Array, "in out"],
    pairs: Sequence[LowRank | None],
    *,
    scale: float,
) -> Float[Array, "*batch out"]:
    """x · (base + scale · A·B) without forming the sum.

    Args:
        x: activations.
        base: projections that share their input, joined along the output axis.
        pairs: the adapter of each of them in order, all or none present.
        scale: alpha / rank.
    """
    y = matmul(x, base)
    present = [pair for pair in pairs if pair is not None]
    if not present:
        return y
    inner = scale * matmul(x, jnp.concatenate([pair.a for pair in present], axis=-1))
    inners = jnp.split(inner, len(present), axis=-1)
    return y + jnp.concatenate(
        [matmul(part, pair.b) for part, pair in zip(inners, present, strict=True)], axis=-1
    )


def _in_layers(adapter: LoRA | None) -> LoRA | None:
    """The part of an adapter that has a layer axis."""
    if adapter is None:
        return None
    return eqx.tree_at(lambda lora: lora.unembed, adapter, None, is_leaf=lambda x: x is None)


def _attention_block(
    config: LMConfig,
    base: LayerWeights,
    lora: LoRA | None,
    x: Array,
    rotation: tuple[Array, Array],
    segments: Array,
) -> Array:
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    scale = 1.0 if lora is None else lora.scale
    normed = rms_norm(x, base.attention_norm, eps=config.rms_norm_eps)
    pairs = () if lora is None else (lora.query, lora.key, lora.value)
    qkv = project(normed, base.qkv, pairs, scale=scale)
    qkv = qkv.reshape(*x.shape[:-1], heads + 2 * kv_heads, dim)
    query, key, value = jnp.split(qkv, [heads, heads + kv_heads], axis=-2)
    if base.query_norm is not None and base.key_norm is not None:
        query = rms_norm(query, base.query_norm, eps=config.rms_norm_eps)
        key = rms_norm(key, base.key_norm, eps=config.rms_norm_eps)
    query = checkpoint_name(rope.rotate(query, *rotation), "query")
    key = checkpoint_name(rope.rotate(key, *rotation), "key")
    value = checkpoint_name(value, "value")
    attended = checkpoint_name(attention(query, key, value, segments), "attended")
    return project(attended, base.output, () if lora is None else (lora.output,), scale=scale)


def attention(
    query: Float[Array, "row token head dim"],
    key: Float[Array, "row token kv_head dim"],
    value: Float[Array, "row token kv_head dim"],
    segments: Int[Array, "row token"],
) -> Float[Array, "row token head_x_dim"]:
    """Causal attention within segments; each key head serves a group of query heads.

    A group's queries are stacked as rows of one matmul per key head, and taken in blocks, so that
    the keys after a block, all masked, are never multiplied.

    Example:
        >>> x = jnp.array([[[[1.0]], [[2.0]]]])
        >>> attention(x, x, x, jnp.array([[0, 1]])).tolist()
        [[[1.0], [2.0]]]
    """
    rows, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    grouped = query.reshape(rows, length, kv_heads, group, dim).transpose(0, 2, 3, 1, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    block = max(_QUERY_BLOCK, length // 8)
    attended = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        queries = grouped[:, :, :, start:stop].reshape(rows, kv_heads, -1, dim)
        scores = jnp.einsum("rkqd,rktd->rkqt", queries, key[:, :, :stop]) * dim**-0.5
        scores = scores.reshape(rows, kv_heads, group, stop - start, stop)
        seen = segments[:, start:stop, None] == segments[:, None, :stop]
        seen &= jnp.arange(start, stop)[:, None] >= jnp.arange(stop)
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
        shares = jax.nn.softmax(scores, axis=-1).reshape(rows, kv_heads, -1, stop)
        mixed = jnp.einsum("rkqt,rktd->rkqd", shares, value[:, :, :stop])
        attended.append(mixed.reshape(rows, kv_heads, group, stop - start, dim))
    return jnp.concatenate(attended, axis=3).transpose(0, 3, 1, 2, 4).reshape(rows, length, -1)


def _mlp_block(config: LMConfig, base: LayerWeights, lora: LoRA | None, x: Array) -> Array:
    scale = 1.0 if lora is None else lora.scale
    normed = rms_norm(x, base.mlp_norm, eps=config.rms_norm_eps)
    pairs = () if lora is None else (lora.gate, lora.up)
    gate_up = checkpoint_name(project(normed, base.gate_up, pairs, scale=scale), "gate_up")
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return project(
        jax.nn.silu(gate) * up, base.down, () if lora is None else (lora.down,), scale=scale
    )
