"""With these weights, a sum of token losses is the mean each paper writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cookbook_fx.numerics import (
    constant_length_weights,
    sequence_mean_weights,
    token_mean_weights,
)

SHAPE = (4, 6)
MASKS = hnp.arrays(np.bool_, SHAPE)
LOSSES = hnp.arrays(np.float64, SHAPE, elements=st.floats(-8, 8, width=32))


def constant_weights(mask):
    return constant_length_weights(mask, length=6)


EVERY = pytest.mark.parametrize(
    "weights_of", [token_mean_weights, sequence_mean_weights, constant_weights]
)


def sequences(mask, losses):
    """The losses of each response that has any, as the papers' sums run over them."""
    return [row[counts] for row, counts in zip(losses, mask, strict=True) if counts.any()]


@settings(max_examples=60)
@given(mask=MASKS, losses=LOSSES, length=st.sampled_from([1, 6, 1024, 0.5]))
def test_the_weighted_sum_is_the_mean_of_each_paper(mask, losses, length):
    rows = sequences(mask, losses)
    dapo = np.concatenate(rows).mean() if rows else 0.0
    grpo = np.mean([row.mean() for row in rows]) if rows else 0.0
    dr_grpo = np.mean([row.sum() / length for row in rows]) if rows else 0.0
    for weights, expected in [
        (token_mean_weights(mask), dapo),
        (sequence_mean_weights(mask), grpo),
        (constant_length_weights(mask, length=length), dr_grpo),
    ]:
        assert np.sum(np.asarray(weights) * losses) == pytest.approx(expected, rel=1e-6, abs=1e-5)


def test_hand_computed_values():
    mask = jnp.array([[False, True, True], [True, True, True], [False, False, False]])
    np.testing.assert_allclose(token_mean_weights(mask), mask / 5)
    np.testing.assert_allclose(
        sequence_mean_weights(mask), [[0, 1 / 4, 1 / 4], [1 / 6] * 3, [0] * 3], rtol=1e-6
    )
    np.testing.assert_allclose(constant_length_weights(mask, length=10), mask / 20)


@EVERY
@settings(max_examples=30)
@given(mask=MASKS)
def test_only_what_counts_has_weight(weights_of, mask):
    weights = np.asarray(weights_of(mask))
    assert weights.dtype == np.float32
    assert ((weights > 0) == mask).all()
    if mask.any() and weights_of is not constant_weights:
        assert weights.sum() == pytest.approx(1, rel=1e-6)


@EVERY
@settings(max_examples=20)
@given(mask=MASKS)
def test_more_padding_changes_no_weight(weights_of, mask):
    weights = np.asarray(weights_of(mask))
    padded = np.pad(mask, ((0, 3), (2, 5)))
    np.testing.assert_array_equal(weights_of(padded), np.pad(weights, ((0, 3), (2, 5))))


def test_full_sequences_of_the_constant_length_make_the_three_one():
    mask = jnp.ones(SHAPE, bool)
    for weights in (sequence_mean_weights(mask), constant_weights(mask)):
        np.testing.assert_allclose(weights, token_mean_weights(mask), rtol=1e-6)


@EVERY
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3)])
def test_nothing_that_counts_weighs_nothing(weights_of, shape):
    np.testing.assert_array_equal(weights_of(jnp.zeros(shape, bool)), np.zeros(shape))


def test_flat_buffers_have_a_token_mean_and_single_sequences_every_mean():
    mask = jnp.array([True, False, True, True])
    np.testing.assert_allclose(token_mean_weights(mask), mask / 3)
    np.testing.assert_allclose(sequence_mean_weights(mask), mask / 3)
    np.testing.assert_allclose(constant_length_weights(mask, length=8), mask / 8)


@EVERY
def test_under_jit_and_vmap_batches_are_weighted_apart(weights_of):
    masks = np.random.default_rng(0).random((3, 4, 5)) < 0.5
    apart = np.stack([weights_of(mask) for mask in masks])
    np.testing.assert_array_equal(jax.jit(jax.vmap(weights_of))(masks), apart)


def test_weights_of_single_precision_do_not_widen_losses():
    with jax.enable_x64(True):
        for weights in (
            token_mean_weights(jnp.ones(SHAPE, bool)),
            sequence_mean_weights(jnp.ones(SHAPE, bool)),
            constant_length_weights(jnp.ones(SHAPE, bool), length=np.float64(3)),
        ):
            assert weights.dtype == np.float32


def test_another_length_compiles_nothing():
    mask = jnp.ones((2, 7), bool)
    constant_length_weights(mask, length=1)
    compiled = constant_length_weights._cache_size()
    for length in (2, 1024):
        constant_length_weights(mask, length=length)
    assert constant_length_weights._cache_size() == compiled
