"""trackio: a local data base, or a space on the Hugging Face hub."""

import uuid
from collections.abc import Sequence
from typing import Any

import trackio
from huggingface_hub.errors import LocalTokenNotFoundError

from cookbook_fx.errors import ConfigurationError
from shell.stores.loggers.sinks import LoggedRun, Row, settings, values


class Trackio:
    """Sends rows to one run of trackio."""

    def __init__(self, run: Any, project: str) -> None:
        self._run = run
        self._project = project

    @property
    def run_id(self) -> str:
        """The name, by which trackio finds a run again."""
        return str(self._run.name)

    @property
    def where(self) -> str:
        """The server it goes to, or the command that shows it."""
        return self._run.url or f"trackio show --project {self._project}"

    def begin(self, *, first_step: int, sent: int) -> int:
        """Goes on behind the last row that was taken."""
        return sent

    def send(self, rows: Sequence[Row]) -> None:
        """Handed to the client, which sends on its own."""
        for row in rows:
            self._run.log(values(row), step=int(row["step"]))

    def close(self) -> None:
        """Waits until all of it was sent."""
        self._run.finish()


def open_sink(run: LoggedRun) -> Trackio:
    """Begins a run, or goes on with it; TRACKIO_SPACE_ID and its like work as ever.

    Raises:
        ConfigurationError: nobody is logged in where that is needed, or a setting cannot work.
    """
    # Runs are found again by their names, and many a run is called as its folder.
    name = run.run_id or f"{run.name}-{uuid.uuid4().hex[:6]}"
    try:
        opened = trackio.init(
            project=run.project,
            name=name,
            resume="never" if run.run_id is None else "allow",
            config=settings(run),
            auto_log_gpu=False,
            auto_log_cpu=False,
            embed=False,
        )
    except (LocalTokenNotFoundError, ValueError) as error:
        raise ConfigurationError(f"trackio lets no run begin: {error}") from error
    return Trackio(opened, run.project)
