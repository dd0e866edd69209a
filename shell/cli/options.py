"""Options that mean the same in every command."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cookbook_fx.errors import ConfigurationError

BaseURL = Annotated[str | None, tyro.conf.arg(metavar="URL")]


def warn_of_renderer(renderer: str, *, model: str, say: Callable[[str], None]) -> None:
    """Says so if a renderer is known to be made for other models than this one."""
    from cookbook_fx.catalog import renderer_warning
    from shell.hub import canonical_name

    warning = renderer_warning(canonical_name(model), renderer)
    if warning is not None:
        say(f"Warning: {warning}.")


def local_checkpoint(given: str, *, model: str, base_url: str | None) -> str:
    """The `tinker://` path of a checkpoint that may be named by the directory of a peft adapter.

    Args:
        given: a path, or such a directory, which becomes a checkpoint of this machine's engine.
        model: the base model.
        base_url: another engine's address, to which adapters cannot be taken.

    Raises:
        ConfigurationError: a directory, and another engine.
        DataError: the directory holds no adapter for this model.
    """
    from shell.engine.imports import LocalCheckpoints, is_adapter
    from shell.hub import home, resolve_model
    from shell.hub.models import say_on_standard_error

    if not is_adapter(given):
        return given
    if base_url is not None:
        raise ConfigurationError(
            f"the adapter in {given} is on this machine, where the engine at {base_url} does not "
            "look; leave --base-url away, or give a tinker:// path of that engine"
        )
    source = resolve_model(model, say=say_on_standard_error, with_weights=False)
    root = home() / "checkpoints"
    return LocalCheckpoints(root=root, base=source).take_in(Path(given).expanduser())


def named_base_model(directory: Path) -> str:
    """The base model that a peft adapter says it is for.

    Raises:
        ConfigurationError: it does not say.
        ModelError: its configuration is missing or torn.
    """
    from shell.hub.adapters import ADAPTER_CONFIG
    from shell.hub.weights import read_json

    name = read_json(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            f"the adapter in {directory} does not say which model it is for; give it by --model"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where an engine is and what opens it; None is the SDK's own default."""

    base_url: str | None
    api_key: str | None


@contextmanager
def engine(base_url: str | None, *, model: str, say: Callable[[str], None]) -> Iterator[Address]:
    """The engine at `base_url`, or one of this process if that is None.

    Args:
        base_url: another engine's address; its key is in TINKER_API_KEY.
        model: what an engine of this process serves.
        say: told of what takes time.

    Raises:
        ConfigurationError: another engine, but no key.
    """
    if base_url is not None:
        key = os.environ.get("TINKER_API_KEY")
        if not key:
            raise ConfigurationError(
                f"the engine at {base_url} wants a key: set TINKER_API_KEY to it"
            )
        yield Address(base_url=base_url, api_key=key)
        return
    from shell.engine.serve import EngineConfig, embedded_engine

    with embedded_engine(EngineConfig(model=model), say=say) as endpoint:
        yield Address(base_url=endpoint.base_url, api_key=endpoint.api_key)
