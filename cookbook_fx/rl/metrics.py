"""What the episodes of a step amount to: lengths, rewards and the environments' own numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.errors import DataError
from cookbook_fx.rl.trajectory import TrajectoryGroup, Transition

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryReport:
    """The episodes of all groups, or of those with one tag.

    Every ratio and mean is 0 where there is nothing to divide by.

    Args:
        tag: the groups' common tag; `"all"` for the report on all groups.
        ac_tokens_per_turn: mean number of tokens sampled.
        ob_tokens_per_turn: mean number of tokens observed; each observation counts whole, also
            what it repeats of earlier turns.
        turns_per_episode: mean number of turns.
        total_episodes: trajectories.
        total_turns: turns of all of them.
        total_ac_tokens: tokens sampled in all turns.
        total_ob_tokens: tokens observed in all turns.
        mean_total_reward: over trajectories, step rewards and final reward added up.
        frac_mixed: share of the groups whose trajectories earned different rewards: those that
            group-centered advantages learn from. A reward that is nan differs from every other.
            Groups without trajectories are left out of all three shares.
        frac_all_good: share of the groups that earned one reward, at least the threshold.
        frac_all_bad: share of the groups that earned one reward, below the threshold.
        metrics: the mean of each key over those dicts of the turns and groups that have it.
    """

    tag: str
    ac_tokens_per_turn: float
    ob_tokens_per_turn: float
    turns_per_episode: float
    total_episodes: int
    total_turns: int
    total_ac_tokens: int
    total_ob_tokens: int
    mean_total_reward: float
    frac_mixed: float
    frac_all_good: float
    frac_all_bad: float
    metrics: Mapping[str, float]


def compute_trajectory_metrics(
    groups: Sequence[TrajectoryGroup],
    tags: Sequence[Sequence[str]],
    *,
    good_reward: float = 0.5,
) -> tuple[TrajectoryReport, ...]:
    """Sum up the episodes of a step, by tag and all together.

    Everything is added up once per group; a report then adds up its groups, so that the number
    of tags hardly matters.

    Args:
        groups: as rolled out. Pass them before constant groups are removed: afterwards
            every group is mixed and the mean reward is that of the kept groups.
        tags: of each group, in the order of the groups. One that a group lists twice counts once.
        good_reward: the least reward with which a group of equal rewards counts as good.

    Returns:
        One report per tag in order of first appearance, provided some tag leaves a group out
        (else they would repeat the last one), and the report on all groups, tagged `"all"`, last.
        Without groups that one is all zeros.

    Raises:
        DataError: there are not as many sequences of tags as groups; tags are one string
            instead of a sequence of them; some groups are tagged `"all"` and others are not; a
            metric's value is not a real number.

    Example:
        >>> from cookbook_fx.rl import Trajectory, TrajectoryGroup, Transition
        >>> from cookbook_fx.tokens import TokensWithLogprobs
        >>> def rollout(answer, correct):
        ...     action = TokensWithLogprobs(tokens=answer)
        ...     turn = Transition(ob=[1, 2], ac=action, reward=correct, episode_done=True)
        ...     return Trajectory(transitions=[turn], final_ob=[])
        >>> group = TrajectoryGroup(
        ...     trajectories_G=[rollout([3], 1.0), rollout([4, 5, 6], 0.0)],
        ...     final_rewards_G=[0.0, 0.0],
        ...     metrics_G=[{"correct": True}, {"correct": False}],
        ... )
        >>> (report,) = compute_trajectory_metrics([group], [["sums"]])
        >>> report.ac_tokens_per_turn, report.frac_mixed, report.metrics
        (2.0, 1.0, {'correct': 0.5})
    """
    members = _members(tags, len(groups))
    sums = _group_sums(groups, good_reward)
    return tuple(_report(tag, sums, np.array(of_tag, int)) for tag, of_tag in members.items())


def _members(tags: Sequence[Sequence[str]], num_groups: int) -> dict[str, list[int]]:
    """The groups of each report, by index."""
    if len(tags) != num_groups:
        raise DataError(
            f"each group needs its own sequence of tags, got {len(tags)} for {num_groups} groups; "
            "where groups were dropped, drop their tags with them"
        )
    members: dict[str, list[int]] = {}
    for group, of_group in enumerate(tags):
        if isinstance(of_group, str):
            raise DataError(
                f"the tags of a group are a sequence of strings, group {group} has the string "
                f"{of_group!r}; write [{of_group!r}]"
            )
        for tag in dict.fromkeys(of_group):
            members.setdefault(tag, []).append(group)
    every = list(range(num_groups))
    if members.pop(ALL, every) != every:
        raise DataError(
            f"the report on all groups is tagged {ALL!r}, but only some groups have that tag; "
            "name it otherwise"
        )
    if all(of_tag == every for of_tag in members.values()):
        members = {}
    return members | {ALL: every}


class _Counts(NamedTuple):
    """What is counted of one group, or of several."""

    episodes: int
    turns: int
    ac_tokens: int
    ob_tokens: int
    mixed: int
    all_good: int
    all_bad: int


class _MetricSums(NamedTuple):
    """Per group, each metric's values added up and how many there were."""

    names: tuple[str, ...]
    sums: Float[np.ndarray, "name group"]
    counts: Int[np.ndarray, "name group"]


