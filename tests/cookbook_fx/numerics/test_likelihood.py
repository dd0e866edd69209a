import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cookbook_fx.numerics import (
    bits_per_byte,
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


@settings(deadline=None)
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
