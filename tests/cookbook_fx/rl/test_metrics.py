"""Trajectory metrics against hand-counted episodes and against their definition, dict by dict."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import DataError
from cookbook_fx.rl import (
    Trajectory,
    TrajectoryGroup,
    TrajectoryReport,
    Transition,
    compute_trajectory_metrics,
)
from cookbook_fx.tokens import TokensWithLogprobs


def turn(observed=1, sampled=1, *, reward=0.0, metrics=None):
    return Transition(
        ob=list(range(observed)),
        ac=TokensWithLogprobs(tokens=list(range(sampled))),
        reward=reward,
        episode_done=False,
        metrics=metrics or {},
    )


def group_of(*episodes, final=None, metrics=()):
    """A group whose episodes are given as sequences of turns."""
    trajectories = [Trajectory(transitions=list(turns), final_ob=[]) for turns in episodes]
    return TrajectoryGroup(
        trajectories_G=trajectories,
        final_rewards_G=[0.0] * len(trajectories) if final is None else list(final),
        metrics_G=list(metrics) or [{}] * len(trajectories),
    )


def earning(*rewards):
    """A group whose one-turn episodes earn these total rewards."""
    return group_of(*[[turn()]] * len(rewards), final=rewards)


def whole(*groups, **options):
    """The report on all groups."""
    return compute_trajectory_metrics(groups, [()] * len(groups), **options)[-1]


TWO_GROUPS = (
    group_of(
        [turn(3, 2, reward=1.0, metrics={"format": 1.0}), turn(7, 4, metrics={"format": 0.0})],
        [turn(5, 1, reward=0.25)],
        final=[0.5, 0.25],
        metrics=[{"correct": 1.0, "format": 1.0}, {"correct": 0.0}],
    ),
    group_of([turn(10, 20)], [turn(30, 40)], final=[0.0, 0.0]),
)


def test_hand_counted_episodes():
    first, second, every = compute_trajectory_metrics(TWO_GROUPS, [["math"], ["code"]])
    assert first == TrajectoryReport(
        tag="math",
        ac_tokens_per_turn=7 / 3,
        ob_tokens_per_turn=5.0,
        turns_per_episode=1.5,
        total_episodes=2,
        total_turns=3,
        total_ac_tokens=7,
        total_ob_tokens=15,
        mean_total_reward=1.0,
        frac_mixed=1.0,
        frac_all_good=0.0,
        frac_all_bad=0.0,
        metrics={"format": 2 / 3, "correct": 0.5},
    )
    assert second == TrajectoryReport(
        tag="code",
        ac_tokens_per_turn=30.0,
        ob_tokens_per_turn=20.0,
        turns_per_episode=1.0,
        total_episodes=2,
        total_turns=2,
        total_ac_tokens=60,
        total_ob_tokens=40,
        mean_total_reward=0.0,
        frac_mixed=0.0,
        frac_all_good=0.0,
        frac_all_bad=1.0,
        metrics={},
    )
    assert (every.tag, every.total_turns, every.mean_total_reward) == ("all", 5, 0.5)
    assert (every.frac_mixed, every.frac_all_bad) == (0.5, 0.5)
    assert every.metrics == {"format": 2 / 3, "correct": 0.5}


@pytest.mark.parametrize(
    ("tags", "reported"),
    [
        ([[], []], ["all"]),
        ([["a"], ["a"]], ["all"]),
        ([["a"], []], ["a", "all"]),
        ([["b", "a"], ["b"]], ["b", "a", "all"]),
        ([("a",), ("b", "a")], ["a", "b", "all"]),
        ([["all"], ["all"]], ["all"]),
        ([["all", "a"], ["all"]], ["a", "all"]),
    ],
)
def test_tags_are_reported_once_one_of_them_leaves_a_group_out(tags, reported):
    reports = compute_trajectory_metrics(TWO_GROUPS, tags)
    assert [report.tag for report in reports] == reported


def test_a_tag_listed_twice_counts_once():
    once = compute_trajectory_metrics(TWO_GROUPS, [["a"], ["b"]])
    assert compute_trajectory_metrics(TWO_GROUPS, [["a", "a"], ["b"]]) == once


def test_groups_dropped_without_their_tags_are_refused():
    """Zipping what is left would report the second group under the first one's tag."""
    with pytest.raises(DataError, match="got 2 for 1 groups"):
        compute_trajectory_metrics(TWO_GROUPS[1:], [["math"], ["code"]])
    with pytest.raises(DataError, match="got 1 for 2 groups"):
        compute_trajectory_metrics(TWO_GROUPS, [["math"]])


def test_a_string_is_not_taken_for_its_letters():
    with pytest.raises(DataError, match=r"group 1 has the string 'code'; write \['code'\]"):
        compute_trajectory_metrics(TWO_GROUPS, [["math"], "code"])


