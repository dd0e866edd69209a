"""What a person sees of a run: a bar on a terminal, plain lines anywhere else."""

import time
from collections import Counter
from collections.abc import Mapping
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
    RolloutEvaluationReport,
    ScoreReport,
    SupervisedStepReport,
    TeacherReport,
)
from shell.training.events import (
    Advised,
    CheckpointSkipped,
    Evaluated,
    Event,
    GroupRolledOut,
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
        self._measured = ""
        self._rolled_out_of: Counter[int] = Counter()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measured]}"),
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
            case GroupRolledOut():
                self._rolled_out(event)
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
            case Advised():
                self._console.print(f"Advice: {event.advice}.")

    def _begin(self, event: RunBegan) -> None:
        self._total, self._done_at_start = event.total_steps, event.first_step
        self._began = time.monotonic()
        if event.first_step:
            self._console.print(f"Continuing after step {event.first_step} of {event.total_steps}.")
        self._task = self._bar.add_task(
            "training", total=event.total_steps, completed=event.first_step, measured=""
        )

    def _rolled_out(self, event: GroupRolledOut) -> None:
        self._rolled_out_of[event.recorded.step] += 1
        if self._task is not None:
            done = f"{self._rolled_out_of[event.recorded.step]}/{event.num_groups}"
            self._bar.update(self._task, measured=f"{self._measured}  {done} groups sampled")

    def _step(self, event: StepDone) -> None:
        step = event.report.step.index
        done = step + 1
        self._measured = _measured(event)
        self._rolled_out_of.pop(step, None)
        if self._task is not None:
            self._bar.update(self._task, completed=done, measured=self._measured)
        now = time.monotonic()
        is_due = now - self._last_line >= _SECONDS_BETWEEN_LINES or done == self._total
        if self._bar.disable and is_due:
            self._last_line = now
            pace = (now - self._began) / (done - self._done_at_start)
            left = round(pace * (self._total - done))
            self._console.print(
                f"step {done}/{self._total}  {self._measured}  {left} s left",
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
            case RolloutEvaluationReport(trajectories=(*_, every)):
                told = f"reward after {event.step} steps: {every.mean_total_reward:.3f}"
            case TeacherReport(kl=found):
                told = f"KL to teacher after {event.step} steps: {found.mean:.4f} nats/token"
            case ScoreReport(scores=scores):
                numbers = ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
                told = f"after {event.step} steps: {numbers}"
            case _:
                return
        # What every run measures goes by the default name.
        name = event.report.name or "test"
        self._console.print(f"{'held-out' if name == 'test' else name} {told}")


def _measured(event: StepDone) -> str:
    """What a step came to, in a few words."""
    match event.report:
        case SupervisedStepReport(batch=batch):
            return f"loss {batch.mean_nll:.3f}  {batch.num_tokens / event.seconds:.0f} tokens/s"
        case PreferenceStepReport(batch=batch):
            return f"loss {batch.loss:.3f}  {batch.num_tokens / event.seconds:.0f} tokens/s"
        case ReinforcementStepReport():
            return _of_rollouts(event.report, event.metrics, seconds=event.seconds)


def _of_rollouts(
    report: ReinforcementStepReport, row: Mapping[str, float | int], *, seconds: float
) -> str:
    """The mean reward, how far the weights lie from those that sampled, and what went wrong."""
    parts = [f"reward {report.mean_reward:.3f}"]
    for name, metric, form in (
        ("KL", "optim/kl_sample_train_v1", ".1e"),
        ("KL to base", "kl_policy_base", ".4f"),
        ("KL to teacher", "teacher_kl", ".4f"),
        ("entropy", "optim/entropy", ".3f"),
    ):
        if metric in row:
            parts.append(f"{name} {row[metric]:{form}}")
    sampled = row.get("env/all/total_ac_tokens", 0)
    parts.append(f"{sampled / seconds:.0f} tokens/s")
    if not report.num_updates:
        parts.append("nothing to learn: all attempts at a problem earned the same")
    failed = row.get("rollout_errors/total", 0)
    if failed:
        parts.append(f"{failed} failed episodes")
    return "  ".join(parts)
