"""The way to an engine: found, asked for a model, left in good order."""

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import ip_address
from typing import Never, TypeVar
from urllib.parse import urlsplit

import tinker
from tinker.types import RequestErrorCategory

from cookbook_fx.errors import ConfigurationError, ServiceError
from shell.clients.errors import CheckpointNotFound, body, failure, translated
from shell.clients.sampling import Sampler
from shell.clients.training import Trainer
from shell.clients.versions import DEFAULT_BASE_URL, awaitable, close

# Saying that nobody answers must not take the five minutes that the SDK goes on trying.
_PROBE_SECONDS = 10.0
_CLOSE_SECONDS = 5.0

Client = TypeVar("Client")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLoRA:
    """A LoRA to start from: which base model, how large, on which parts.

    Args:
        base_model: name of the model as the engine knows it.
        rank: inner dimension.
        seed: of the initial weights.
        train_mlp: adapt the feed-forward layers.
        train_attn: adapt the attention layers.
        train_unembed: adapt the output layer.
    """

    base_model: str
    rank: int = 32
    seed: int | None = None
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A session with an engine; made by `connect`.

    Args:
        sdk: the SDK's own.
        url: the engine's address.
    """

    sdk: tinker.ServiceClient
    url: str

    async def watch(self, *, patience_seconds: float = 120.0, every_seconds: float = 15.0) -> Never:
        """Never returns: looks whether the engine still answers, for as long as it does.

        The SDK waits for hours for the samples of an engine that is gone.

        Args:
            patience_seconds: how long it may be away; long enough to be started again.
            every_seconds: time between two looks.

        Raises:
            ServiceError: it has not answered for so long.
        """
        answered = time.monotonic()
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await asyncio.to_thread(_probe, self.url)
                answered = time.monotonic()
            except ServiceError:
                if time.monotonic() - answered > patience_seconds:
                    raise

    async def create(self, lora: NewLoRA) -> Trainer:
        """A new LoRA to train.

        Raises:
            ServiceError: the engine has no such model, refuses the key, or fails.
        """
        with translated(f"creating a LoRA on {lora.base_model}"):
            client = await _created(
                lambda: self.sdk.create_lora_training_client(
                    lora.base_model,
                    rank=lora.rank,
                    seed=lora.seed,
                    train_mlp=lora.train_mlp,
                    train_attn=lora.train_attn,
                    train_unembed=lora.train_unembed,
                )
            )
        return Trainer(sdk=client)

    async def restore(self, path: str, *, with_optimizer: bool) -> Trainer:
        """A LoRA as it was saved.

        Args:
            path: `tinker://...` of a saved state.
            with_optimizer: also the optimizer's moments and step count, as a resumed run needs.

        Raises:
            CheckpointNotFound: the engine has no such state, or cannot load it.
            ServiceError: the engine refuses the key or fails.
        """
        load = (
            self.sdk.create_training_client_from_state_with_optimizer
            if with_optimizer
            else self.sdk.create_training_client_from_state
        )
        with translated(f"loading {path}"), _checkpoint(path):
            client = await _created(lambda: load(path))
        return Trainer(sdk=client)

    async def sampler(self, *, base_model: str | None = None, path: str | None = None) -> Sampler:
        """A base model, or what was saved at a `tinker://` path, to sample from.

        Raises:
            ConfigurationError: neither or both are given.
            CheckpointNotFound: the engine has nothing at `path`.
            ServiceError: the engine has no such model, refuses the key, or fails.
        """
        name = path or base_model
        if name is None or (path is not None and base_model is not None):
            raise ConfigurationError(
                "a sampler is made from a base model or a tinker:// path, one of the two; got "
                f"base_model={base_model!r}, path={path!r}"
            )
        if path is not None and not path.startswith("tinker://"):
            raise ConfigurationError(
                f"a checkpoint's path begins with tinker://, as `cookbook-fx sft` prints it; "
                f"got {path!r}"
            )
        with translated(f"preparing to sample from {name}"), _checkpoint(path):
            client = await _created(
                lambda: self.sdk.create_sampling_client(model_path=path, base_model=base_model)
            )
        return Sampler(sdk=client)


@asynccontextmanager
async def connect(
    *, base_url: str | None = None, api_key: str | None = None
) -> AsyncIterator[Service]:
    """Opens a session with the engine at a URL and closes it in the end.

    Args:
        base_url: the engine's address; TINKER_BASE_URL or hosted Tinker if None.
        api_key: TINKER_API_KEY if None.

    Raises:
        ConfigurationError: the URL or the key cannot be one.
        ServiceError: nobody answers there, or there is no key.
    """
    url = _resolved(base_url)
    key = api_key or os.environ.get("TINKER_API_KEY") or ""
    if not (key.isascii() and key.isprintable()):
        # The SDK would try for minutes to send it.
        raise ConfigurationError(
            "the key cannot be sent: it has characters other than printable ASCII; set "
            "TINKER_API_KEY to the key as the engine shows it"
        )
    _bypass_proxy_for_loopback(url)
    await asyncio.to_thread(_probe, url)
    with translated(f"connecting to {url}"):
        sdk = tinker.ServiceClient(base_url=url, api_key=api_key)
    status = "errored"
    try:
        yield Service(sdk=sdk, url=url)
        status = "success"
    except (asyncio.CancelledError, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        await _close(sdk, status)


async def _created(submit: Callable[[], Awaitable[Client]]) -> Client:
    # The SDK opens its session inside the first of these calls and blocks meanwhile.
    return await awaitable(await asyncio.to_thread(submit))


@contextmanager
def _checkpoint(path: str | None) -> Iterator[None]:
    """Tells a checkpoint that the engine lacks from other failures."""
    try:
        yield
    except (tinker.NotFoundError, tinker.RequestFailedError, tinker.BadRequestError) as error:
        is_users = getattr(error, "category", None) in (None, RequestErrorCategory.User)
        if path is None or not is_users:
            raise
        reason = failure(error) if isinstance(error, tinker.RequestFailedError) else body(error)
        raise CheckpointNotFound(
            f"the engine cannot load {path}: {reason}; check the path and that this is the engine "
            "that saved it"
        ) from error


def _resolved(base_url: str | None) -> str:
    url = (base_url or os.environ.get("TINKER_BASE_URL") or DEFAULT_BASE_URL).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"a base URL must look like http://127.0.0.1:8000 or https://host/path, got {url!r}"
        )
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bypass_proxy_for_loopback(url: str) -> None:
    """Keeps a proxy, where one is set, out of talk with this machine itself.

    The SDK's transports read the environment, so that is where it must be said; a proxy cannot
    reach this machine's loopback, and the SDK would try for minutes.
    """
    host = urlsplit(url).hostname or ""
    if not _is_loopback(host) or not urllib.request.getproxies():
        return
    for name in ("no_proxy", "NO_PROXY"):
        listed = [entry for entry in os.environ.get(name, "").split(",") if entry]
        if host not in listed and "*" not in listed:
            os.environ[name] = ",".join([*listed, host])


def _probe(url: str) -> None:
    """One request, so that an engine that is not there is found out in seconds.

    The SDK would try for minutes.

    Raises:
        ServiceError: nothing speaks HTTP at the address, or something that is no engine.
    """
    try:
        with urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=_PROBE_SECONDS) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        # An engine may have reasons for any other status; the SDK tells them.
        error.close()
        if error.code in (404, 405, 501):
            raise ServiceError(
                f"what answers at {url} is no Tinker engine (HTTP status {error.code} for "
                "/api/v1/healthz); correct --base-url"
            ) from error
    except ValueError as error:
        raise ServiceError(
            f"what answers at {url} is no Tinker engine (/api/v1/healthz is not JSON); correct "
            "--base-url"
        ) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(
            f"no engine answers at {url} ({reason}); start one with `cookbook-fx serve`, correct "
            "--base-url, or leave it out to train on this machine"
        ) from error


async def _close(sdk: tinker.ServiceClient, status: str) -> None:
    """Ends the session; an engine that is gone is not waited for."""
    try:
        await close(sdk, status, timeout_seconds=_CLOSE_SECONDS)
    except (tinker.TinkerError, TimeoutError):
        # The engine ends a session that it no longer hears from by itself.
        pass
