"""What a model is: sizes and switches, as its `config.json` states them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cookbook_fx.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3RopeScaling:
    """How Llama 3.1 and later stretch rotary frequencies beyond the trained context."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LMConfig:
    """A dense decoder of the Llama or Qwen3 family. Hashable, so `jit` can specialise on it."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qk_norm: bool
    rope_scaling: Llama3RopeScaling | None = None


_QK_NORM = {"LlamaForCausalLM": False, "Qwen3ForCausalLM": True}


def config_from_hf(config: Mapping[str, Any]) -> LMConfig:
    """Reads a Hugging Face `config.json` (already parsed).

    Raises:
        ModelError: an architecture, activation, bias, attention window or RoPE variant that is
            not implemented, by name; or a missing key.

    Example:
        >>> config_from_hf({"architectures": ["MambaForCausalLM"]})
        Traceback (most recent call last):
        cookbook_fx.errors.ModelError: architecture 'MambaForCausalLM' is not supported; \
supported: LlamaForCausalLM, Qwen3ForCausalLM
    """
    architecture = next(iter(config.get("architectures") or ()), None)
    if architecture not in _QK_NORM:
        raise ModelError(
            f"architecture {architecture!r} is not supported; "
            f"supported: {', '.join(sorted(_QK_NORM))}"
        )
    _refuse_variants(config)
    try:
        heads = config["num_attention_heads"]
        return LMConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            rope_theta=float(
                _rope(config).get("rope_theta") or config.get("rope_theta") or 10_000.0
            ),
            rms_norm_eps=config["rms_norm_eps"],
            max_position_embeddings=config["max_position_embeddings"],
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            qk_norm=_QK_NORM[architecture],
            rope_scaling=_rope_scaling(_rope(config)),
        )
    except KeyError as missing:
        raise ModelError(f"config.json of a {architecture} lacks the key {missing}") from None


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 5 writes `rope_parameters` where earlier versions wrote `rope_scaling`.
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _rope_scaling(rope: Mapping[str, Any]) -> Llama3RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelError(f"RoPE scaling {kind!r} is not supported; supported: default, llama3")
    return Llama3RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position_embeddings=rope["original_max_position_embeddings"],
    )


def _refuse_variants(config: Mapping[str, Any]) -> None:
    for key, supported in (
        ("hidden_act", ("silu", None)),
        ("attention_bias", (False, None)),
        ("mlp_bias", (False, None)),
        ("use_sliding_window", (False, None)),
    ):
        if config.get(key) not in supported:
            raise ModelError(f"{key}={config[key]!r} is not supported; supported: {supported[0]!r}")
