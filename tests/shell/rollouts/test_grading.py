import asyncio

import pytest

from cookbook_fx.rl import compute_trajectory_metrics
from shell.rollouts import (
    FailFast,
    RetryOnFailure,
    RolloutLimits,
    RolloutOptions,
    TerminationRewardPolicy,
    TimeLimitExceeded,
    agentic,
    do_group_rollout,
    simple,
)
from tests.scripted_rollouts import AlonePolicy, ScriptedEnv, ScriptedGroup, group_of, hangs


def rollout(builder, *, strategy=None, limits=None, **termination):
    options = RolloutOptions(
        limits=limits or RolloutLimits(),
        strategy=strategy or FailFast(),
        termination=TerminationRewardPolicy(**termination),
    )
    return asyncio.run(do_group_rollout(builder, AlonePolicy(), options=options))


def stopped_after(turns, *, final):
    """A group that a limit stops, each turn worth 1."""
    builder = group_of(2, turns=9)
    builder.rewards = lambda group: [(final, {"graded": 1.0}) for _ in group]
    return builder, RolloutLimits(turns=turns)


@pytest.mark.parametrize(
    ("final", "total", "lowered"),
    [(0.5, 0.0, True), (-1.0, 0.0, True), (-2.0, 0.0, False), (-3.25, -1.25, False)],
)
def test_a_limits_stop_is_graded_and_never_pays(final, total, lowered):
    builder, limits = stopped_after(2, final=final)
    group = rollout(builder, limits=limits, zero_reward_on_limit=True)
    assert group.get_total_rewards() == [total, total]
    assert len(builder.graded) == 1
    expected = {"graded": 1.0} | ({"zero_reward_on_limit": 1.0} if lowered else {})
    assert list(group.metrics_G) == [expected, expected]


def test_without_the_policy_a_limits_stop_keeps_what_it_earned():
    builder, limits = stopped_after(2, final=0.5)
    assert rollout(builder, limits=limits).get_total_rewards() == [2.5, 2.5]


def test_an_end_of_its_own_keeps_what_it_earned():
    group = rollout(group_of(2), zero_reward_on_limit=True)
    assert group.get_total_rewards() == [1.25, 1.25]


def test_rewards_without_a_residue_are_lowered_to_exactly_zero():
    builder, limits = stopped_after(3, final=0.1)
    group = rollout(builder, limits=limits, zero_reward_on_limit=True)
    assert group.get_total_rewards() == [0, 0]


def timed_out(*, of: int, with_whole: int = 0):
    return ScriptedGroup(
        [
            lambda: [
                *[ScriptedEnv(before=hangs(at=2), turns=3) for _ in range(of)],
                *[ScriptedEnv() for _ in range(with_whole)],
            ]
        ]
    )


@pytest.mark.parametrize(
    ("skip", "lower", "with_whole", "graded"),
    [(True, True, 0, 0), (True, True, 1, 1), (True, False, 0, 1), (False, True, 0, 1)],
)
def test_only_a_group_that_would_earn_nothing_is_not_graded(skip, lower, with_whole, graded):
    builder = timed_out(of=2, with_whole=with_whole)
    rollout(
        builder,
        limits=RolloutLimits(rollout_seconds=0.15),
        skip_grading_on_timeout=skip,
        zero_reward_on_limit=lower,
    )
    assert len(builder.graded) == graded


def test_a_grader_that_hangs_fails_its_group():
    builder = group_of(2)
    builder.rewards = lambda _: asyncio.sleep(60)
    with pytest.raises(TimeLimitExceeded, match=r"compute_group_rewards took longer than 0.1"):
        rollout(builder, grader_timeout_seconds=0.1)
    group = rollout(builder, strategy=RetryOnFailure(), grader_timeout_seconds=0.1)
    assert [error.error_type for error in group.rollout_errors] == ["TimeLimitExceeded"]
    assert builder.cleaned == 2


def test_the_presets_play():
    for options in (simple(), agentic()):
        builder = group_of(2, turns=20)
        group = asyncio.run(do_group_rollout(builder, AlonePolicy(), options=options))
        (report,) = compute_trajectory_metrics([group], [[]])
        limited = options.limits.turns is not None
        assert report.turns_per_episode == (10 if limited else 20)
        assert report.mean_total_reward == (0 if limited else 20.25)
