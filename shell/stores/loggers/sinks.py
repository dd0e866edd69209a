"""What every place that measurements are sent to is asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cookbook_fx.runs import CodeState
from shell.stores.metrics import Scalar

LoggerName = Literal["console", "tensorboard", "wandb", "trackio", "mlflow"]
Row = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRun:
    """What a place is told about a run.

    Args:
        folder: of the run.
        project: what runs are gathered under.
        name: of the run.
        config: its hyperparameters; sections are mappings.
        code: of the user's repository; None if not known.
        run_id: what the place called the run when it last took rows of it; None for a new run.
    """

    folder: Path
    project: str
    name: str
    config: Mapping[str, Any]
    code: CodeState | None
    run_id: str | None = None


class Sink(Protocol):
    """A place that takes a run's rows, from one thread."""

    @property
    def run_id(self) -> str:
        """What the place calls the run, to continue it by."""

    @property
    def where(self) -> str | None:
        """Where a person sees it; None where there is nothing to look at."""

    def begin(self, *, first_step: int, sent: int) -> int:
        """Gets ready for the rows of a run that goes on.

        Args:
            first_step: the step it goes on from.
            sent: the rows of steps before were taken earlier.

        Returns:
            The first step whose row is wanted.
        """

    def send(self, rows: Sequence[Row]) -> None:
        """Takes rows in the order of their steps, or raises what its client raises."""

    def close(self) -> None:
        """Sees to it that all that was taken arrives, and ends."""


OpenSink = Callable[[LoggedRun], Sink]


def numbers(row: Row) -> dict[str, float]:
    """The numbers of a row by name, but for its step; what has no number is left out."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, bool | int | float)
    }


def values(row: Row) -> dict[str, Scalar]:
    """The values of a row by name, but for its step; what was no number is left out."""
    return {name: value for name, value in row.items() if name != "step" and value is not None}


def settings(run: LoggedRun) -> dict[str, Any]:
    """The hyperparameters of a run, and the state of its code under `code`."""
    if run.code is None:
        return dict(run.config)
    code = run.code
    described = {
        "commit": code.commit,
        "branch": code.branch,
        "changes": list(code.changes),
        "unknown": code.unknown,
    }
    return {**run.config, "code": {name: value for name, value in described.items() if value}}


def flat(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Hyperparameters by dotted name."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, prefix=f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
