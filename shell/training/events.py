"""What a loop tells about its progress."""

from collections.abc import Callable
from dataclasses import dataclass

from cookbook_fx.reports import EvaluationReport, SupervisedStepReport
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
    report: EvaluationReport


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """One optimizer step is done and its row is written.

    Args:
        report: which step, and how likely its batch was to the weights before it.
        seconds: wall-clock time since the step before was done.
    """

    report: SupervisedStepReport
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint is recorded."""

    checkpoint: RunCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSkipped:
    """A recorded state cannot be loaded any more; an earlier one will be tried."""

    checkpoint: RunCheckpoint
    reason: str


Event = RunBegan | Evaluated | StepDone | Saved | CheckpointSkipped
Observer = Callable[[Event], None]


def unobserved(event: Event) -> None:
    """The observer of a run that nobody watches."""
