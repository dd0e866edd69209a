"""Base weights from a Hugging Face directory, without torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from cookbook_fx.errors import ModelError
from cookbook_fx.lm.config import LMConfig, config_from_hf
from cookbook_fx.lm.weights import LMWeights, weights_from_tensors

_FLOATS = ("F64", "F32", "F16", "BF16")


def read_config(directory: Path) -> LMConfig:
    """The shape of the model in `directory`.

    Raises:
        ModelError: config.json is missing, torn or describes a model that is not implemented.
    """
    return config_from_hf(read_json(directory / "config.json"))


def context_length(directory: Path) -> int | None:
    """Tokens the model can read, of any architecture; None if its config does not say.

    Raises:
        ModelError: config.json is missing or torn.
    """
    length = read_json(directory / "config.json").get("max_position_embeddings")
    return length if isinstance(length, int) else None


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files a model directory consists of: one, or the shards its index names.

    Raises:
        ModelError: there are none, or a shard is missing; named.
    """
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = shard_names(read_json(index), source=str(index))
        files = tuple(directory / name for name in names)
    else:
        files = (directory / "model.safetensors",)
    for file in files:
        if not file.exists():
            raise ModelError(
                f"{file} is missing, so the model is incomplete. Download it again "
                "(weights must be safetensors; .bin files are not read)."
            )
    return files


def shard_names(index: Mapping[str, Any], *, source: str) -> tuple[str, ...]:
    """The files that a `model.safetensors.index.json` (already parsed) names, in order.

    Raises:
        ModelError: it names none, or no text; with `source`, where it came from.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{source} has no weight_map, so the model's shards are unknown")
    names = list(weight_map.values())
    if not all(isinstance(name, str) for name in names):
        raise ModelError(f"{source} is damaged: a shard's name must be text; download it again")
    return tuple(sorted(set(names)))


def load_weights(directory: Path, *, dtype: str = "float32", mesh: Mesh | None = None) -> LMWeights:
    """Reads a model's weights.

    Files are memory-mapped and read one tensor at a time, so little more is held than the result.

    Args:
        directory: a Hugging Face directory with config.json and safetensors, sharded or not.
        dtype: of the result; bfloat16, float16 and float64 files are converted.
        mesh: devices to divide the weights among; None is one device.

    Raises:
        ModelError: a file, shard or tensor is missing, torn or of the wrong shape or kind, or the
            architecture is not implemented; named.
    """
    config = read_config(directory)
    tensors = Tensors(weight_files(directory))
    return weights_from_tensors(config, tensors.read, dtype=dtype, mesh=mesh)


class Tensors:
    """The tensors of several safetensors files by name, read when asked for."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._directory = paths[0].parent
        self._file_of: dict[str, Any] = {}
        for path in paths:
            try:
                file = safe_open(path, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{path} is torn or not a safetensors file ({error}); download it again"
                ) from error
            self._file_of.update(dict.fromkeys(file.keys(), file))

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor there is."""
        return tuple(self._file_of)

    def read(self, name: str) -> np.ndarray:
        """A tensor.

        Raises:
            ModelError: there is none of that name, or it is quantised.
        """
        file = self._file_of.get(name)
        if file is None:
            raise ModelError(f"no safetensors file in {self._directory} holds the tensor {name}")
        kind = file.get_slice(name).get_dtype()
        if kind not in _FLOATS:
            raise ModelError(
                f"tensor {name} in {self._directory} is stored as {kind}; "
                f"supported: {', '.join(_FLOATS)} (quantised checkpoints are not read)"
            )
        return file.get_tensor(name)


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file of a model directory.

    Raises:
        ModelError: it is missing, torn or something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing, so {path.parent} is not a Hugging Face model directory"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is torn or not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
