"""What models there are to choose from, and in what state."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CachedRepoInfo, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from cookbook_fx.errors import ModelError
from shell.hub.models import BUILT_IN_MODELS, BuiltInModel, cached_snapshot, models_folder
from shell.hub.weights import read_config, weight_files


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that can be asked for by name.

    Args:
        name: what to give as the model.
        source: where it came or would come from.
        directory: where it is on this machine; None if it would be downloaded.
        size_bytes: on disk if it is here, else of the download.
        problem: why it cannot be used; None if it can.
    """

    name: str
    source: str
    directory: Path | None
    size_bytes: int
    problem: str | None = None

    @property
    def cached(self) -> bool:
        """Whether it can be used without a download."""
        return self.directory is not None

    @property
    def usable(self) -> bool:
        """Whether this library can train and sample it."""
        return self.problem is None


def known_models() -> tuple[KnownModel, ...]:
    """The built-in models, then those in `home()/models`, then those in the hub's cache."""
    built_in = tuple(_built_in(model) for model in BUILT_IN_MODELS)
    named = {model.name for model in BUILT_IN_MODELS} | {model.hub_id for model in BUILT_IN_MODELS}
    others = (*_converted(), *_in_hub_cache())
    return (*built_in, *(model for model in others if model.name not in named))


def _built_in(model: BuiltInModel) -> KnownModel:
    converted = models_folder() / model.name
    if converted.is_dir():
        source = f"Python package {model.package.package} {model.package.version}"
        return _on_disk(model.name, source, converted)
    snapshot = cached_snapshot(model.hub_id)
    source = f"Hugging Face hub: {model.hub_id}"
    if snapshot is not None:
        return _on_disk(model.name, source, snapshot)
    return KnownModel(
        name=model.name,
        source=f"{source}, or the Python package {model.package.package}",
        directory=None,
        size_bytes=model.download_megabytes * 10**6,
    )


def _converted() -> Iterator[KnownModel]:
    folder = models_folder()
    if not folder.is_dir():
        return
    for directory in sorted(folder.iterdir()):
        if directory.is_dir() and not directory.name.startswith("."):
            yield _on_disk(directory.name, "converted from a GGUF file", directory)


def _in_hub_cache() -> Iterator[KnownModel]:
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        if repository.repo_type == "model":
            yield from _cached_repository(repository)


def _cached_repository(repository: CachedRepoInfo) -> Iterator[KnownModel]:
    # Tokenizers, adapters and other things kept there are no models: they have no config.
    directory = cached_snapshot(repository.repo_id)
    if directory is not None and (directory / "config.json").exists():
        yield _on_disk(repository.repo_id, "Hugging Face hub's cache", directory)


def _on_disk(name: str, source: str, directory: Path) -> KnownModel:
    problem = None
    try:
        read_config(directory)
        weight_files(directory)
    except ModelError as error:
        problem = str(error)
    size = sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
    return KnownModel(
        name=name, source=source, directory=directory, size_bytes=size, problem=problem
    )
