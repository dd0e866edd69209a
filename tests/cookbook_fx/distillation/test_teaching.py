"""What a teacher is shown and what is made of its opinion: never of prompts, never centered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.distillation import JudgedBatch, OwnPrompt, teacher_kl, teaching_objective
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.rl import Objective, training_batch, training_data, trajectory_batch
from tests.rl_strategies import GROUPS, episode, group_of

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@given(st.lists(st.integers(0, 9), max_size=6), TOKENS, TOKENS)
def test_what_was_sampled_is_judged_token_for_token(student, teacher, sampled):
    own = OwnPrompt(student=np.array(student, np.int32), teacher=np.array(teacher, np.int32))
    row = np.array([*student, *sampled], np.int32)
    assert own.shown(row).tolist() == [*teacher, *sampled]
    opinion = np.arange(len(teacher) + len(sampled), dtype=np.float32)
    judged = own.judged(opinion, length=len(row))
    assert judged[: len(student)].tolist() == [0] * len(student)
    assert judged[len(student) :].tolist() == opinion[len(teacher) :].tolist()


def test_a_row_with_another_prompt_is_refused():
    own = OwnPrompt(student=np.array([1, 2]), teacher=np.array([3]))
    with pytest.raises(DataError, match="does not begin"):
        own.shown(np.array([1, 9, 5]))
    with pytest.raises(DataError, match="at least one token"):
        OwnPrompt(student=np.array([1, 2]), teacher=np.array([], np.int32))


@given(GROUPS, st.sampled_from([0.0, 0.5]), st.randoms(use_true_random=False))
def test_advantages_are_the_reverse_kl_and_leave_prompts_alone(groups, gamma, random):
    objective = teaching_objective(coef=0.5, discount=gamma)
    batch = trajectory_batch(groups)
    opinions = [[None, *(-random.random() for _ in row[1:])] for row in batch.sequences()]
    made = training_data(batch, objective, base_logprobs=opinions)
    for datum, opinion in zip(made.data, opinions, strict=True):
        mask = datum.weights > 0
        delta = np.where(mask, datum.logprobs - np.array(opinion[1:]), 0)
        expected = np.zeros(len(delta))
        for token in reversed(range(len(delta))):
            following = expected[token + 1] if token + 1 < len(delta) else 0
            expected[token] = -0.5 * delta[token] + gamma * following
        # Time passes at tokens off the mask, and nothing is charged there.
        np.testing.assert_allclose(datum.advantages, np.where(mask, expected, 0), atol=1e-4)


def test_rewards_count_only_where_asked_for_and_integers_will_do():
    groups = [group_of(episode(([1, 2], [3]), reward=1), episode(([1, 2], [4]), reward=0))]
    agrees = [[None, -1.0, -3 / 8], [None, -1.0, -4 / 8]]
    alone = training_batch(groups, teaching_objective(), base_logprobs=agrees)
    assert [datum.advantages.tolist() for datum in alone.data] == [[0, 0], [0, 0]]
    both = training_batch(groups, teaching_objective(rewards=True), base_logprobs=agrees)
    assert [datum.advantages.tolist() for datum in both.data] == [[0, 0.5], [0, -0.5]]


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ConfigurationError, match="only the KL penalty"):
        Objective(advantages="none")
    with pytest.raises(ConfigurationError, match="only the KL penalty"):
        Objective(advantages="none", kl_penalty_coef=1.0, remove_constant_reward_groups=True)


@given(GROUPS, st.randoms(use_true_random=False))
def test_the_mean_over_teachers_is_the_mean_over_tokens(groups, random):
    batch = trajectory_batch(groups)
    opinions = [[None, *(-random.random() for _ in row[1:])] for row in batch.sequences()]
    references = [random.randrange(2) for _ in groups]
    found = teacher_kl([JudgedBatch(batch, opinions, references)] * 2)
    differences = {0: [], 1: []}
    for row, opinion in enumerate(opinions):
        start, length = int(batch.row_starts[row]), int(batch.row_lengths[row])
        own = slice(start, start + length)
        delta = batch.sampling_logprobs[own][1:] - np.array(opinion[1:])
        teacher = references[batch.row_group[row]]
        differences[teacher] += delta[batch.mask[own][1:]].tolist()
    everything = differences[0] + differences[1]
    assert found.mean == pytest.approx(np.mean(everything) if everything else 0, abs=1e-5)
    assert set(found.by_reference) == {index for index in differences if differences[index]}
    for index, mean in found.by_reference.items():
        assert mean == pytest.approx(np.mean(differences[index]), abs=1e-5)
