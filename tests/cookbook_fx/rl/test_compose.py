"""Three algorithms of the literature in a few library calls each, up to the step they train."""

import jax
import numpy as np
import pytest

from cookbook_fx import lm, numerics, rl
from cookbook_fx.data import Datum
from cookbook_fx.tokens import TokensWithLogprobs

VOCAB = 32


def grpo(groups: list[rl.TrajectoryGroup]) -> tuple[list[Datum], numerics.LossSpec]:
    """Shao et al. 2024: rewards normalized in their group, each answer's tokens averaged."""
    batch = rl.trajectory_batch(groups, remove_constant_reward_groups=True)
    advantages = rl.group_advantages(batch, numerics.group_normalized)
    answer_means = rl.trajectory_mean_weights(batch)
    data = rl.batch_data(batch, rl.token_advantages(batch, advantages) * answer_means)
    return data, numerics.LossSpec(name="ppo")


def rloo_with_kl(
    groups: list[rl.TrajectoryGroup], base_logprobs: list[list[float | None]]
) -> tuple[list[Datum], numerics.LossSpec]:
    """Ahmadian et al. 2024: the others as baseline; the KL penalty to come counts, discounted."""
    batch = rl.trajectory_batch(groups)
    advantages = rl.token_advantages(batch, rl.group_advantages(batch, numerics.leave_one_out))
    base = batch.column(base_logprobs)
    shaped = rl.kl_shaped(batch, advantages, base, coef=0.05, gamma=0.99)
    data = rl.batch_data(batch, shaped.advantages)
    return data, numerics.LossSpec(name="importance_sampling")


def dapo(groups: list[rl.TrajectoryGroup]) -> tuple[list[Datum], numerics.LossSpec]:
    """Yu et al. 2025: clip higher, drop groups without a difference, average over all tokens."""
    batch = rl.trajectory_batch(groups, remove_constant_reward_groups=True)
    advantages = rl.token_advantages(batch, rl.group_advantages(batch, numerics.group_normalized))
    data = rl.batch_data(batch, advantages * numerics.token_mean_weights(batch.mask))
    return data, numerics.LossSpec(name="ppo", config={"clip_high_threshold": 1.28})


@pytest.fixture(scope="module")
def model() -> tuple[lm.LMWeights, lm.TrainState]:
    config = lm.LMConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2,
        num_kv_heads=1, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-5,
        max_position_embeddings=128, tie_word_embeddings=True, qk_norm=False,
    )  # fmt: skip
    weights = lm.weights_from_tensors(config, lm.random_tensors(config).__getitem__)
    return weights, lm.init_train_state(lm.init_lora(config, lm.LoRAConfig(rank=2)))


@pytest.fixture(scope="module")
def groups(model: tuple) -> list[rl.TrajectoryGroup]:
    """Two problems that some answers solve, and one that all do, with the model's own logprobs."""
    weights, state = model
    rng = np.random.default_rng(0)
    rewards = [[1, 0, 0], [1, 1, 1], [0, 1]]
    lengths = rng.integers(6, 13, sum(map(len, rewards)))
    sequences = [rng.integers(0, VOCAB, length) for length in lengths]
    scores = iter(lm.score_prompts(weights, state.adapter, sequences))
    answers = iter(sequences)
    return [
        rl.TrajectoryGroup(
            trajectories_G=[answered(next(answers), next(scores), reward) for reward in of_group],
            final_rewards_G=[0] * len(of_group),
            metrics_G=[{}] * len(of_group),
        )
        for of_group in rewards
    ]


def answered(sequence: np.ndarray, scores: lm.PromptScores, reward: float) -> rl.Trajectory:
    """An episode of one turn after a prompt of four tokens."""
    action = TokensWithLogprobs(tokens=sequence[4:], maybe_logprobs=scores.logprobs[4:])
    turn = rl.Transition(ob=sequence[:4], ac=action, reward=reward, episode_done=True)
    return rl.Trajectory(transitions=[turn], final_ob=[])


def trained(
    model: tuple, data: list[Datum], loss: numerics.LossSpec
) -> tuple[lm.LossOutput, lm.LossOutput]:
    """The loss of the data before and after one step on it."""
    weights, state = model
    gradients, before = lm.forward_backward(weights, state.adapter, None, data, loss=loss)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    state, _ = lm.optim_step(state, gradients, lm.AdamParams(learning_rate=1e-3))
    _, after = lm.forward_backward(weights, state.adapter, None, data, loss=loss)
    return before, after


def test_grpo_trains(model: tuple, groups: list[rl.TrajectoryGroup]) -> None:
    data, loss = grpo(groups)
    before, after = trained(model, data, loss)

    # On-policy every ratio is 1, and the answers' advantages sum to 0 in each group.
    assert len(data) == 5
    assert before.loss_sum == pytest.approx(0, abs=1e-5)
    assert after.loss_sum < before.loss_sum
    # Each answer weighs as much as any other, however long it is.
    answers = [datum.advantages.sum() for datum in data]
    assert np.abs(answers) == pytest.approx(
        np.array([2**0.5, 0.5**0.5, 0.5**0.5, 1, 1]) / 5, rel=1e-4
    )


def test_rloo_with_kl_trains(model: tuple, groups: list[rl.TrajectoryGroup]) -> None:
    weights, state = model
    sequences = rl.trajectory_batch(groups).sequences()
    base = [
        [None, *scores.logprobs[1:] - 0.1]
        for scores in lm.score_prompts(weights, state.adapter, sequences)
    ]
    data, loss = rloo_with_kl(groups, base)
    before, after = trained(model, data, loss)

    assert len(data) == 8
    assert after.loss_sum < before.loss_sum
    # Everywhere as far from the base as on average, so that nothing is left of the penalty.
    assert data[0].advantages[data[0].weights > 0] == pytest.approx(1, abs=1e-3)
    assert [datum.advantages[:3].tolist() for datum in data] == [[0, 0, 0]] * 8


def test_dapo_trains(model: tuple, groups: list[rl.TrajectoryGroup]) -> None:
    data, loss = dapo(groups)
    before, after = trained(model, data, loss)

    num_tokens = sum(datum.weights.sum() for datum in data)
    expected = (
        -sum(
            advantage * datum.weights.sum()
            for datum, advantage in zip(
                data, [2**0.5, -(0.5**0.5), -(0.5**0.5), -1, 1], strict=True
            )
        )
        / num_tokens
    )
    assert len(data) == 5
    assert before.loss_sum == pytest.approx(expected, rel=1e-4)
    assert after.loss_sum < before.loss_sum


@pytest.mark.parametrize("algorithm", [grpo, dapo])
def test_a_batch_without_a_difference_leaves_nothing_to_train(algorithm, groups) -> None:
    data, _ = algorithm([groups[1]])

    assert data == []
