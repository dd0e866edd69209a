"""What every training command asks about its run folder and its loggers, and opens them by."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from shell.stores import RunFolder
    from shell.stores.run_folder import JSON, Existing

# Text, as a URL made a path loses one of its slashes.
RunDir = Annotated[str, tyro.conf.arg(metavar="PATH")]
Logger = Literal["console", "tensorboard", "wandb", "trackio", "mlflow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What becomes of a run found in the folder, and where measurements go besides its files.

    Args:
        existing: a run found in the folder is continued, deleted, or refused; ask asks at a
            terminal, and refuses where there is none.
        loggers: places that measurements are sent to, each by its own package. They are sent in
            the background, and a place that fails does not stop the run.
        project: what the run is filed under there.
        run_name: the run's name there; None is the folder's.
        trace: write what was done when into trace.json in the run's folder; open it at
            ui.perfetto.dev, which keeps it on your machine.
    """

    existing: Literal["resume", "ask", "delete", "raise"] = "resume"
    loggers: tuple[Logger, ...] = ()
    project: str = "cookbook-fx"
    run_name: str | None = None
    trace: bool = False


@contextmanager
def open_run(
    run_dir: str | Path,
    recording: Recording,
    *,
    config: "Mapping[str, JSON]",
    console: "Console",
    may_differ: tuple[str, ...] = (),
    reasons: Mapping[str, str] | None = None,
) -> "Iterator[RunFolder]":
    """Opens a run's folder, wherever it is, with the loggers that are asked for.

    Args:
        run_dir: a path or a URL.
        recording: what is asked for.
        config: as of `open_run_folder`, and so are `may_differ` and `reasons`.
        console: told of what happens.

    Raises:
        CookbookError: as `open_run_folder`, `mirrored`, `setup_logging` and `tracing`.
    """
    from shell.hub.home import home
    from shell.stores import open_run_folder
    from shell.stores.loggers import setup_logging
    from shell.stores.mirror import mirrored
    from shell.stores.tracing import TRACE, tracing

    with mirrored(str(run_dir), copies=home() / "runs", say=console.print) as path:
        existing = _chosen(recording, path, run_dir, console)
        with (
            open_run_folder(
                path, config=config, may_differ=may_differ, reasons=reasons, existing=existing
            ) as folder,
            setup_logging(
                path,
                loggers=recording.loggers,
                project=recording.project,
                name=run_name(run_dir, recording),
                config=config,
                console=console,
            ) as logger,
            tracing(path / TRACE, title=run_name(run_dir, recording), say=console.print)
            if recording.trace
            else nullcontext(),
        ):
            yield replace(folder, metrics=logger.metrics)


def run_name(run_dir: str | Path, recording: Recording) -> str:
    """What a run is called: as is asked for, or as its folder."""
    return recording.run_name or str(run_dir).rstrip("/").rsplit("/", 1)[-1]


def _chosen(
    recording: Recording, path: Path, run_dir: str | Path, console: "Console"
) -> "Existing":
    """What becomes of a run in the folder, asked for where there is one and someone to answer."""
    from rich.prompt import Prompt

    from shell.stores.run_folder import holds_run

    if recording.existing != "ask":
        return recording.existing
    if not holds_run(path) or not sys.stdin.isatty():
        return "raise"
    console.print(f"{run_dir} holds a run.")
    answer = Prompt.ask(
        "Continue it, delete it and begin anew, or leave it alone",
        choices=["resume", "delete", "quit"],
        default="resume",
        console=console,
    )
    if answer == "quit":
        return "raise"
    return "delete" if answer == "delete" else "resume"
