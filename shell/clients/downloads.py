"""Adapters fetched from an engine as files."""

import asyncio
import contextlib
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Mapping
from pathlib import PurePosixPath

import tinker

from cookbook_fx.errors import ConfigurationError, ServiceError
from shell.clients.errors import translated
from shell.clients.service import Service

# Enough for a slow line; the engine forgets the files by itself if deleting them fails.
_KEPT_SECONDS = 3600
_TIMEOUT_SECONDS = 300.0


async def download_adapter(service: Service, path: str) -> Mapping[str, bytes]:
    """The files of a saved state's adapter, by name, as the engine exports it.

    Args:
        service: where it was saved.
        path: `tinker://...` of a saved state (`/weights/`) or of an export.

    Raises:
        ConfigurationError: weights saved for sampling, which engines do not give out.
        CheckpointNotFound: the engine has nothing there.
        ServiceError: the engine does not export, or fails.
    """
    segment = path.removeprefix("tinker://").split("/")[1:2]
    if segment == ["external_weights"]:
        return await _fetched(service, path)
    if segment != ["weights"]:
        raise ConfigurationError(
            f"only a saved state (tinker://.../weights/...) can be fetched from an engine, got "
            f"{path!r}; a run's checkpoints and its folder name one"
        )
    if not hasattr(tinker.TrainingClient, "save_weights_external"):
        raise ServiceError(
            f"the installed SDK, tinker {tinker.__version__}, cannot export; install a newer one"
        )
    trainer = await service.restore(path, with_optimizer=False)
    with translated(f"exporting {path}"):
        exported = await trainer.sdk.save_weights_external(
            f"export-{uuid.uuid4().hex[:12]}", ttl_seconds=_KEPT_SECONDS
        )
    try:
        return await _fetched(service, exported.path)
    finally:
        # What cannot be deleted goes away by itself.
        with contextlib.suppress(ServiceError), translated(f"deleting the export of {path}"):
            client = _rest(service)
            await client.delete_checkpoint_from_tinker_path(exported.path)


async def base_model_of(service: Service, path: str) -> str:
    """The base model of a checkpoint, as the engine that saved it calls it.

    Raises:
        ServiceError: the engine has no such checkpoint, or fails.
    """
    with translated(f"looking {path} up"):
        client = _rest(service)
        base_model: str = (await client.get_weights_info_by_tinker_path(path)).base_model
        return base_model


def _rest(service: Service) -> tinker.RestClient:
    # Deprecated in the newest SDKs, and the only way in older ones.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return service.sdk.create_rest_client()


async def _fetched(service: Service, path: str) -> Mapping[str, bytes]:
    with translated(f"fetching {path}"):
        client = _rest(service)
        urls = (await client.get_external_weights_urls(path)).urls
    async with asyncio.TaskGroup() as group:
        tasks = {
            PurePosixPath(name).name: group.create_task(asyncio.to_thread(_read, url))
            for name, url in urls.items()
        }
    return {name: task.result() for name, task in tasks.items()}


def _read(url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ServiceError(f"the engine names a file by {url[:60]!r}, which is no web address")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            content: bytes = response.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise ServiceError(f"a file of the export could not be fetched: {error}") from error
    return content
