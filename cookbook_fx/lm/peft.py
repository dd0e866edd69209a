"""Adapters in the form of the peft library: the same numbers under names other programs know.

peft stores A as `[rank, in]` and B as `[out, rank]`, one pair a layer and projection, and beside
them how they are scaled. What an adapter of ours is to other programs, and what of theirs is an
adapter to us, is said here; files are the caller's.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cookbook_fx.errors import DataError
from cookbook_fx.lm.config import LMConfig
from cookbook_fx.lm.lora import ALPHA, LoRA, LoRAConfig, LowRank, init_lora

# Fields of a `LoRA` that have a layer axis, and what Hugging Face calls their matrices.
_IN_LAYERS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_HEAD = "lm_head"
_PREFIX = "base_model.model."
# The hosted Tinker service calls the head by a name of its own.
_HEAD_NAMES = (_HEAD, "model.unembed_tokens")
_FIELD_OF = {module: field for field, module in _IN_LAYERS.items()}
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
_LAYER = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<module>.+)")
# Whole matrices that peft stores with any adapter of the head, trained or not.
_WHOLE = re.compile(r"(?P<module>lm_head|model\.embed_tokens)(?:\.base_layer)?\.weight")

# What would change the adapter's effect and has no place in `LoRA`; peft's default is empty.
_UNKNOWN_TO_US = (
    "alora_invocation_tokens", "alpha_pattern", "fan_in_fan_out", "layer_replication", "lora_bias",
    "modules_to_save", "rank_pattern", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip
# Starting points that leave the base model as it is; others, such as PiSSA, subtract from it.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


class PeftAdapter(NamedTuple):
    """The content of `adapter_config.json` and of `adapter_model.safetensors`."""

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]


def to_peft(adapter: LoRA, *, base_model: str) -> PeftAdapter:
    """An adapter as `PeftModel.from_pretrained` reads it.

    Args:
        adapter: to be written, in float32 as it was trained.
        base_model: the name or directory under which others find the base model.

    Example:
        >>> tiny = LMConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=1,
        ...     num_heads=2, num_kv_heads=1, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5,
        ...     max_position_embeddings=64, tie_word_embeddings=True, qk_norm=False)
        >>> lora = init_lora(tiny, LoRAConfig(rank=3, train_mlp=False, train_attn=False))
        >>> written = to_peft(lora, base_model="tiny")
        >>> written.config["target_modules"], sorted(written.tensors)[0]
        (['lm_head'], 'base_model.model.lm_head.lora_A.weight')
        >>> {name: tensor.shape for name, tensor in sorted(written.tensors.items())}.values()
        dict_values([(3, 8), (11, 3)])
    """
    tensors: dict[str, np.ndarray] = {}
    modules, rank = [], 0
    for field, module in _IN_LAYERS.items():
        pair = getattr(adapter, field)
        if pair is None:
            continue
        rank = pair.a.shape[-1]
        modules.append(module.split(".")[1])
        for layer, (a, b) in enumerate(zip(np.asarray(pair.a), np.asarray(pair.b), strict=True)):
            tensors |= _pair(f"model.layers.{layer}.{module}", a, b)
    if adapter.unembed is not None:
        rank = adapter.unembed.a.shape[-1]
        modules.append(_HEAD)
        tensors |= _pair(_HEAD, np.asarray(adapter.unembed.a), np.asarray(adapter.unembed.b))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    return PeftAdapter(config, tensors)


def _pair(module: str, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return {
        f"{_PREFIX}{module}.lora_A.weight": np.ascontiguousarray(a.T),
        f"{_PREFIX}{module}.lora_B.weight": np.ascontiguousarray(b.T),
    }


def from_peft(
    config: LMConfig, adapter: PeftAdapter, *, read_base: Callable[[str], np.ndarray]
) -> tuple[LoRAConfig, LoRA]:
    """An adapter of ours with the same effect as one of peft's, or of the hosted service's.

    Another alpha than ours, and the scale of rsLoRA (arXiv:2312.03732), go into B. Projections
    that have no pair get zeros, which change nothing and stay zero in training.

    Args:
        config: shape of the base model.
        adapter: what the files say.
        read_base: gives a tensor of the base model by its Hugging Face name; asked only for
            embeddings that are stored with the adapter and must not differ.

    Raises:
        DataError: the adapter is of another kind, made for another model, incomplete, not finite,
            or has an option that cannot be had here; named.
    """
    rank, scale = _rank_and_scale(adapter.config)
    embedding = "model.embed_tokens.weight"
    head = embedding if config.tie_word_embeddings else "lm_head.weight"
    whole = {"model.embed_tokens": embedding, _HEAD: head}
    pairs = _pairs(adapter.tensors, lambda module: read_base(whole[module]))
    layered = {field for field, _ in pairs if field != "unembed"}
    lora = LoRAConfig(
        rank=rank,
        train_mlp=not layered.isdisjoint(("gate", "up", "down")),
        train_attn=not layered.isdisjoint(("query", "key", "value", "output")),
        train_unembed=("unembed", None) in pairs,
    )
    _require_made_for(pairs, config, rank=rank)
    empty = jax.eval_shape(lambda: init_lora(config, lora))
    # Ours is alpha / rank with an alpha that never changes.
    factor = np.float32(scale / empty.scale)

    def filled(field: str) -> LowRank | None:
        shape: LowRank | None = getattr(empty, field)
        if shape is None:
            return None
        a, b = np.zeros(shape.a.shape, np.float32), np.zeros(shape.b.shape, np.float32)
        for (name, layer), (stored_a, stored_b) in pairs.items():
            if name == field:
                here = () if layer is None else layer
                a[here] = _fitting(stored_a.T, a[here].shape, field=field, layer=layer)
                b[here] = factor * _fitting(stored_b.T, b[here].shape, field=field, layer=layer)
        return LowRank(a=jnp.asarray(a), b=jnp.asarray(b))

    fields = {field: filled(field) for field in (*_IN_LAYERS, "unembed")}
    return lora, LoRA(scale=empty.scale, **fields)


def merged_tensor(name: str, base: np.ndarray, adapter: LoRA) -> np.ndarray:
    """A tensor of the base model with its part of the adapter added: W + scale · (A·B)ᵀ.

    Args:
        name: as Hugging Face calls it, such as `model.layers.0.mlp.up_proj.weight`.
        base: the tensor. Added in float32 at least, returned in its own precision.
        adapter: may have nothing there.

    Example:
        >>> import equinox as eqx
        >>> tiny = LMConfig(vocab_size=2, hidden_size=1, intermediate_size=1, num_layers=1,
        ...     num_heads=1, num_kv_heads=1, head_dim=2, rope_theta=1e4, rms_norm_eps=1e-5,
        ...     max_position_embeddings=64, tie_word_embeddings=True, qk_norm=False)
        >>> lora = init_lora(tiny, LoRAConfig(rank=32, train_mlp=False, train_attn=False))
        >>> pair = LowRank(a=jnp.ones((1, 32)), b=jnp.ones((32, 2)))
        >>> lora = eqx.tree_at(lambda lora: lora.unembed, lora, pair)
        >>> merged_tensor("lm_head.weight", np.zeros((2, 1), np.float32), lora).tolist()
        [[32.0], [32.0]]
    """
    module = name.removesuffix(".weight")
    in_layer = _LAYER.fullmatch(module)
    if in_layer is not None and in_layer["module"] in _FIELD_OF:
        pair: LowRank | None = getattr(adapter, _FIELD_OF[in_layer["module"]])
        layer: int | tuple[()] = int(in_layer["layer"])
    else:
        pair, layer = (adapter.unembed if module == _HEAD else None), ()
    if pair is None:
        return base
    dtype = np.promote_types(base.dtype, np.float32)
    a, b = np.asarray(pair.a[layer], dtype), np.asarray(pair.b[layer], dtype)
    merged: np.ndarray = base.astype(dtype) + dtype.type(adapter.scale) * (a @ b).T
    return merged.astype(base.dtype)


def _rank_and_scale(config: Mapping[str, Any]) -> tuple[int, float]:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise DataError(f"the adapter's peft_type is {kind!r}; only LORA can be loaded")
    wrong = [name for name in _UNKNOWN_TO_US if config.get(name)]
    if config.get("bias", "none") != "none":
        wrong.append("bias")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        wrong.append("init_lora_weights")
    if wrong:
        options = ", ".join(f"{name}={config[name]!r}" for name in wrong)
        raise DataError(
            f"the adapter was made with {options}, which cannot be represented here; merge it "
            "into its base model with peft's merge_and_unload and use the result as a model"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha", ALPHA)
    if not (type(rank) is int and rank >= 1):
        raise DataError(f"the adapter's r must be an integer of at least 1, got {rank!r}")
    if not (type(alpha) in (int, float) and 0 < alpha < float("inf")):
        raise DataError(f"the adapter's lora_alpha must be a positive number, got {alpha!r}")
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


_Pairs = dict[tuple[str, int | None], tuple[np.ndarray, np.ndarray]]


def _pairs(tensors: Mapping[str, np.ndarray], whole: Callable[[str], np.ndarray]) -> _Pairs:
    """The A and B of every field, and layer where it has layers."""
    found: dict[tuple[str, int | None], dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise DataError(f"tensor {name} of the adapter is not finite; its training diverged")
        if tensor.ndim != 2:
            raise DataError(f"tensor {name} of the adapter must be a matrix, got {tensor.shape}")
        bare = name.removeprefix(_PREFIX)
        embedding = _WHOLE.fullmatch(bare)
        if embedding is not None:
            _require_same(name, tensor, whole(embedding["module"]))
            continue
        match = _TENSOR.fullmatch(bare)
        place = None if match is None else _place(match["module"])
        if match is None or place is None:
            raise DataError(
                f"the adapter holds {name}, for which there is no place here; adapters of "
                f"{', '.join(_IN_LAYERS.values())} and {_HEAD} can be loaded"
            )
        found.setdefault(place, {})[match["part"]] = tensor.astype(np.float32)
    if not found:
        raise DataError("the adapter holds no LoRA matrices")
    for (field, layer), parts in found.items():
        if len(parts) != 2:
            where = "" if layer is None else f" of layer {layer}"
            raise DataError(f"the adapter of {field}{where} has only {' '.join(parts)} of A and B")
    return {place: (parts["A"], parts["B"]) for place, parts in found.items()}


def _place(module: str) -> tuple[str, int | None] | None:
    if module in _HEAD_NAMES:
        return "unembed", None
    match = _LAYER.fullmatch(module)
    if match is None or match["module"] not in _FIELD_OF:
        return None
    return _FIELD_OF[match["module"]], int(match["layer"])


def _require_same(name: str, stored: np.ndarray, base: np.ndarray) -> None:
    if stored.shape != base.shape or (stored != base.astype(stored.dtype)).any():
        raise DataError(
            f"the adapter holds a whole matrix of its own, {name}, which cannot be represented "
            "here; merge it into its base model with peft's merge_and_unload and use the result "
            "as a model"
        )


def _require_made_for(pairs: _Pairs, config: LMConfig, *, rank: int) -> None:
    ranks = {size for a, b in pairs.values() for size in (len(a), b.shape[-1])}
    if ranks != {rank}:
        raise DataError(
            f"the adapter's r is {rank}, but its matrices have the ranks {sorted(ranks)}; its "
            "files do not belong together"
        )
    highest = max((layer for _, layer in pairs if layer is not None), default=0)
    if highest >= config.num_layers:
        raise DataError(
            f"the adapter has a layer {highest}, the base model only {config.num_layers} layers; "
            "it was made for another model"
        )


def _fitting(
    matrix: np.ndarray, shape: tuple[int, ...], *, field: str, layer: int | None
) -> np.ndarray:
    if matrix.shape != shape:
        where = "" if layer is None else f" of layer {layer}"
        raise DataError(
            f"the adapter of {field}{where} has a matrix of shape {matrix.shape[::-1]}, rank and "
            f"base model imply {shape[::-1]}; it was made for another model"
        )
    return matrix
