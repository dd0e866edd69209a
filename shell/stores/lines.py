"""Files of one JSON object a line that grow for days: appended whole, read as a stream."""

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cookbook_fx.errors import DataError
from shell.stores.files import replacing, storing

Record = TypeVar("Record")


class Line(NamedTuple):
    """A line of a file: its number from 1, the integers at its head, its bytes."""

    number: int
    head: tuple[int, ...]
    raw: bytes


def append_lines(path: Path, values: Iterable[Any], *, what: str) -> None:
    """Adds a line for each value, all of them on the disk before this returns.

    Several callers at once take turns.

    Raises:
        StorageError: the disk is full or the file cannot be written; it is as it was.
    """
    data = json_lines(values).encode()
    with storing(path, what=what), path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        try:
            _write(file.fileno(), data)
            os.fsync(file.fileno())
        except OSError:
            # Where even this fails, a torn end stays, as after a crash.
            with suppress(OSError):
                file.truncate(size)
            raise


def json_lines(values: Iterable[Any]) -> str:
    """A line for each value."""
    lines = (json.dumps(value, allow_nan=False, separators=(",", ":")) for value in values)
    return "".join(f"{line}\n" for line in lines)


def read_lines(path: Path, head: Sequence[str]) -> Iterator[Line]:
    """The lines of a file in order, of which only the head is looked at.

    A last line torn by a crash is left out; where there is no file, there are no lines.

    Args:
        path: the file.
        head: the names of the integers with which each object begins.

    Raises:
        DataError: a line that is not the last is no JSON object with these integers.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            found = _head(raw, head)
            if found is not None:
                yield Line(number, found, raw)
            elif file.peek(1):
                raise DataError(
                    f"{path}, line {number}: expected a JSON object with {', '.join(head)}, got "
                    f"{raw[:80]!r}; repair or remove the line"
                )


def parsed(path: Path, line: Line, read: Callable[[Any], Record]) -> Record:
    """The record that a line holds.

    Args:
        path: the file, for an error.
        line: of it.
        read: makes a record of the JSON value, or raises DataError.

    Raises:
        DataError: the line is damaged behind its head, or no such record.
    """
    try:
        return read(json.loads(line.raw))
    except (json.JSONDecodeError, UnicodeDecodeError, DataError) as error:
        raise DataError(
            f"{path}, line {line.number}: {error}; repair or remove the line"
        ) from error


def last_value(path: Path) -> Any:
    """The value of the last whole line; None where there is none.

    Only the end of the file is read.

    Raises:
        DataError: the line is no JSON.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            held = b""
            while end > 0 and held.count(b"\n") < _ENOUGH_LINES:
                begin = max(0, end - _BLOCK)
                file.seek(begin)
                held = file.read(end - begin) + held
                end = begin
    except FileNotFoundError:
        return None
    # Behind the last line break stands what is torn.
    *_, raw, _ = [b"", b"", *held.split(b"\n")]
    if not raw:
        return None
    try:
        return json.loads(raw)
    except ValueError as error:
        raise DataError(f"{path}, its last line: {error}; repair or remove the line") from error


# The break that ends the last line, and the one that ends the line before it.
_ENOUGH_LINES = 2
_BLOCK = 1 << 16


def keep_lines(path: Path, lines: Callable[[], Iterator[Line]], *, what: str) -> None:
    """Leaves only these lines of a file, atomically; where that is all of it, it is not touched.

    Args:
        path: the file.
        lines: reads those that stay, in their order; asked twice.
        what: what the file holds, for an error.

    Raises:
        StorageError: the file cannot be replaced; it is unchanged.
    """
    if path.exists() and sum(len(line.raw) for line in lines()) < path.stat().st_size:
        with replacing(path, what=what) as file:
            file.writelines(line.raw for line in lines())


def _head(raw: bytes, names: Sequence[str]) -> tuple[int, ...] | None:
    """The integers at the head of a line; None if it is torn."""
    if not raw.endswith(b"}\n"):
        return None
    pattern = r"\{" + "".join(rf'"{name}":(\d+),' for name in names)
    quick = re.match(pattern.encode(), raw)
    if quick is not None:
        return tuple(map(int, quick.groups()))
    # Written by other hands: any other way to write the same object.
    try:
        value = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    found = tuple(value.get(name) for name in names)
    return found if all(type(number) is int for number in found) else None


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
