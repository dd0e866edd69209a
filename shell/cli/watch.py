"""`cookbook-fx watch`: a run as it goes, in the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from cookbook_fx.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from cookbook_fx.reports.panels import Curve, Line, Panel, Row
    from cookbook_fx.rl.records import RolloutRecord

_SECONDS_BETWEEN_LOOKS = 1.0
# A terminal that is narrower shows one curve beside nothing.
_WIDE = 100
# What stands left of a curve.
_LABEL = 10
# Steps by which the time left is told.
_RECENT = 20
_MOST_CHARACTERS = 600
_MOST_LINES = 6


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Show a run as it goes: curves, the last measurements, the last episode, the time left.

    Ends with the run, or by Ctrl-C, which the run does not notice. A run that is over is shown
    once. Where the output is no terminal, each step is a line.

    For example
    $ cookbook-fx watch runs/rl
    $ cookbook-fx watch runs/rl > steps.txt

    Args:
        run_dir: the folder of the run.
    """

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]

    def run(self) -> int:
        """Shows the run until it ends."""
        from rich.console import Console

        if not self.run_dir.is_dir():
            raise ConfigurationError(
                f"there is no run folder {self.run_dir}; give the --run-dir of a run"
            )
        console = Console(highlight=False, markup=False, soft_wrap=not _is_live())
        try:
            if console.is_terminal:
                _watch_live(self.run_dir, console)
            else:
                _watch_in_lines(self.run_dir, console)
        except KeyboardInterrupt:
            return 0
        return 0


def _is_live() -> bool:
    import sys

    return sys.stdout.isatty()


class _Look(NamedTuple):
    """What there was to see of a run at some time."""

    rows: "Sequence[Row]"
    found: "Mapping[str, Curve]"
    sample: "RolloutRecord | None"
    is_running: bool


def _looks(run_dir: Path) -> Iterator[_Look]:
    """What there is to see, again and again until the run has ended."""
    import time

    from cookbook_fx.reports.panels import curves
    from shell.stores import MetricsFile
    from shell.stores.metrics import MetricsReader
    from shell.stores.run_folder import ROLLOUTS, is_running

    sample, size = None, -1
    found, count = None, 0
    reader = MetricsReader(MetricsFile(path=run_dir / "metrics.jsonl"))
    while True:
        # Asked first: what is written until it is over is seen.
        goes_on = is_running(run_dir)
        grown = _size(run_dir / ROLLOUTS)
        if grown != size:
            sample, size = _last_episode(run_dir / ROLLOUTS), grown
        rows = reader.rows()
        if found is None or len(rows) != count:
            found, count = curves(rows), len(rows)
        yield _Look(rows, found, sample, goes_on)
        if not goes_on:
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _last_episode(path: Path) -> "RolloutRecord | None":
    """The episode that was written last; None where there is none, or none to be read."""
    from cookbook_fx.rl.records import record_from_json
    from shell.stores.lines import last_value

    try:
        value = last_value(path)
        return None if value is None else record_from_json(value)
    except DataError:
        return None


def _watch_live(run_dir: Path, console: "Console") -> None:
    from rich.live import Live

    shown = None
    with Live(console=console, auto_refresh=False) as live:
        for look in _looks(run_dir):
            seen = (len(look.rows), look.sample, look.is_running, console.size)
            if seen != shown:
                live.update(_view(run_dir, look, console), refresh=True)
                shown = seen


def _watch_in_lines(run_dir: Path, console: "Console") -> None:
    """A line a step as it comes; the curves and the last episode at the end."""
    told = 0
    look = None
    for look in _looks(run_dir):
        for count in range(told + 1, len(look.rows) + 1):
            console.print(_line(look.rows[max(0, count - _RECENT) : count]))
        told = len(look.rows)
    if look is not None:
        console.print(_state(look))
        for panel in _leading(look.found):
            console.print(f"\n{_title(panel)}")
            console.print(_curve(panel, width=60, height=6, console=console))
        if look.sample is not None:
            console.print(f"\n{_heading(look.sample)}")
            console.print(_text_of(look.sample, in_color=False))


