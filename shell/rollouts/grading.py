"""What each episode of a group earns once the whole group is known."""

from collections.abc import Sequence
from typing import NamedTuple

from cookbook_fx.errors import DataError
from cookbook_fx.rl import StopReason, Trajectory, TrajectoryGroup
from cookbook_fx.rl.trajectory import Metrics, Reward
from shell.rollouts.attempts import within
from shell.rollouts.checks import checked_metrics, checked_reward
from shell.rollouts.env import Env, EnvGroupBuilder
from shell.rollouts.limits import TerminationRewardPolicy
from shell.stores.tracing import span

ZERO_REWARD_ON_LIMIT = "zero_reward_on_limit"
"""Metric of an episode whose total was lowered to 0."""


class Finished(NamedTuple):
    """An episode and where it was played."""

    env: Env
    trajectory: Trajectory


async def graded(
    builder: EnvGroupBuilder, finished: Sequence[Finished], *, policy: TerminationRewardPolicy
) -> TrajectoryGroup:
    """The group with its rewards.

    Raises:
        DataError: there is not one reward and one dict of metrics for each episode.
        TimeLimitExceeded: the grader took too long.
        Exception: whatever the grader raises.
    """
    trajectories = [each.trajectory for each in finished]
    rewards = [GroupReward(0.0, {}) for _ in finished]
    if not _is_skipped(trajectories, policy):
        envs = [each.env for each in finished]
        grading = builder.compute_group_rewards(trajectories, envs)
        with span("group rewards"):
            given = await within(
                policy.grader_timeout_seconds,
                grading,
                what=f"{type(builder).__name__}.compute_group_rewards",
                limit="grader_timeout_seconds",
            )
        rewards = _checked(given, builder, count=len(finished))
    lowered = [
        _lowered(reward, trajectory) if policy.lowers(trajectory.stop_reason) else reward
        for reward, trajectory in zip(rewards, trajectories, strict=True)
    ]
    return TrajectoryGroup(
        trajectories_G=tuple(trajectories),
        final_rewards_G=tuple(each.reward for each in lowered),
        metrics_G=tuple(each.metrics for each in lowered),
    )


class GroupReward(NamedTuple):
    """What one episode earns as a member of its group, and numbers about it."""

    reward: Reward
    metrics: Metrics


def _is_skipped(trajectories: Sequence[Trajectory], policy: TerminationRewardPolicy) -> bool:
    # Only where all timed out: a grader that compares episodes sees all of them or none.
    return (
        policy.skip_grading_on_timeout
        and policy.lowers(StopReason.ROLLOUT_TIMEOUT)
        and all(each.stop_reason == StopReason.ROLLOUT_TIMEOUT for each in trajectories)
    )


def _checked(given: object, builder: EnvGroupBuilder, *, count: int) -> list[GroupReward]:
    where = f"{type(builder).__name__}.compute_group_rewards"
    if not isinstance(given, Sequence) or len(given) != count:
        got = len(given) if isinstance(given, Sequence) else type(given).__name__
        raise DataError(
            f"{where} must return one (reward, metrics) for each of {count} episodes, got {got}"
        )
    for pair in given:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise DataError(f"{where} must return pairs of reward and metrics, got {pair!r}")
    return [
        GroupReward(checked_reward(reward, where=where), checked_metrics(metrics, where=where))
        for reward, metrics in given
    ]


def _lowered(final: GroupReward, trajectory: Trajectory) -> GroupReward:
    """The group reward with which the episode's total is at most 0."""
    earned = sum(turn.reward for turn in trajectory.transitions)
    if earned + final.reward <= 0:
        return final
    return GroupReward(-earned, {**final.metrics, ZERO_REWARD_ON_LIMIT: 1.0})
