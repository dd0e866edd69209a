"""What counts is added up, exactly enough; what does not is never looked at."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cookbook_fx.numerics import masked

SHAPE = (3, 4)
VALUES = hnp.arrays(np.float32, SHAPE, elements=st.floats(-1e3, 1e3, width=32))
MASKS = hnp.arrays(np.bool_, SHAPE)
AXES = pytest.mark.parametrize("axis", [None, 0, 1, -1])


def test_hand_computed_values():
    values = jnp.array([[1, 2, 3], [4, 5, 6]])
    mask = jnp.array([[True, False, True], [False, False, False]])
    assert masked.keep(values, mask).tolist() == [[1, 0, 3], [0, 0, 0]]
    assert int(masked.count(mask)) == 2
    assert masked.count(mask, axis=1).tolist() == [2, 0]
    assert float(masked.total(values, mask)) == 4
    assert masked.total(values, mask, axis=0).tolist() == [1, 0, 3]
    assert float(masked.mean(values, mask)) == 2
    assert masked.mean(values, mask, axis=1).tolist() == [2, 0]


@AXES
@settings(max_examples=40)
@given(values=VALUES, mask=MASKS)
def test_sums_and_means_are_those_of_what_counts(axis, values, mask):
    sums = np.sum(values.astype(float), axis=axis, where=mask)
    counts = mask.sum(axis=axis)
    assert (np.asarray(masked.count(mask, axis=axis)) == counts).all()
    np.testing.assert_allclose(masked.total(values, mask, axis=axis), sums, rtol=1e-5, atol=1e-3)
    means = np.where(counts, sums / np.maximum(counts, 1), 0)
    np.testing.assert_allclose(masked.mean(values, mask, axis=axis), means, rtol=1e-5, atol=1e-3)


@AXES
@settings(max_examples=20)
@given(
    values=VALUES,
    mask=MASKS,
    padding=hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([np.nan, np.inf, -np.inf])),
)
def test_padding_reaches_neither_values_nor_gradients(axis, values, mask, padding):
    def loss(values):
        return jnp.sum(masked.mean(values, mask, axis=axis) ** 2)

    dirty = np.where(mask, values, padding)
    clean = np.where(mask, values, 0)
    np.testing.assert_array_equal(masked.keep(dirty, mask), clean)
    np.testing.assert_array_equal(
        masked.mean(dirty, mask, axis=axis), masked.mean(clean, mask, axis=axis)
    )
    slope = np.asarray(jax.grad(loss)(dirty))
    np.testing.assert_array_equal(slope, jax.grad(loss)(clean))
    assert not slope[~mask].any()


def test_what_counts_and_is_not_finite_shows():
    mask = jnp.array([True, True])
    assert math.isnan(masked.total(jnp.array([jnp.nan, 1.0]), mask))
    assert masked.mean(jnp.array([-jnp.inf, 1.0]), mask) == -jnp.inf


@pytest.mark.parametrize(
    ("dtype", "sums_in"),
    [
        (bool, "float32"),
        ("int8", "float32"),
        ("int32", "float32"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("int64", "float32"),
        ("float64", "float64"),
    ],
)
def test_results_are_of_at_least_single_precision(dtype, sums_in):
    with jax.enable_x64(True):
        values, mask = jnp.ones((2, 3), dtype), jnp.ones((2, 3), bool)
        for result in (
            masked.keep(values, mask),
            masked.total(values, mask),
            masked.mean(values, mask, axis=1),
        ):
            assert result.dtype == sums_in
        assert masked.mean(values, mask) == 1


def test_bytes_of_ones_do_not_wrap_around():
    assert masked.total(jnp.full(1000, 100, jnp.uint8), jnp.ones(1000, bool)) == 100_000


def test_arrays_without_axes_are_one_value():
    assert masked.total(jnp.array(3.0), jnp.array(True)) == 3
    assert masked.mean(np.array(3), np.array(True)) == 3
    assert masked.mean(jnp.array(jnp.nan), jnp.array(False)) == 0
    with pytest.raises(ValueError, match="out of bounds"):
        masked.total(jnp.array(3.0), jnp.array(True), axis=0)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_nothing_at_all_adds_up_to_zero(shape):
    values, mask = jnp.zeros(shape), jnp.zeros(shape, bool)
    assert masked.total(values, mask) == masked.mean(values, mask) == masked.count(mask) == 0
    for axis in range(len(shape)):
        rest = shape[:axis] + shape[axis + 1 :]
        np.testing.assert_array_equal(masked.mean(values, mask, axis=axis), np.zeros(rest))
    assert jax.grad(lambda v: masked.mean(v, mask))(values).shape == shape


def test_tens_of_millions_keep_their_digits():
    # One by one, float32 stops counting at 2²⁴ and adds tenths with an error of percents.
    size = 2**25 + 1
    values, mask = jnp.full(size, 0.1), jnp.ones(size, bool)
    assert int(masked.count(mask)) == size
    exact = float(np.float32(0.1))
    assert float(masked.total(values, mask)) == pytest.approx(size * exact, rel=1e-6)
    assert float(masked.mean(values, mask)) == pytest.approx(exact, rel=1e-6)


def test_under_vmap_rows_are_reduced_apart():
    values, mask = jnp.arange(12.0).reshape(SHAPE), jnp.arange(12).reshape(SHAPE) % 3 == 0
    np.testing.assert_array_equal(
        jax.vmap(masked.mean)(values, mask), masked.mean(values, mask, axis=1)
    )
