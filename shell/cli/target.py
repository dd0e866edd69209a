"""Which model a command is about: a name, a directory, a checkpoint, or the folder of a run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cookbook_fx.errors import ConfigurationError

if TYPE_CHECKING:
    from shell.cli.options import Address
    from shell.clients import Sampler
    from shell.evaluation import EvaluationContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model, or weights that were trained from one.

    Args:
        model: the base model, as it is found on this machine or the hub; None where only the engine
            that has the checkpoint can tell.
        checkpoint: a tinker:// path; None is the base model itself.
        renderer: the chat format it was trained in, where that is known.
    """

    model: str | None
    checkpoint: str | None = None
    renderer: str | None = None

    @property
    def name(self) -> str:
        """What an engine knows the weights by."""
        return self.checkpoint or self.model or ""

    @property
    def stamp(self) -> str:
        """Stands for the weights: other ones in the same place have another."""
        if self.checkpoint is not None or self.model is None:
            return self.name
        path = Path(self.model)
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        found = [(file.name, file.stat()) for file in files]
        return " ".join(
            [self.name, *(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in found)]
        )


def find_target(named: str | None, *, model: str | None, base_url: str | None) -> Target:
    """What a name means.

    Args:
        named: a known model's name, a hub id, a directory, a .gguf file, a tinker:// path, the
            directory of a peft adapter, or the folder of a run, which is its last checkpoint; None
            is the default model.
        model: the base model of a checkpoint or adapter, where it cannot be found out.
        base_url: another engine's address, if it is one.

    Raises:
        ConfigurationError: the run has no checkpoint yet, or an adapter cannot be brought to the
            engine.
        DataError: the adapter does not fit the model.
        ServiceError: this machine does not have the checkpoint.
    """
    from shell.hub import DEFAULT_MODEL, canonical_name
    from shell.hub.adapters import ADAPTER_CONFIG

    if named is None:
        return Target(model=canonical_name(model or DEFAULT_MODEL))
    if named.startswith("tinker://"):
        return _of_path(named, model=model, base_url=base_url)
    directory = Path(named).expanduser()
    if (directory / "checkpoints").is_dir():
        return _of_run(directory)
    if (directory / ADAPTER_CONFIG).is_file():
        return _of_adapter(directory, model=model, base_url=base_url)
    return Target(model=canonical_name(named))


def _of_path(path: str, *, model: str | None, base_url: str | None) -> Target:
    if model is None and base_url is None:
        from shell.engine.checkpoints import base_model_of
        from shell.hub import home

        model = base_model_of(home() / "checkpoints", path)
    return Target(model=model, checkpoint=path)


def _of_adapter(directory: Path, *, model: str | None, base_url: str | None) -> Target:
    from shell.cli.options import local_checkpoint, named_base_model

    base = model or named_base_model(directory)
    return Target(
        model=base, checkpoint=local_checkpoint(str(directory), model=base, base_url=base_url)
    )


def _of_run(folder: Path) -> Target:
    from shell.cli.reporting import read_config
    from shell.stores import RunCheckpoints

    config = read_config(folder)
    with RunCheckpoints(folder / "checkpoints") as checkpoints:
        latest = checkpoints.latest()
    described = config.get("model")
    if latest is None or not isinstance(described, dict):
        raise ConfigurationError(
            f"the run in {folder} has no checkpoint; wait for its first, or name a model"
        )
    return Target(
        model=described["model"],
        checkpoint=latest.sampler_path or latest.state_path,
        renderer=described.get("renderer"),
    )


@asynccontextmanager
async def opened(
    target: Target, *, address: "Address", renderer: str | None
) -> "AsyncIterator[tuple[Sampler, EvaluationContext]]":
    """The weights to sample from, and what goes with them.

    Args:
        target: the model.
        address: of the engine.
        renderer: the chat format; None is the one it was trained in, or what suits the model.
    """
    from cookbook_fx.renderers import get_renderer
    from shell.cli.options import warn_of_renderer
    from shell.clients import connect
    from shell.clients.downloads import base_model_of
    from shell.evaluation import EvaluationContext, sampler_of
    from shell.hub import load_tokenizer, recommended_renderer, resolve_model
    from shell.hub.models import say_on_standard_error
    from shell.hub.weights import context_length

    async with connect(base_url=address.base_url, api_key=address.api_key) as service:
        model = target.model or await base_model_of(service, target.name)
        sampler = await sampler_of(service, target.name)
        source = await asyncio.to_thread(resolve_model, model, with_weights=False)
        tokenizer = load_tokenizer(source.directory)
        name = renderer or target.renderer or recommended_renderer(model)
        warn_of_renderer(name, model=model, say=say_on_standard_error)
        yield (
            sampler,
            EvaluationContext(
                service=service,
                model=model,
                renderer=get_renderer(name, tokenizer),
                tokenizer=tokenizer,
                context_window=context_length(source.directory),
            ),
        )
