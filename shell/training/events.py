"""What a loop tells about its progress, and the names under which it is written down."""

from collections.abc import Callable
from dataclasses import dataclass

from cookbook_fx.supervised import LikelihoodReport
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
    name: str
    likelihood: LikelihoodReport


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """One optimizer step is done and its row is written.

    Args:
        step: its index, from 0.
        epoch: passes over the data completed before it.
        progress: share of the run completed before it.
        learning_rate: of this step.
        train: how likely its batch was to the weights before it.
        seconds: wall-clock time since the step before was done.
        seconds_preparing: of making the batch.
    """

    step: int
    epoch: int
    progress: float
    learning_rate: float
    train: LikelihoodReport
    seconds: float
    seconds_preparing: float


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


def step_metrics(done: StepDone) -> dict[str, float | None]:
    """A step's measurements under upstream's names."""
    return {
        "epoch": done.epoch,
        "progress": done.progress,
        "learning_rate": done.learning_rate,
        "num_sequences": done.train.num_sequences,
        "num_tokens": done.train.num_tokens,
        "num_loss_tokens": done.train.num_loss_tokens,
        "train_mean_nll": done.train.mean_nll,
        "train_mean_bpb": done.train.bits_per_byte,
        "time/total": done.seconds,
        "time/get_batch": done.seconds_preparing,
    }


def evaluation_metrics(evaluated: Evaluated) -> dict[str, float | None]:
    """An evaluation's measurements under upstream's names: test/nll and test/bpb."""
    return {
        f"{evaluated.name}/nll": evaluated.likelihood.mean_nll,
        f"{evaluated.name}/bpb": evaluated.likelihood.bits_per_byte,
    }
