"""Which rollouts may begin, and in which parts a step is learnt from them: counts, nothing done.

The three modes of reinforcement learning are settings of the same two numbers:

    synchronous         max_steps_off_policy=0, num_minibatches=1
    stream-minibatch    max_steps_off_policy=0, num_minibatches=m
    asynchronous        max_steps_off_policy=k, any num_minibatches
"""

from dataclasses import dataclass

from cookbook_fx.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How far sampling runs ahead of training, and how a step is divided.

    Weights of version v have v steps in them. The rollouts of step n begin as soon as version
    n - `max_steps_off_policy` exists, so that none can ever be staler than that and none needs to
    be thrown away.

    Args:
        max_steps_off_policy: how many steps older than a step the weights may be that its
            rollouts begin with.
        num_minibatches: forward and backward passes of a substep. With 1 they wait for all groups
            of the step; with more, each begins when its groups have arrived.
        num_substeps: optimizer steps of a step.

    Raises:
        ConfigurationError: a count is out of range.

    Example:
        >>> pacing = Pacing(max_steps_off_policy=2)
        >>> pacing.may_begin(version=0, begun=0, total_steps=9)
        range(0, 3)
        >>> pacing.may_begin(version=1, begun=3, total_steps=9)
        range(3, 4)
    """

    max_steps_off_policy: int = 0
    num_minibatches: int = 1
    num_substeps: int = 1

    def __post_init__(self) -> None:
        least = {"max_steps_off_policy": 0, "num_minibatches": 1, "num_substeps": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigurationError(
                    f"`{name}` must be at least {smallest}, got {getattr(self, name)}"
                )

    @property
    def streams(self) -> bool:
        """Whether groups are trained on as they arrive, instead of whole in the data's order."""
        return self.num_minibatches > 1

    def may_begin(self, *, version: int, begun: int, total_steps: int) -> range:
        """The steps whose rollouts may begin, given the newest weights that exist.

        Args:
            version: steps that those weights have in them.
            begun: the first step whose rollouts have not begun.
            total_steps: steps of the run.
        """
        return range(begun, max(begun, min(total_steps, version + self.max_steps_off_policy + 1)))

    def parts(self, num_groups: int) -> tuple[tuple[int, ...], ...]:
        """How many groups each minibatch of each substep has.

        Sizes differ by one at most within a substep, and so do those of the substeps; the larger
        come first. Any number of groups will do: where there are fewer than parts, there are fewer
        parts, and none is empty.

        Example:
            >>> Pacing(num_substeps=2, num_minibatches=3).parts(9)
            ((2, 2, 1), (2, 1, 1))
            >>> Pacing(num_substeps=2, num_minibatches=3).parts(3)
            ((1, 1), (1,))
        """
        return tuple(
            _near_equal(size, self.num_minibatches)
            for size in _near_equal(num_groups, self.num_substeps)
        )


def _near_equal(count: int, parts: int) -> tuple[int, ...]:
    size, larger = divmod(count, parts)
    return tuple(size + (part < larger) for part in range(min(parts, count)))