class _GroupSums(NamedTuple):
    """Everything that a report adds up, already added up within each group."""

    counts: Int[np.ndarray, "group count"]
    rewards: Float[np.ndarray, " group"]
    metrics: _MetricSums


def _group_sums(groups: Sequence[TrajectoryGroup], good_reward: float) -> _GroupSums:
    counts: list[_Counts] = []
    rewards: list[float] = []
    keys: list[str] = []
    values: list[Any] = []
    ends: list[int] = []
    for group in groups:
        turns = [turn for trajectory in group.trajectories_G for turn in trajectory.transitions]
        earned = group.get_total_rewards()
        counts.append(_counts(turns, earned, good_reward))
        rewards.append(sum(earned))
        for metrics in chain([turn.metrics for turn in turns], group.metrics_G):
            keys.extend(metrics)
            values.extend(metrics.values())
        ends.append(len(keys))
    return _GroupSums(
        counts=np.array(counts, np.int64).reshape(-1, len(_Counts._fields)),
        rewards=np.array(rewards, np.float64),
        metrics=_metric_sums(keys, _numbers(keys, values), np.array(ends, np.int64)),
    )


def _counts(turns: list[Transition], earned: Sequence[float | int], good_reward: float) -> _Counts:
    # A nan differs also from itself, so that even one alone makes the group mixed.
    is_mixed = any(reward != earned[0] for reward in earned)
    is_good = bool(earned) and not is_mixed and earned[0] >= good_reward
    return _Counts(
        episodes=len(earned),
        turns=len(turns),
        ac_tokens=sum([len(turn.ac.tokens) for turn in turns]),
        ob_tokens=sum([len(turn.ob) for turn in turns]),
        mixed=is_mixed,
        all_good=is_good,
        all_bad=bool(earned) and not is_mixed and not is_good,
    )


def _numbers(keys: list[str], values: list[Any]) -> Float[np.ndarray, " value"]:
    # By type, as NumPy would take None for nan and read numbers out of strings.
    strange = {kind for kind in set(map(type, values)) if not issubclass(kind, (Real, np.bool_))}
    for key, value in zip(keys, values, strict=True) if strange else ():
        if type(value) in strange:
            raise DataError(
                f"the metric {key!r} must be a real number, got {value!r} of type "
                f"{type(value).__name__}; convert it with float() or log it with the turn's logs"
            )
    return np.array(values, np.float64)


def _metric_sums(
    keys: list[str], values: Float[np.ndarray, " value"], ends: Int[np.ndarray, " group"]
) -> _MetricSums:
    """Adds up values that lie group after group; `ends` says where each group's end."""
    num_groups = len(ends)
    position = {name: position for position, name in enumerate(dict.fromkeys(keys))}
    row = np.fromiter(map(position.__getitem__, keys), np.int64, len(keys))
    group = np.repeat(np.arange(num_groups), np.diff(ends, prepend=0))
    shape = (len(position), num_groups)
    cell, num_cells = row * num_groups + group, len(position) * num_groups
    return _MetricSums(
        names=tuple(position),
        sums=np.bincount(cell, values, num_cells).reshape(shape),
        counts=np.bincount(cell, minlength=num_cells).reshape(shape),
    )


def _report(tag: str, sums: _GroupSums, members: Int[np.ndarray, " member"]) -> TrajectoryReport:
    found = _Counts(*sums.counts[members].sum(axis=0).tolist())
    judged = found.mixed + found.all_good + found.all_bad
    return TrajectoryReport(
        tag=tag,
        ac_tokens_per_turn=_ratio(found.ac_tokens, found.turns),
        ob_tokens_per_turn=_ratio(found.ob_tokens, found.turns),
        turns_per_episode=_ratio(found.turns, found.episodes),
        total_episodes=found.episodes,
        total_turns=found.turns,
        total_ac_tokens=found.ac_tokens,
        total_ob_tokens=found.ob_tokens,
        mean_total_reward=_ratio(float(sums.rewards[members].sum()), found.episodes),
        frac_mixed=_ratio(found.mixed, judged),
        frac_all_good=_ratio(found.all_good, judged),
        frac_all_bad=_ratio(found.all_bad, judged),
        metrics=_metric_means(sums.metrics, members),
    )


def _metric_means(metrics: _MetricSums, members: Int[np.ndarray, " member"]) -> dict[str, float]:
    sums = metrics.sums[:, members].sum(axis=1).tolist()
    counts = metrics.counts[:, members].sum(axis=1).tolist()
    return {
        name: value / count
        for name, value, count in zip(metrics.names, sums, counts, strict=True)
        if count
    }


def _ratio(numerator: float | int, denominator: int) -> float:
    return numerator / denominator if denominator else 0.0
