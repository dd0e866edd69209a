import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.rl import StopReason
from shell.rollouts import ParseErrorPolicy, RolloutLimits, TerminationRewardPolicy
from shell.rollouts.limits import Progress

BOUNDS = st.none() | st.integers(1, 12)
LIMITS = st.builds(
    RolloutLimits,
    turns=BOUNDS,
    trajectory_tokens=BOUNDS,
    sampled_tokens=BOUNDS,
    turn_tokens=BOUNDS,
)
PROGRESS = st.builds(Progress, st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))


@given(LIMITS, PROGRESS)
def test_the_first_bound_reached_in_the_documented_order_names_the_stop(limits, progress):
    reached = [
        (StopReason.MAX_TURNS, limits.turns, progress.turns, 0),
        (StopReason.MAX_TOKENS, limits.trajectory_tokens, progress.observed_tokens, 1),
        (StopReason.MAX_SAMPLED_TOKENS, limits.sampled_tokens, progress.sampled_tokens, 1),
    ]
    stops = [
        reason
        for reason, bound, used, too_few in reached
        if bound is not None and bound - used <= too_few
    ]
    assert limits.stop_before(progress) == (stops[0] if stops else None)


@given(LIMITS, PROGRESS)
def test_an_action_that_fills_its_budget_passes_no_bound(limits, progress):
    budget = limits.budget(progress)
    if limits.stop_before(progress) is not None:
        return
    bounds = [
        limits.turn_tokens,
        limits.trajectory_tokens and limits.trajectory_tokens - progress.observed_tokens,
        limits.sampled_tokens and limits.sampled_tokens - progress.sampled_tokens,
    ]
    least = min((bound for bound in bounds if bound is not None), default=None)
    assert budget == least
    assert budget is None or budget >= 1


def test_one_token_a_turn_is_a_bound_like_any_other():
    limits = RolloutLimits(turn_tokens=1)
    assert limits.stop_before(Progress(0, 100, 0)) is None
    assert limits.budget(Progress(0, 100, 0)) == 1


@pytest.mark.parametrize("name", RolloutLimits.__slots__)
@pytest.mark.parametrize("bound", [0, -1, math.nan])
def test_a_bound_of_nothing_is_refused(name, bound):
    with pytest.raises(ConfigurationError, match=f"`{name}` must be above 0"):
        RolloutLimits(**{name: bound})


def test_time_is_bounded_unless_said_otherwise():
    assert RolloutLimits().rollout_seconds == 1800
    assert TerminationRewardPolicy().grader_timeout_seconds == 1800


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_consecutive": -1}, "`max_consecutive` must be at least 0, got -1"),
        ({"penalty_per_error": -0.5}, "`penalty_per_error` must be at least 0, got -0.5"),
        ({"retry_message_template": "again"}, "with {details}"),
    ],
)
def test_a_policy_on_parse_errors_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        ParseErrorPolicy(**options)


def test_what_is_wrong_may_hold_braces():
    assert ParseErrorPolicy().retry_message("{x}").endswith("Error: {x}")


def test_a_grader_needs_some_time():
    with pytest.raises(ConfigurationError, match="grader_timeout_seconds"):
        TerminationRewardPolicy(grader_timeout_seconds=0)


def test_only_a_limits_stop_lowers_a_reward():
    policy = TerminationRewardPolicy(zero_reward_on_limit=True)
    assert {reason for reason in StopReason if policy.lowers(reason)} == {
        StopReason.MAX_TOKENS,
        StopReason.MAX_SAMPLED_TOKENS,
        StopReason.MAX_TURNS,
        StopReason.MAX_TOOL_CALLS,
        StopReason.ROLLOUT_TIMEOUT,
    }
    assert not policy.lowers(None)
    assert not TerminationRewardPolicy().lowers(StopReason.MAX_TURNS)