def test_the_name_of_all_groups_means_all_groups():
    with pytest.raises(DataError, match="'all'"):
        compute_trajectory_metrics(TWO_GROUPS, [["all"], ["code"]])


@pytest.mark.parametrize(
    ("rewards", "shares"),
    [
        ((1.0, 1.0), (0, 1, 0)),
        ((0.5, 0.5), (0, 1, 0)),
        ((0.25, 0.25), (0, 0, 1)),
        ((1, 0), (1, 0, 0)),
        ((1,), (0, 1, 0)),
        ((-1.0,), (0, 0, 1)),
        ((0.1 + 0.2, 0.3), (1, 0, 0)),
        ((math.nan, math.nan), (1, 0, 0)),
        ((math.nan,), (1, 0, 0)),
        ((math.inf, math.inf), (0, 1, 0)),
        ((-math.inf, -math.inf), (0, 0, 1)),
        ((True, 1.0), (0, 1, 0)),
        ((np.float32(0.0), np.int64(0)), (0, 0, 1)),
        ((), (0, 0, 0)),
    ],
)
def test_a_group_is_mixed_all_good_or_all_bad(rewards, shares):
    report = whole(earning(*rewards))
    assert (report.frac_mixed, report.frac_all_good, report.frac_all_bad) == shares


def test_what_is_good_is_the_callers_choice():
    assert whole(earning(0.25, 0.25), good_reward=0.25).frac_all_good == 1.0
    assert whole(earning(1.0, 1.0), good_reward=2.0).frac_all_bad == 1.0


def test_groups_without_trajectories_have_no_share():
    report = whole(earning(1, 0), earning(), earning(1, 1))
    assert (report.frac_mixed, report.frac_all_good, report.frac_all_bad) == (0.5, 0.5, 0.0)


NOTHING = TrajectoryReport(
    tag="all",
    ac_tokens_per_turn=0.0,
    ob_tokens_per_turn=0.0,
    turns_per_episode=0.0,
    total_episodes=0,
    total_turns=0,
    total_ac_tokens=0,
    total_ob_tokens=0,
    mean_total_reward=0.0,
    frac_mixed=0.0,
    frac_all_good=0.0,
    frac_all_bad=0.0,
    metrics={},
)


@pytest.mark.parametrize("groups", [(), (group_of(),), (group_of(), group_of())])
def test_nothing_divided_by_nothing_is_zero(groups):
    assert whole(*groups) == NOTHING


def test_an_episode_without_turns_still_earned_its_reward():
    report = whole(group_of([], final=[2.0]))
    assert (report.total_episodes, report.total_turns, report.mean_total_reward) == (1, 0, 2.0)
    assert (report.turns_per_episode, report.ac_tokens_per_turn) == (0.0, 0.0)


@pytest.mark.parametrize(
    "value", [1, True, 1.0, np.float32(1), np.int8(1), np.bool_(True), Fraction(1, 1)]
)
def test_any_real_number_comes_out_as_a_plain_float(value):
    report = whole(group_of([turn(metrics={"calls": value})], metrics=[{"calls": 2}]))
    assert report.metrics == {"calls": 1.5}
    assert type(report.metrics["calls"]) is float


@pytest.mark.parametrize("value", ["1.0", None, [1.0], 1j, np.ones(2)])
def test_what_is_no_number_is_refused_by_name(value):
    good_and_bad = [turn(metrics={"fine": 1.0}), turn(metrics={"fine": 1.0, "answer": value})]
    with pytest.raises(DataError, match="'answer' must be a real number"):
        whole(group_of(good_and_bad))
    with pytest.raises(DataError, match="'answer' must be a real number"):
        whole(group_of([turn()], metrics=[{"answer": value}]))


def test_every_number_is_plain():
    report = whole(group_of([turn(np.int64(3), 2)], final=[np.float32(0.5)]))
    numbers = [getattr(report, name) for name in TrajectoryReport.__slots__ if name != "tag"]
    assert {type(number) for number in numbers} == {float, int, dict}
    assert [type(report.total_ob_tokens), type(report.mean_total_reward)] == [int, float]


def test_stop_reasons_are_shares_of_the_turns_that_say_so():
    ended = [turn(metrics={"stop/max_tokens": 1.0}), turn(metrics={"stop/max_tokens": 0.0})]
    report = whole(group_of(ended, [turn(metrics={"stop/completed": 1.0})]))
    assert report.metrics == {"stop/max_tokens": 0.5, "stop/completed": 1.0}


