"""Run folders on object stores: a local copy to work in, mirrored to a URL through fsspec.

An object store has no append, no rename of a folder and no lock, and each file takes a round trip.
So the run writes to a folder of this machine, and a thread brings what has changed to the URL.
"""

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import filelock
import fsspec

from cookbook_fx.errors import ConfigurationError, CookbookError, StorageError
from shell.stores.files import storing, write_atomically

_SECONDS_BETWEEN_ROUNDS = 2.0
# A round that takes long, as of large files, is not begun again before so many times as long.
_REST = 5.0
_ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 0.5
_CHECKPOINTS = "checkpoints"
# Names the copy that the place was last written from.
_CLAIM = "mirror.json"
_UNFINISHED = ".orbax-checkpoint-tmp"

Say = Callable[[str], None]


def is_url(location: str) -> bool:
    """Whether a run folder is named by a URL, as `s3://bucket/run`."""
    return "://" in location


class _Version(NamedTuple):
    """What tells a file that has changed."""

    size: int
    modified: int
    inode: int


@contextmanager
def mirrored(location: str, *, copies: Path, say: Say) -> Iterator[Path]:
    """The folder of this machine in which a run at `location` is worked on.

    A path is itself. For a URL, what is there is fetched first, unless the copy on this machine is
    as new or newer; from then on what changes is uploaded in the background, rows and episodes
    before the checkpoint that counts on them, and all of it at the end, also after an error.

    Args:
        location: a path, or a URL that fsspec knows.
        copies: where copies of this machine are kept.
        say: told of what fails on the way; it is tried again.

    Raises:
        ConfigurationError: there is no such kind of URL or its package is missing, or another
            process works on the run.
        StorageError: what is there cannot be fetched, or what was written not be brought there.
    """
    if not is_url(location):
        yield Path(location)
        return
    key = hashlib.sha256(location.encode()).hexdigest()[:16]
    place = copies / f"{location.rstrip('/').rsplit('/', 1)[-1]}-{key}"
    with storing(place, what="the local copy of the run folder"):
        place.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place / "lock")
    try:
        lock.acquire(timeout=0.2)
    except filelock.Timeout as error:
        raise ConfigurationError(
            f"another process is working on {location}; wait for it, stop it, or choose another "
            "--run-dir"
        ) from error
    try:
        mirror = _Mirror(location, place=place, say=say)
        mirror.open()
        try:
            yield mirror.folder
        except BaseException:
            mirror.close_after_error()
            raise
        mirror.close()
    finally:
        lock.release()


@contextmanager
def fetched(location: str) -> Iterator[Path]:
    """A run's folder to read.

    A path is itself. Of a URL there is a copy while the context lasts; the run may be under way.

    Args:
        location: a path, or a URL that fsspec knows.

    Raises:
        ConfigurationError: there is no such kind of URL, its package is missing, or nothing is
            there.
        StorageError: what is there cannot be fetched.
    """
    if not is_url(location):
        yield Path(location)
        return
    fs, root = _opened(location)
    with tempfile.TemporaryDirectory(prefix="cookbook-fx-") as parent:
        # By the name that reports and curves give it.
        folder = Path(parent, location.rstrip("/").rsplit("/", 1)[-1])
        folder.mkdir()
        try:
            names = _names_at(fs, root)
            _fetch_all(fs, root, names, folder)
        except ConfigurationError:
            raise
        except Exception as error:
            # Intentional: every store's package has errors of its own.
            raise StorageError(
                f"the run at {location} could not be fetched: {type(error).__name__}: {error}"
            ) from error
        if not names:
            raise ConfigurationError(f"there is no run at {location}")
        yield folder


