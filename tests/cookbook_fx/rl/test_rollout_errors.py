from cookbook_fx.rl import RolloutError, Trajectory, TrajectoryGroup, count_rollout_errors


def group(*errors: str, trajectories: int) -> TrajectoryGroup:
    return TrajectoryGroup(
        trajectories_G=[Trajectory(transitions=(), final_ob=[])] * trajectories,
        final_rewards_G=[0.0] * trajectories,
        metrics_G=[{}] * trajectories,
        rollout_errors=[RolloutError(error_type=kind, error_message="") for kind in errors],
    )


def test_failures_are_counted_by_type_and_lost_groups_too():
    counts = count_rollout_errors(
        [
            group("OSError", trajectories=3),
            group("ValueError", "OSError", trajectories=0),
            group(trajectories=2),
        ]
    )
    assert counts.by_type == {"OSError": 2, "ValueError": 1}
    assert list(counts.by_type) == ["OSError", "ValueError"]
    assert counts.groups_skipped == 1


def test_nothing_went_wrong():
    assert count_rollout_errors([]) == ({}, 0)
    assert count_rollout_errors([group(trajectories=1)]) == ({}, 0)
