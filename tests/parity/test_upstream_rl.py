"""Advantages, assembly and KL penalties, against tinker-cookbook's own functions."""

import asyncio

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cookbook_fx import rl
from cookbook_fx.data import Datum
from tests.rl_strategies import GROUPS, trajectories

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
tinker = pytest.importorskip("tinker")
types = pytest.importorskip("tinker_cookbook.rl.types")
completers = pytest.importorskip("tinker_cookbook.completers")
data_processing = pytest.importorskip("tinker_cookbook.rl.data_processing")
metrics = pytest.importorskip("tinker_cookbook.rl.metrics")

COLUMNS = {"target_tokens": "target_tokens", "advantages": "advantages", "weights": "mask"}


def theirs(trajectory: rl.Trajectory):
    """The same episode in upstream's records; rewards as floats, without which it fails."""
    return types.Trajectory(
        transitions=[
            types.Transition(
                ob=tinker.ModelInput.from_ints(turn.ob),
                ac=completers.TokensWithLogprobs(
                    tokens=turn.ac.tokens, maybe_logprobs=turn.ac.logprobs
                ),
                reward=float(turn.reward),
                episode_done=turn.episode_done,
                metrics=dict(turn.metrics),
            )
            for turn in trajectory.transitions
        ],
        final_ob=tinker.ModelInput.from_ints(trajectory.final_ob),
    )


def their_groups(groups: list[rl.TrajectoryGroup]) -> list:
    return [
        types.TrajectoryGroup(
            trajectories_G=[theirs(trajectory) for trajectory in group.trajectories_G],
            final_rewards_G=[float(reward) for reward in group.final_rewards_G],
            metrics_G=[{} for _ in group.trajectories_G],
        )
        for group in groups
    ]


def without_single_tokens(groups: list[rl.TrajectoryGroup]) -> bool:
    """Upstream refuses a sequence of one token; here it gives no row."""
    for group in groups:
        for trajectory in group.trajectories_G:
            sequence: list[int] = []
            for turn in trajectory.transitions:
                if len(sequence) == 1 and turn.ob[:1] != sequence:
                    return False
                sequence = [*turn.ob, *turn.ac.tokens]
            if len(sequence) == 1:
                return False
    return True


def assert_same(ours: list[Datum], upstream: list) -> None:
    assert len(ours) == len(upstream)
    for datum, other in zip(ours, upstream, strict=True):
        assert datum.tokens.tolist() == other.model_input.to_ints()
        for name, their_name in COLUMNS.items():
            column = other.loss_fn_inputs[their_name].to_torch().numpy()
            np.testing.assert_allclose(getattr(datum, name), column, rtol=1e-5, atol=1e-6)
        # Upstream also records those of turns that it masks; nothing looks at them.
        logprobs = other.loss_fn_inputs["logprobs"].to_torch().numpy() * datum.weights
        np.testing.assert_allclose(datum.logprobs, logprobs, rtol=1e-6)


class FixedClient:
    """Answers any sequence with log-probabilities that depend on its tokens alone."""

    async def compute_logprobs_async(self, sequence) -> list[float | None]:
        return fixed_logprobs(sequence.to_ints())


def fixed_logprobs(tokens: list[int]) -> list[float | None]:
    return [None, *(-abs(np.sin(np.arange(1, len(tokens)) + tokens[1:]))).tolist()]


@given(GROUPS)
@settings(max_examples=100)
def test_advantages(groups: list) -> None:
    ours = rl.compute_advantages(groups)
    upstream = data_processing.compute_advantages(their_groups(groups))

    for row, other in zip(ours, upstream, strict=True):
        np.testing.assert_allclose(row, other.numpy(), rtol=1e-6, atol=1e-6)


@given(trajectories(), st.floats(-2, 2, width=32))
@settings(max_examples=200)
def test_datums_of_a_trajectory(trajectory: rl.Trajectory, advantage: float) -> None:
    alone = rl.TrajectoryGroup(trajectories_G=[trajectory], final_rewards_G=[0], metrics_G=[{}])
    assume(without_single_tokens([alone]))

    ours = rl.trajectory_to_data(trajectory, advantage)

    assert_same(ours, data_processing.trajectory_to_data(theirs(trajectory), advantage))


