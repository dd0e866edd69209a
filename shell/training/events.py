"""What a loop tells about its progress."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cookbook_fx.reports import (
    PreferenceStepReport,
    ReinforcementStepReport,
    Report,
    SupervisedStepReport,
)
from cookbook_fx.rl.records import RecordedGroup
from shell.stores import RunCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBegan:
    """The loop is about to submit its first step.

    Args:
        first_step: steps done earlier; 0 for a new run.
        total_steps: steps of the whole run.
    """

    first_step: int
    total_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The weights after `step` steps were measured on held-out data."""

    step: int
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRolledOut:
    """The episodes of a group are done and on the disk.

    Args:
        recorded: the group, for which step it is and which of its groups.
        num_groups: groups of that step.
        reused: whether it was rolled out before the run was interrupted.
    """

    recorded: RecordedGroup
    num_groups: int
    reused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """One step is done and its row is written.

    Args:
        report: which step, and what it learnt from.
        seconds: wall-clock time since the step before was done.
        metrics: the row, where there is more to it than the report.
    """

    report: SupervisedStepReport | PreferenceStepReport | ReinforcementStepReport
    seconds: float
    metrics: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint is recorded."""

    checkpoint: RunCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSkipped:
    """A recorded state cannot be loaded any more; an earlier one will be tried."""

    checkpoint: RunCheckpoint
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advised:
    """The run's settings can work, and others commonly work better."""

    advice: str


Event = RunBegan | Evaluated | GroupRolledOut | StepDone | Saved | CheckpointSkipped | Advised
Observer = Callable[[Event], None]


def unobserved(event: Event) -> None:
    """The observer of a run that nobody watches."""
