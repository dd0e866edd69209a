"""Checkpoints on disk, under names of the form `tinker://{model_id}/{segment}/{name}`.

A model's folder holds one small JSON record per checkpoint and, under names of their own, the
array files the records point to. A checkpoint comes into being, is replaced and goes away by one
atomic change of its record, so that a crash or a full disk at any instant leaves either the
previous checkpoint or the new one, whole.
"""

import contextlib
import copy
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as orbax

from cookbook_fx.errors import ConfigurationError, DataError, ServiceError, StorageError
from cookbook_fx.lm import LMConfig, LoRA, LoRAConfig, TrainState, init_lora, init_train_state
from shell.stores.orbax_turn import ORBAX_TURN

log = logging.getLogger(__name__)
Segment = Literal["weights", "sampler_weights", "external_weights"]
Tree = TypeVar("Tree")

_SCHEME = "tinker://"
_SEGMENTS: Mapping[str, Segment] = {
    "weights": "weights",
    "sampler_weights": "sampler_weights",
    "external_weights": "external_weights",
}
# Who everything belongs to where nobody was told apart.
LOCAL = "local"
# One path component that cannot be hidden, relative or contain a separator on any system.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:=+@,~-]{0,149}")
_LONGEST_SAVE_SECONDS = 86400.0
_SHORTEST_TTL_SECONDS, _LONGEST_TTL_SECONDS = 3600, 10 * 366 * 86400


class NoSuchCheckpoint(DataError):
    """A well-formed path at which nothing is stored (any more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPath:
    """A parsed `tinker://` path; its parts are safe as names of files."""

    model_id: str
    segment: Segment
    name: str

    def __post_init__(self) -> None:
        for what, part in (("model id", self.model_id), ("checkpoint name", self.name)):
            if not _NAME.fullmatch(part):
                raise DataError(
                    f"{what} {part[:200]!r} cannot be used: it must begin with a letter, digit or "
                    "underscore, go on with those or any of .:=+@,~- and be at most 150 long"
                )

    def __str__(self) -> str:
        return f"{_SCHEME}{self.model_id}/{self.segment}/{self.name}"


def parse_path(path: str) -> CheckpointPath:
    """Splits a `tinker://` path.

    Raises:
        DataError: it is not one of ours.

    Example:
        >>> parse_path("tinker://s:train:0/weights/step-10").name
        'step-10'
    """
    parts = path.removeprefix(_SCHEME).split("/")
    if not path.startswith(_SCHEME) or len(parts) != 3 or parts[1] not in _SEGMENTS:
        raise DataError(
            f"{path[:200]!r} is not a checkpoint path of this engine; wanted "
            f"{_SCHEME}MODEL_ID/SEGMENT/NAME with SEGMENT one of {', '.join(_SEGMENTS)}"
        )
    return CheckpointPath(model_id=parts[0], segment=_SEGMENTS[parts[1]], name=parts[2])


def base_model_of(root: Path, path: str) -> str:
    """The base model that a stored checkpoint belongs to, for choosing what to serve it with.

    Args:
        root: where a `CheckpointStore` keeps its checkpoints.
        path: `tinker://...`.

    Raises:
        DataError: it is not one of ours.
        NoSuchCheckpoint: nothing is stored there.
    """
    parsed = parse_path(path)
    checkpoint = _decode(_record_file(root, parsed))
    if checkpoint is None:
        raise NoSuchCheckpoint(f"there is no checkpoint {parsed} in {root}")
    return checkpoint.base_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is known of a checkpoint without reading its arrays; times are seconds since 1970.

    A `public` one can be read, but not changed, by others than its owner.
    """

    path: CheckpointPath
    base_model: str
    lora: LoRAConfig
    saved_at: float
    expires_at: float | None
    user_metadata: Mapping[str, str] | None
    size_bytes: int
    data: str
    owner: str = LOCAL
    public: bool = False


def expiry(ttl_seconds: int | None, now: float) -> float | None:
    """When a checkpoint saved now goes away.

    Raises:
        ConfigurationError: a time to live outside what the protocol allows.
    """
    if ttl_seconds is None:
        return None
    if not _SHORTEST_TTL_SECONDS <= ttl_seconds <= _LONGEST_TTL_SECONDS:
        raise ConfigurationError(
            f"ttl_seconds must be from {_SHORTEST_TTL_SECONDS} to {_LONGEST_TTL_SECONDS}, "
            f"got {ttl_seconds}"
        )
    return now + ttl_seconds