def _opened(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        # An instance of its own, as transactions belong to one.
        return fsspec.core.url_to_fs(location, skip_instance_cache=True)
    except ImportError as error:
        raise ConfigurationError(f"{location} cannot be reached: {error}") from error
    except ValueError as error:
        raise ConfigurationError(
            f"{location} is no place for a run folder: {error}; give a path or a URL that fsspec "
            "knows, as s3://bucket/run"
        ) from error


class _Mirror:
    """A local folder and the place that it is brought to."""

    def __init__(self, location: str, *, place: Path, say: Say) -> None:
        self.folder = place / "run"
        self._location = location
        self._say = say
        self._fs, self._root = _opened(location)
        self._name_file = place / "name"
        self._name = ""
        # None: there, as it was before this process.
        self._there: dict[str, _Version | None] = {}
        self._told = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)

    def open(self) -> None:
        """Fetches what is newer there, and begins to bring what changes here.

        Raises:
            StorageError: the place cannot be read and written.
        """
        with storing(self._name_file, what="the local copy's name"):
            if not self._name_file.exists():
                write_atomically(self._name_file, uuid.uuid4().hex, what="the local copy's name")
            self._name = self._name_file.read_text(encoding="utf-8")
        self._try(self._fetch, what="fetched from")
        self._try(self._claim, what="written to")
        self._try(self._upload, what="written to")
        self._thread.start()

    def close(self) -> None:
        """Brings all that is left.

        Raises:
            StorageError: that failed.
        """
        self._ending.set()
        self._thread.join()
        self._try(self._upload, what="written to")

    def close_after_error(self) -> None:
        """Brings all that is left, beside an error that is more important."""
        try:
            self.close()
        except CookbookError as error:
            self._say(str(error))

    def _try(self, action: Callable[[], None], *, what: str) -> None:
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return action()
            except ConfigurationError:
                raise
            except Exception as error:
                # Intentional: every store's package has errors of its own.
                if attempt == _ATTEMPTS:
                    raise StorageError(
                        f"the run folder could not be {what} {self._location}: "
                        f"{type(error).__name__}: {error}; what there is of it on this machine is "
                        f"in {self.folder}, and the same command tries again"
                    ) from error
            time.sleep(pause)
            pause *= 2

    def _follow(self) -> None:
        rest = _SECONDS_BETWEEN_ROUNDS
        while not self._ending.wait(rest):
            began = time.monotonic()
            try:
                self._upload()
            except Exception as error:
                # Intentional: as above; the run goes on, and the last round tells what is missing.
                if not self._told:
                    self._told = True
                    self._say(
                        f"{self._location} cannot be written to at the moment, the run goes on: "
                        f"{type(error).__name__}: {error}"
                    )
            rest = max(_SECONDS_BETWEEN_ROUNDS, _REST * (time.monotonic() - began))

    def _fetch(self) -> None:
        """Puts what is there in the place of the copy, unless all of it came from the copy."""
        claimed = self._claimed_by()
        names = _names_at(self._fs, self._root)
        if self.folder.exists() and claimed in (None, self._name):
            self._there = dict.fromkeys(names)
            return
        fresh = self.folder.with_name("fetched")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        _fetch_all(self._fs, self._root, names, fresh)
        if self.folder.exists():
            # Work of this machine that another one went on without.
            aside = self.folder.with_name(f"replaced-{uuid.uuid4().hex[:8]}")
            self.folder.rename(aside)
            self._say(
                f"{self._location} was written from elsewhere since; the copy that was here is "
                f"now {aside}"
            )
        fresh.rename(self.folder)
        self._there = dict(_versions(self.folder))

    def _claim(self) -> None:
        """From here on, whoever else writes there stops at its next round."""
        with self._writing(_CLAIM) as there:
            there.write(json.dumps({"copy": self._name}).encode())

    def _upload(self) -> None:
        """One round: an interruption at any moment leaves a run there that can be continued.

        Checkpoints are looked for before anything else is read, and brought after it: the rows and
        episodes that they count on are there before them.
        """
        if self._claimed_by() != self._name:
            raise ConfigurationError(
                f"another process works on {self._location} since, and nothing more is written "
                f"there from here; what this one did is in {self.folder}"
            )
        recorded = _versions(self.folder / _CHECKPOINTS, root=self.folder)
        others = {
            name: version
            for name, version in _versions(self.folder).items()
            if not name.startswith(f"{_CHECKPOINTS}/")
        }
        now = others | recorded
        gone = [name for name in self._there if name not in now and not self._is_there(name)]
        new = [name for name, version in now.items() if self._there.get(name) != version]
        for name in sorted(gone):
            if self._fs.exists(self._path(name)):
                self._fs.rm_file(self._path(name))
            del self._there[name]
        for name in sorted(new, key=_order):
            if self._put(name):
                self._there[name] = now[name]

    def _is_there(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def _put(self, name: str) -> bool:
        """Brings a file; False where it has gone meanwhile."""
        try:
            file = (self.folder / name).open("rb")
        except FileNotFoundError:
            return False
        with file, self._writing(name) as there:
            shutil.copyfileobj(file, there, 1 << 20)
        return True

    @contextmanager
    def _writing(self, name: str) -> Iterator[fsspec.spec.AbstractBufferedFile]:
        """A file there that is whole or as before, where the store can do that."""
        path = self._path(name)
        self._fs.makedirs(self._fs._parent(path), exist_ok=True)
        with self._fs.transaction, self._fs.open(path, "wb") as there:
            yield there

    def _claimed_by(self) -> str | None:
        """The copy that the place was last written from; None where that is not known."""
        # A listing that was kept would not show what others have done.
        self._fs.invalidate_cache()
        try:
            found = json.loads(self._fs.cat_file(self._path(_CLAIM)))
            return str(found["copy"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def _names_at(fs: fsspec.AbstractFileSystem, root: str) -> list[str]:
    prefix = f"{root.rstrip('/')}/"
    found = (path.removeprefix(prefix) for path in fs.find(root))
    return [name for name in found if name != _CLAIM]


def _fetch_all(
    fs: fsspec.AbstractFileSystem, root: str, names: Iterable[str], folder: Path
) -> None:
    for name in names:
        if ".." in Path(name).parts:
            raise ConfigurationError(f"{root} holds {name!r}, which no run leaves")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{root.rstrip('/')}/{name}", str(target))


def _versions(folder: Path, *, root: Path | None = None) -> Mapping[str, _Version]:
    """The files of a run, but for what is hidden or being written, by their names under `root`."""
    found: dict[str, _Version] = {}
    for directory, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and _UNFINISHED not in name]
        for name in files:
            path = Path(directory, name)
            if name[0] == "." or path.is_symlink():
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            version = _Version(status.st_size, status.st_mtime_ns, status.st_ino)
            found[path.relative_to(root or folder).as_posix()] = version
    return found


def _order(name: str) -> tuple[int, str]:
    """The configuration first, as nothing is a run without it; checkpoints last."""
    return (0 if name == "config.json" else 2 if name.startswith(f"{_CHECKPOINTS}/") else 1, name)
