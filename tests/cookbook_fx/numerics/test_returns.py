"""Discounted sums by hand, against the definition in float64, and apart from their neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics.returns import BLOCK, discounted_sums, linear_recurrence

# Shorter than a block, one block, rows that blocks fill (32, 40) and rows that need padding.
LENGTHS = [1, 7, BLOCK, 61, 1000, 1024]
SMALL_LENGTHS = [1, 7, 40, 101]
GAMMAS = [0.0, 0.9, 0.999, 1.0]
SEEDS = st.integers(0, 2**32 - 1)


def definition(values: np.ndarray, gamma: float, starts: np.ndarray | None = None) -> np.ndarray:
    """One step after the other in float64, with γ as float32 holds it."""
    gamma = float(np.float32(gamma))
    sums, following = np.zeros(values.shape), np.zeros(values.shape[:-1])
    for t in reversed(range(values.shape[-1])):
        if starts is not None and t + 1 < values.shape[-1]:
            following = np.where(starts[..., t + 1], 0, following)
        following = values[..., t].astype(np.float64) + gamma * following
        sums[..., t] = following
    return sums


def normal(seed: int, *shape: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=shape) + generator.normal()).astype(np.float32)


def close(actual: jax.Array, wanted: np.ndarray) -> None:
    """To 1e-5 of the row's largest value."""
    largest = np.abs(wanted).max(axis=-1, initial=1e-30, keepdims=True)
    assert actual.shape == wanted.shape
    assert np.all(np.abs(np.asarray(actual, np.float64) - wanted) <= 1e-5 * largest)


def test_rows_by_hand() -> None:
    sums = discounted_sums(jnp.array([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]]), 0.5)

    assert sums.tolist() == [[3.0, 4.0, 4.0], [2.0, 4.0, 8.0]]


def test_a_flat_buffer_by_hand() -> None:
    starts = jnp.array([False, False, True, True])

    sums = discounted_sums(jnp.array([1.0, 2.0, 4.0, 8.0]), 0.5, starts=starts)

    assert sums.tolist() == [2.0, 2.0, 4.0, 8.0]


def test_blocks_by_hand() -> None:
    values = jnp.array([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]])

    sums = discounted_sums(values, 0.5, starts=jnp.array([True, False, True]))

    assert sums.tolist() == [[4.0, 6.0], [8.0, 8.0], [32.0, 32.0]]


def test_time_passes_off_the_mask_but_nothing_is_given_or_received() -> None:
    values = jnp.array([jnp.nan, 1.0, jnp.inf, 4.0])

    sums = discounted_sums(values, 0.5, mask=jnp.array([False, True, False, True]))

    assert sums.tolist() == [0.0, 2.0, 0.0, 4.0]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("length", [*LENGTHS, 4096, 32768])
def test_rows_meet_the_definition(length: int, gamma: float) -> None:
    values = normal(length, 2, length)

    close(discounted_sums(values, gamma), definition(values, gamma))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_resets_meet_the_definition_over_long_sequences(gamma: float) -> None:
    values = normal(3, 32768 + 1024)
    starts = np.zeros(values.shape, bool)
    starts[[0, 1024]] = True
    blocks = values.reshape(-1, BLOCK)

    wanted = definition(values, gamma, starts)

    close(discounted_sums(values, gamma, starts=starts), wanted)
    sums = discounted_sums(blocks, gamma, starts=starts[::BLOCK])
    close(sums.reshape(-1), wanted)


@given(seed=SEEDS, shape=st.sampled_from([(1, 1), (3, 4)]))
@settings(max_examples=30)
def test_the_three_layouts_agree(seed: int, shape: tuple[int, int]) -> None:
    rows, blocks = shape
    values = normal(seed, rows, blocks * BLOCK)
    gamma = float(np.random.default_rng(seed).uniform())
    starts = np.zeros(values.shape, bool)
    starts[:, 0] = True
    sums = discounted_sums(values, gamma)

    flat = discounted_sums(values.reshape(-1), gamma, starts=starts.reshape(-1))
    blocked = discounted_sums(
        values.reshape(-1, BLOCK), gamma, starts=starts.reshape(-1, BLOCK)[:, 0]
    )

    close(flat.reshape(values.shape), np.asarray(sums, np.float64))
    close(blocked.reshape(values.shape), np.asarray(sums, np.float64))


