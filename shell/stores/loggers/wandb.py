"""Weights & Biases."""

from collections.abc import Sequence
from typing import Any

import wandb
from wandb.errors import AuthenticationError, UsageError

from cookbook_fx.errors import ConfigurationError
from shell.stores.loggers.sinks import LoggedRun, Row, settings, values


class WeightsAndBiases:
    """Sends rows to one run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @property
    def run_id(self) -> str:
        """The id in the run's address."""
        return str(self._run.id)

    @property
    def where(self) -> str | None:
        """The run's page; in offline mode its folder."""
        return None if self._run.settings.mode == "disabled" else self._run.url or self._run.dir

    def begin(self, *, first_step: int, sent: int) -> int:
        """Goes on behind the last step there, as steps there only grow."""
        return max(sent, int(self._run.step))

    def send(self, rows: Sequence[Row]) -> None:
        """Handed to the client, which sends on its own."""
        for row in rows:
            self._run.log(values(row), step=int(row["step"]))

    def close(self) -> None:
        """Waits until all of it was sent."""
        self._run.finish()


def open_sink(run: LoggedRun) -> WeightsAndBiases:
    """Begins a run, or goes on with it; WANDB_MODE=offline and its like work as ever.

    Raises:
        ConfigurationError: nobody is logged in, or the key is refused.
    """
    try:
        opened = wandb.init(
            project=run.project,
            name=run.name,
            id=run.run_id,
            resume=None if run.run_id is None else "allow",
            dir=run.folder,
            config=settings(run),
            # Output is the run's, and whatever goes wrong is told once, by us.
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )
    except (AuthenticationError, UsageError) as error:
        raise ConfigurationError(
            f"Weights & Biases lets no run begin: {error}; run `wandb login`, set WANDB_API_KEY, "
            "or set WANDB_MODE=offline"
        ) from error
    return WeightsAndBiases(opened)
