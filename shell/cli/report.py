"""`cookbook-fx report`: a run, or several side by side, as one page for a browser."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cookbook_fx.errors import ConfigurationError, CookbookError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write what a run came to into one page: curves, samples, times, configuration, code.

    The page is one file that needs no other and no network. Several runs are drawn into the same
    curves, and their configurations stand side by side. Runs may be under way.

    For example
    $ cookbook-fx report runs/rl
    $ cookbook-fx report runs/rl runs/rl-2 --output compared.html
    $ cookbook-fx report s3://bucket/rl --output rl.html

    Args:
        run_dirs: the folders of the runs, paths or URLs.
        output: the page; None is report.html, in the run's folder where it is one path, in this
            directory otherwise.
    """

    run_dirs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    output: Path | None = None

    def run(self) -> int:
        """Writes the page."""
        from rich.console import Console

        from shell.cli.reporting import REPORT, write_report
        from shell.hub.models import say_on_standard_error
        from shell.stores.mirror import fetched, is_url

        if not self.run_dirs:
            raise ConfigurationError("a report is of one run or more: give a run's folder")
        is_one_path = len(self.run_dirs) == 1 and not is_url(self.run_dirs[0])
        path = self.output or (Path(self.run_dirs[0]) if is_one_path else Path()) / REPORT
        with ExitStack() as copies:
            folders = [copies.enter_context(fetched(each)) for each in self.run_dirs]
            write_report(folders, path, say=say_on_standard_error)
        Console(highlight=False, markup=False, soft_wrap=True).print(f"Report: {path}")
        return 0


def report_run(run_dir: Path, console: "Console") -> None:
    """Writes a run's own report at its end; where that fails, the run is no worse for it."""
    from shell.cli.reporting import REPORT, write_report

    try:
        write_report([run_dir], run_dir / REPORT, say=console.print)
    except CookbookError as error:
        console.print(f"No report: {error}")
        return
    console.print(f"Report: {run_dir / REPORT}")