@given(seed=SEEDS, length=st.sampled_from(SMALL_LENGTHS), gamma=st.floats(0, 1, width=32))
@settings(max_examples=40)
def test_resets_anywhere_meet_the_definition(seed: int, length: int, gamma: float) -> None:
    values = normal(seed, length)
    starts = np.random.default_rng(seed).random(length) < 0.2

    close(discounted_sums(values, gamma, starts=starts), definition(values, gamma, starts))


@pytest.mark.parametrize("huge", [1e30, np.inf, np.nan])
@pytest.mark.parametrize("layout", ["rows", "flat", "blocks"])
def test_sequences_together_are_what_they_are_apart(layout: str, huge: float) -> None:
    """Bit for bit, whatever the neighbours hold, after a sequence of either parity too."""
    values = normal(0, 5, 2 * BLOCK)
    values[[1, 2, 4]] = huge
    starts = np.zeros(values.shape, bool)
    starts[:, 0] = True

    def sound(values: np.ndarray) -> np.ndarray:
        if layout == "rows":
            return np.asarray(discounted_sums(values, 0.99))[[0, 3]]
        if layout == "flat":
            sums = discounted_sums(values.reshape(-1), 0.99, starts=starts.reshape(-1))
        else:
            first = starts.reshape(-1, BLOCK)[:, 0]
            sums = discounted_sums(values.reshape(-1, BLOCK), 0.99, starts=first)
        return np.asarray(sums).reshape(values.shape)[[0, 3]]

    alone = np.zeros_like(values)
    alone[[0, 3]] = values[[0, 3]]

    assert np.array_equal(sound(values), sound(alone))


@pytest.mark.parametrize("length", LENGTHS)
def test_limits_of_gamma(length: int) -> None:
    values = np.arange(length, dtype=np.float32) % 5

    assert np.array_equal(discounted_sums(values, 0.0), values)
    assert np.array_equal(discounted_sums(values, 1.0), values[::-1].cumsum()[::-1])


@given(seed=SEEDS, length=st.sampled_from(SMALL_LENGTHS))
@settings(max_examples=20)
def test_sums_are_linear(seed: int, length: int) -> None:
    first, second = normal(seed, length), normal(seed + 1, length)

    together = discounted_sums(2 * first - second, 0.9)

    apart = 2 * definition(first, 0.9) - definition(second, 0.9)
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("layout", ["rows", "flat", "blocks"])
def test_masked_content_never_matters(layout: str, bad: float) -> None:
    values = normal(1, 2, BLOCK)
    mask = np.random.default_rng(2).random(values.shape) < 0.5
    starts = {
        "rows": None,
        "flat": np.zeros(values.shape, bool),
        "blocks": np.array([True, False]),
    }[layout]

    def summed(values: jax.Array, gamma: float) -> jax.Array:
        return jnp.sum(discounted_sums(values, gamma, mask=mask, starts=starts) ** 2)

    clean = jax.value_and_grad(summed, (0, 1))(jnp.where(mask, values, 0), 0.9)
    dirty = jax.value_and_grad(summed, (0, 1))(jnp.where(mask, values, bad), 0.9)

    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert not np.any(np.asarray(dirty[1][0])[~mask])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("layout", ["rows", "flat", "blocks"])
def test_gradients_are_the_definition_s(layout: str, gamma: float) -> None:
    """∂Σ wₜyₜ/∂x runs the sum forwards in time; ∂/∂γ against a central difference in float64."""
    with jax.enable_x64(True):
        values = normal(5, 3, BLOCK).astype(np.float64)
        weights = normal(6, 3, BLOCK).astype(np.float64)
        resets = np.zeros(values.shape, bool)
        resets[:, 0] = [True, False, True] if layout != "rows" else True
        if layout == "rows":
            shaped = values
            starts = None
        elif layout == "flat":
            shaped = values.reshape(-1)
            starts = resets.reshape(-1)
        else:
            shaped = values
            starts = resets[:, 0]

        def weighed(values: jax.Array, gamma: float) -> jax.Array:
            sums = discounted_sums(values, gamma, starts=starts)
            return jnp.sum(weights.reshape(shaped.shape) * sums)

        by_values, by_gamma = jax.grad(weighed, (0, 1))(jnp.asarray(shaped), gamma)

        forwards = np.zeros(values.size)
        carried = 0.0
        for t, weight in enumerate(weights.reshape(-1)):
            carried = weight + (0 if resets.reshape(-1)[t] else gamma * carried)
            forwards[t] = carried
        np.testing.assert_allclose(np.asarray(by_values).reshape(-1), forwards, rtol=1e-9)
        step = 1e-6
        if gamma == 0.5:
            above, below = weighed(shaped, gamma + step), weighed(shaped, gamma - step)
            np.testing.assert_allclose(by_gamma, (above - below) / (2 * step), rtol=1e-5)
        elif gamma == 0.0:
            flat = values.reshape(-1)
            goes_on = ~resets.reshape(-1)[1:]
            wanted = np.sum(weights.reshape(-1)[:-1] * flat[1:] * goes_on)
            np.testing.assert_allclose(by_gamma, wanted, rtol=1e-9)
        assert np.isfinite(by_gamma)


