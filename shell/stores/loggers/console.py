"""A table in the terminal for each step."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from shell.stores.loggers.sinks import LoggedRun, OpenSink, Row, values


class ConsoleTables:
    """Prints each row as a table of names and values."""

    run_id = "console"
    where = None

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, *, first_step: int, sent: int) -> int:
        """What was printed before is out of sight."""
        return first_step

    def send(self, rows: Sequence[Row]) -> None:
        """Prints a table for each."""
        for row in rows:
            table = Table(title=f"Step {row['step']}", title_justify="left")
            table.add_column("metric", overflow="fold")
            table.add_column("value", justify="right")
            for name, value in sorted(values(row).items()):
                shown = f"{value:.6g}" if isinstance(value, float) else str(value)
                table.add_row(name, shown)
            self._console.print(table)

    def close(self) -> None:
        """Nothing is held back."""


def console_tables(console: Console) -> OpenSink:
    """Opens tables on a console."""

    def open_sink(run: LoggedRun) -> ConsoleTables:
        return ConsoleTables(console)

    return open_sink
