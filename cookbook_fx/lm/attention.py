"""Causal attention within packed segments, forward and backward.

Written out rather than left to differentiation, for three reasons: the attention weights are
recomputed block by block and never kept (Dao et al. 2022, arXiv:2205.14135); keys behind the end
of a block of queries, all masked, are never multiplied; and the query heads that share a key head
stand as rows of one matmul.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

# Names under which the backward pass finds what the forward pass computed.
ATTENTION_RESIDUALS = ("query", "key", "value", "attended", "normaliser")
_QUERY_BLOCK = 128
_MAX_BLOCKS = 8


def attention(
    query: Float[Array, "row token head dim"],
    key: Float[Array, "row token kv_head dim"],
    value: Float[Array, "row token kv_head dim"],
    segments: Int[Array, "row token"],
    beginnings: Int[Array, "row token"] | None = None,
) -> Float[Array, "row token head_x_dim"]:
    """softmax(q·k / √dim)·v over the earlier tokens of the same sequence, and the token itself.

    Args:
        query: any multiple of kv_head heads; consecutive ones share a key head.
        key: rotated, as the query is.
        value: what is mixed.
        segments: a number per sequence of a row.
        beginnings: the segment that a sequence begins with and has in common with others; its own
            where there is none. None is no such segment anywhere.

    Example:
        >>> x = jnp.array([[[[1.0]], [[2.0]]]])
        >>> attention(x, x, x, jnp.array([[0, 1]])).tolist()
        [[[1.0], [2.0]]]
    """
    rows, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(rows, length, kv_heads, heads // kv_heads, dim)
    attended = _attend(
        checkpoint_name(grouped.transpose(0, 2, 3, 1, 4), "query"),
        checkpoint_name(key.transpose(0, 2, 1, 3), "key"),
        checkpoint_name(value.transpose(0, 2, 1, 3), "value"),
        segments,
        segments if beginnings is None else beginnings,
    )
    return attended.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads * dim)


class _Residuals(NamedTuple):
    """What the backward pass starts from; `normaliser` is the log of the softmax's sum."""

    query: Float[Array, "row kv_head group token dim"]
    key: Float[Array, "row kv_head token dim"]
    value: Float[Array, "row kv_head token dim"]
    segments: Int[Array, "row token"]
    beginnings: Int[Array, "row token"]
    attended: Float[Array, "row kv_head group token dim"]
    normaliser: Float[Array, "row kv_head group token 1"]


@jax.custom_vjp
def _attend(
    query: Float[Array, "row kv_head group token dim"],
    key: Float[Array, "row kv_head token dim"],
    value: Float[Array, "row kv_head token dim"],
    segments: Int[Array, "row token"],
    beginnings: Int[Array, "row token"],
) -> Float[Array, "row kv_head group token dim"]:
    attended, _ = _attend_forward(query, key, value, segments, beginnings)
    return attended


def _attend_forward(
    query: Array, key: Array, value: Array, segments: Array, beginnings: Array
) -> tuple[Array, _Residuals]:
    attended, normalisers = [], []
    for block in _blocks(query.shape[3]):
        scores = _scores(query, key, segments, beginnings, block)
        largest = scores.max(axis=-1, keepdims=True)
        shares = jnp.exp(scores - largest)
        total = shares.sum(axis=-1, keepdims=True)
        mixed = jnp.einsum("rkgqt,rktd->rkgqd", shares, value[:, :, : block.stop])
        attended.append(mixed / total)
        normalisers.append(largest + jnp.log(total))
    output = checkpoint_name(jnp.concatenate(attended, axis=3), "attended")
    normaliser = checkpoint_name(jnp.concatenate(normalisers, axis=3), "normaliser")
    return output, _Residuals(query, key, value, segments, beginnings, output, normaliser)


def _attend_backward(
    residuals: _Residuals, gradient: Array
) -> tuple[Array, Array, Array, None, None]:
    query, key, value, segments, beginnings, output, normaliser = residuals
    scale = query.shape[-1] ** -0.5
    mean_slope = (gradient * output).sum(axis=-1, keepdims=True)
    to_query, to_key, to_value = [], jnp.zeros_like(key), jnp.zeros_like(value)
    for block in _blocks(query.shape[3]):
        seen_keys = (slice(None), slice(None), slice(block.stop))
        shares = jnp.exp(
            _scores(query, key, segments, beginnings, block) - normaliser[:, :, :, block]
        )
        slopes = jnp.einsum("rkgqd,rktd->rkgqt", gradient[:, :, :, block], value[seen_keys])
        slopes = shares * (slopes - mean_slope[:, :, :, block]) * scale
        to_query.append(jnp.einsum("rkgqt,rktd->rkgqd", slopes, key[seen_keys]))
        to_key = to_key.at[seen_keys].add(
            jnp.einsum("rkgqt,rkgqd->rktd", slopes, query[:, :, :, block])
        )
        to_value = to_value.at[seen_keys].add(
            jnp.einsum("rkgqt,rkgqd->rktd", shares, gradient[:, :, :, block])
        )
    return jnp.concatenate(to_query, axis=3), to_key, to_value, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _blocks(length: int) -> Iterator[slice]:
    """Ranges of queries; few enough that unrolling them keeps compilation short."""
    size = max(_QUERY_BLOCK, -(-length // _MAX_BLOCKS))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _scores(query: Array, key: Array, segments: Array, beginnings: Array, block: slice) -> Array:
    """Scaled scores of a block of queries against the keys up to its end, -inf where unseen."""
    dim = query.shape[-1]
    scores = (
        jnp.einsum("rkgqd,rktd->rkgqt", query[:, :, :, block], key[:, :, : block.stop]) * dim**-0.5
    )
    keys = segments[:, None, : block.stop]
    seen = (segments[:, block, None] == keys) | (beginnings[:, block, None] == keys)
    seen &= jnp.arange(block.start, block.stop)[:, None] >= jnp.arange(block.stop)
    return jnp.where(seen[:, None, None], scores, -jnp.inf)