@given(GROUPS)
@settings(max_examples=100)
def test_assembled_data(groups: list) -> None:
    assume(without_single_tokens(groups))
    data, sources = rl.assemble_training_data(groups, rl.compute_advantages(groups))

    other = their_groups(groups)
    their_data, their_sources = data_processing.assemble_training_data(
        other, data_processing.compute_advantages(other)
    )

    assert_same(data, their_data)
    assert [source._asdict() for source in sources] == their_sources


@given(GROUPS)
@settings(max_examples=100)
def test_groups_of_constant_rewards(groups: list) -> None:
    other = their_groups(groups)
    kept = data_processing.remove_constant_reward_groups(other)

    ours = rl.remove_constant_reward_groups(groups)

    places = [next(i for i, group in enumerate(other) if group is one) for one in kept]
    assert [next(i for i, group in enumerate(groups) if group is one) for one in ours] == places


@given(GROUPS, st.sampled_from([0.0, 0.5, 0.99, 1.0]))
@settings(max_examples=60)
def test_penalized_data(groups: list, gamma: float) -> None:
    assume(without_single_tokens(groups))
    data, _ = rl.assemble_training_data(groups, rl.compute_advantages(groups))
    assume(any(datum.weights.any() for datum in data))
    other = their_groups(groups)
    their_data, _ = data_processing.assemble_training_data(
        other, data_processing.compute_advantages(other)
    )

    base = [fixed_logprobs(sequence.tolist()) for sequence in rl.full_sequences(data)]
    penalized, mean = rl.incorporate_kl_penalty(data, base, coef=0.3, gamma=gamma)
    reported = asyncio.run(metrics.incorporate_kl_penalty(their_data, FixedClient(), 0.3, gamma))

    assert mean == pytest.approx(reported["kl_policy_base"], rel=1e-5, abs=1e-6)
    for datum, their_datum in zip(penalized, their_data, strict=True):
        upstream = their_datum.loss_fn_inputs["advantages"].to_torch().numpy()
        sampled = datum.weights > 0
        np.testing.assert_allclose(
            datum.advantages[sampled], upstream[sampled], rtol=1e-5, atol=1e-5
        )
        # Upstream's discounted penalty reaches what was not sampled.
        assert not datum.advantages[~sampled].any()
        assert gamma > 0 or not upstream[~sampled].any()


@given(GROUPS)
@settings(max_examples=60)
def test_distances_between_sampling_and_training(groups: list) -> None:
    assume(without_single_tokens(groups))
    data, _ = rl.assemble_training_data(groups, rl.compute_advantages(groups))
    assume(any(datum.weights.any() for datum in data))
    other = their_groups(groups)
    their_data, _ = data_processing.assemble_training_data(
        other, data_processing.compute_advantages(other)
    )
    whole = [fixed_logprobs(sequence.tolist()) for sequence in rl.full_sequences(data)]
    training = [np.array(row[1:], np.float32) for row in whole]

    ours = rl.compute_kl_sample_train(data, training)
    post = rl.compute_post_kl(data, whole)
    upstream = metrics.compute_kl_sample_train(their_data, [torch.tensor(row) for row in training])
    their_post = asyncio.run(metrics.compute_post_kl(their_data, FixedClient()))

    expected = [upstream[f"optim/{name}"] for name in ("kl_sample_train_v1", "kl_sample_train_v2")]
    assert [ours.kl_v1, ours.kl_v2] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert ours.entropy == pytest.approx(upstream["optim/entropy"], rel=1e-5)
    their_figures = [their_post["kl_pre_post_v1"], their_post["kl_pre_post_v2"]]
    assert [post.kl_v1, post.kl_v2] == pytest.approx(their_figures, rel=1e-5, abs=1e-6)
