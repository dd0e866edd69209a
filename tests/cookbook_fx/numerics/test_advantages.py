"""Group advantages by hand, against NumPy in double precision, and the properties of each."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cookbook_fx.numerics import group_centered, group_normalized, leave_one_out, max_rl

ESTIMATORS = [group_centered, group_normalized, leave_one_out, max_rl]
EVERY = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda function: function.__name__)
# One shape for all, so that nothing is compiled again.
SHAPE = (3, 5)
REWARDS = hnp.arrays(np.float32, SHAPE, elements=st.floats(0, 8, width=16))
MASKS = hnp.arrays(np.bool_, SHAPE)
MAPPED = {
    estimator: jax.jit(jax.vmap(lambda r, m, estimator=estimator: estimator(r, mask=m)))
    for estimator in ESTIMATORS
}


@functools.partial(jax.jit, static_argnums=0)
def slopes(estimator, rewards, mask):
    """The gradient of a weighted sum of the advantages."""
    weights = jnp.arange(15.0).reshape(SHAPE)
    return jax.grad(lambda r: jnp.sum(estimator(r, mask=mask) * weights))(rewards)


def reference(estimator, rewards, mask):
    """The definitions, a group at a time, in double precision."""
    result = np.zeros(rewards.shape)
    for row, (group, counts) in enumerate(zip(rewards.astype(float), mask, strict=True)):
        r = group[counts]
        if r.size == 0 or (r == r[0]).all():
            continue
        others = (r.sum() - r) / (r.size - 1)
        result[row, counts] = {
            group_centered: r - r.mean(),
            group_normalized: (r - r.mean()) / (r.std() + 1e-6),
            leave_one_out: r - others,
            max_rl: (r - r.mean()) / r.mean(),
        }[estimator]
    return result


def assert_near(result, expected, share=1e-6):
    """Equal but for rounding of the largest advantage of each group."""
    expected = np.asarray(expected)
    off = np.abs(np.asarray(result) - expected).max(axis=-1)
    assert (off <= share * np.abs(expected).max(axis=-1)).all()


@pytest.mark.parametrize(
    ("estimator", "rewards", "advantages"),
    [
        (group_centered, [3, 1, 1, 3], [1, -1, -1, 1]),
        (group_normalized, [5, 1, 1, 5], [1, -1, -1, 1]),
        (leave_one_out, [4, 1, 1], [3, -1.5, -1.5]),
        (max_rl, [1, 0, 0, 0, 0], [4, -1, -1, -1, -1]),
        (max_rl, [6, 2, 1], [1, -1 / 3, -2 / 3]),
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float16, np.float32])
def test_hand_computed_values(estimator, rewards, advantages, dtype):
    result = estimator(np.array([rewards], dtype))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, [advantages], rtol=2e-6)


@EVERY
def test_bools_and_integers_are_rewards_like_any(estimator):
    expected = estimator(jnp.array([[1.0, 0.0, 0.0]]))
    for dtype in (bool, jnp.int8, jnp.int32):
        np.testing.assert_array_equal(estimator(jnp.array([[1, 0, 0]], dtype)), expected)


@EVERY
@settings(max_examples=60)
@given(rewards=REWARDS, mask=MASKS)
def test_they_follow_their_definitions(estimator, rewards, mask):
    result = np.asarray(estimator(rewards, mask=mask))
    expected = reference(estimator, rewards, mask)
    assert_near(result, expected, 1e-5)
    assert not result[~mask].any()


@EVERY
@settings(max_examples=30)
@given(rewards=REWARDS, mask=MASKS)
def test_each_group_sums_to_zero_and_lists_its_rewards_order(estimator, rewards, mask):
    result = np.asarray(estimator(rewards, mask=mask), np.float64)
    largest = np.abs(result).max(axis=-1)
    assert (np.abs(result.sum(axis=-1)) <= 1e-5 * largest).all()
    for advantages, group, counts in zip(result, rewards, mask, strict=True):
        order = np.argsort(group[counts], kind="stable")
        assert (np.diff(advantages[counts][order]) >= 0).all()


@EVERY
@settings(max_examples=30)
@given(
    rewards=REWARDS,
    mask=MASKS,
    padding=hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([np.nan, np.inf, -np.inf, 1e9])),
)
def test_padding_is_never_looked_at(estimator, rewards, mask, padding):
    clean, dirty = np.where(mask, rewards, 0), np.where(mask, rewards, padding)
    np.testing.assert_array_equal(estimator(dirty, mask=mask), estimator(clean, mask=mask))
    slope = np.asarray(slopes(estimator, dirty, mask))
    assert np.isfinite(slope).all()
    assert not slope[~mask].any()


@EVERY
@settings(max_examples=30)
@given(
    rewards=REWARDS,
    mask=MASKS,
    permutation=st.permutations(range(5)),
    groups=st.permutations(range(3)),
)
def test_the_order_of_rollouts_and_groups_does_not_matter(
    estimator, rewards, mask, permutation, groups
):
    straight = np.asarray(estimator(rewards, mask=mask))
    there = np.ix_(groups, permutation)
    shuffled = estimator(rewards[there], mask=mask[there])
    assert_near(shuffled, straight[there])


@EVERY
@settings(max_examples=20)
@given(rewards=REWARDS, mask=MASKS)
def test_a_batch_is_its_groups_and_so_it_is_under_vmap_and_jit(estimator, rewards, mask):
    together = estimator(rewards, mask=mask)
    apart = [estimator(r, mask=m) for r, m in zip(rewards, mask, strict=True)]
    assert_near(together, np.stack(apart))
    assert_near(MAPPED[estimator](rewards, mask), together)


@EVERY
@settings(max_examples=20)
@given(rewards=REWARDS)
def test_without_a_mask_all_count(estimator, rewards):
    full = estimator(rewards, mask=np.ones(SHAPE, bool))
    assert_near(estimator(rewards), full)


@pytest.mark.parametrize("estimator", [group_centered, leave_one_out, group_normalized])
@settings(max_examples=30)
@given(steps=hnp.arrays(np.int8, SHAPE), mask=MASKS, shift=st.sampled_from([1e3, -1e6, 3e6]))
def test_a_shift_that_the_rewards_survive_changes_nothing(estimator, steps, mask, shift):
    # Quarters on an offset of millions are exact in float32; a mean taken there would not be.
    rewards = steps.astype(np.float32) / 4
    moved = (rewards + np.float32(shift)).astype(np.float32)
    np.testing.assert_array_equal(moved - np.float32(shift), rewards)
    expected = np.asarray(estimator(rewards, mask=mask))
    result = estimator(moved, mask=mask)
    assert_near(result, expected, 1e-5)


@settings(max_examples=30)
@given(rewards=REWARDS, mask=MASKS, factor=st.sampled_from([0.5, 4.0, 1024.0]))
def test_scale_is_kept_by_differences_and_lost_in_ratios(rewards, mask, factor):
    for estimator, power in [(group_centered, 1), (leave_one_out, 1), (max_rl, 0)]:
        expected = np.asarray(estimator(rewards, mask=mask)) * factor**power
        assert_near(estimator(rewards * factor, mask=mask), expected)
    expected = group_normalized(rewards, mask=mask, eps=0.0)
    assert_near(group_normalized(rewards * factor, mask=mask, eps=0.0), expected)


@settings(max_examples=30)
@given(rewards=REWARDS, mask=MASKS)
def test_normalized_groups_that_vary_have_mean_square_one(rewards, mask):
    result = np.asarray(group_normalized(rewards, mask=mask, eps=0.0), np.float64)
    for advantages, group, counts in zip(result, rewards, mask, strict=True):
        if np.unique(group[counts]).size > 1:
            assert np.mean(advantages[counts] ** 2) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("successes", range(9))
def test_max_rl_is_the_average_score_of_the_successes(successes):
    """Σ A·score / N is the mean score of successes, but for the control variate, the mean score."""
    group = np.arange(8) < successes
    scores = np.random.default_rng(0).normal(size=8)
    gradient = np.mean(np.asarray(max_rl(group)) * scores)
    expected = scores[group].mean() - scores.mean() if successes else 0.0
    assert gradient == pytest.approx(expected, abs=1e-6)


def test_max_rl_of_a_negative_mean_is_zero_rather_than_turned_around():
    rewards = jnp.array([[-1.0, -3.0], [1.0, -1.0], [0.0, 2.0]])
    assert max_rl(rewards).tolist() == [[0, 0], [0, 0], [-1, 1]]


@EVERY
@pytest.mark.parametrize("value", [0.1, -0.7, 1e6 + 0.3, 1e-12, 0.0])
@pytest.mark.parametrize("size", [1, 7, 16])
def test_equal_rewards_give_exact_zeros_and_finite_gradients(estimator, value, size):
    group = jnp.full((2, 16), value)
    mask = jnp.broadcast_to(jnp.arange(16) < size, (2, 16))
    value, pull_back = jax.vjp(lambda r: estimator(r, mask=mask), group)
    assert not np.asarray(value).any()
    (slope,) = pull_back(jnp.cos(jnp.arange(32.0)).reshape(2, 16))
    assert np.isfinite(slope).all()
    assert not np.asarray(estimator(group[:, :size])).any()


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_rewards_that_rounding_alone_tells_apart_are_damped_by_eps(eps):
    rewards = np.array([[0.1 + 0.2, 0.3]])
    with jax.enable_x64(True):
        result = np.abs(np.asarray(group_normalized(rewards, eps=eps)))
    assert (result < 1e-9).all() == (eps > 0)


@EVERY
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 4), (2, 0, 3)])
def test_empty_groups_and_batches_give_empty_arrays(estimator, shape):
    assert estimator(jnp.zeros(shape)).shape == shape
    assert estimator(jnp.zeros(shape), mask=jnp.zeros(shape, bool)).shape == shape


@EVERY
def test_a_group_with_nothing_that_counts_is_zero(estimator):
    mask = jnp.zeros((1, 3), bool)
    value, slope = jax.value_and_grad(lambda r: estimator(r, mask=mask).sum())(jnp.ones((1, 3)))
    assert value == 0
    assert slope.tolist() == [[0, 0, 0]]


@EVERY
@pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_shows_in_its_own_group_only(estimator, broken):
    result = np.asarray(estimator(jnp.array([[broken, 1.0, 2.0], [1.0, 0.0, 2.0]])))
    assert not np.isfinite(result[0]).any()
    np.testing.assert_array_equal(result[1:], estimator(jnp.array([[1.0, 0.0, 2.0]])))


@EVERY
def test_double_precision_is_kept(estimator):
    generator = np.random.default_rng(1)
    rewards, mask = generator.random((20, 9)), generator.random((20, 9)) < 0.7
    with jax.enable_x64(True):
        result = estimator(rewards, mask=mask)
        single = estimator(rewards.astype(np.float32), mask=mask)
        counted = estimator(rewards > 0.5, mask=mask)
    assert result.dtype == np.float64
    assert single.dtype == counted.dtype == np.float32
    expected = reference(estimator, rewards, mask)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@EVERY
def test_gradients_are_those_of_finite_differences(estimator):
    generator = np.random.default_rng(2)
    rewards, directions = generator.random((2, 6)) + 0.1, generator.normal(size=(2, 6))
    weights = generator.normal(size=(2, 6))
    mask = np.array([[True] * 6, [True, False, True, True, False, True]])
    with jax.enable_x64(True):

        def loss(rewards):
            return jnp.sum(estimator(rewards, mask=mask) * weights)

        slope = np.sum(np.asarray(jax.grad(loss)(rewards)) * directions)
        step = 1e-6
        ahead, behind = loss(rewards + step * directions), loss(rewards - step * directions)
    assert slope == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-6)


def test_large_groups_in_single_precision_stay_near_the_exact_mean():
    generator = np.random.default_rng(3)
    rewards = generator.normal(100, 1, 4096).astype(np.float32)
    exact = sum(map(Fraction, rewards.tolist())) / 4096
    expected = np.array([float(Fraction(r) - exact) for r in rewards.tolist()])
    np.testing.assert_allclose(group_centered(rewards), expected, atol=1e-6)


def test_eps_may_change_without_compiling_anything():
    rewards = jnp.ones((2, 11))
    group_normalized(rewards, eps=1e-6)
    compiled = group_normalized._cache_size()
    for eps in (1e-4, 1e-3, 0.5):
        group_normalized(rewards, eps=eps)
    assert group_normalized._cache_size() == compiled
