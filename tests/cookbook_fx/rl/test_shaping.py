"""From rewards to datums: by hand, against slow definitions, and where there is nothing to do."""

import collections
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx import numerics, rl
from cookbook_fx.errors import ConfigurationError, DataError
from tests.rl_strategies import GROUPS, episode, group_of, with_arrays

ESTIMATORS = [
    numerics.group_centered,
    numerics.group_normalized,
    numerics.leave_one_out,
    numerics.max_rl,
]
GAMMAS = st.sampled_from([0.0, 0.5, 0.99, 1.0])


def rewarded(*rewards: float) -> rl.TrajectoryGroup:
    """A group of one-turn episodes with these rewards."""
    return group_of(*(episode(([1, 2], [3, 4]), reward=reward) for reward in rewards))


def base_column(batch: rl.TrajectoryBatch, seed: int) -> np.ndarray:
    """What some base model says to all tokens of the batch."""
    rng = np.random.default_rng(seed)
    return batch.column([[None, *-rng.exponential(size=n - 1)] for n in batch.row_lengths])


def penalty_in_float64(
    batch: rl.TrajectoryBatch, base: np.ndarray, *, coef: float, gamma: float, centered: bool
) -> np.ndarray:
    """The penalty as its definition reads, one token after the other."""
    deltas = np.where(batch.mask, batch.sampling_logprobs.astype(float) - base, 0)
    mean = deltas.sum() / max(batch.mask.sum(), 1) if centered else 0
    penalty = np.zeros(len(base))
    for start, length in zip(batch.row_starts, batch.row_lengths, strict=True):
        later = 0.0
        for place in range(start + length - 1, start - 1, -1):
            own = coef * (mean - deltas[place]) if batch.mask[place] else 0.0
            later = own + gamma * later
            penalty[place] = later if batch.mask[place] else 0.0
    return penalty


