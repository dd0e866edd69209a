"""Files that are whole or not there: atomic writes, and errors that name the file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cookbook_fx.errors import StorageError


@contextmanager
def storing(path: Path, *, what: str) -> Iterator[None]:
    """Turns an OSError met while writing `path` into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        advice = "check that the folder exists and is yours to write to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = (
                "free some space and run the same command again; what was saved before is intact"
            )
        reason = error.strerror or str(error)
        raise StorageError(f"{what} could not be written to {path}: {reason}; {advice}") from error


def write_atomically(path: Path, text: str, *, what: str) -> None:
    """Replaces `path` by `text`: after a crash at any instant it holds the old text or the new.

    Raises:
        StorageError: the disk is full or the folder cannot be written; `path` is unchanged.
    """
    with replacing(path, what=what) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path, *, what: str) -> Iterator[BinaryIO]:
    """Gives a file to write, which takes the place of `path` when all of it is on the disk.

    Raises:
        StorageError: the disk is full or the folder cannot be written; `path` is unchanged.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with storing(path, what=what):
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Makes a rename in `directory` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
