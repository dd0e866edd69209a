"""Starting and stopping the engine: in this process, or in the foreground until interrupted."""

import contextlib
import logging
import os
import re
import resource
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import jax
import uvicorn
from jax.sharding import Mesh

from cookbook_fx.errors import ConfigurationError, ServiceError
from cookbook_fx.lm.sharding import make_mesh
from shell.engine.app import make_app
from shell.engine.checkpoints import LOCAL, CheckpointStore
from shell.engine.compute import BaseModel, Compute, EngineLimits
from shell.engine.memory import Memory, available_bytes
from shell.engine.service import Service
from shell.hub import (
    DEFAULT_MODEL,
    canonical_name,
    end_tokens,
    home,
    load_tokenizer,
    load_weights,
    resolve_model,
)
from shell.hub.models import BUILT_IN_MODELS

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Which model an engine serves, and where.

    Args:
        model: a built-in name, hub id, Hugging Face directory or .gguf file.
        state_dir: checkpoints are kept in a folder of it.
        host: address to listen on; any but a loopback address needs an `api_key`.
        port: 0 for any free one.
        api_key: what clients must send; None to make one up.
        api_keys: several keys by the names of their owners, who see nothing of one another;
            instead of `api_key`.
        dtype: of the base weights' matrices, float32 or bfloat16; None is bfloat16 on
            accelerators and float32 else. Norms, softmax, log-probabilities, adapters and
            optimizer are always float32.
        mesh: how the devices are shared, such as data=2,fsdp=4; None divides weights and batches
            among all of this host's.
        limits: how long to wait and how much to hold.

    Raises:
        ConfigurationError: the engine would listen beyond this machine without a chosen key, or
            the key is one the SDK refuses to send.
    """

    model: str = DEFAULT_MODEL
    state_dir: Path = field(default_factory=home)
    host: str = "127.0.0.1"
    port: int = 0
    api_key: str | None = None
    api_keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    dtype: str | None = None
    mesh: str | None = None
    limits: EngineLimits = field(default_factory=EngineLimits)

    def __post_init__(self) -> None:
        keys = [*self.api_keys.values(), *([self.api_key] if self.api_key is not None else [])]
        if not all(key.startswith("tml-") for key in keys):
            raise ConfigurationError(
                "an api_key must begin with 'tml-' (the SDK refuses to send others)"
            )
        if self.dtype not in (None, "float32", "bfloat16"):
            raise ConfigurationError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
        if self.api_keys and (self.api_key is not None or len(set(keys)) != len(keys)):
            raise ConfigurationError(
                "api_keys must be all different, and leave no place for a single api_key beside"
            )
        if not keys and not _is_loopback(self.host):
            raise ConfigurationError(
                f"host {self.host} can be reached from other machines; choose an api_key "
                "(beginning with 'tml-') or listen on 127.0.0.1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where an engine answers, and the key it wants; of several, the first."""

    base_url: str
    api_key: str = field(repr=False)


