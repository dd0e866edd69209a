"""`cookbook-fx export`: a trained model as files for other programs."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cookbook_fx.errors import ConfigurationError
from shell.cli.options import BaseURL

if TYPE_CHECKING:
    from cookbook_fx.lm import LoRA
    from shell.hub import ModelSource


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained model as files that other programs read.

    Without --merged: a LoRA adapter for peft, vLLM and others (adapter_config.json and
    adapter_model.safetensors). With it: a whole Hugging Face model directory.

    For example
    $ cookbook-fx export runs/sft adapters/mine
    $ cookbook-fx export tinker://.../weights/final models/mine --merged
    $ cookbook-fx export tinker://.../weights/final adapters/mine --base-url http://127.0.0.1:8000

    Args:
        checkpoint: a tinker:// path, a run's folder (its last checkpoint), or the directory of an
            adapter that peft wrote.
        directory: where to; made if need be.
        merged: add the adapter to the base model and write all of it.
        model: the base model: a known name (see `cookbook-fx models`), the id of a model on the
            Hugging Face hub, a directory, or a .gguf file. None is the checkpoint's own.
        base_url: the engine that saved the checkpoint; its key is read from TINKER_API_KEY. None
            is the folder where engines of this machine keep theirs.
        overwrite: replace what an earlier export left in the directory.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    merged: bool = False
    model: str | None = None
    base_url: BaseURL = None
    overwrite: bool = False

    def run(self) -> int:
        """Writes the directory, and says where it is."""
        from shell.hub.adapters import write_adapter, write_merged

        source, adapter = self._source()
        if self.merged:
            write_merged(self.directory, adapter, base=source.directory, overwrite=self.overwrite)
            print(f"Model: {self.directory}")  # noqa: T201
            print(f'Ask it: cookbook-fx sample --model {self.directory} "Who are you?"')  # noqa: T201
        else:
            from shell.hub.models import public_name

            write_adapter(
                self.directory,
                adapter,
                base_model=public_name(source),
                overwrite=self.overwrite,
            )
            print(f"Adapter: {self.directory} (rank {_rank(adapter)}, of {source.name})")  # noqa: T201
        return 0

    def _source(self) -> "tuple[ModelSource, LoRA]":
        """The base model and the adapter."""
        from shell.cli.options import named_base_model
        from shell.engine.imports import LocalCheckpoints
        from shell.hub import home
        from shell.hub.adapters import ADAPTER_CONFIG, read_adapter

        given = Path(self.checkpoint).expanduser()
        if (given / ADAPTER_CONFIG).is_file():
            source = self._base(self.model or named_base_model(given))
            return source, read_adapter(given, base=source.directory)[1]
        path = _last_of(given) if given.is_dir() else self.checkpoint
        if not path.startswith("tinker://"):
            raise ConfigurationError(
                f"{path!r} is neither a tinker:// path nor a folder; a run prints where its "
                "checkpoints are"
            )
        if self.base_url is not None:
            return self._from_engine(path)
        from shell.engine.checkpoints import base_model_of

        root = home() / "checkpoints"
        source = self._base(base_model_of(root, path))
        return source, LocalCheckpoints(root=root, base=source).adapter(path)

    def _from_engine(self, path: str) -> "tuple[ModelSource, LoRA]":
        from shell.hub.adapters import ADAPTER_FILES, read_adapter

        base_model, files = asyncio.run(self._downloaded(path))
        source = self._base(base_model)
        with tempfile.TemporaryDirectory() as folder:
            for name in ADAPTER_FILES:
                (Path(folder) / name).write_bytes(files.get(name, b""))
            return source, read_adapter(Path(folder), base=source.directory)[1]

    async def _downloaded(self, path: str) -> tuple[str, dict[str, bytes]]:
        from shell.cli.options import engine
        from shell.clients import connect
        from shell.clients.downloads import base_model_of, download_adapter

        with engine(self.base_url, model="", say=print) as address:
            async with connect(base_url=address.base_url, api_key=address.api_key) as service:
                name = self.model or await base_model_of(service, path)
                return name, dict(await download_adapter(service, path))

    def _base(self, named: str) -> "ModelSource":
        from shell.hub import resolve_model
        from shell.hub.models import say_on_standard_error

        return resolve_model(
            self.model or named, say=say_on_standard_error, with_weights=self.merged
        )


def _last_of(folder: Path) -> str:
    """The last state a run has saved."""
    from shell.stores import RunCheckpoints

    if not (folder / "checkpoints").is_dir():
        raise ConfigurationError(
            f"{folder} is neither a run's folder (it has no checkpoints) nor an adapter's"
        )
    with RunCheckpoints(folder / "checkpoints") as checkpoints:
        latest = checkpoints.latest()
    if latest is None:
        raise ConfigurationError(f"the run in {folder} has not saved a checkpoint yet")
    return latest.state_path


def _rank(adapter: "LoRA") -> int:
    pairs = (adapter.query, adapter.up, adapter.unembed)
    return next(pair.a.shape[-1] for pair in pairs if pair is not None)