class CheckpointStore:
    """The checkpoints inside one root directory.

    Args:
        root: made if it does not exist.
        config: shape of the base model the adapters are for.
        base_model: its name, recorded with each checkpoint and required to match on loading.

    Raises:
        StorageError: the root directory cannot be made.
    """

    def __init__(self, root: Path, *, config: LMConfig, base_model: str) -> None:
        self._root = root
        self._config = config
        self._base_model = base_model
        self.owner = LOCAL
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"the folder {root} for checkpoints cannot be made: {error.strerror}; let "
                "COOKBOOK_FX_HOME be a folder that is yours to write to"
            ) from error
        self._discard_leftovers()

    def owned_by(self, owner: str) -> "CheckpointStore":
        """The same checkpoints as another owner may see and use them."""
        theirs = copy.copy(self)
        theirs.owner = owner
        return theirs

    def save(
        self,
        path: CheckpointPath,
        *,
        adapter: LoRA,
        optimizer: Any | None,
        lora: LoRAConfig,
        ttl_seconds: int | None,
        user_metadata: Mapping[str, str] | None,
        overwrite: bool,
    ) -> Checkpoint:
        """Writes a checkpoint; until the very last step nothing of it can be seen.

        Raises:
            DataError: the name is taken and `overwrite` is off.
            ServiceError: the files could not be written, for example because the disk is full.
        """
        expires_at = expiry(ttl_seconds, time.time())
        previous = self._read(path)
        if previous is not None and not overwrite:
            raise DataError(f"{path} exists already; choose another name or ask to overwrite it")
        data = uuid.uuid4().hex
        folder = self._data(path.model_id) / data
        try:
            folder.mkdir(parents=True)
            with ORBAX_TURN:
                orbax.save(folder / "adapter", adapter)
                if optimizer is not None:
                    orbax.save(folder / "optimizer", optimizer)
            _synchronise(folder)
            checkpoint = Checkpoint(
                path=path,
                base_model=self._base_model,
                lora=lora,
                saved_at=time.time(),
                expires_at=expires_at,
                user_metadata=user_metadata,
                size_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
                data=data,
                owner=self.owner,
            )
            self._write(checkpoint)
        # Orbax reports a failed write as one of several unrelated exceptions.
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ServiceError(
                f"{path} could not be written to {self._root}: {error}. Earlier checkpoints are "
                "as they were. Is the disk full?"
            ) from error
        if previous is not None:
            self._discard_data(previous)
        return checkpoint

    def load_adapter(self, checkpoint: Checkpoint) -> LoRA:
        """The weights alone."""
        return self._load(checkpoint, "adapter", self._abstract(checkpoint.lora).adapter)

    def load_state(self, checkpoint: Checkpoint) -> TrainState:
        """Weights and optimizer.

        Raises:
            DataError: the checkpoint is for sampling only.
        """
        if checkpoint.path.segment != "weights":
            raise DataError(
                f"{checkpoint.path} holds weights for sampling and no optimizer; "
                "continue training from a path made by save_state"
            )
        abstract = self._abstract(checkpoint.lora)
        return TrainState(
            adapter=self._load(checkpoint, "adapter", abstract.adapter),
            optimizer=self._load(checkpoint, "optimizer", abstract.optimizer),
        )

    def find(self, path: CheckpointPath) -> Checkpoint:
        """What is stored under a path, of one's own or published.

        Raises:
            NoSuchCheckpoint: nothing, or what has expired or is kept by others to themselves.
            DataError: a checkpoint of another base model.
        """
        checkpoint = self._existing(path)
        if checkpoint.base_model != self._base_model:
            raise DataError(
                f"{path} belongs to the base model {checkpoint.base_model!r}; "
                f"this engine serves {self._base_model!r}"
            )
        return checkpoint

    def list(
        self, model_id: str | None = None, *, accessible: bool = False
    ) -> tuple[Checkpoint, ...]:
        """All one's own checkpoints, or one model's, oldest first; also published ones if asked."""
        # No model has another name, and `..` would look outside of the root.
        if model_id is not None and not _NAME.fullmatch(model_id):
            return ()
        pattern = "*" if model_id is None else quote(model_id, safe="")
        now = time.time()
        found = [
            checkpoint
            for record in self._root.glob(f"{pattern}/*/*.json")
            if (checkpoint := _readable(record)) is not None
            and not _expired(checkpoint, now)
            and (checkpoint.owner == self.owner or (accessible and checkpoint.public))
        ]
        return tuple(sorted(found, key=lambda checkpoint: checkpoint.saved_at))

    def delete(self, path: CheckpointPath) -> None:
        """Removes a checkpoint of one's own.

        Raises:
            NoSuchCheckpoint: there is none.
        """
        self._remove(self._own(path))

    def set_ttl(self, path: CheckpointPath, ttl_seconds: int | None) -> None:
        """Lets a checkpoint of one's own live that much longer from now; None for ever."""
        expires_at = expiry(ttl_seconds, time.time())
        self._write(replace(self._own(path), expires_at=expires_at))

    def publish(self, path: CheckpointPath, *, public: bool) -> None:
        """Lets everybody with a key read a checkpoint of one's own by its path, or nobody else."""
        self._write(replace(self._own(path), public=public))

    def sweep(self) -> None:
        """Removes checkpoints whose time is over."""
        now = time.time()
        for record in self._root.glob("*/*/*.json"):
            checkpoint = _readable(record)
            if checkpoint is not None and _expired(checkpoint, now):
                self._remove(checkpoint)

    def _existing(self, path: CheckpointPath) -> Checkpoint:
        checkpoint = self._read(path)
        if (
            checkpoint is None
            or _expired(checkpoint, time.time())
            or not (checkpoint.public or checkpoint.owner == self.owner)
        ):
            raise NoSuchCheckpoint(f"there is no checkpoint {path} (any more)")
        return checkpoint

    def _own(self, path: CheckpointPath) -> Checkpoint:
        checkpoint = self._existing(path)
        if checkpoint.owner != self.owner:
            raise NoSuchCheckpoint(f"there is no checkpoint {path} of your own")
        return checkpoint

    def _remove(self, checkpoint: Checkpoint) -> None:
        # Another engine on the same root may have been quicker.
        self._record(checkpoint.path).unlink(missing_ok=True)
        self._discard_data(checkpoint)

    def _abstract(self, lora: LoRAConfig) -> TrainState:
        sharding = SingleDeviceSharding(jax.devices()[0])
        shapes = jax.eval_shape(lambda: init_train_state(init_lora(self._config, lora)))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
        )

    def _load(self, checkpoint: Checkpoint, part: str, abstract: Tree) -> Tree:
        folder = self._data(checkpoint.path.model_id) / checkpoint.data / part
        try:
            with ORBAX_TURN:
                loaded = orbax.load(folder, abstract)
        # As in `save`: there is no common ancestor to what Orbax raises on a torn file.
        except Exception as error:
            raise ServiceError(f"{checkpoint.path} cannot be read: {error}") from error
        # Orbax ties arrays to their device, for which every program would be compiled once more.
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), loaded)

    def _model(self, model_id: str) -> Path:
        return self._root / quote(model_id, safe="")

    def _data(self, model_id: str) -> Path:
        return self._model(model_id) / "data"

    def _record(self, path: CheckpointPath) -> Path:
        return _record_file(self._root, path)

    def _read(self, path: CheckpointPath) -> Checkpoint | None:
        return _decode(self._record(path))

    def _write(self, checkpoint: Checkpoint) -> None:
        record = self._record(checkpoint.path)
        record.parent.mkdir(parents=True, exist_ok=True)
        values = asdict(checkpoint)
        del values["path"]
        partial = record.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(values, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(record)
        finally:
            partial.unlink(missing_ok=True)
        _synchronise_directory(record.parent)

    def _discard_data(self, checkpoint: Checkpoint) -> None:
        shutil.rmtree(self._data(checkpoint.path.model_id) / checkpoint.data, ignore_errors=True)

    def _discard_leftovers(self) -> None:
        """Removes what a process that died while saving or deleting left behind.

        Another engine on the same root may be saving right now, so only what has been lying about
        for longer than any save takes is taken for a leftover.
        """
        oldest_save = time.time() - _LONGEST_SAVE_SECONDS
        for folder in self._root.glob("*/data"):
            model_id = unquote(folder.parent.name)
            old = [data for data in folder.iterdir() if _changed_at(data) < oldest_save]
            records = [_readable(record) for record in self._model(model_id).glob("*/*.json")]
            if None in records:
                # Whose arrays a damaged record's are cannot be told.
                continue
            kept = {checkpoint.data for checkpoint in records if checkpoint is not None}
            for data in old:
                if data.name not in kept:
                    shutil.rmtree(data, ignore_errors=True)
        for partial in self._root.glob("*/*/.*.partial"):
            if _changed_at(partial) < oldest_save:
                partial.unlink(missing_ok=True)


def _changed_at(path: Path) -> float:
    """Seconds since 1970; now for what another process has just renamed or removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _record_file(root: Path, path: CheckpointPath) -> Path:
    return root / quote(path.model_id, safe="") / path.segment / f"{path.name}.json"


def _expired(checkpoint: Checkpoint, now: float) -> bool:
    return checkpoint.expires_at is not None and checkpoint.expires_at <= now


def _decode(record: Path) -> Checkpoint | None:
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        values["lora"] = LoRAConfig(**values["lora"])
        path = CheckpointPath(
            model_id=unquote(record.parent.parent.name),
            segment=_SEGMENTS[record.parent.name],
            name=record.name.removesuffix(".json"),
        )
        return Checkpoint(path=path, **values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"the checkpoint record {record} is damaged ({error}); restore or remove it"
        ) from error


def _readable(record: Path) -> Checkpoint | None:
    """As `_decode`, where one damaged record must not stand in the way of the others."""
    try:
        return _decode(record)
    except DataError as error:
        log.warning("%s", error)
        return None


def _synchronise(folder: Path) -> None:
    """Asks the disk for everything in a folder; a rename before that could outlive its content."""
    for directory, _, files in os.walk(folder):
        for name in files:
            with _opened(Path(directory) / name) as descriptor:
                os.fsync(descriptor)
        _synchronise_directory(Path(directory))


def _synchronise_directory(directory: Path) -> None:
    # Windows cannot open a directory, and needs no such request.
    if os.name == "posix":
        with _opened(directory) as descriptor:
            os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
