"""The plan of a run over a data set: pure arithmetic on counts of steps."""

from collections.abc import Iterator
from dataclasses import dataclass

from cookbook_fx.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The *next* batch to train on: what a checkpoint records and a resumed run starts with.

    Args:
        epoch: passes over the data completed, from 0.
        batch: batches of this epoch completed, from 0.
    """

    epoch: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one optimizer step needs.

    Args:
        index: steps completed before this one, from 0.
        epoch: epoch of the step's batch, from 0; fold it into the data seed.
        batch: index of the batch in its epoch, from 0.
        progress: share of the run completed before this step, in [0, 1).
        evaluate: the weights are to be evaluated before this step.
        save: the state is to be saved after this step.
    """

    index: int
    epoch: int
    batch: int
    progress: float
    evaluate: bool
    save: bool


def is_due(completed_steps: int, every: int | None) -> bool:
    """Whether something done every `every` steps is due once `completed_steps` are done.

    Args:
        completed_steps: steps done so far; 0 is due, so that the start is measured too.
        every: the cadence in steps; None is never.

    Raises:
        ConfigurationError: `every` is below 1 (never is None, not 0).

    Example:
        >>> [is_due(step, 2) for step in range(4)], is_due(0, None)
        ([True, False, True, False], False)
    """
    if every is None:
        return False
    if every < 1:
        raise ConfigurationError(
            f"a cadence must be at least 1 step, got {every}; say None for never"
        )
    return completed_steps % every == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """How many steps a run has and what each of them is.

    Args:
        num_batches: batches in one epoch.
        num_epochs: passes over the data.
        max_steps: upper limit on the run's steps; None is no limit.
        evaluate_every: evaluate before every so many steps, the first included; None is never.
        save_every: save after every so many steps; None is never. The save that ends a run is
            not a matter of cadence and not planned here.

    Raises:
        ConfigurationError: a count or a cadence is below 1.

    Example:
        >>> plan = RunPlan(num_batches=3, num_epochs=2, max_steps=5, save_every=2)
        >>> plan.total_steps
        5
        >>> step = plan.step(3)
        >>> step.epoch, step.batch, step.progress, step.save
        (1, 0, 0.6, True)
        >>> plan.position(4)
        Position(epoch=1, batch=1)
        >>> completed = plan.completed_steps(Position(epoch=1, batch=1))
        >>> [step.index for step in plan.steps(from_step=completed)]
        [4]
    """

    num_batches: int
    num_epochs: int = 1
    max_steps: int | None = None
    evaluate_every: int | None = None
    save_every: int | None = None

    def __post_init__(self) -> None:
        counts = {
            "num_batches": self.num_batches,
            "num_epochs": self.num_epochs,
            "max_steps": self.max_steps,
            "evaluate_every": self.evaluate_every,
            "save_every": self.save_every,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {count}")

    @property
    def total_steps(self) -> int:
        """Batches times epochs, capped by `max_steps`."""
        steps = self.num_batches * self.num_epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def step(self, index: int) -> Step:
        """The step that follows `index` completed ones; ConfigurationError outside the run."""
        if not 0 <= index < self.total_steps:
            raise ConfigurationError(f"the run has steps 0 to {self.total_steps - 1}, got {index}")
        position = self.position(index)
        return Step(
            index=index,
            epoch=position.epoch,
            batch=position.batch,
            progress=index / self.total_steps,
            evaluate=is_due(index, self.evaluate_every),
            save=is_due(index + 1, self.save_every),
        )

    def steps(self, *, from_step: int = 0) -> Iterator[Step]:
        """The remaining steps after `from_step` completed ones; none if the run is over."""
        return (self.step(index) for index in range(from_step, self.total_steps))

    def position(self, completed_steps: int) -> Position:
        """Where the data stands after `completed_steps` steps."""
        epoch, batch = divmod(completed_steps, self.num_batches)
        return Position(epoch=epoch, batch=batch)

    def completed_steps(self, position: Position) -> int:
        """Steps completed when `position` is next; the inverse of `position`.

        Raises:
            ConfigurationError: the epoch has no such batch (the data or batch size changed).
        """
        if not (position.epoch >= 0 and 0 <= position.batch < self.num_batches):
            raise ConfigurationError(
                f"{position} is no place in epochs of {self.num_batches} batches; resume with the "
                "data and batch size of the run's start"
            )
        return position.epoch * self.num_batches + position.batch
