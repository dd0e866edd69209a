"""What follows from the shapes of a model's tensors: how many parameters, of it and of a LoRA."""

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from cookbook_fx.errors import ConfigurationError, ModelError

ModelShapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor of a checkpoint, by its name in Hugging Face safetensors files."""

# A decoder's layers lie under these; other tensors called layers belong to nothing known.
_DECODER = {"model", "language_model"}
# Never adapted: what sees and hears, and the head that guesses further tokens ahead.
_OTHER_TOWERS = {
    "audio_tower", "mm_projector", "mtp", "multi_modal_projector", "vision_model",
    "vision_tower", "visual",
}  # fmt: skip
_ATTENTION = {"linear_attn", "self_attn"}
_FEED_FORWARD = {"block_sparse_moe", "feed_forward", "mlp"}
# What chooses experts, the second halves of projections that are low-rank already (DeepSeek's
# latent attention), and a number for each head (Qwen's linear attention).
_NOT_ADAPTED = {
    "gate", "in_proj_a", "in_proj_b", "kv_b_proj", "q_b_proj", "router", "shared_expert_gate",
}  # fmt: skip
# Stored as one, adapted apart, each with the whole input: query, key, value; gate, up.
_PROJECTIONS_IN = {"gate_up_proj": 2, "in_proj_qkv": 3, "qkv_proj": 3}
# Signs of weights stored several to an element, so that shapes do not tell sizes.
_PACKED = {"absmax", "qweight", "weight_packed"}
_BESIDE_WEIGHTS = ("_bias", "_scale", "_scale_inv", "_scales")
# Two 4-bit numbers to a byte (MXFP4), as gpt-oss is published.
_NUMBERS_IN_BYTE = 2

_Part = Literal["mlp", "attn", "unembed"]


class LoRAParts(NamedTuple):
    """Parameters that a LoRA of rank 1 has, by what they adapt.

    Fields:
        mlp: feed-forward layers, experts included.
        attn: attention layers, linear ones included.
        unembed: the output layer.
    """

    mlp: int
    attn: int
    unembed: int


def get_full_finetune_param_count(shapes: ModelShapes) -> int:
    """How many parameters a model has: the sum over its tensors of the product of the shape.

    Of a quantised checkpoint this counts stored elements, which may hold several parameters.

    Raises:
        ModelError: there are no tensors.

    Example:
        >>> get_full_finetune_param_count({"a": (2, 3), "b": (4,)})
        10
    """
    if not shapes:
        raise ModelError("the shapes of a model's tensors are wanted, got none")
    return sum(math.prod(shape) for shape in shapes.values())


def get_hidden_size(shapes: ModelShapes) -> int:
    """The width of a model's residual stream: that of its input embeddings.

    Raises:
        ModelError: no tensor has the name input embeddings have.

    Example:
        >>> get_hidden_size({"model.embed_tokens.weight": (49152, 576)})
        576
    """
    return _embedding(shapes)[1]


def get_lora_param_count(
    shapes: ModelShapes,
    *,
    rank: int = 32,
    train_mlp: bool = True,
    train_attn: bool = True,
    train_unembed: bool = True,
) -> int:
    """How many parameters a LoRA has, as Tinker counts them.

    Args:
        shapes: of the base model's tensors.
        rank: inner dimension of the LoRA matrices.
        train_mlp: adapt the feed-forward layers.
        train_attn: adapt the attention layers.
        train_unembed: adapt the output layer.

    Raises:
        ConfigurationError: nothing is to be adapted, or the rank is below 1.
        ModelError: what of the model would be adapted is not known.

    Example:
        >>> shapes = {"model.embed_tokens.weight": (50, 8),
        ...     "model.layers.0.self_attn.q_proj.weight": (16, 8),
        ...     "model.layers.0.mlp.up_proj.weight": (24, 8)}
        >>> get_lora_param_count(shapes, rank=2)
        228
        >>> get_lora_param_count(shapes, rank=2, train_mlp=False, train_unembed=False)
        48
    """
    if not (train_mlp or train_attn or train_unembed):
        raise ConfigurationError(
            "a LoRA must train at least one of mlp, attn and unembed, got none"
        )
    if rank < 1:
        raise ConfigurationError(f"LoRA rank must be at least 1, got {rank}")
    parts = lora_params_per_rank(shapes)
    chosen = (train_mlp * parts.mlp, train_attn * parts.attn, train_unembed * parts.unembed)
    return rank * sum(chosen)


def lora_params_per_rank(shapes: ModelShapes) -> LoRAParts:
    """How many parameters a LoRA of rank 1 has, by what they adapt.

    A matrix of r rows and c columns adds r + c. The matrices of a layer's experts share the
    factor on the side of the residual stream (*shared outer*): together they add that side once,
    and the inner side for every expert. An output layer tied to the input embeddings counts as
    one of its own. Expert routers, the second of two low-rank projections, multi-token-prediction
    layers, and towers for images and sound are not adapted.

    Raises:
        ModelError: a tensor's name or shape does not tell whether it would be adapted, or there
            are no layers; by name.
    """
    hidden = get_hidden_size(shapes)
    counts: dict[_Part, int] = {"mlp": 0, "attn": 0, "unembed": sum(_unembedding(shapes))}
    shared: set[str] = set()
    for layer, inside, name in _layer_tensors(shapes):
        matrix = _matrix(inside, shapes[name])
        if matrix is None or _NOT_ADAPTED.intersection(inside):
            continue
        part = _part(inside, name)
        projections = _PROJECTIONS_IN.get(matrix.module, 1)
        if matrix.experts is None:
            rows, columns = matrix.shape
            counts[part] += rows + projections * columns
            continue
        counts[part] += matrix.experts * _inner(matrix.shape, hidden, name)
        group = f"{layer}.{matrix.module}"
        counts[part] += 0 if group in shared else projections * hidden
        shared.add(group)
    if not counts["mlp"] or not counts["attn"]:
        raise ModelError(
            "no attention or no feed-forward layers were found by name; wanted names like "
            f"model.layers.0.self_attn.q_proj.weight, got for example {next(iter(shapes))}"
        )
    return LoRAParts(**counts)


class _Matrix(NamedTuple):
    """A weight matrix, or one of each of several experts."""

    module: str
    shape: tuple[int, int]
    experts: int | None


def _layer_tensors(shapes: ModelShapes) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """The tensors of a decoder's layers: the layer, the name inside it in parts, the whole name."""
    # What a layer that guesses further tokens ahead has besides what the others have.
    ahead = {name.partition(".eh_proj.")[0] for name in shapes if ".eh_proj." in name}
    for name in shapes:
        parts = tuple(name.split("."))
        if "layers" not in parts or _OTHER_TOWERS.intersection(parts):
            continue
        at = parts.index("layers")
        if not _DECODER.issuperset(parts[:at]):
            raise ModelError(
                f"the tensor {name} is in layers that are not known to be the language model's, "
                "so it is not known whether a LoRA adapts them"
            )
        layer, inside = ".".join(parts[: at + 2]), parts[at + 2 :]
        if inside and layer not in ahead:
            yield layer, inside, name


