"""Returns and advantages against rlax, where both define the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx.numerics import discounted_sums, generalized_advantages

rlax = pytest.importorskip("rlax", exc_type=ImportError)

pytestmark = pytest.mark.parity


def batch(seed: int, rows: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rewards, values = generator.normal(size=(2, rows, steps)).astype(np.float32)
    return rewards, values, generator.normal(size=rows).astype(np.float32)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("steps", [1, 32, 500])
def test_discounted_sums_are_rlax_s_returns(gamma: float, steps: int) -> None:
    rewards, values, _ = batch(0, 4, steps)
    discounts = np.full_like(rewards, gamma)

    theirs = jax.vmap(rlax.discounted_returns)(rewards, discounts, np.zeros_like(values))

    ours = discounted_sums(rewards, gamma)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(("gamma", "lambda_"), [(0.0, 0.5), (0.9, 0.95), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_rlax_s(gamma: float, lambda_: float) -> None:
    rewards, values, after = batch(1, 4, 100)
    discounts = np.full_like(rewards, gamma)
    with_last = np.concatenate([values, after[:, None]], axis=1)

    theirs = jax.vmap(
        lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, lambda_, v)
    )(rewards, discounts, with_last)

    ours = generalized_advantages(rewards, values, gamma=gamma, lambda_=lambda_, bootstrap=after)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_lambda_returns_are_advantages_plus_values() -> None:
    rewards, values, after = batch(2, 3, 64)
    following = np.concatenate([values[:, 1:], after[:, None]], axis=1)

    theirs = jax.vmap(lambda r, v: rlax.lambda_returns(r, jnp.full_like(r, 0.9), v, 0.8))(
        rewards, following
    )

    ours = generalized_advantages(rewards, values, gamma=0.9, lambda_=0.8, bootstrap=after) + values
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