def read_keys(file: Path) -> Mapping[str, str]:
    """Reads a file of keys: on each line the name of an owner and that one's key.

    Empty lines and those that begin with # do not count. What an engine with a single key has
    saved belongs to the owner `local`.

    Raises:
        ConfigurationError: there is no such file, or a line holds something else.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the file of keys {file} cannot be read: {error}") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] in keys:
            raise ConfigurationError(
                f"line {number} of {file} must be a NAME of its own and a KEY beginning with tml-"
            )
        keys[words[0]] = words[1]
    if not keys:
        raise ConfigurationError(f"{file} holds no keys; write lines of NAME and KEY")
    return keys


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the next process need not compile them again."""
    jax.config.update("jax_compilation_cache_dir", str(home() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA's own caches would put this folder's path into every program's key, so that a home that
    # was moved or mounted elsewhere would compile everything again.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


@contextlib.contextmanager
def embedded_engine(
    config: EngineConfig | None = None, *, say: Callable[[str], None] = log.info
) -> Iterator[Endpoint]:
    """An engine in a thread of this process, for as long as the context is open.

    Args:
        config: None for the default model on a free port.
        say: is told of downloads and the like.

    Raises:
        ConfigurationError: the address cannot be listened on.
        ModelError: the model cannot be loaded.

    Example::

        with embedded_engine() as endpoint:
            client = tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key)
    """
    config = config or EngineConfig()
    enable_compilation_cache()
    _raise_descriptor_limit()
    with contextlib.closing(_listen(config.host, config.port)) as listener:
        keys = config.api_keys or {LOCAL: config.api_key or f"tml-{secrets.token_urlsafe(24)}"}
        start = _prepare(config, tuple(keys), say)
        api_key = next(iter(keys.values()))
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        with _running(start, keys, listener):
            yield Endpoint(base_url=f"http://{shown}:{port}", api_key=api_key)


def serve(config: EngineConfig, *, say: Callable[[str], None]) -> None:
    """Serves until interrupted (Ctrl-C or SIGTERM); call it from the main thread.

    Args:
        config: what to serve.
        say: is told where the engine answers.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with embedded_engine(config, say=say) as endpoint:
            # Keys that others were given are not for this one's screen.
            key = "one of the keys" if config.api_keys else endpoint.api_key
            say(
                f"Serving {config.model} at {endpoint.base_url} for any Tinker program:\n"
                f"  export TINKER_BASE_URL={endpoint.base_url} TINKER_API_KEY={key}\n"
                "Press Ctrl-C to stop."
            )
            threading.Event().wait()
    except KeyboardInterrupt:
        say("Stopped.")
    finally:
        signal.signal(signal.SIGTERM, previous)


def _prepare(
    config: EngineConfig, owners: Sequence[str], say: Callable[[str], None]
) -> Callable[[], Mapping[str, Service]]:
    """Loads everything that can fail; what is left to do on the event loop cannot."""
    source = resolve_model(config.model, say=say)
    tokenizer = load_tokenizer(str(source.directory))
    dtype = config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    weights = load_weights(source.directory, dtype=dtype, mesh=_mesh(config.mesh))
    # What programs written for the hosted service call a model that has a short name here.
    hub_id = next((each.hub_id for each in BUILT_IN_MODELS if each.name == source.name), None)
    base = BaseModel(
        names=(source.name,) if hub_id is None else (source.name, hub_id),
        tokenizer_name=hub_id or str(source.directory),
        directory=source.directory,
        weights=weights,
        decode=partial(
            tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False
        ),
        end_tokens=end_tokens(source.directory),
    )
    store = CheckpointStore(
        config.state_dir / "checkpoints",
        config=weights.config,
        base_model=canonical_name(source.name),
    )
    memory = Memory(weights, config.limits.memory_bytes or available_bytes())

    def start() -> Mapping[str, Service]:
        compute = Compute(base, memory, config.limits)
        return {name: Service(compute, store.owned_by(name), config.limits) for name in owners}

    return start


@contextlib.contextmanager
def _running(
    start: Callable[[], Mapping[str, Service]], keys: Mapping[str, str], listener: socket.socket
) -> Iterator[None]:
    services: list[Service] = []

    def start_and_keep() -> Mapping[str, Service]:
        started = start()
        services.extend(started.values())
        return started

    server = uvicorn.Server(
        uvicorn.Config(
            make_app(start_and_keep, keys=keys),
            log_config=None,
            access_log=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            ws="none",
        )
    )
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="engine", daemon=True
    )
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise ServiceError("the engine's HTTP server ended while starting; see the log")
        thread.join(0.005)
    try:
        yield
    finally:
        # Long polls are ended first: a graceful stop would wait for them.
        for service in services:
            service.wake_from_another_thread()
        server.should_exit = True
        thread.join()


def _mesh(wanted: str | None) -> Mesh | None:
    """The devices of this host as they are to be used; None for a single one.

    Raises:
        ConfigurationError: the words make no sense, or ask for more devices than there are.
    """
    devices = jax.local_devices()
    if wanted is None:
        return make_mesh(devices, data=1, fsdp=len(devices))
    match = re.fullmatch(r"data=([1-9]\d{0,5}),fsdp=([1-9]\d{0,5})", wanted)
    if match is None:
        raise ConfigurationError(f"a mesh looks like data=2,fsdp=4, got {wanted!r}")
    data, fsdp = int(match[1]), int(match[2])
    return make_mesh(devices[: data * fsdp], data=data, fsdp=fsdp)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Hundreds of samples are asked for at once, each on a connection of its own.
        listener.listen(4096)
    # An OverflowError is a port that is no port at all.
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {reason}; choose another port, or 0 "
            "for any free one"
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _raise_descriptor_limit() -> None:
    """Each sample in flight takes about two sockets, on both ends in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16_384 if hard == resource.RLIM_INFINITY else min(16_384, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
