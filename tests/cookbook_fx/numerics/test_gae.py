"""Advantages by hand and against the definition, with what is masked cut out of time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics.gae import generalized_advantages
from cookbook_fx.numerics.returns import discounted_sums

SEEDS = st.integers(0, 2**32 - 1)
ROWS, TOKENS = 3, 16


def definition(
    rewards: np.ndarray, values: np.ndarray, gamma: float, lambda_: float, bootstrap: float
) -> np.ndarray:
    """Σₗ (γλ)ˡ·δₜ₊ₗ written out, of one sequence, in float64."""
    following = np.append(values[1:], bootstrap).astype(np.float64)
    errors = rewards.astype(np.float64) + gamma * following - values
    return np.array(
        [
            sum((gamma * lambda_) ** ahead * error for ahead, error in enumerate(errors[t:]))
            for t in range(len(errors))
        ]
    )


def batch(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rewards, values = generator.normal(size=(2, ROWS, TOKENS)).astype(np.float32)
    return rewards, values, generator.random((ROWS, TOKENS)) < 0.6, generator.normal(size=ROWS)


def test_rows_by_hand() -> None:
    rewards = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    values = jnp.array([[0.5, 0.25], [1.0, 0.0]])

    advantages = generalized_advantages(rewards, values, gamma=1.0, lambda_=0.5)

    assert advantages.tolist() == [[0.125, 0.75], [1.0, 0.0]]


def test_no_time_passes_at_what_is_no_step() -> None:
    """An observation between two actions and padding after them; the value after is 4."""
    nan = jnp.nan
    advantages = generalized_advantages(
        jnp.array([0.0, nan, 1.0, nan]), jnp.array([0.5, nan, 0.25, nan]),
        gamma=0.5, lambda_=0.5, mask=jnp.array([True, False, True, False]),
        bootstrap=jnp.array(4.0),
    )  # fmt: skip

    # δ: 0 + 0.125 - 0.5 and 1 + 2 - 0.25.
    assert advantages.tolist() == [-0.375 + 0.25 * 2.75, 0, 2.75, 0]


@given(seed=SEEDS, gamma=st.floats(0, 1), lambda_=st.floats(0, 1), truncated=st.booleans())
@settings(max_examples=30)
def test_every_layout_meets_the_definition_of_the_steps_alone(
    seed: int, gamma: float, lambda_: float, truncated: bool
) -> None:
    rewards, values, mask, after = batch(seed)
    wanted = np.zeros(rewards.shape)
    for row, is_step in enumerate(mask):
        wanted[row, is_step] = definition(
            rewards[row, is_step], values[row, is_step], gamma, lambda_, truncated * after[row]
        )
    settings_ = {"gamma": gamma, "lambda_": lambda_}
    first, last = np.zeros(mask.shape, bool), np.full(mask.shape, np.nan, np.float32)
    first[:, 0], last[:, -1] = True, after
    half = (2 * ROWS, TOKENS // 2)
    layouts = [
        (mask.shape, None, after.astype(np.float32)),
        ((-1,), first.reshape(-1), last.reshape(-1)),
        (half, first.reshape(half)[:, 0], last.reshape(half)[:, -1]),
    ]

    for shape, starts, bootstrap in layouts:
        advantages = generalized_advantages(
            rewards.reshape(shape), values.reshape(shape), mask=mask.reshape(shape),
            starts=starts, bootstrap=bootstrap if truncated else None, **settings_,
        )  # fmt: skip
        np.testing.assert_allclose(
            advantages.reshape(mask.shape), wanted, atol=1e-5 * (1 + np.abs(wanted).max())
        )


def test_limits_of_lambda() -> None:
    """1 is the return less the value; 0 is the one-step error."""
    rewards, values, _, _ = batch(0)
    after = np.append(values[:, 1:], np.zeros((ROWS, 1)), axis=1)

    whole = generalized_advantages(rewards, values, gamma=0.9, lambda_=1.0)
    one_step = generalized_advantages(rewards, values, gamma=0.9, lambda_=0.0)

    np.testing.assert_allclose(whole, discounted_sums(rewards, 0.9) - values, atol=1e-5)
    np.testing.assert_allclose(one_step, rewards + 0.9 * after - values, atol=1e-6)


def test_a_perfect_critic_leaves_no_advantage() -> None:
    rewards, _, _, _ = batch(1)

    advantages = generalized_advantages(
        rewards, discounted_sums(rewards, 0.9), gamma=0.9, lambda_=0.95
    )

    np.testing.assert_allclose(advantages, 0, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_masked_content_never_matters(bad: float) -> None:
    rewards, values, mask, after = batch(2)
    # A row without a step has nothing for its bootstrap to follow either.
    mask[1] = False
    after[1] = bad

    def summed(
        rewards: jax.Array, values: jax.Array, gamma: float, lambda_: float, after: jax.Array
    ) -> jax.Array:
        advantages = generalized_advantages(
            rewards, values, gamma=gamma, lambda_=lambda_, mask=mask, bootstrap=after
        )
        return jnp.sum(advantages**2)

    slopes = jax.value_and_grad(summed, (0, 1, 2, 3))
    clean_after = jnp.asarray(after, jnp.float32).at[1].set(0)
    clean = slopes(jnp.where(mask, rewards, 0), jnp.where(mask, values, 0), 0.9, 0.8, clean_after)
    dirty = slopes(
        jnp.where(mask, rewards, bad), jnp.where(mask, values, bad), 0.9, 0.8,
        jnp.asarray(after, jnp.float32),
    )  # fmt: skip

    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert not np.any(np.asarray(dirty[1][0])[~mask])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_gradients_against_finite_differences(gamma: float) -> None:
    rewards, values, mask, after = (np.float64(x) for x in batch(3))
    step = 1e-6

    def summed(gamma: float, lambda_: float) -> jax.Array:
        return jnp.sum(
            generalized_advantages(
                rewards, values, gamma=gamma, lambda_=lambda_, mask=mask != 0, bootstrap=after
            )
        )

    with jax.enable_x64(True):
        by_gamma, by_lambda = jax.grad(summed, (0, 1))(gamma, 0.5)
        # The formula is a polynomial, and holds beyond [0, 1] too.
        slope_gamma = (summed(gamma + step, 0.5) - summed(gamma - step, 0.5)) / (2 * step)
        slope_lambda = (summed(gamma, 0.5 + step) - summed(gamma, 0.5 - step)) / (2 * step)

        np.testing.assert_allclose(
            (by_gamma, by_lambda), (slope_gamma, slope_lambda), rtol=1e-5, atol=1e-8
        )


def test_vmap_types_and_integer_rewards() -> None:
    rewards, values, _, _ = batch(4)

    together = jax.vmap(lambda r, v, g: generalized_advantages(r, v, gamma=g, lambda_=0.9))(
        rewards, values, jnp.array([0.0, 0.5, 1.0])
    )
    integers = generalized_advantages(np.arange(3), np.zeros(3, np.float16), gamma=1, lambda_=1)

    alone = generalized_advantages(rewards[1], values[1], gamma=0.5, lambda_=0.9)
    np.testing.assert_allclose(together[1], alone, atol=1e-6)
    assert integers.dtype == jnp.float32
    assert integers.tolist() == [3, 3, 2]
    with jax.enable_x64(True):
        wide = generalized_advantages(np.float64(rewards), np.float64(values), gamma=0.5, lambda_=1)
        assert wide.dtype == jnp.float64


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    nothing = np.zeros(shape, np.float32)

    assert generalized_advantages(nothing, nothing, gamma=0.9, lambda_=0.9).shape == shape


@pytest.mark.parametrize(
    ("shape", "starts", "bootstrap", "message"),
    [
        ((), None, None, "must have an axis"),
        ((4, 3), (3,), None, r"`starts` must have the shape .*\(4, 3\).* got \(3,\)"),
        ((4, 3), None, (3,), r"`bootstrap` must .* \(4,\); got \(3,\)"),
        ((4, 3), (4, 3), (4,), r"`bootstrap` must .* \(4, 3\); got \(4,\)"),
    ],
)
def test_shapes_that_cannot_be_meant_are_refused(
    shape: tuple[int, ...], starts: tuple | None, bootstrap: tuple | None, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        generalized_advantages(
            jnp.ones(shape), jnp.ones(shape), gamma=0.9, lambda_=0.9,
            starts=None if starts is None else jnp.zeros(starts, bool),
            bootstrap=None if bootstrap is None else jnp.zeros(bootstrap),
        )  # fmt: skip