def test_vmap_over_values_and_gamma() -> None:
    values = normal(8, 3, 2, BLOCK)
    gammas = jnp.array([0.0, 0.5, 1.0])
    starts = jnp.array([True, False])

    sums = jax.vmap(lambda x, gamma: discounted_sums(x, gamma, starts=starts))(values, gammas)

    for one, x, gamma in zip(sums, values, gammas, strict=True):
        close(one.reshape(-1), definition(x.reshape(-1), float(gamma)))


def test_leading_axes_of_blocks_are_apart() -> None:
    values = normal(9, 2, 3, BLOCK)
    starts = np.zeros((2, 3), bool)

    sums = discounted_sums(values, 0.9, starts=starts)

    close(sums.reshape(2, -1), definition(values.reshape(2, -1), 0.9))


def test_float64_is_kept_and_exact() -> None:
    values = normal(10, 3000).astype(np.float64)
    with jax.enable_x64(True):
        sums = discounted_sums(values, 0.5)

        assert sums.dtype == jnp.float64
        np.testing.assert_allclose(sums, definition(values, 0.5), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.float16])
def test_narrow_types_are_added_up_in_float32(dtype: type) -> None:
    sums = discounted_sums(np.ones(3000, dtype), 1)

    assert sums.dtype == jnp.float32
    assert sums[0] == 3000


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    starts = np.zeros(shape, bool)

    assert discounted_sums(np.zeros(shape, np.float32), 0.9).shape == shape
    assert discounted_sums(np.zeros(shape, np.float32), 0.9, starts=starts).shape == shape
    if len(shape) == 2:
        sums = discounted_sums(np.zeros(shape, np.float32), 0.9, starts=starts[:, 0:1].any(1))
        assert sums.shape == shape


def test_a_change_of_gamma_compiles_nothing() -> None:
    values = jnp.ones(17)
    discounted_sums(values, 0.25)
    compiled = discounted_sums._cache_size()

    discounted_sums(values, 0.75)

    assert discounted_sums._cache_size() == compiled


@pytest.mark.parametrize(
    ("shape", "starts_shape", "message"),
    [
        ((4, 3), (3,), r"shape of `values`, \(4, 3\), .* got \(3,\)"),
        ((3,), (), "got"),
        ((), None, "must have an axis"),
    ],
)
def test_shapes_that_cannot_be_meant_are_refused(
    shape: tuple[int, ...], starts_shape: tuple[int, ...] | None, message: str
) -> None:
    starts = None if starts_shape is None else jnp.zeros(starts_shape, bool)

    with pytest.raises(ConfigurationError, match=message):
        discounted_sums(jnp.ones(shape), 0.9, starts=starts)


@given(seed=SEEDS, length=st.sampled_from(SMALL_LENGTHS))
@settings(max_examples=20)
def test_a_recurrence_with_varying_coefficients_meets_its_definition(
    seed: int, length: int
) -> None:
    generator = np.random.default_rng(seed)
    values, coefficients = normal(seed, length), generator.random(length).astype(np.float32)
    starts = generator.random(length) < 0.1
    wanted, following = np.zeros(length), 0.0
    for t in reversed(range(length)):
        is_end = t + 1 == length or starts[t + 1]
        following = values[t] + (0 if is_end else float(coefficients[t]) * following)
        wanted[t] = following

    close(linear_recurrence(values, coefficients, starts=starts), wanted)
