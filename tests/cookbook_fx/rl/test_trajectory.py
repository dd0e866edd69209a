import pickle
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given

from cookbook_fx.errors import DataError
from cookbook_fx.rl import RolloutError, StopReason, Trajectory, TrajectoryGroup
from tests.rl_strategies import episode, group_of, trajectory_groups


def test_a_total_reward_is_that_of_the_turns_and_the_final_one():
    earning = episode(([1], [2]), ([1, 2, 3], [4]), reward=0.25)
    group = group_of(earning, episode(reward=7), final_rewards=[1.5, -1])
    assert group.get_total_rewards() == [1.75, -1]


def test_a_group_of_nobody_has_no_rewards():
    assert group_of().get_total_rewards() == []


def test_integer_rewards_stay_exact():
    large = 2**53
    totals = group_of(
        episode(([1], [2]), reward=large), episode(([1], [2]), reward=large), final_rewards=[0, 1]
    ).get_total_rewards()
    assert totals == [large, large + 1]


def test_numpy_rewards_are_added_as_python_numbers():
    rewards = [np.bool(True), np.int8(127), np.float32(0.5)]
    group = group_of(
        *(episode(([1], [2]), reward=reward) for reward in rewards),
        final_rewards=[np.bool(True), np.int8(127), 1],
    )
    totals = group.get_total_rewards()
    assert totals == [2, 254, 1.5]
    assert [type(total) for total in totals] == [int, int, float]


def test_final_rewards_may_be_an_array():
    group = group_of(episode(), episode(), final_rewards=np.array([1.0, 2.0], np.float32))
    assert group.get_total_rewards() == [1.0, 2.0]


@given(group=trajectory_groups())
def test_total_rewards_against_fractions(group):
    expected = [
        sum((Fraction(turn.reward) for turn in member.transitions), Fraction(final))
        for member, final in zip(group.trajectories_G, group.final_rewards_G, strict=True)
    ]
    assert group.get_total_rewards() == expected


@pytest.mark.parametrize(
    ("final_rewards", "metrics", "message"),
    [
        ([0.0], [{}, {}], "final_rewards_G needs one entry for each of 2 trajectories, got 1"),
        ([0.0] * 3, [{}, {}], "final_rewards_G needs one entry for each of 2 trajectories, got 3"),
        ([0.0] * 2, [{}], "metrics_G needs one entry for each of 2 trajectories, got 1"),
        ([0.0] * 2, [], "metrics_G needs one entry for each of 2 trajectories, got 0"),
    ],
)
def test_a_group_that_does_not_add_up_is_refused(final_rewards, metrics, message):
    with pytest.raises(DataError, match=message):
        TrajectoryGroup(
            trajectories_G=[episode(), episode()],
            final_rewards_G=final_rewards,
            metrics_G=metrics,
        )


def test_a_group_travels_between_processes():
    error = RolloutError(error_type="TimeoutError", error_message="after 60 s")
    group = TrajectoryGroup(
        trajectories_G=[episode(([1], [2]), reward=3)],
        final_rewards_G=[0.5],
        metrics_G=[{"won": 1}],
        rollout_errors=[error],
    )
    copied = pickle.loads(pickle.dumps(group))
    assert copied.get_total_rewards() == [3.5]
    assert copied.rollout_errors == [error]
    assert copied.trajectories_G[0].transitions[0].ac.tokens == [2]


def test_what_happened_cannot_be_changed():
    group = group_of(episode(([1], [2])))
    (trajectory,) = group.trajectories_G
    (turn,) = trajectory.transitions
    for record, name in ((group, "metrics_G"), (trajectory, "final_ob"), (turn, "episode_done")):
        with pytest.raises(FrozenInstanceError):
            setattr(record, name, ())


def test_metrics_and_logs_are_each_turns_own():
    first, second = episode(([1], [2]), ([1, 2], [3])).transitions
    assert first.logs == second.logs == {}
    assert first.logs is not second.logs


def test_stop_reasons_are_the_words_in_metrics_and_files():
    assert [str(reason) for reason in StopReason] == [
        "completed",
        "tool_stopped",
        "max_turns",
        "max_tokens",
        "max_sampled_tokens",
        "max_tool_calls",
        "context_overflow",
        "parse_error",
        "rollout_timeout",
    ]
    ended = Trajectory(transitions=[], final_ob=[], stop_reason=StopReason.MAX_TURNS)
    assert ended.stop_reason == "max_turns"
