"""Conversations and other records from a user's own files."""

import json
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from cookbook_fx.chat import Conversation, conversation_from_dict
from cookbook_fx.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


Record = TypeVar("Record")


def read_conversations(path: Path, *, first: int | None = None) -> tuple[Conversation, ...]:
    """Reads a JSONL file: one conversation a line, as `conversation_from_dict` takes it.

    Args:
        path: the file.
        first: how many to read, from the first one on; what follows them is not looked at.

    Raises:
        DataError: as for `read_records`.
    """
    return read_records(path, conversation_from_dict, what="conversation", first=first)


def read_records(
    path: Path,
    from_dict: Callable[[Mapping[str, Any]], Record],
    *,
    what: str,
    first: int | None = None,
) -> tuple[Record, ...]:
    """Reads a JSONL file: one record a line.

    Lines of nothing but whitespace are passed over, and so is a UTF-8 byte order mark.

    Args:
        path: the file.
        from_dict: makes a record of a line's object, or raises a DataError.
        what: a record's name, for error messages.
        first: how many to read, from the first one on; None reads all.

    Raises:
        DataError: the file cannot be read or holds no record, or a line is not UTF-8, not JSON (as
            the last line of a torn file) or refused by `from_dict`; with its number.
    """
    try:
        with Path(path).open("rb") as lines:
            if lines.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
                lines.seek(0)
            read = (
                _record(line, from_dict, where=f"{path}, line {number}")
                for number, line in enumerate(lines, start=1)
                if line.strip()
            )
            records = tuple(islice(read, first))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not records:
        raise DataError(f"{path} holds no {what}; one JSON object a line is wanted")
    return records


def _record(line: bytes, from_dict: Callable[[Mapping[str, Any]], Record], *, where: str) -> Record:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not a JSON object on one line ({error.msg} at column {error.colno}); "
            "the line may be torn, or the file may be one JSON list instead of JSONL"
        ) from error
    # A number of thousands of digits, and nesting without end.
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON that can be read ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is wanted, got {type(row).__name__}")
    try:
        return from_dict(row)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
