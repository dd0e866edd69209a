"""The clipped surrogate beside rlax's, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx import numerics

rlax = pytest.importorskip("rlax", exc_type=ImportError)

pytestmark = [
    pytest.mark.parity,
    # rlax, through chex, asks jax for names that are on their way out.
    pytest.mark.filterwarnings("ignore:jax.core:DeprecationWarning"),
]


@pytest.mark.parametrize("epsilon", [0.1, 0.3, 1e6])
def test_ppo_is_rlaxs_clipped_surrogate(epsilon: float) -> None:
    rng = np.random.default_rng(0)
    p, q, advantages = rng.normal(-1, 0.4, (3, 500)).astype(np.float32)

    def ours(p: jax.Array) -> jax.Array:
        losses = numerics.ppo(
            p,
            sampling_logprobs=q,
            advantages=advantages,
            weights=jnp.ones_like(p),
            clip_low_threshold=1 - epsilon,
            clip_high_threshold=1 + epsilon,
        )
        return losses.mean()

    def theirs(p: jax.Array) -> jax.Array:
        return rlax.clipped_surrogate_pg_loss(jnp.exp(p - q), advantages, epsilon)

    for got, expected in zip(
        jax.value_and_grad(ours)(p), jax.value_and_grad(theirs)(p), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-8)
