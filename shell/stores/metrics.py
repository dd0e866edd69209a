"""`metrics.jsonl`: one line of valid JSON for each step of a run, each step once."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cookbook_fx.errors import DataError
from shell.stores.files import storing, write_atomically

Scalar = bool | int | float | str | None
# Any: the scalars of every array library, as JAX's.
Metrics = Mapping[str, Any]


def _nobody(first_step: int) -> None:
    """Where nobody is told that a run goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsFile:
    """The measurements of a run, appended step by step.

    Values are plain scalars, those of numpy, JAX or another array library, strings or None. NaN
    and infinities have no JSON and are written as null, as are integers too large for any float.
    Every row is on the disk before `append` returns.

    Args:
        path: the file.
        continued: told by `keep_before` from which step on rows follow.
    """

    path: Path
    continued: Callable[[int], None] = _nobody

    def append(self, step: int, metrics: Metrics) -> None:
        """Adds the row of `step`.

        Args:
            step: steps completed before the measurement, from 0.
            metrics: value by name; the name `step` is taken.

        Raises:
            DataError: a value is no scalar, or a name is no string or `step`.
            StorageError: the disk is full or the file cannot be written.
        """
        line = _line(step, metrics)
        with storing(self.path, what="the metrics"), self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> tuple[dict[str, Scalar], ...]:
        """Every whole row, in order; a last line torn by a crash is left out.

        Raises:
            DataError: a line that is not the last is no JSON object with a `step`.
        """
        if not self.path.exists():
            return ()
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = []
        for number, line in enumerate(lines, start=1):
            row = _parsed(line)
            if row is not None:
                rows.append(row)
            elif number < len(lines):
                raise DataError(
                    f"{self.path}, line {number}: expected a JSON object with a step, got "
                    f"{line[:80]!r}; repair or remove the line"
                )
        return tuple(rows)

    def keep_before(self, step: int) -> None:
        """Drops the rows at and after `step` and a torn last line, atomically.

        Raises:
            DataError: as `rows`.
            StorageError: the file cannot be replaced; it is unchanged.
        """
        if self.path.exists():
            kept = [row for row in self.rows() if row["step"] < step]
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
            if text != self.path.read_text(encoding="utf-8", errors="replace"):
                write_atomically(self.path, text, what="the metrics")
        self.continued(step)


class MetricsReader:
    """Reads a file of measurements again and again, each row once."""

    def __init__(self, file: MetricsFile) -> None:
        self._file = file
        self._rows: list[dict[str, Scalar]] = []
        self._identity: tuple[int, int] | None = None
        self._read = 0

    def rows(self) -> Sequence[dict[str, Scalar]]:
        """Every whole row there is now; those that were written since are read.

        Raises:
            DataError: a line is no JSON object with a `step`.
        """
        try:
            with self._file.path.open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                # A run that is continued writes its file anew.
                if identity != self._identity or status.st_size < self._read:
                    self._identity, self._read, self._rows = identity, 0, []
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            self._identity, self._read, self._rows = None, 0, []
            return ()
        whole = added[: added.rfind(b"\n") + 1]
        for line in whole.decode(errors="replace").splitlines():
            row = _parsed(line)
            if row is None:
                raise DataError(
                    f"{self._file.path}: expected lines of a JSON object with a step, got "
                    f"{line[:80]!r}; repair or remove the line"
                )
            self._rows.append(row)
        self._read += len(whole)
        return tuple(self._rows)


def _line(step: int, metrics: Metrics) -> str:
    if "step" in metrics:
        raise DataError("the metric name `step` is taken by the step of the row; choose another")
    row = {"step": int(step)} | {name: _plain(name, value) for name, value in metrics.items()}
    return json.dumps(row, allow_nan=False) + "\n"


def _plain(name: object, value: object) -> Scalar:
    if not isinstance(name, str):
        raise DataError(f"a metric's name must be a string, got {name!r}")
    plain = value
    if not isinstance(value, bool | int | float | str | None) or isinstance(value, np.generic):
        array = np.asarray(value)
        plain = array.item() if array.ndim == 0 else value
    if isinstance(plain, int) and plain.bit_length() > _LARGEST_BITS:
        return None
    if plain is None or isinstance(plain, bool | int | str):
        return plain
    if isinstance(plain, float):
        return plain if math.isfinite(plain) else None
    raise DataError(
        f"metric {name!r} must be a number, a string, a bool or None, got {type(value).__name__}"
    )


# A larger integer is one that no reader of JSON can hold, as infinity is.
_LARGEST_BITS = 1024


def _parsed(line: str) -> dict[str, Scalar] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
