"""Adapters as files that other programs read: peft's two files, or a whole merged model."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from cookbook_fx.errors import ConfigurationError, DataError, ModelError, StorageError
from cookbook_fx.lm.lora import LoRA, LoRAConfig
from cookbook_fx.lm.peft import PeftAdapter, from_peft, merged_tensor, to_peft
from shell.hub.weights import Tensors, read_config, read_json, weight_files

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, _ADAPTER)
_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Tokenizer, chat template, generation settings; never programs.
_COPIED = {".json", ".jinja", ".model", ".tiktoken", ".txt"}


def adapter_files(adapter: LoRA, *, base_model: str) -> Mapping[str, bytes]:
    """The files of an adapter's peft directory by name; what a checkpoint is downloaded as.

    Args:
        adapter: of a checkpoint.
        base_model: as in `to_peft`.
    """
    config, tensors = to_peft(adapter, base_model=base_model)
    return {
        ADAPTER_CONFIG: json.dumps(config, indent=2).encode(),
        _ADAPTER: safetensors.save(dict(tensors), metadata={"format": "pt"}),
    }


def write_adapter(directory: Path, adapter: LoRA, *, base_model: str, overwrite: bool) -> None:
    """Writes an adapter as a directory for peft, whole or not at all.

    Args:
        directory: made; its parents too.
        adapter: to be written.
        base_model: as in `to_peft`.
        overwrite: replace an earlier export.

    Raises:
        ConfigurationError: there is something at `directory` that may not be replaced.
        StorageError: it cannot be written.
    """
    with _whole(directory, overwrite=overwrite) as partial:
        for name, content in adapter_files(adapter, base_model=base_model).items():
            (partial / name).write_bytes(content)


def write_merged(directory: Path, adapter: LoRA, *, base: Path, overwrite: bool) -> None:
    """Writes a base model with an adapter added to it, as a Hugging Face directory.

    Tensors keep their precision and their files, of which one is in memory at a time. Where the
    adapter changes a head that is tied to the embedding, the two are stored apart.

    Args:
        directory: made; its parents too.
        adapter: what is added.
        base: directory of the base model.
        overwrite: replace an earlier export.

    Raises:
        ConfigurationError: as in `write_adapter`.
        ModelError: the base model cannot be read.
        StorageError: it cannot be written.
    """
    untied = read_config(base).tie_word_embeddings and adapter.unembed is not None
    files = weight_files(base)
    with _whole(directory, overwrite=overwrite) as partial:
        for file in sorted(base.iterdir()):
            if file.is_file() and file.suffix in _COPIED and file.name not in (_CONFIG, _INDEX):
                shutil.copyfile(file, partial / file.name)
        config = dict(read_json(base / _CONFIG))
        if untied:
            config["tie_word_embeddings"] = False
        _write_json(partial / _CONFIG, config)
        placed: dict[str, str] = {}
        for file in files:
            tensors = dict(_merged(Tensors((file,)), adapter, untied=untied))
            safetensors.save_file(tensors, partial / file.name, metadata={"format": "pt"})
            placed |= dict.fromkeys(tensors, file.name)
        if (base / _INDEX).exists():
            _write_json(partial / _INDEX, dict(read_json(base / _INDEX)) | {"weight_map": placed})


def read_adapter(directory: Path, *, base: Path) -> tuple[LoRAConfig, LoRA]:
    """Reads an adapter from a directory that peft, the hosted service or `write_adapter` wrote.

    Args:
        directory: with adapter_config.json and adapter_model.safetensors.
        base: directory of the base model it is for.

    Raises:
        DataError: the adapter is torn, for another model, or of a kind that cannot be had here.
        ModelError: the base model cannot be read.
    """
    try:
        described = read_json(directory / ADAPTER_CONFIG)
        file = Tensors((directory / _ADAPTER,))
        tensors = {name: file.read(name) for name in file.names}
    except ModelError as error:
        raise DataError(f"{directory} holds no adapter that can be read: {error}") from error
    stored = PeftAdapter(described, tensors)

    def read_base(name: str) -> np.ndarray:
        return Tensors(weight_files(base)).read(name)

    try:
        return from_peft(read_config(base), stored, read_base=read_base)
    except DataError as error:
        raise DataError(f"{directory}: {error}") from error


def _merged(tensors: Tensors, adapter: LoRA, *, untied: bool) -> Iterator[tuple[str, np.ndarray]]:
    for name in tensors.names:
        base = tensors.read(name)
        yield name, merged_tensor(name, base, adapter)
        if untied and name == _EMBEDDING:
            yield _HEAD, merged_tensor(_HEAD, base, adapter)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


@contextmanager
def _whole(directory: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which then takes its place in one step; nothing if that fails."""
    directory = directory.absolute()
    _require_free(directory, overwrite=overwrite)
    beside = directory.parent
    partial, old = (beside / f".{directory.name}.{what}" for what in ("partial", "replaced"))
    try:
        beside.mkdir(parents=True, exist_ok=True)
        with FileLock(beside / f".{directory.name}.lock", timeout=0):
            # What a process that was killed has left.
            for leftover in (partial, old):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                partial.mkdir()
                yield partial
                _synchronise(partial)
                _require_free(directory, overwrite=overwrite)
                if directory.exists():
                    directory.rename(old)
                partial.replace(directory)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)
    except Timeout as error:
        raise ConfigurationError(f"another process is exporting to {directory}") from error
    except (OSError, SafetensorError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{directory} cannot be written: {error}; nothing was left there"
        ) from error


def _require_free(directory: Path, *, overwrite: bool) -> None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not overwrite:
        raise ConfigurationError(
            f"{directory} exists; choose another folder, or replace it with --overwrite"
        )
    markers = (directory / ADAPTER_CONFIG, directory / _CONFIG)
    if not any(marker.is_file() for marker in markers) or any(
        entry.is_dir() for entry in directory.iterdir()
    ):
        raise ConfigurationError(
            f"{directory} does not look like an earlier export (it has neither "
            f"{ADAPTER_CONFIG} nor {_CONFIG}, or has subfolders), so it is not replaced; choose "
            "another folder or remove it yourself"
        )


def _synchronise(folder: Path) -> None:
    """Asks the disk for all files of a folder; a rename before that could outlive them."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
