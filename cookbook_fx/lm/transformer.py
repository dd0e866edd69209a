"""The decoder: packed tokens in, hidden states out; Llama and Qwen3."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from cookbook_fx.lm import rope
from cookbook_fx.lm.attention import ATTENTION_RESIDUALS, attention
from cookbook_fx.lm.config import LMConfig
from cookbook_fx.lm.lora import LoRA, LowRank
from cookbook_fx.lm.sharding import ROWS, along, device_count, gathered
from cookbook_fx.lm.weights import LayerWeights, LMWeights

# What the backward pass keeps of each layer; the rest (norms, activations, attention weights) is
# cheaper to compute again than to write out and read back.
_KEPT = (*ATTENTION_RESIDUALS, "middle", "inner", "gate_up")
# Above this many tokens even those are too much memory, and only the layer's input is kept.
_KEEP_UP_TO_TOKENS = 4096


class Tokens(NamedTuple):
    """Packed model input: ids, place within the sequence, and a number per sequence of a row.

    `beginnings` is the number of the segment that a token's sequence begins with, where several
    share one; None where none do.
    """

    ids: Int[Array, "row token"]
    positions: Int[Array, "row token"]
    segments: Int[Array, "row token"]
    beginnings: Int[Array, "row token"] | None = None


def hidden_states(
    weights: LMWeights, adapter: LoRA | None, tokens: Tokens
) -> Float[Array, "row token hidden"]:
    """Runs every layer and the final norm; a token attends to earlier ones of its own sequence.

    Activations are at least float32; matrices are multiplied in the dtype they are stored in.

    Args:
        weights: frozen base model.
        adapter: applied beside the base matrices; None for the base model alone.
        tokens: packed rows.
    """
    config, mesh = weights.config, weights.mesh
    rotation = rope.angles(config, tokens.positions)

    def layer(x: Array, parameters: tuple[LayerWeights, LoRA | None]) -> tuple[Array, None]:
        base, lora = gathered(parameters, mesh)
        x = along(x, mesh, ROWS)
        x = x + _attention_block(config, base, lora, x, rotation, tokens)
        x = checkpoint_name(x, "middle")
        return x + _mlp_block(config, base, lora, x), None

    keep = _KEPT if tokens.ids.size <= _KEEP_UP_TO_TOKENS * device_count(mesh) else ()
    layer = jax.checkpoint(
        layer, policy=jax.checkpoint_policies.save_only_these_names(*keep), prevent_cse=False
    )
    x = weights.embedding[tokens.ids]
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x, _ = jax.lax.scan(layer, x, (weights.layers, _in_layers(adapter)))
    return rms_norm(along(x, mesh, ROWS), weights.final_norm, eps=config.rms_norm_eps)


class _Adapted(NamedTuple):
    """What the backward pass of an adapted projection needs; `inner` is scale · x·A."""

    x: Array
    base: Array
    a: Array
    b: Array
    inner: Array


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
    present = [pair for pair in pairs if pair is not None]
    if not present:
        return matmul(x, base)
    flat = x.reshape(-1, x.shape[-1])
    # One wide matmul with zeros in it costs less than several narrow ones and joining them up.
    a = jnp.concatenate([pair.a for pair in present], axis=-1)
    b = jax.scipy.linalg.block_diag(*(pair.b for pair in present))
    return _adapted(scale, flat, base, a, b).reshape(*x.shape[:-1], base.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adapted(scale: float, x: Array, base: Array, a: Array, b: Array) -> Array:
    return _adapted_forward(scale, x, base, a, b)[0]


def _adapted_forward(
    scale: float, x: Array, base: Array, a: Array, b: Array
) -> tuple[Array, _Adapted]:
    inner = checkpoint_name(scale * matmul(x, a), "inner")
    return matmul(x, base) + matmul(inner, b), _Adapted(x, base, a, b, inner)


def _adapted_backward(
    scale: float, saved: _Adapted, gradient: Array
) -> tuple[Array, None, Array, Array]:
    """By hand for the shapes of its matmuls: the long matrix always stands on the right.

    Differentiation would put it, transposed, on the left of those for A and B, where XLA's CPU
    kernels run at a tenth of the speed.
    """
    x, base, a, b, inner = saved
    to_inner = scale * matmul(gradient, b.T)
    to_x = matmul(gradient, base.T) + matmul(to_inner, a.T)
    # The barrier keeps XLA from folding the transposition back into the matmul.
    to_a = jax.lax.optimization_barrier(matmul(to_inner.T, x)).T
    return to_x, None, to_a.astype(a.dtype), matmul(inner.T, gradient).astype(b.dtype)


_adapted.defvjp(_adapted_forward, _adapted_backward)


@jax.custom_vjp
def gated(gate_up: Float[Array, "*batch two_x_mlp"]) -> Float[Array, "*batch mlp"]:
    """silu(gate) · up, of the two halves of the last axis.

    Example:
        >>> gated(jnp.array([0.0, 1e3, 7.0, 2.0])).tolist()
        [0.0, 2000.0]
    """
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return gate * jax.nn.sigmoid(gate) * up


def _gated_forward(gate_up: Array) -> tuple[Array, Array]:
    return gated(gate_up), gate_up


def _gated_backward(gate_up: Array, gradient: Array) -> tuple[Array]:
    halves = gate_up.reshape(*gate_up.shape[:-1], 2, -1)
    gate, up = halves[..., :1, :], halves[..., 1:, :]
    open_ = jax.nn.sigmoid(gate)
    # A selection, not a concatenation: XLA fuses it into one pass over memory.
    is_gate = jnp.arange(2)[:, None] == 0
    slopes = jnp.where(is_gate, up * (1 + gate * (1 - open_)), gate)
    return ((gradient[..., None, :] * open_ * slopes).reshape(gate_up.shape),)


gated.defvjp(_gated_forward, _gated_backward)


def _in_layers(adapter: LoRA | None) -> LoRA | None:
    """The part of an adapter that has a layer axis."""
    if adapter is None:
        return None
    return dataclasses.replace(adapter, unembed=None)


def _attention_block(
    config: LMConfig,
    base: LayerWeights,
    lora: LoRA | None,
    x: Array,
    rotation: tuple[Array, Array],
    tokens: Tokens,
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
    query, key = rope.rotate(query, *rotation), rope.rotate(key, *rotation)
    attended = attention(query, key, value, tokens.segments, tokens.beginnings)
    return project(attended, base.output, () if lora is None else (lora.output,), scale=scale)


def _mlp_block(config: LMConfig, base: LayerWeights, lora: LoRA | None, x: Array) -> Array:
    scale = 1.0 if lora is None else lora.scale
    normed = rms_norm(x, base.mlp_norm, eps=config.rms_norm_eps)
    pairs = () if lora is None else (lora.gate, lora.up)
    gate_up = checkpoint_name(project(normed, base.gate_up, pairs, scale=scale), "gate_up")
    return project(gated(gate_up), base.down, () if lora is None else (lora.down,), scale=scale)
