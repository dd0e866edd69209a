"""From hidden states to log-probabilities, without ever holding batch x length x vocabulary.

Tokens are taken some hundreds at a time. As a loss is a sum of per-token terms, a token's loss
gradient is known as soon as its log-probability is, and the gradient of the head is finished
while its logits are still there: nothing is stored, and nothing computed twice.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from cookbook_fx.lm.lora import LowRank
from cookbook_fx.lm.transformer import matmul

_CHUNK = 512


class HeadResult(NamedTuple):
    """What a pass through the head yields; gradients are of the summed loss."""

    logprobs: Float[Array, "token candidate"]
    losses: Float[Array, "token candidate"]
    hidden_gradient: Float[Array, "token hidden"]
    unembed_gradient: LowRank | None


class PromptResult(NamedTuple):
    """Log-probabilities of targets and of the likeliest tokens instead."""

    logprobs: Float[Array, "token candidate"]
    topk_ids: Int[Array, "token k"]
    topk_logprobs: Float[Array, "token k"]


def target_logprobs(
    hidden: Float[Array, "token hidden"],
    head: Float[Array, "vocab hidden"],
    unembed: LowRank | None,
    targets: Int[Array, "token candidate"],
    *,
    scale: float,
    top_k: int = 0,
) -> PromptResult:
    """Log-probability (nats) of each candidate target, and the `top_k` likeliest tokens.

    Args:
        hidden: after the final norm.
        head: frozen unembedding.
        unembed: its adapter, if trained.
        targets: token ids.
        scale: alpha / rank.
        top_k: how many of the likeliest tokens to report.
    """
    features, matrix = _features(hidden, unembed, scale), _matrix(head, unembed)

    def chunk(_: None, inputs: tuple[Array, Array]) -> tuple[None, PromptResult]:
        logits = _logits(inputs[0], matrix)
        normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        chosen = jnp.take_along_axis(logits, inputs[1], axis=-1)
        likeliest, ids = jax.lax.top_k(logits, top_k)
        return None, PromptResult(chosen - normaliser, ids, likeliest - normaliser)

    _, result = jax.lax.scan(chunk, None, _chunked((features, targets)))
    return PromptResult(*_joined(result, len(targets)))


def loss_and_gradients(
    hidden: Float[Array, "token hidden"],
    head: Float[Array, "vocab hidden"],
    unembed: LowRank | None,
    targets: Int[Array, "token candidate"],
    loss: Callable[..., Array],
    loss_inputs: PyTree[Float[Array, "token ..."]],
    *,
    scale: float,
) -> HeadResult:
    """Losses and log-probabilities of all tokens, and the gradients of the sum of the losses.

    With p the softmax of a token's logits and g its dloss/dlogprob, the gradient of the logits is
    g (onehot - p). A chunk in which all g are 0 skips that part: put such tokens side by side.

    Args:
        hidden: after the final norm.
        head: frozen unembedding.
        unembed: its adapter, if trained.
        targets: token ids.
        loss: (logprobs, loss_inputs) of some tokens -> their losses, `[token, candidate]`.
        loss_inputs: arrays with a leading token axis.
        scale: alpha / rank.
    """
    features, to_hidden = jax.vjp(
        lambda h, low_rank: _features(h, low_rank, scale), hidden, unembed
    )
    matrix, width = _matrix(head, unembed), hidden.shape[-1]

    def chunk(b_gradient: Array, inputs: Any) -> tuple[Array, tuple[Array, Array, Array]]:
        features, targets, loss_inputs = inputs
        logits = _logits(features, matrix)
        normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        logprobs = jnp.take_along_axis(logits, targets, axis=-1) - normaliser
        losses, to_logprobs = jax.vjp(lambda p: loss(p, loss_inputs), logprobs)
        (slopes,) = to_logprobs(jnp.ones_like(losses))

        def gradients(b_gradient: Array) -> tuple[Array, Array]:
            total = slopes.sum(axis=-1, keepdims=True)
            shares = jnp.exp(logits - normaliser)
            chosen = jnp.einsum("tc,tcf->tf", slopes, matrix[targets].astype(slopes.dtype))
            mean = matmul(shares, matrix)
            if unembed is not None:
                inner = features[:, width:]
                b_gradient = b_gradient - matmul((shares * total).T, inner)
                b_gradient = b_gradient.at[targets].add(slopes[..., None] * inner[:, None])
            return b_gradient, chosen - total * mean

        def nothing(b_gradient: Array) -> tuple[Array, Array]:
            return b_gradient, jnp.zeros_like(features)

        b_gradient, feature_gradient = jax.lax.cond(
            jnp.any(slopes != 0), gradients, nothing, b_gradient
        )
        return b_gradient, (logprobs, losses, feature_gradient)

    rank = features.shape[-1] - width
    b_gradient, outputs = jax.lax.scan(
        chunk,
        jnp.zeros((len(head), rank), features.dtype),
        _chunked((features, targets, loss_inputs)),
    )
    logprobs, losses, feature_gradient = _joined(outputs, len(targets))
    hidden_gradient, unembed_gradient = to_hidden(feature_gradient)
    if unembed_gradient is not None:
        unembed_gradient = dataclasses.replace(unembed_gradient, b=b_gradient.T)
    return HeadResult(logprobs, losses, hidden_gradient, unembed_gradient)


def _features(hidden: Array, unembed: LowRank | None, scale: float) -> Array:
    """What `_matrix` is multiplied with: [h, scale · h·A], or h without an adapter."""
    if unembed is None:
        return hidden
    return jnp.concatenate([hidden, scale * (hidden @ unembed.a)], axis=-1)


def _matrix(head: Array, unembed: LowRank | None) -> Array:
    """[W, Bᵀ], or W without an adapter: one matmul gives base and adapter together."""
    if unembed is None:
        return head
    return jnp.concatenate([head, unembed.b.T.astype(head.dtype)], axis=-1)


def _logits(features: Array, matrix: Array) -> Array:
    return jax.lax.dot_general(
        features.astype(matrix.dtype),
        matrix,
        (((1,), (1,)), ((), ())),
        preferred_element_type=features.dtype,
    )


def _chunked(arrays: PyTree[Array]) -> PyTree[Array]:
    """Splits the leading axis into equal parts of at most `_CHUNK`, zeros behind the last."""

    def split(x: Array) -> Array:
        chunks = -(-len(x) // _CHUNK)
        size = -(-len(x) // chunks)
        padded = jnp.pad(x, [(0, chunks * size - len(x))] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunks, size, *x.shape[1:])

    return jax.tree.map(split, arrays)


def _joined(arrays: PyTree[Array], length: int) -> PyTree[Array]:
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:length], arrays)
