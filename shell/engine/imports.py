"""Adapters in and out of an engine's folder of checkpoints, without an engine."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cookbook_fx.errors import DataError
from cookbook_fx.lm import LoRA, init_train_state
from shell.engine.checkpoints import CheckpointPath, CheckpointStore, parse_path
from shell.hub.adapters import ADAPTER_CONFIG, ADAPTER_FILES, read_adapter
from shell.hub.models import ModelSource, canonical_name
from shell.hub.weights import read_config

_NAME = "imported"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCheckpoints:
    """The checkpoints in a folder that belong to one base model.

    Args:
        root: where an engine keeps its checkpoints.
        base: the base model; its weights need not be there.
    """

    root: Path
    base: ModelSource

    def adapter(self, path: str) -> LoRA:
        """What is stored under a `tinker://` path.

        Raises:
            DataError: nothing, or a checkpoint of another base model.
            ServiceError: it is damaged.
        """
        store = self._store()
        return store.load_adapter(store.find(parse_path(path)))

    def take_in(self, directory: Path) -> str:
        """Makes a checkpoint of an adapter that peft wrote; its `tinker://` path.

        The path follows from the content, so that the same adapter is stored once and a run that
        began with it can tell whether it is still the same.

        Raises:
            DataError: the directory holds no adapter that fits the base model.
            ServiceError: it cannot be stored.
        """
        lora, adapter = read_adapter(directory, base=self.base.directory)
        digest = hashlib.sha256()
        for file in ADAPTER_FILES:
            digest.update((directory / file).read_bytes())
        path = CheckpointPath(
            model_id=f"peft-{digest.hexdigest()[:24]}", segment="weights", name=_NAME
        )
        self._store().save(
            path,
            adapter=adapter,
            optimizer=init_train_state(adapter).optimizer,
            lora=lora,
            ttl_seconds=None,
            user_metadata={"imported_from": str(directory.resolve())},
            overwrite=True,
        )
        return str(path)

    def _store(self) -> CheckpointStore:
        config = read_config(self.base.directory)
        return CheckpointStore(self.root, config=config, base_model=canonical_name(self.base.name))


def is_adapter(path: str) -> bool:
    """Whether a checkpoint is named by the directory of a peft adapter.

    Raises:
        DataError: it is a directory, but not of an adapter.
    """
    directory = Path(path).expanduser()
    if path.startswith("tinker://") or not directory.is_dir():
        return False
    if not (directory / ADAPTER_CONFIG).is_file():
        raise DataError(
            f"the directory {path} is no adapter: it has no {ADAPTER_CONFIG}; give the directory "
            "that peft's save_pretrained or `cookbook-fx export` wrote, or a tinker:// path"
        )
    return True
