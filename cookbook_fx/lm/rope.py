"""Rotary position embeddings."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cookbook_fx.lm.config import LMConfig


def frequencies(config: LMConfig) -> Float[np.ndarray, " half_dim"]:
    """Radians each pair of a head's dimensions turns per position: theta^(-2i / head_dim).

    With Llama-3 scaling, pairs that turn less than `low_freq_factor` times within the original
    context are slowed by `factor`, those that turn more than `high_freq_factor` times are left
    alone, and those between are blended linearly.

    Example:
        >>> tiny = LMConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=2,
        ...     num_heads=2, num_kv_heads=1, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5,
        ...     max_position_embeddings=64, tie_word_embeddings=True, qk_norm=False)
        >>> frequencies(tiny).tolist()
        [1.0, 0.01]
    """
    plain = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor


def angles(
    config: LMConfig, positions: Int[Array, "*token"]
) -> tuple[Float[Array, "*token half_dim"], Float[Array, "*token half_dim"]]:
    """Cosine and sine of every position's rotation, in float32."""
    turned = positions[..., None].astype(jnp.float32) * jnp.asarray(
        frequencies(config), jnp.float32
    )
    return jnp.cos(turned), jnp.sin(turned)


def rotate(
    x: Float[Array, "*token head dim"],
    cosine: Float[Array, "*token half_dim"],
    sine: Float[Array, "*token half_dim"],
) -> Float[Array, "*token head dim"]:
    """Turns dimension i of each head together with dimension i + dim/2 (Hugging Face's pairing).

    Example:
        >>> quarter = jnp.zeros((1, 1)), jnp.ones((1, 1))
        >>> rotate(jnp.array([[[1.0, 2.0]]]), *quarter).tolist()
        [[[-2.0, 1.0]]]
    """
    first, second = jnp.split(x, 2, axis=-1)
    cosine, sine = cosine[..., None, :].astype(x.dtype), sine[..., None, :].astype(x.dtype)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
