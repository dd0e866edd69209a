"""What a person sees of a run: a bar on a terminal, plain lines anywhere else."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cookbook_fx.reports import (
    EvaluationReport,
    PreferenceEvaluationReport,
    PreferenceStepReport,
    ReinforcementStepReport,
)
from shell.training.events import (
    CheckpointSkipped,
    Evaluated,
    Event,
    RunBegan,
    Saved,
    StepDone,
)

_SECONDS_BETWEEN_LINES = 5.0


class Watcher:
    """Shows the events of one run; call it as the run's observer."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = 0
        self._done_at_start = 0
        self._began = time.monotonic()
        self._last_line = float("-inf")
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=False,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "Watcher":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Shows one event."""
        match event:
            case RunBegan():
                self._begin(event)
            case StepDone():
                self._step(event)
            case Evaluated():
                self._evaluated(event)
            case Saved():
                self._console.print(
                    f"saved after step {event.checkpoint.next_step}: {event.checkpoint.state_path}",
                    style="dim",
                )
            case CheckpointSkipped():
                self._console.print(
                    f"The checkpoint of step {event.checkpoint.next_step} cannot be used, trying "
                    f"the one before: {event.reason}",
                )

    def _begin(self, event: RunBegan) -> None:
        self._total, self._done_at_start = event.total_steps, event.first_step
        self._began = time.monotonic()
        if event.first_step:
            self._console.print(f"Continuing after step {event.first_step} of {event.total_steps}.")
        self._task = self._bar.add_task(
            "training", total=event.total_steps, completed=event.first_step, loss="-", speed="-"
        )

    def _step(self, event: StepDone) -> None:
        done = event.report.step.index + 1
        report = event.report
        if isinstance(report, ReinforcementStepReport):
            return
        measured = (
            report.batch.loss if isinstance(report, PreferenceStepReport) else report.batch.mean_nll
        )
        loss = f"{measured:.3f}"
        speed = f"{report.batch.num_tokens / event.seconds:.0f}"
        if self._task is not None:
            self._bar.update(self._task, completed=done, loss=loss, speed=speed)
        now = time.monotonic()
        is_due = now - self._last_line >= _SECONDS_BETWEEN_LINES or done == self._total
        if self._bar.disable and is_due:
            self._last_line = now
            pace = (now - self._began) / (done - self._done_at_start)
            left = round(pace * (self._total - done))
            self._console.print(
                f"step {done}/{self._total}  loss {loss}  {speed} tokens/s  {left} s left",
            )

    def _evaluated(self, event: Evaluated) -> None:
        match event.report:
            case EvaluationReport(likelihood=report):
                bits = (
                    ""
                    if report.bits_per_byte is None
                    else f", {report.bits_per_byte:.3f} bits/byte"
                )
                told = f"NLL after {event.step} steps: {report.mean_nll:.4f} nats/token{bits}"
            case PreferenceEvaluationReport(preferences=found) if found.accuracy is not None:
                told = (
                    f"accuracy after {event.step} steps: {found.accuracy:.3f} "
                    f"(margin {found.margin:.3f}, loss {found.loss:.3f})"
                )
            case _:
                return
        self._console.print(f"held-out {told}")
