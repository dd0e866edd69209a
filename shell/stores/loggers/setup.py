"""One logger over a run's own file and any number of places that its rows are sent to."""

import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.runs import CodeState
from shell.stores.code_state import CODE, CodeFile
from shell.stores.loggers.console import console_tables
from shell.stores.loggers.follower import LOGGERS_FILE, Follower, Say, SentFile
from shell.stores.loggers.sinks import LoggedRun, LoggerName, OpenSink
from shell.stores.metrics import Metrics, MetricsFile

PROJECT = "cookbook-fx"

# A server that does not answer costs a run so long at its start, and so long at its end.
_OPENING_SECONDS = 30.0
_ENDING_SECONDS = 60.0

# The package of each extra, which is called as its logger.
_PACKAGES = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLogger:
    """Takes a run's measurements.

    Args:
        metrics: `metrics.jsonl`; what it is told of is sent on.
    """

    metrics: MetricsFile

    def log_metrics(self, metrics: Metrics, *, step: int) -> None:
        """Adds the row of a step; returns when it is on the disk, and waits for nobody else.

        Args:
            metrics: value by name.
            step: greater than that of any row before.

        Raises:
            DataError: a value is no scalar, or a name is `step`.
            StorageError: the disk is full or the file cannot be written.
        """
        self.metrics.append(step, metrics)


@contextmanager
def setup_logging(
    folder: Path,
    *,
    loggers: Sequence[LoggerName] = (),
    project: str = PROJECT,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    console: Console | None = None,
    others: Mapping[str, OpenSink] | None = None,
) -> Iterator[RunLogger]:
    """A logger over `metrics.jsonl` and the places its rows are sent to.

    Rows are sent from threads of their own. A place that fails or is slow stops and slows nothing:
    that is said once, and it is tried again; what is not sent in the end is told, and sent when
    the run is continued. How far each place has got stands in `loggers.json`, so that a continued
    run goes on with the same run there. Nothing is sent before `metrics.keep_before` says from
    which step on the run goes, as every loop does.

    Args:
        folder: of the run.
        loggers: where its rows are sent, besides the file.
        project: what runs are gathered under, where there is such a thing.
        name: of the run there; None is the folder's.
        config: its hyperparameters.
        console: told of what happens, and the one that `console` prints to.
        others: places of your own, by name.

    Raises:
        ConfigurationError: a package is missing, or a place lets nobody in with these credentials.
        DataError: `loggers.json` is damaged.
    """
    console = console or Console(highlight=False, markup=False, soft_wrap=True)
    sinks = {name: _opener(name, console) for name in loggers} | dict(others or {})
    run = LoggedRun(
        folder=folder.absolute(),
        project=project,
        name=name or folder.absolute().name,
        config=config or {},
        code=_code(folder),
    )
    sent = SentFile(folder / LOGGERS_FILE)
    file = MetricsFile(path=folder / "metrics.jsonl")
    followers = [
        Follower(name, open_sink, run=run, metrics=file, sent=sent, say=console.print)
        for name, open_sink in sinks.items()
    ]

    def continued(first_step: int) -> None:
        for follower in followers:
            follower.begin(first_step)

    try:
        _open(followers)
        yield RunLogger(metrics=MetricsFile(path=file.path, continued=continued))
    finally:
        _end(followers, say=console.print)


def _open(followers: Sequence[Follower]) -> None:
    for follower in followers:
        follower.start()
    deadline = time.monotonic() + _OPENING_SECONDS
    for follower in followers:
        follower.wait_until_open(seconds=max(0.0, deadline - time.monotonic()))


def _end(followers: Sequence[Follower], *, say: Say) -> None:
    for follower in followers:
        follower.end()
    deadline = time.monotonic() + _ENDING_SECONDS
    for follower in followers:
        follower.wait_until_ended(seconds=max(0.0, deadline - time.monotonic()))


def _opener(name: LoggerName, console: Console) -> OpenSink:
    """What opens a place.

    Raises:
        ConfigurationError: its package is missing.
    """
    if name == "console":
        return console_tables(console)
    package = _PACKAGES.get(name)
    if package is None:
        raise ConfigurationError(
            f"there is no logger {name!r}; there are {', '.join(['console', *_PACKAGES])}"
        )
    if importlib.util.find_spec(package) is None:
        raise ConfigurationError(
            f"the logger {name} needs the package {package}, which is not installed: "
            f'pip install "cookbook-fx[{name}]"'
        )
    # Its module imports the package, which takes seconds.
    opener: OpenSink = import_module(f"shell.stores.loggers.{name}").open_sink
    return opener


def _code(folder: Path) -> CodeState | None:
    """The state of the code that the run was last started with, if that is known."""
    starts = CodeFile(path=folder / CODE).starts()
    return starts[-1].code if starts else None
