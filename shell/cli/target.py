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
        model: the base model, as it is found on this machine or the hub.
        checkpoint: a tinker:// path; None is the base model itself.
        is_state: the path is one to train on from, and none to sample from.
        renderer: the chat format it was trained in, where that is known.
    """

    model: str
    checkpoint: str | None = None
    is_state: bool = False
    renderer: str | None = None

    @property
    def weights(self) -> str:
        """Stands for the weights."""
        return self.checkpoint or self.model


def find_target(named: str | None, *, model: str | None, base_url: str | None) -> Target:
    """What a name means.

    Args:
        named: a known model's name, a hub id, a directory, a .gguf file, a tinker:// path, or the
            folder of a run, which is its last checkpoint; None is the default model.
        model: the base model of a tinker:// path, where it cannot be found out.
        base_url: another engine's address, if it is one.

    Raises:
        ConfigurationError: the run has no checkpoint yet.
        ServiceError: this machine does not have the checkpoint.
    """
    from shell.hub import DEFAULT_MODEL, canonical_name, home

    if named is None:
        return Target(model=canonical_name(model or DEFAULT_MODEL))
    if (Path(named).expanduser() / "checkpoints").is_dir():
        return _of_run(Path(named).expanduser())
    if not named.startswith("tinker://"):
        return Target(model=canonical_name(named))
    if model is None and base_url is None:
        from shell.engine.checkpoints import base_model_of

        model = base_model_of(home() / "checkpoints", named)
    return Target(model=model or DEFAULT_MODEL, checkpoint=named, is_state="/weights/" in named)


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
        is_state=latest.sampler_path is None,
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
    from shell.evaluation import EvaluationContext
    from shell.hub import load_tokenizer, recommended_renderer, resolve_model
    from shell.hub.models import say_on_standard_error
    from shell.hub.weights import context_length

    async with connect(base_url=address.base_url, api_key=address.api_key) as service:
        if target.checkpoint is None:
            sampler = await service.sampler(base_model=target.model)
        elif target.is_state:
            trainer = await service.restore(target.checkpoint, with_optimizer=False)
            sampler = await trainer.snapshot()
        else:
            sampler = await service.sampler(path=target.checkpoint)
        source = await asyncio.to_thread(resolve_model, target.model, with_weights=False)
        tokenizer = load_tokenizer(source.directory)
        name = renderer or target.renderer or recommended_renderer(target.model)
        warn_of_renderer(name, model=target.model, say=say_on_standard_error)
        yield (
            sampler,
            EvaluationContext(
                service=service,
                model=target.model,
                renderer=get_renderer(name, tokenizer),
                tokenizer=tokenizer,
                context_window=context_length(source.directory),
            ),
        )
