"""TensorBoard: event files in the run's folder, by tensorboardX."""

import json
import os
from collections.abc import Sequence

from tensorboardX import SummaryWriter

from shell.stores.loggers.sinks import LoggedRun, Row, numbers, settings

TENSORBOARD = "tensorboard"


class TensorBoard:
    """Writes numbers as scalars, and the configuration as a text."""

    run_id = TENSORBOARD

    def __init__(self, run: LoggedRun) -> None:
        self._run = run
        self._writer: SummaryWriter | None = None

    @property
    def where(self) -> str:
        """The directory that `tensorboard --logdir` shows."""
        return str(self._run.folder / TENSORBOARD)

    def begin(self, *, first_step: int, sent: int) -> int:
        """Has the viewer forget the steps that are written again."""
        start = min(first_step, sent)
        self.close()
        self._writer = SummaryWriter(
            logdir=self.where,
            purge_step=start if sent else None,
            # Files are named by the second, and two starts may share one.
            filename_suffix=f".{start}.{os.getpid()}",
        )
        described = json.dumps(settings(self._run), indent=2, default=str)
        text = "".join(f"    {line}\n" for line in described.splitlines())
        self._writer.add_text("config", text, global_step=start)
        return start

    def send(self, rows: Sequence[Row]) -> None:
        """On the disk when it returns."""
        if self._writer is not None:
            for row in rows:
                for name, value in numbers(row).items():
                    self._writer.add_scalar(name, value, global_step=int(row["step"]))
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def open_sink(run: LoggedRun) -> TensorBoard:
    """Gets ready to write; the file is made with the first row."""
    return TensorBoard(run)
