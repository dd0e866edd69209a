import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cookbook_fx.numerics import (
    bits_per_byte,
    entropy,
    example_mean_nll,
    mean_nll,
    perplexity,
    weighted_nll,
)

LOGPROBS = hnp.arrays(np.float64, (3, 5), elements=st.floats(-20, 0, width=32))
WEIGHTS = hnp.arrays(np.float64, (3, 5), elements=st.sampled_from([0.0, 0.25, 1.0, 3.0]))


def test_hand_computed_values():
    logprobs, weights = np.array([-1.0, -2.0, -3.0]), np.array([1.0, 0.0, 2.0])
    assert weighted_nll(logprobs, weights) == 7
    assert mean_nll(logprobs, weights) == pytest.approx(7 / 3)
    assert perplexity(np.log(np.array(50.0))) == pytest.approx(50)
    bits = bits_per_byte(np.log([0.5, 0.25]), np.array([True, True]), 12)
    assert bits == pytest.approx(3 / 12)


@given(LOGPROBS, WEIGHTS)
def test_jax_numpy_and_a_plain_loop_agree(logprobs, weights):
    total = -sum(lp * w for lp, w in zip(logprobs.flat, weights.flat, strict=True))
    expected = total / weights.sum() if weights.sum() else 0.0
    assert mean_nll(logprobs, weights) == pytest.approx(expected)
    arrays = jnp.asarray(logprobs, jnp.float32), jnp.asarray(weights, jnp.float32)
    assert float(jax.jit(mean_nll)(*arrays)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    rows = [float(mean_nll(lp, w)) for lp, w in zip(logprobs, weights, strict=True)]
    np.testing.assert_allclose(example_mean_nll(logprobs, weights), rows, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(mean_nll)(*arrays), rows, rtol=1e-5, atol=1e-6)


@given(LOGPROBS, WEIGHTS)
def test_weights_of_sum_one_make_the_batch_mean_the_mean_of_means(logprobs, weights):
    weights[:, 0] = 1
    reduced = weights / weights.sum(axis=1, keepdims=True)
    means = example_mean_nll(logprobs, weights)
    assert mean_nll(logprobs, reduced) == pytest.approx(means.mean())


@pytest.mark.parametrize("filler", [-np.inf, np.nan, np.inf])
def test_padding_may_hold_anything_and_has_no_gradient(filler):
    logprobs = jnp.array([-1.0, filler, -3.0])
    weights = jnp.array([1.0, 0.0, 1.0])
    value, gradient = jax.value_and_grad(mean_nll)(logprobs, weights)
    assert value == 2
    assert gradient.tolist() == [-0.5, 0.0, -0.5]
    assert bits_per_byte(logprobs, weights != 0, 1) == pytest.approx(4 / np.log(2))


def test_nothing_to_predict_is_zero_with_zero_gradient():
    nothing = jnp.zeros(2)
    value, gradient = jax.value_and_grad(mean_nll)(jnp.array([-1.0, -jnp.inf]), nothing)
    assert value == 0
    assert gradient.tolist() == [0, 0]
    assert mean_nll(np.zeros(0), np.zeros(0)) == 0
    assert bits_per_byte(np.zeros(0), np.zeros(0, bool), 0) == 0
    assert example_mean_nll(np.full((1, 2), -1.0), np.zeros((1, 2))).tolist() == [0]


def test_half_precision_adds_up_in_single():
    logprobs = jnp.full(4096, -1.0, jnp.bfloat16)
    total = weighted_nll(logprobs, jnp.ones(4096, jnp.bfloat16))
    assert total.dtype == jnp.float32
    assert total == 4096


def test_single_precision_stays_near_double():
    generator = np.random.default_rng(0)
    logprobs, weights = -generator.exponential(3.0, 50_000), generator.random(50_000)
    single = jax.jit(mean_nll)(
        jnp.asarray(logprobs, jnp.float32), jnp.asarray(weights, jnp.float32)
    )
    assert float(single) == pytest.approx(float(mean_nll(logprobs, weights)), rel=1e-5)


def test_bytes_may_be_traced():
    bits = jax.jit(bits_per_byte)(jnp.log(jnp.array([0.5])), jnp.array([True]), jnp.array(2))
    assert bits == pytest.approx(0.5)


def test_bytes_may_be_more_than_32_bits_count():
    many = 6_000_000_000
    logprobs = np.array([-many * np.log(2)])
    for namespace in (np, jnp):
        bits = bits_per_byte(namespace.asarray(logprobs), namespace.asarray([True]), many)
        assert float(bits) == pytest.approx(1, rel=1e-6)


@settings(max_examples=40)
@given(LOGPROBS, WEIGHTS)
def test_the_measures_are_one_sum_in_different_units(logprobs, weights):
    nats = weighted_nll(logprobs, weights)
    assert nats == pytest.approx(mean_nll(logprobs, weights) * weights.sum())
    rows = example_mean_nll(logprobs, weights) * weights.sum(axis=1)
    assert nats == pytest.approx(rows.sum())
    counted = weights != 0
    bits = bits_per_byte(logprobs, counted, 7) * 7
    assert bits * np.log(2) == pytest.approx(weighted_nll(logprobs, counted.astype(float)))
    assert np.log(perplexity(mean_nll(logprobs, weights))) == pytest.approx(
        mean_nll(logprobs, weights), abs=1e-12
    )


@settings(max_examples=20)
@given(LOGPROBS, WEIGHTS, st.permutations(range(15)))
def test_order_and_padding_do_not_matter(logprobs, weights, order):
    def padded(array, filler):
        return np.concatenate([array.ravel()[order], np.full(4, filler)])

    for function in (weighted_nll, mean_nll):
        shuffled = function(padded(logprobs, -np.inf), padded(weights, 0.0))
        assert shuffled == pytest.approx(function(logprobs, weights))


@settings(max_examples=20)
@given(LOGPROBS, WEIGHTS)
def test_gradients_are_their_closed_forms(logprobs, weights):
    arrays = jnp.asarray(logprobs, jnp.float32), jnp.asarray(weights, jnp.float32)
    np.testing.assert_array_equal(GRADIENTS["sum"](*arrays), -arrays[1])
    np.testing.assert_allclose(
        GRADIENTS["mean"](*arrays), -weights / max(weights.sum(), 0.25), rtol=1e-6
    )
    a_row = -weights / np.maximum(weights.sum(axis=1, keepdims=True), 0.25)
    np.testing.assert_allclose(GRADIENTS["rows"](*arrays), a_row, rtol=1e-6)


GRADIENTS = {
    name: jax.jit(jax.grad(lambda p, w, measure=measure: measure(p, w).sum()))
    for name, measure in [("sum", weighted_nll), ("mean", mean_nll), ("rows", example_mean_nll)]
}


def test_what_counts_and_is_impossible_is_infinitely_unlikely_with_a_finite_gradient():
    logprobs, weights = np.array([-1.0, -np.inf]), np.array([1.0, 1.0])
    assert weighted_nll(logprobs, weights) == mean_nll(logprobs, weights) == np.inf
    assert example_mean_nll(logprobs, weights) == np.inf
    assert perplexity(mean_nll(logprobs, weights)) == np.inf
    assert bits_per_byte(logprobs, weights != 0, 3) == np.inf
    assert jax.grad(mean_nll)(jnp.asarray(logprobs), jnp.ones(2)).tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("namespace", [np, jnp])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_rows_without_tokens_and_batches_without_rows_are_zero(namespace, shape):
    logprobs, weights = namespace.zeros(shape), namespace.zeros(shape)
    np.testing.assert_array_equal(example_mean_nll(logprobs, weights), np.zeros(shape[0]))
    assert weighted_nll(logprobs, weights) == mean_nll(logprobs, weights) == 0
    assert perplexity(mean_nll(logprobs, weights)) == 1


def test_double_precision_is_kept():
    logprobs, weights = np.array([[-1.0, -1e-9]]), np.array([[1.0, 1.0]])
    with jax.enable_x64(True):
        arrays = jnp.asarray(logprobs), jnp.asarray(weights)
        for result, expected in [
            (weighted_nll(*arrays), 1 + 1e-9),
            (mean_nll(*arrays), (1 + 1e-9) / 2),
            (example_mean_nll(*arrays)[0], (1 + 1e-9) / 2),
            (bits_per_byte(arrays[0], arrays[1] != 0, 1) * np.log(2), 1 + 1e-9),
        ]:
            assert result.dtype == np.float64
            assert float(result) == pytest.approx(expected, rel=1e-14)


def test_numpy_may_stand_beside_what_is_traced():
    logprobs, ones = np.array([-1.0, -3.0], np.float32), np.ones(2, np.float32)
    for function in (weighted_nll, mean_nll, example_mean_nll):
        expected = function(logprobs, ones)
        assert jax.jit(lambda w, f=function: f(logprobs, w))(ones) == expected
        assert jax.jit(lambda p, f=function: f(p, ones))(logprobs) == expected
    bytes_ = jax.jit(lambda counted: bits_per_byte(logprobs, counted, 4))(ones > 0)
    assert bytes_ == pytest.approx(bits_per_byte(logprobs, ones > 0, 4))
    assert jax.jit(lambda n: bits_per_byte(logprobs, ones > 0, n))(4) == bytes_


def test_a_plain_number_of_nats_has_a_perplexity():
    assert perplexity(np.log(8)) == perplexity(float(np.log(8))) == pytest.approx(8)


VOCABULARY = hnp.arrays(np.float64, (3, 5), elements=st.one_of(st.floats(-9, 9), st.just(-np.inf)))


def test_entropies_by_hand():
    certain, uniform = np.array([0.0, -np.inf, -np.inf]), np.log(np.full(3, 1 / 3))
    skewed = np.log([0.5, 0.25, 0.25])
    assert entropy(np.stack([certain, uniform, skewed])).tolist() == pytest.approx(
        [0, np.log(3), 1.5 * np.log(2)]
    )
    assert not np.signbit(entropy(certain))


@settings(max_examples=60)
@given(VOCABULARY)
def test_entropies_are_bounded_and_agree_with_jax_and_numpy(logits):
    logits[:, 2] = 0
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = entropy(logprobs)
    assert (nats > -1e-12).all()
    assert (nats <= np.log(5) + 1e-12).all()
    probabilities = np.exp(logprobs)
    summands = [[p * np.log(p) if p else 0 for p in row] for row in probabilities]
    np.testing.assert_allclose(nats, -np.sum(summands, axis=-1), atol=1e-12)
    single = jnp.asarray(logprobs, jnp.float32)
    expected = jax.scipy.special.entr(jnp.exp(single)).sum(axis=-1)
    np.testing.assert_allclose(JITTED_ENTROPY(single), expected, atol=2e-6)
    np.testing.assert_allclose(jax.vmap(entropy)(single), nats, atol=2e-6)


JITTED_ENTROPY = jax.jit(entropy)


@settings(max_examples=30)
@given(VOCABULARY)
def test_the_slope_of_an_entropy_is_its_closed_form_and_finite(logits):
    logits[:, 2] = 0
    logprobs = jnp.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)), jnp.float32)
    slope = ENTROPY_SLOPE(logprobs)
    p = np.exp(np.asarray(logprobs, np.float64))
    expected = -p * (np.where(p > 0, logprobs, 0) + 1)
    np.testing.assert_allclose(slope, expected, atol=1e-6)
    through_softmax = LOGITS_SLOPE(jnp.asarray(logits, jnp.float32))
    assert np.isfinite(through_softmax).all()
    np.testing.assert_allclose(through_softmax.sum(axis=-1), 0, atol=1e-5)


ENTROPY_SLOPE = jax.jit(jax.grad(lambda logprobs: entropy(logprobs).sum()))
LOGITS_SLOPE = jax.jit(jax.grad(lambda logits: entropy(jax.nn.log_softmax(logits)).sum()))


def test_entropy_keeps_kind_and_precision():
    logprobs = np.log(np.full((2, 4), 0.25))
    assert isinstance(entropy(logprobs), np.ndarray)
    assert entropy(logprobs.astype(np.float32)).dtype == np.float32
    assert entropy(jnp.asarray(logprobs, jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert entropy(jnp.asarray(logprobs)).dtype == jnp.float64
    assert np.isnan(entropy(np.array([np.nan, 0.0])))
    assert entropy(np.zeros((0, 3))).shape == (0,)
    assert entropy(np.zeros((3, 0))).tolist() == [0, 0, 0]
