"""What went wrong in a step's episodes, counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cookbook_fx.rl.trajectory import TrajectoryGroup


class RolloutErrorCounts(NamedTuple):
    """Failures among the episodes of some groups.

    Fields:
        by_type: failed episodes by the name of the exception, the most frequent first; an episode
            played again counts for each time that it failed.
        groups_skipped: groups of which no episode is left.
    """

    by_type: Mapping[str, int]
    groups_skipped: int


def count_rollout_errors(groups: Sequence[TrajectoryGroup]) -> RolloutErrorCounts:
    """Counts the failures of all groups.

    Example:
        >>> from cookbook_fx.rl import RolloutError, TrajectoryGroup
        >>> error = RolloutError(error_type="OSError", error_message="no network")
        >>> none_left = TrajectoryGroup(
        ...     trajectories_G=[], final_rewards_G=[], metrics_G=[], rollout_errors=[error, error]
        ... )
        >>> count_rollout_errors([none_left])
        RolloutErrorCounts(by_type={'OSError': 2}, groups_skipped=1)
    """
    counts = Counter(error.error_type for group in groups for error in group.rollout_errors)
    return RolloutErrorCounts(
        by_type=dict(counts.most_common()),
        groups_skipped=sum(not group.trajectories_G for group in groups),
    )
