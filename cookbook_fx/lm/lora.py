"""Low-rank adapters: what is trained, beside base weights that stay as they are.

Hu et al. 2021, arXiv:2106.09685: y = x·W + (alpha / rank)·(x·A)·B, with A random and B zero, so
that a new adapter changes nothing.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.lm.config import LMConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """Which projections get an adapter, and of what rank, as Tinker's `LoraConfig` names them."""

    rank: int = 32
    seed: int = 0
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigurationError(f"LoRA rank must be at least 1, got {self.rank}")
        if not (self.train_mlp or self.train_attn or self.train_unembed):
            raise ConfigurationError(
                "a LoRA must train at least one of mlp, attn and unembed, got none"
            )


class LowRank(eqx.Module):
    """One A·B pair; in layers both carry a leading layer axis."""

    a: Float[Array, "*layer in rank"]
    b: Float[Array, "*layer rank out"]


class LoRA(eqx.Module):
    """The adapter of a whole model; None where a projection has none."""

    scale: float = eqx.field(static=True)
    query: LowRank | None
    key: LowRank | None
    value: LowRank | None
    output: LowRank | None
    gate: LowRank | None
    up: LowRank | None
    down: LowRank | None
    unembed: LowRank | None


# The numerator of the LoRA scale: fixed, as Tinker fixes it, so that a rank can be changed
# without finding a new learning rate.
ALPHA = 32


def init_lora(config: LMConfig, lora: LoRAConfig) -> LoRA:
    """A fresh adapter: A uniform in ±1/√in (Kaiming with a=√5, as peft draws it), B zero.

    Example:
        >>> tiny = LMConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=2,
        ...     num_heads=2, num_kv_heads=1, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5,
        ...     max_position_embeddings=64, tie_word_embeddings=True, qk_norm=False)
        >>> init_lora(tiny, LoRAConfig(rank=3)).query.a.shape
        (2, 8, 3)
    """
    hidden, mlp, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    keys = iter(jax.random.split(jax.random.key(lora.seed % 2**63), 8))

    def pair(trained: bool, inner: int, out: int, *layer: int) -> LowRank | None:  # noqa: FBT001
        subkey = next(keys)
        if not trained:
            return None
        bound = inner**-0.5
        return LowRank(
            a=jax.random.uniform(subkey, (*layer, inner, lora.rank), minval=-bound, maxval=bound),
            b=jnp.zeros((*layer, lora.rank, out)),
        )

    layers = config.num_layers
    return LoRA(
        scale=ALPHA / lora.rank,
        query=pair(lora.train_attn, hidden, query, layers),
        key=pair(lora.train_attn, hidden, key, layers),
        value=pair(lora.train_attn, hidden, key, layers),
        output=pair(lora.train_attn, query, hidden, layers),
        gate=pair(lora.train_mlp, hidden, mlp, layers),
        up=pair(lora.train_mlp, hidden, mlp, layers),
        down=pair(lora.train_mlp, mlp, hidden, layers),
        unembed=pair(lora.train_unembed, hidden, vocab),
    )