def _view(run_dir: Path, look: _Look, console: "Console") -> "RenderableType":
    """All of it on one screen."""
    from rich.console import Group
    from rich.panel import Panel as Frame
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from cookbook_fx.reports.panels import progress

    done = progress(look.found)
    parts: list[RenderableType] = [
        Text.assemble((run_dir.absolute().name, "bold"), "  ", _state(look))
    ]
    if done.total:
        bar = Table.grid()
        # Alone, it would not end its line.
        bar.add_row(ProgressBar(total=done.total, completed=done.steps))
        parts.append(bar)
    leading = _leading(look.found)
    beside = 2 if console.width >= _WIDE and len(leading) > 1 else 1
    # What is not for the curves: the lines above, the numbers, the episode, the frames.
    height = max(3, min(10, console.height - 22))
    width = (console.width - 2 * beside) // beside
    curves = Table.grid(padding=(0, 2, 0, 0))
    curves.add_row(
        *(
            Text(_title(panel), style="bold", no_wrap=True, overflow="ellipsis", end="")
            for panel in leading[:beside]
        )
    )
    curves.add_row(
        *(
            Text(_curve(panel, width=width - _LABEL, height=height, console=console), no_wrap=True)
            for panel in leading[:beside]
        )
    )
    parts += [curves, _numbers(look.found, beside=beside)]
    if look.sample is not None:
        text = Text.from_ansi(_text_of(look.sample, in_color=True), overflow="fold")
        parts.append(Frame(text, title=Text(_heading(look.sample)), title_align="left"))
    return Group(*parts)


def _state(look: _Look) -> str:
    """How far the run is, in words."""
    from cookbook_fx.reports.panels import duration, progress

    done = progress(look.found)
    of_total = f" of {done.total}" if done.total else ""
    if not look.rows:
        told = "nothing was measured yet"
    else:
        told = f"{done.steps}{of_total} steps"
    if done.total and done.steps >= done.total:
        return f"{told}, finished"
    if not look.is_running:
        return f"{told}, not running"
    left = f", {duration(done.seconds_left)} left" if done.seconds_left is not None else ""
    return f"{told}, running{left}"


def _leading(found: "Mapping[str, Curve]") -> "list[Panel]":
    """The panels that say most: the first one, and how far the policy has moved."""
    from cookbook_fx.reports.panels import panels

    all_of_them = panels(found)
    moved = [
        panel for panel in all_of_them[1:] if panel.title.startswith(("KL", "Accuracy", "Entropy"))
    ]
    return [*all_of_them[:1], *moved[:1]]


def _curve(panel: "Panel", *, width: int, height: int, console: "Console") -> str:
    """The first curve of a panel."""
    from shell.cli.curves import curve

    return curve(
        panel.lines[0].curve.values.tolist(),
        width=max(10, width),
        height=height,
        is_unicode=console.encoding.startswith("utf"),
    )


def _title(panel: "Panel") -> str:
    """What stands above a panel's curve: its name, and the last values of all its lines."""
    return f"{panel.title}: {', '.join(_told(line) for line in panel.lines)}"


def _told(line: "Line") -> str:
    at = f" after {line.curve.steps[-1]:.0f} steps" if line.is_held_out else ""
    return f"{line.label} {line.curve.values[-1]:.4g}{at}"


def _numbers(found: "Mapping[str, Curve]", *, beside: int) -> "RenderableType":
    """The last value of each line of the panels that are no curve."""
    from rich.table import Table
    from rich.text import Text

    from cookbook_fx.reports.panels import panels

    shown = {panel.title for panel in _leading(found)}
    cells = [
        Text.assemble((f"{panel.title}: ", "dim"), _told(panel.lines[0]))
        for panel in panels(found)
        if panel.title not in shown
    ]
    table = Table.grid(padding=(0, 3))
    for begin in range(0, min(len(cells), 4 * beside), beside):
        table.add_row(*cells[begin : begin + beside])
    return table


def _line(recent: "Sequence[Row]") -> str:
    """The last of some rows as one line."""
    from cookbook_fx.reports.panels import curves, duration, progress

    done = progress(curves(recent))
    told = [_title(panel) for panel in _leading(curves(recent[-1:]))]
    left = f"{duration(done.seconds_left)} left" if done.seconds_left else ""
    of_total = f"/{done.total}" if done.total else ""
    return "  ".join(filter(None, [f"step {done.steps}{of_total}", *told, left]))


def _heading(record: "RolloutRecord") -> str:
    where = f"step {record.step}, group {record.group}, episode {record.member}"
    if record.trajectory is None:
        return f"{where}: failed"
    return f"{where}: reward {_reward(record):.4g}"


def _reward(record: "RolloutRecord") -> float:
    turns = [] if record.trajectory is None else record.trajectory.transitions
    return float(record.final_reward + sum(turn.reward for turn in turns))


def _text_of(record: "RolloutRecord", *, in_color: bool) -> str:
    """The end of an episode: green where it earned something, red where it lost."""
    from cookbook_fx.reports import format_pieces

    if record.error is not None:
        return format_pieces(
            [(f"{record.error.error_type}: {record.error.error_message}", 0.0)], in_color=in_color
        )
    if not record.texts:
        return "(its text was not recorded)"
    *_, last = record.texts
    pieces = [
        (_end(last.observed), 0.0),
        (last.sampled[-_MOST_CHARACTERS:], _reward(record)),
    ]
    return format_pieces(pieces, in_color=in_color)


def _end(text: str) -> str:
    return "".join(text[-_MOST_CHARACTERS:].splitlines(keepends=True)[-_MOST_LINES:])
