"""Group centring and schedules beside tinker-cookbook's, where it has them right and where not."""

import numpy as np
import pytest

from cookbook_fx.numerics import group_centered, learning_rate_multiplier

tinker = pytest.importorskip("tinker")
types = pytest.importorskip("tinker_cookbook.rl.types")
data_processing = pytest.importorskip("tinker_cookbook.rl.data_processing")
lr_scheduling = pytest.importorskip("tinker_cookbook.utils.lr_scheduling")

pytestmark = pytest.mark.parity


def upstream_advantages(groups):
    return data_processing.compute_advantages(
        [
            types.TrajectoryGroup(
                trajectories_G=[_stepless() for _ in rewards],
                final_rewards_G=rewards,
                metrics_G=[{} for _ in rewards],
            )
            for rewards in groups
        ]
    )


def _stepless():
    return types.Trajectory(transitions=[], final_ob=tinker.ModelInput.empty())


def test_ragged_groups_are_centred_as_upstream_does():
    generator = np.random.default_rng(0)
    groups = [generator.normal(size=size).tolist() for size in (1, 4, 7, 4, 2)]
    rewards, mask = np.zeros((5, 7), np.float32), np.zeros((5, 7), bool)
    for row, group in enumerate(groups):
        rewards[row, : len(group)], mask[row, : len(group)] = group, True
    ours = group_centered(rewards, mask=mask)
    theirs = upstream_advantages(groups)
    for row, expected in enumerate(theirs):
        np.testing.assert_allclose(ours[row][: len(expected)], expected.numpy(), atol=1e-6)


def test_integer_rewards_crash_upstream_and_are_centred_here():
    class WholeRewards:
        def get_total_rewards(self):
            return [1, 0, 0, 1]

    with pytest.raises(RuntimeError, match="mean"):
        data_processing.compute_advantages([WholeRewards()])
    assert group_centered(np.array([1, 0, 0, 1])).tolist() == [0.5, -0.5, -0.5, 0.5]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_schedules_agree_until_the_end_and_are_clamped_after_it(name):
    multiplier = lr_scheduling.compute_schedule_lr_multiplier
    theirs = [multiplier(name, step, 9) for step in range(13)]
    ours = np.asarray(learning_rate_multiplier(name, np.arange(13), 9))
    np.testing.assert_allclose(ours[:10], theirs[:10], atol=1e-6)
    assert (ours[10:] == (name == "constant")).all()
    if name != "constant":
        assert np.abs(theirs[10:]).min() > 0.01
