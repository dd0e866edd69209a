"""Options that mean the same in every command."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