def test_advantages_of_ragged_groups_by_hand() -> None:
    batch = rl.trajectory_batch([rewarded(1, 0, 0, 3), group_of(), rewarded(7), rewarded(2, 4)])

    assert rl.group_advantages(batch).tolist() == [0, -1, -1, 2, 0, -1, 1]
    assert rl.group_advantages(batch, numerics.leave_one_out) == pytest.approx(
        [0, -4 / 3, -4 / 3, 8 / 3, 0, -2, 2]
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_integer_rewards_are_rewards(estimator: Callable) -> None:
    # Upstream takes the mean of an integer tensor here, and fails.
    whole, exact = (
        rl.trajectory_batch([rewarded(1, 0, 3)]),
        rl.trajectory_batch([rewarded(1.0, 0.0, 3.0)]),
    )

    advantages = rl.group_advantages(whole, estimator)

    assert advantages.dtype == np.float32
    assert advantages.tolist() == rl.group_advantages(exact, estimator).tolist()
    assert advantages[0] < advantages[2]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(sizes=st.lists(st.integers(0, 8), max_size=8), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_a_group_gets_what_it_gets_alone(estimator: Callable, sizes: list[int], seed: int) -> None:
    rewards = np.random.default_rng(seed).integers(0, 3, sum(sizes)).astype(float)
    groups = np.split(rewards, np.cumsum(sizes)[:-1]) if sizes else []
    batch = rl.trajectory_batch([rewarded(*group) for group in groups])

    together = rl.group_advantages(batch, estimator)
    apart = [
        np.asarray(estimator(np.pad(group, (0, 8 - len(group))), mask=np.arange(8) < len(group)))
        for group in groups
    ]

    expected = [row[: len(group)] for row, group in zip(apart, groups, strict=True)]
    np.testing.assert_allclose(together, np.concatenate([[], *expected]), rtol=1e-6, atol=1e-6)


@given(GROUPS)
@settings(max_examples=50)
def test_centered_advantages_sum_to_zero_in_each_group(groups: list) -> None:
    batch = rl.trajectory_batch(groups)
    sums = np.bincount(
        batch.trajectory_group, weights=rl.group_advantages(batch), minlength=len(groups)
    )

    np.testing.assert_allclose(sums, 0, atol=1e-5)


def test_an_estimator_of_ones_own() -> None:
    def best_only(rewards: np.ndarray, *, mask: np.ndarray) -> np.ndarray:
        return np.where(mask, rewards == rewards.max(axis=-1, keepdims=True), 0)

    batch = rl.trajectory_batch([rewarded(1, 0, 3), rewarded(2, 4)])

    assert rl.group_advantages(batch, best_only).tolist() == [0, 0, 1, 0, 1]


def test_an_estimator_that_answers_in_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match="must answer rewards of shape"):
        rl.group_advantages(
            rl.trajectory_batch([rewarded(1)]), lambda rewards, mask: rewards.sum(1)
        )


def test_every_sampled_token_gets_its_trajectorys_advantage_and_no_other_does() -> None:
    goes_on = episode(([1], [2, 3]), ([1, 2, 3, 4], [5]), reward=1)
    breaks_off = episode(([1], [2]), ([9, 9], [8, 7]), ([6] * 70, [5] * 3))
    misread = episode(([1], [2]), ([1, 2, 3], [4]), masked=(0,))
    batch = rl.trajectory_batch([group_of(goes_on, breaks_off), group_of(misread)])

    flat = rl.token_advantages(batch, np.array([5.0, -2.0, 3.0]))

    rows = [
        flat[start : start + length].tolist()
        for start, length in zip(batch.row_starts, batch.row_lengths, strict=True)
    ]
    assert rows == [
        [0, 5, 5, 0, 5],
        [0, -2],
        [0, 0, -2, -2],
        [0] * 70 + [-2] * 3,
        [0, 0, 0, 3],
    ]
    assert flat.dtype == np.float32
    assert np.count_nonzero(flat) == batch.mask.sum()


@given(GROUPS, st.integers(0, 99))
@settings(max_examples=50)
def test_token_advantages_are_an_index_away(groups: list, seed: int) -> None:
    batch = rl.trajectory_batch(groups)
    advantages = np.random.default_rng(seed).normal(size=len(batch.rewards)).astype(np.float32)
    expected = np.zeros(len(batch.mask), np.float32)
    for row, (start, length) in enumerate(zip(batch.row_starts, batch.row_lengths, strict=True)):
        for place in range(start, start + length):
            if batch.mask[place]:
                expected[place] = advantages[batch.row_trajectory[row]]

    spread = rl.token_advantages(batch, advantages)
    assert np.array_equal(spread, expected)
    assert not np.signbit(spread[~batch.mask]).any()


@pytest.mark.parametrize(
    ("advantages", "message"),
    [
        ([1.0], "has 2 trajectories and needs an advantage for each"),
        ([[1.0, 2.0]], r"got shape \(1, 2\)"),
        ([1.0, np.nan], r"that of trajectory 1 is nan \(its reward is 4.0\)"),
    ],
)
def test_advantages_that_do_not_fit_are_refused(advantages: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rl.token_advantages(rl.trajectory_batch([rewarded(1, 4)]), np.array(advantages))


def test_kl_shaping_by_hand() -> None:
    # Sampled at -2/8 and -4/8, with a prompt of one token between the two.
    batch = rl.trajectory_batch([group_of(episode(([1], [2]), ([1, 2, 3], [4])))])
    base = batch.column([[None, -1.25, -9.0, -0.5]])
    zeros = np.zeros(len(batch.mask), np.float32)

    plain = rl.kl_shaped(batch, zeros, base, coef=2.0)
    ahead = rl.kl_shaped(batch, zeros + 1, base, coef=2.0, gamma=0.5)
    teacher = rl.kl_shaped(batch, zeros, base, coef=1.0, centered=False)

    # δ is 1 and 0, so that 2 (δ̄ - δ) is -1 and 1. From the second turn to the first are two steps.
    assert plain.mean_kl == 0.5
    assert plain.advantages[:4].tolist() == [0, -1, 0, 1]
    assert ahead.advantages[:4].tolist() == [1, 0.25, 1, 2]
    assert teacher.advantages[:4].tolist() == [0, -1, 0, 0]


@given(GROUPS, st.integers(0, 99), GAMMAS, st.booleans())
@settings(max_examples=60)
def test_kl_shaping_is_its_definition(
    groups: list, seed: int, gamma: float, centered: bool
) -> None:
    batch = rl.trajectory_batch(groups)
    advantages = rl.token_advantages(batch, rl.group_advantages(batch))
    base = base_column(batch, seed)

    shaped = rl.kl_shaped(batch, advantages, base, coef=0.3, gamma=gamma, centered=centered)

    penalty = penalty_in_float64(batch, base, coef=0.3, gamma=gamma, centered=centered)
    np.testing.assert_allclose(shaped.advantages, advantages + penalty, rtol=1e-5, atol=1e-5)
    assert shaped.advantages.dtype == np.float32


def test_long_rows_carry_the_penalty_across_blocks() -> None:
    rng = np.random.default_rng(0)
    long = [rng.integers(0, 9, n).tolist() for n in (700, 300, 64, 65, 1)]
    batch = rl.trajectory_batch([group_of(*(episode(([1] * 10, answer)) for answer in long))])
    base = base_column(batch, seed=1)
    zeros = np.zeros(len(batch.mask), np.float32)

    shaped = rl.kl_shaped(batch, zeros, base, coef=1.0, gamma=0.999)

    expected = penalty_in_float64(batch, base, coef=1.0, gamma=0.999, centered=True)
    np.testing.assert_allclose(shaped.advantages, expected, atol=1e-5 * np.abs(expected).max())


@given(GROUPS, st.integers(0, 99), st.sampled_from([0.9, 1.0]))
@settings(max_examples=50)
def test_a_discounted_penalty_stays_off_the_prompt(groups: list, seed: int, gamma: float) -> None:
    # Upstream discounts after masking and leaves it at that: what precedes an action, prompts
    # above all, receives the penalty of the action.
    batch = rl.trajectory_batch(groups)
    zeros = np.zeros(len(batch.mask), np.float32)

    shaped = rl.kl_shaped(batch, zeros, base_column(batch, seed), coef=1.0, gamma=gamma)

    assert not shaped.advantages[~batch.mask].any()
    for datum in rl.batch_data(batch, shaped.advantages):
        assert not datum.advantages[datum.weights == 0].any()


@given(GROUPS, GROUPS, GAMMAS)
@settings(max_examples=40)
def test_batches_together_are_batches_apart(some: list, others: list, gamma: float) -> None:
    def advantages(groups: list) -> list:
        batch = rl.trajectory_batch(groups)
        flat = rl.token_advantages(batch, rl.group_advantages(batch))
        base = batch.column([[None, *np.sin(row[1:])] for row in batch.sequences()])
        shaped = rl.kl_shaped(batch, flat, base, coef=0.3, gamma=gamma, centered=False)
        return [datum.advantages for datum in rl.batch_data(batch, shaped.advantages)]

    together, apart = advantages(some + others), advantages(some) + advantages(others)
    for left, right in zip(together, apart, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


def test_what_the_base_model_says_off_the_mask_never_matters() -> None:
    batch = rl.trajectory_batch([rewarded(1, 0), rewarded(0, 1, 2)])
    base = base_column(batch, seed=0)
    zeros = np.zeros(len(batch.mask), np.float32)
    noise = np.where(batch.mask, 0, np.nan).astype(np.float32)

    clean = rl.kl_shaped(batch, zeros, base, coef=1.0, gamma=0.9)
    noisy = rl.kl_shaped(batch, zeros, base + noise, coef=1.0, gamma=0.9)

    assert np.array_equal(clean.advantages, noisy.advantages)
    assert clean.mean_kl == noisy.mean_kl


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_sampled_token_without_a_base_logprob_is_refused_by_its_place(bad: float) -> None:
    batch = rl.trajectory_batch([rewarded(1, 0)])
    base = base_column(batch, seed=0)
    base[batch.row_starts[1] + 3] = bad

    with pytest.raises(DataError, match=r"token 3 of row 1 is (nan|-inf)"):
        rl.kl_shaped(batch, np.zeros(len(base), np.float32), base, coef=1.0, gamma=0.9)


def test_a_token_that_sampling_ruled_out_counts_nothing() -> None:
    batch = rl.trajectory_batch([rewarded(1, 0)])
    sampling = batch.sampling_logprobs.copy()
    sampling[2] = -np.inf
    zeros = np.zeros(len(sampling), np.float32)

    shaped = rl.kl_shaped(
        replace(batch, sampling_logprobs=sampling), zeros, sampling - 1, coef=1.0, gamma=0.0
    )

    assert shaped.mean_kl == 0.75
    assert shaped.advantages[2:4].tolist() == [0.75, -0.25]


@pytest.mark.parametrize("gamma", [-0.1, 1.01, np.nan])
def test_what_is_no_discount_is_refused(gamma: float) -> None:
    batch = rl.trajectory_batch([rewarded(1, 0)])
    zeros = np.zeros(len(batch.mask), np.float32)
    with pytest.raises(ConfigurationError, match="from 0 to 1; got"):
        rl.kl_shaped(batch, zeros, zeros, coef=1.0, gamma=gamma)


def test_numbers_of_another_kind_are_the_same_program_and_widen_nothing() -> None:
    batch = rl.trajectory_batch([rewarded(1, 0)])
    zeros = np.zeros(len(batch.mask), np.float32)
    with jax.enable_x64(True):
        compiled = []
        for kind in (float, np.float64):
            shaped = rl.kl_shaped(batch, zeros, zeros, coef=kind(0.5), gamma=kind(0.5))
            compiled.append(numerics.kl_penalty._cache_size())
            assert shaped.advantages.dtype == np.float32
    assert len(set(compiled)) == 1


@pytest.mark.parametrize("coef", [np.nan, np.inf])
def test_what_is_no_weight_is_refused(coef: float) -> None:
    batch = rl.trajectory_batch([rewarded(1, 0)])
    zeros = np.zeros(len(batch.mask), np.float32)
    with pytest.raises(ConfigurationError, match="a finite number; got"):
        rl.kl_shaped(batch, zeros, zeros, coef=coef)


def test_rewards_beyond_single_precision_are_refused_as_their_advantages() -> None:
    batch = rl.trajectory_batch([rewarded(1e39, 0)])
    # Again, as jaxlib converts otherwise in a later call.
    for _ in range(2):
        with pytest.raises(DataError, match=r"trajectory 0 is nan \(its reward is 1e\+39\)"):
            rl.token_advantages(batch, rl.group_advantages(batch))


def test_columns_of_another_size_are_refused() -> None:
    batch = rl.trajectory_batch([rewarded(1, 0)])
    short = np.zeros(3, np.float32)

    with pytest.raises(DataError, match="advantages must have a value for each token"):
        rl.kl_shaped(batch, short, short, coef=1.0)
    with pytest.raises(DataError, match="advantages must have a value for each token"):
        rl.batch_data(batch, short)


def test_nothing_given_is_changed() -> None:
    batch = rl.trajectory_batch([rewarded(1, 0), rewarded(0, 1, 2)])
    base = base_column(batch, seed=0)
    trajectories = rl.group_advantages(batch)
    flat = rl.token_advantages(batch, trajectories)
    before = [array.copy() for array in (base, trajectories, flat, batch.sampling_logprobs)]

    rl.batch_data(batch, rl.kl_shaped(batch, flat, base, coef=1.0, gamma=0.9).advantages)

    after = [base, trajectories, flat, batch.sampling_logprobs]
    assert all(map(np.array_equal, before, after))


@given(GROUPS)
@settings(max_examples=50)
def test_datums_are_views_from_which_the_rows_can_be_read_back(groups: list) -> None:
    batch = rl.trajectory_batch(groups)
    flat = rl.token_advantages(batch, np.arange(len(batch.rewards)) + 1)
    data = rl.batch_data(batch, flat)

    assert len(data) == len(batch.row_starts)
    for row, datum in enumerate(data):
        start, length = batch.row_starts[row], batch.row_lengths[row]
        sequence = np.append(datum.tokens, datum.target_tokens[-1])
        assert np.array_equal(sequence, batch.sequences()[row])
        assert np.array_equal(datum.tokens[1:], datum.target_tokens[:-1])
        assert np.array_equal(datum.weights > 0, batch.mask[start + 1 : start + length])
        assert np.array_equal(datum.advantages, datum.weights * (batch.row_trajectory[row] + 1))
        assert np.array_equal(datum.logprobs, batch.sampling_logprobs[start + 1 : start + length])
        assert np.shares_memory(datum.tokens, batch.tokens)
        # The type in which Tinker takes them: what is sent is not copied once more.
        assert datum.target_tokens.dtype == np.int64
        assert np.shares_memory(datum.logprobs, batch.sampling_logprobs)
        assert np.shares_memory(datum.advantages, flat)


@given(GROUPS)
@settings(max_examples=50)
def test_trajectory_means_are_sequence_means_with_an_episodes_rows_together(groups: list) -> None:
    batch = rl.trajectory_batch(groups)
    weights = rl.trajectory_mean_weights(batch)
    starts, lengths = batch.row_starts, batch.row_lengths
    padded, ours = np.zeros((16, 256), bool), np.zeros((16, 256), np.float32)
    for trajectory in range(len(batch.rewards)):
        places = [
            place
            for row in np.flatnonzero(batch.row_trajectory == trajectory)
            for place in range(starts[row], starts[row] + lengths[row])
        ]
        padded[trajectory, : len(places)] = batch.mask[places]
        ours[trajectory, : len(places)] = weights[places]

    np.testing.assert_allclose(ours, numerics.sequence_mean_weights(padded), rtol=1e-6)
    assert np.array_equal(weights > 0, batch.mask)


def test_groups_without_a_difference_leave_everything_defined_and_in_its_place() -> None:
    # Upstream cuts the constant groups out of the list, so that tags slide to other groups; and
    # where all are constant it fails on the mean over no tokens.
    groups = [rewarded(1, 1), rewarded(0, 1), rewarded(0, 0, 0)]
    batch = rl.trajectory_batch(groups, remove_constant_reward_groups=True)

    assert batch.row_group.tolist() == [1, 1]
    assert batch.group_sizes.tolist() == [2, 2, 3]
    assert rl.group_advantages(batch).tolist() == [0, 0, -0.5, 0.5, 0, 0, 0]
    tags = [["easy"], ["fair"], ["hard"]]
    assert [tags[group] for group in batch.row_group] == [["fair"], ["fair"]]
    assert [report.total_episodes for report in rl.compute_trajectory_metrics(groups, tags)] == [
        2,
        2,
        3,
        7,
    ]


@pytest.mark.parametrize("groups", [[], [group_of()], [rewarded(1, 1), rewarded(0)]])
def test_a_batch_without_rows_passes_through_all_of_it(groups: list) -> None:
    batch = rl.trajectory_batch(groups, remove_constant_reward_groups=True)
    advantages = rl.group_advantages(batch)
    flat = rl.token_advantages(batch, advantages)
    shaped = rl.kl_shaped(batch, flat, batch.column([]), coef=0.1, gamma=0.9)

    assert advantages.tolist() == [0] * len(batch.rewards)
    assert not shaped.advantages.any()
    assert shaped.mean_kl == 0
    assert not rl.trajectory_mean_weights(batch).any()
    assert rl.batch_data(batch, shaped.advantages) == []
    scores = numerics.sample_train_kl(batch.sampling_logprobs, flat, batch.mask)
    assert [float(score) for score in scores] == [0, 0, 0, 0]


def varied_run(steps: int) -> list[rl.TrajectoryBatch]:
    """Batches as a run makes them: groups filtered out, episodes that failed, answers that grow."""
    rng = np.random.default_rng(0)
    run = []
    for step in range(steps):
        groups = []
        for _ in range(rng.integers(2, 7)):
            lengths = rng.lognormal(6 + step / steps, 0.3, rng.integers(6, 10)).astype(int)
            members = [episode(([1] * 40, [2] * n), reward=n % 2) for n in lengths.tolist()]
            groups.append(group_of(*members))
        run.append(rl.trajectory_batch(with_arrays(groups)))
    return run


def test_a_varied_run_compiles_little_and_pads_little() -> None:
    run = varied_run(200)
    sizes = collections.Counter(len(batch.mask) for batch in run)
    assert len(sizes) <= 12
    assert sizes.total() == 200
    tokens = sum(int(batch.row_lengths.sum()) for batch in run)
    assert sum(size * times for size, times in sizes.items()) <= 1.2 * tokens

    # Each size is one program, whatever else changes: seen at the steps of the two smallest.
    functions = [numerics.group_centered, numerics.token_mean_weights, numerics.kl_penalty]
    for function in functions:
        function.clear_cache()
    for batch in run:
        rl.group_advantages(batch)
    seen = sorted(sizes)[:2]
    for step, batch in enumerate(run):
        if len(batch.mask) in seen:
            advantages = rl.token_advantages(batch, rl.group_advantages(batch))
            weighted = advantages * numerics.token_mean_weights(batch.mask)
            rl.kl_shaped(batch, weighted, advantages, coef=step / 200, gamma=1 - step / 200)

    tables, *flat = (function._cache_size() for function in functions)
    assert 1 <= tables <= 12
    assert flat == [2, 2]
    assert sum(sizes[size] for size in seen) > 2