def test_a_metric_that_is_nan_stays_with_its_tag():
    torn = group_of([turn(metrics={"score": math.nan})], final=[math.nan])
    sound = group_of([turn(metrics={"score": 1.0})], final=[1.0])
    first, second, every = compute_trajectory_metrics([torn, sound], [["torn"], ["sound"]])
    assert math.isnan(first.metrics["score"])
    assert math.isnan(first.mean_total_reward)
    assert (second.metrics, second.mean_total_reward) == ({"score": 1.0}, 1.0)
    assert math.isnan(every.metrics["score"])


def test_arrays_of_tokens_count_as_lists_do():
    action = TokensWithLogprobs(tokens=np.arange(3))
    step = Transition(ob=np.arange(5), ac=action, reward=1.0, episode_done=True)
    assert whole(group_of([step])) == whole(group_of([turn(5, 3, reward=1.0)]))


# Sixteenths add up exactly in float64, whatever the order.
numbers = st.integers(-32, 32).map(lambda value: value / 16) | st.integers(-2, 2) | st.booleans()
metric_dicts = st.dictionaries(st.sampled_from(["correct", "format", "stop/done"]), numbers)
turns = st.builds(
    lambda observed, sampled, reward, metrics: turn(
        observed, sampled, reward=reward, metrics=metrics
    ),
    st.integers(0, 5),
    st.integers(0, 5),
    numbers,
    metric_dicts,
)


@st.composite
def group_lists(draw):
    groups = []
    for _ in range(draw(st.integers(0, 5))):
        episodes = draw(st.lists(st.lists(turns, max_size=3), max_size=4))
        size = len(episodes)
        final = draw(st.lists(st.sampled_from([0, 1, 0.5]), min_size=size, max_size=size))
        metrics = draw(st.lists(metric_dicts, min_size=size, max_size=size))
        groups.append(group_of(*episodes, final=final, metrics=metrics))
    tags = draw(
        st.lists(
            st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
            min_size=len(groups),
            max_size=len(groups),
        )
    )
    return groups, tags


def mean(values):
    return math.fsum(values) / len(values) if values else 0.0


def by_definition(tag, groups):
    """The report, one dict and one list at a time."""
    episodes = [trajectory for group in groups for trajectory in group.trajectories_G]
    steps = [step for trajectory in episodes for step in trajectory.transitions]
    dicts = [step.metrics for step in steps] + [own for g in groups for own in g.metrics_G]
    rewards = [group.get_total_rewards() for group in groups if group.trajectories_G]
    kinds = Counter(
        "mixed" if len(set(earned)) > 1 else "good" if earned[0] >= 0.5 else "bad"
        for earned in rewards
    )
    observed = [len(step.ob) for step in steps]
    sampled = [len(step.ac.tokens) for step in steps]
    return TrajectoryReport(
        tag=tag,
        ac_tokens_per_turn=mean(sampled),
        ob_tokens_per_turn=mean(observed),
        turns_per_episode=mean([len(trajectory.transitions) for trajectory in episodes]),
        total_episodes=len(episodes),
        total_turns=len(steps),
        total_ac_tokens=sum(sampled),
        total_ob_tokens=sum(observed),
        mean_total_reward=mean([reward for earned in rewards for reward in earned]),
        frac_mixed=kinds["mixed"] / max(len(rewards), 1),
        frac_all_good=kinds["good"] / max(len(rewards), 1),
        frac_all_bad=kinds["bad"] / max(len(rewards), 1),
        metrics={
            key: mean([own[key] for own in dicts if key in own])
            for key in {key for own in dicts for key in own}
        },
    )


@given(group_lists())
def test_every_report_is_what_its_definition_says(case):
    groups, tags = case
    for report in compute_trajectory_metrics(groups, tags):
        members = [
            group
            for group, of_group in zip(groups, tags, strict=True)
            if report.tag == "all" or report.tag in of_group
        ]
        assert report == by_definition(report.tag, members)


@given(group_lists(), st.randoms())
def test_the_order_of_the_groups_does_not_matter(case, random):
    groups, tags = case
    pairs = list(zip(groups, tags, strict=True))
    random.shuffle(pairs)
    shuffled = compute_trajectory_metrics([group for group, _ in pairs], [tag for _, tag in pairs])
    reports = compute_trajectory_metrics(groups, tags)
    assert {report.tag: report for report in shuffled} == {report.tag: report for report in reports}


@given(group_lists())
def test_tags_that_part_the_groups_add_up_to_all_of_them(case):
    groups, _ = case
    halves = [["even"] if position % 2 == 0 else ["odd"] for position in range(len(groups))]
    *parts, every = compute_trajectory_metrics(groups, halves)
    for name in ("total_episodes", "total_turns", "total_ac_tokens", "total_ob_tokens"):
        total = sum(getattr(part, name) for part in parts)
        assert not parts or total == getattr(every, name)
