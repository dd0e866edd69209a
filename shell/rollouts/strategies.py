"""What becomes of a group when one of its episodes fails."""

import math
from dataclasses import dataclass
from enum import StrEnum

from cookbook_fx.errors import ConfigurationError


class Verdict(StrEnum):
    """What to do about a failure that does not end the run."""

    RETRY = "retry"
    """Play the episode again in a new environment."""
    LEAVE_OUT = "leave_out"
    """Go on without the episode."""
    GIVE_UP = "give_up"
    """Go on without the whole group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailFast:
    """The first failure ends the run. Right where a failure is a mistake to be found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOnFailure:
    """Failed episodes are played again, and a group is whole or not used at all.

    Right where what fails says nothing about how good the answer was.

    Args:
        max_retries: repetitions that all episodes of a group may have together.

    Raises:
        ConfigurationError: that is below 0.
    """

    max_retries: int = 3

    def __post_init__(self) -> None:
        _check_retries(self.max_retries)

    def floor(self, group_size: int) -> int:
        """The fewest episodes that make a group worth using: all of them."""
        return group_size


@dataclass(frozen=True, slots=True, kw_only=True)
class MinViableGroup:
    """A group may lose episodes, down to a floor below which it is not used.

    The mean that episodes are judged against gets noisier as the group shrinks. Failed episodes
    are left out while the floor is kept without them, and played again only when it is not.

    Args:
        min_successful: the floor, or the whole group where that is smaller; three quarters of it,
            rounded up, if None.
        max_retries: repetitions that all episodes of a group may have together.

    Raises:
        ConfigurationError: the floor is below 1, or the retries below 0.

    Example:
        >>> MinViableGroup().floor(6), MinViableGroup(min_successful=8).floor(6)
        (5, 6)
    """

    min_successful: int | None = None
    max_retries: int = 3

    def __post_init__(self) -> None:
        _check_retries(self.max_retries)
        if self.min_successful is not None and self.min_successful < 1:
            raise ConfigurationError(
                f"`min_successful` must be at least 1, got {self.min_successful}"
            )

    def floor(self, group_size: int) -> int:
        """The fewest episodes that make a group worth using."""
        if self.min_successful is None:
            return math.ceil(0.75 * group_size)
        return min(self.min_successful, group_size)


def _check_retries(max_retries: int) -> None:
    if max_retries < 0:
        raise ConfigurationError(f"`max_retries` must be at least 0, got {max_retries}")


RolloutStrategy = FailFast | RetryOnFailure | MinViableGroup


def after_failure(
    strategy: RetryOnFailure | MinViableGroup, *, size: int, lost: int, retries: int
) -> Verdict:
    """What to do about an episode that just failed.

    Args:
        strategy: how much of a group must succeed.
        size: episodes of the group.
        lost: those left out before.
        retries: repetitions begun before.

    Example:
        >>> after_failure(MinViableGroup(), size=4, lost=0, retries=0).value
        'leave_out'
        >>> after_failure(MinViableGroup(), size=4, lost=1, retries=0).value
        'retry'
        >>> after_failure(MinViableGroup(), size=4, lost=1, retries=3).value
        'give_up'
    """
    if size - lost - 1 >= strategy.floor(size):
        return Verdict.LEAVE_OUT
    return Verdict.RETRY if retries < strategy.max_retries else Verdict.GIVE_UP
