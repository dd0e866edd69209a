"""Trajectory metrics, name by name those of tinker-cookbook on the same episodes."""

import random

import numpy as np
import pytest

from cookbook_fx import rl
from cookbook_fx.errors import DataError
from cookbook_fx.reports import flatten
from cookbook_fx.tokens import TokensWithLogprobs

pytestmark = pytest.mark.parity
tinker = pytest.importorskip("tinker")
theirs = pytest.importorskip("tinker_cookbook.rl.types")
metric_util = pytest.importorskip("tinker_cookbook.rl.metric_util")
completers = pytest.importorskip("tinker_cookbook.completers")

KEYS = ("correct", "format", "stop/completed", "stop/max_tokens", "calls")


def random_metrics(draw: random.Random) -> dict[str, float]:
    keys = draw.sample(KEYS, draw.randint(0, len(KEYS)))
    return {key: draw.choice([True, draw.randint(0, 3), draw.random()]) for key in keys}


def random_episode(draw: random.Random):
    """One episode twice: as our trajectory and as theirs."""
    ours, upstream = [], []
    for _ in range(draw.randint(0, 4)):
        observed = list(range(draw.randint(0, 20)))
        sampled = list(range(draw.randint(0, 20)))
        logprobs = [-0.5] * len(sampled)
        common = {
            "reward": draw.choice([0.0, 1.0, draw.random()]),
            "episode_done": False,
            "metrics": random_metrics(draw),
        }
        action = TokensWithLogprobs(tokens=sampled, maybe_logprobs=logprobs)
        ours.append(rl.Transition(ob=observed, ac=action, **common))
        upstream.append(
            theirs.Transition(
                ob=tinker.ModelInput.from_ints(observed),
                ac=completers.TokensWithLogprobs(tokens=sampled, maybe_logprobs=logprobs),
                **common,
            )
        )
    return (
        rl.Trajectory(transitions=ours, final_ob=[]),
        theirs.Trajectory(transitions=upstream, final_ob=tinker.ModelInput.empty()),
    )


def random_group(draw: random.Random):
    episodes = [random_episode(draw) for _ in range(draw.randint(1, 6))]
    # Every other group earns one reward, so that all three kinds of groups occur.
    if draw.random() < 0.5:
        episodes = [episodes[0]] * len(episodes)
        final = [draw.choice([0.0, 0.5, 1.0])] * len(episodes)
    else:
        final = [draw.random() for _ in episodes]
    metrics = [random_metrics(draw) for _ in episodes]
    return (
        rl.TrajectoryGroup(
            trajectories_G=[ours for ours, _ in episodes],
            final_rewards_G=final,
            metrics_G=metrics,
        ),
        theirs.TrajectoryGroup(
            trajectories_G=[upstream for _, upstream in episodes],
            final_rewards_G=final,
            metrics_G=metrics,
        ),
    )


@pytest.mark.parametrize("seed", range(20))
def test_names_and_numbers_are_upstreams(seed):
    draw = random.Random(seed)
    pairs = [random_group(draw) for _ in range(draw.randint(1, 12))]
    tags = [draw.sample(["math", "code", "easy", "hard"], draw.randint(0, 4)) for _ in pairs]
    upstream = metric_util.compute_trajectory_metrics([group for _, group in pairs], tags)
    reports = rl.compute_trajectory_metrics([group for group, _ in pairs], tags)
    ours = flatten(*reports)
    assert ours.keys() == upstream.keys()
    names = sorted(ours)
    np.testing.assert_allclose(
        [ours[name] for name in names], [upstream[name] for name in names], rtol=1e-12, atol=1e-12
    )


def test_no_groups_at_all():
    upstream = metric_util.compute_trajectory_metrics([], [])
    assert flatten(*rl.compute_trajectory_metrics([], [])) == upstream


def test_upstream_reports_dropped_groups_under_other_groups_tags_and_we_do_not():
    draw = random.Random(0)
    pairs = [random_group(draw) for _ in range(3)]
    tags = [["a"], ["b"], ["b"]]
    misled = metric_util.compute_trajectory_metrics([group for _, group in pairs[1:]], tags)
    assert "env/a/total_episodes" in misled
    with pytest.raises(DataError, match="got 3 for 2 groups"):
        rl.compute_trajectory_metrics([group for group, _ in pairs[1:]], tags)