def _matrix(inside: tuple[str, ...], shape: tuple[int, ...]) -> _Matrix | None:
    """What a layer's tensor is to a LoRA; None for a norm, a bias, a scale and the like."""
    if _PACKED.intersection(inside):
        raise ModelError(
            f"the tensor {'.'.join(inside)} is packed, several numbers to an element, so that its "
            "shape does not tell its size; read the shapes of the model before quantisation"
        )
    path = inside[:-1] if inside[-1] == "weight" else inside
    if path[-2:-1] == ("experts",) and not path[-1].isdigit():
        return _all_experts(path[-1], shape)
    if path == inside or not path or len(shape) != 2:
        return None
    is_expert = path[-3:-2] == ("experts",)
    return _Matrix(module=path[-1], shape=(shape[0], shape[1]), experts=1 if is_expert else None)


def _all_experts(module: str, shape: tuple[int, ...]) -> _Matrix | None:
    """The matrices of all experts in one tensor; None for their biases and scales."""
    if module.endswith("_blocks") and len(shape) == 4:
        experts, rows, groups, width = shape
        columns = groups * width * _NUMBERS_IN_BYTE
        return _Matrix(
            module=module.removesuffix("_blocks"), shape=(rows, columns), experts=experts
        )
    if len(shape) != 3 or module.endswith(_BESIDE_WEIGHTS):
        return None
    return _Matrix(module=module, shape=(shape[1], shape[2]), experts=shape[0])


def _part(inside: tuple[str, ...], name: str) -> _Part:
    if _ATTENTION.intersection(inside):
        return "attn"
    if _FEED_FORWARD.intersection(inside):
        return "mlp"
    raise ModelError(
        f"the tensor {name} is neither in an attention nor in a feed-forward layer "
        f"({', '.join(sorted(_ATTENTION | _FEED_FORWARD))}), so it is not known whether a LoRA "
        "adapts it"
    )


def _inner(shape: tuple[int, int], hidden: int, name: str) -> int:
    """The side of an expert's matrix that is not on the residual stream."""
    rows, columns = shape
    if hidden not in shape:
        raise ModelError(
            f"the tensor {name}, of experts, must be {hidden} rows or columns like the model's "
            f"embeddings, got {rows} and {columns}"
        )
    return columns if rows == hidden else rows


def _unembedding(shapes: ModelShapes) -> tuple[int, int]:
    return _named_matrix(shapes, "lm_head") or _embedding(shapes)


def _embedding(shapes: ModelShapes) -> tuple[int, int]:
    embedding = _named_matrix(shapes, "embed_tokens")
    if embedding is None:
        raise ModelError(
            "no input embeddings were found; wanted a matrix named like model.embed_tokens.weight"
        )
    return embedding


def _named_matrix(shapes: ModelShapes, module: str) -> tuple[int, int] | None:
    """The shape of a matrix outside of the layers, vocabulary first."""
    for name, shape in shapes.items():
        *path, last = name.split(".")
        is_it = path[-1:] == [module] and last == "weight" and len(shape) == 2
        if is_it and _DECODER.issuperset(path[:-1]):
            return shape[0], shape[1]
    return None
