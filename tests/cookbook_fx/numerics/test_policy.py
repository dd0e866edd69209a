"""Losses by hand, their gradients by their closed forms, and what a weight of 0 hides."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics import policy
from cookbook_fx.numerics.policy import LOSS_DEFAULTS, LossSpec, token_losses

LOGPROBS = st.floats(-20, 0)
ADVANTAGES = st.floats(-5, 5)
POLICY_LOSSES = [name for name in LOSS_DEFAULTS if name != "cross_entropy"]


def one(
    name: str, p: float, q: float, advantage: float, weight: float = 1.0
) -> tuple[float, float]:
    """Loss and slope of a single token."""

    def loss(p: jax.Array) -> jax.Array:
        return token_losses(
            name,
            p,
            weights=jnp.full((1, 1), weight),
            sampling_logprobs=jnp.full(1, q),
            advantages=jnp.full(1, advantage),
            settings=LossSpec(name=name).settings,
        ).sum()

    value, slope = jax.value_and_grad(loss)(jnp.full((1, 1), p))
    return float(value), float(slope[0, 0])


@pytest.mark.parametrize(
    ("name", "ratio", "advantage", "loss", "slope"),
    [
        ("importance_sampling", 2.0, 3.0, -6.0, -6.0),
        ("ppo", 1.1, 3.0, -3.3, -3.3),
        ("ppo", 2.0, 3.0, -3.6, 0.0),
        ("ppo", 2.0, -3.0, 6.0, 6.0),
        ("ppo", 0.5, 3.0, -1.5, -1.5),
        ("ppo", 0.5, -3.0, 2.4, 0.0),
        ("cispo", 2.0, 3.0, -2 * 3 * (math.log(2) - 1), -6.0),
        ("cispo", 8.0, 3.0, -4 * 3 * (math.log(8) - 1), -12.0),
        (
            "dro",
            2.0,
            3.0,
            -(3 * (math.log(2) - 1) - 0.025 * math.log(2) ** 2),
            -(3 - 0.05 * math.log(2)),
        ),
    ],
)
def test_losses_and_slopes_by_hand(
    name: str, ratio: float, advantage: float, loss: float, slope: float
) -> None:
    assert one(name, math.log(ratio) - 1, -1.0, advantage) == pytest.approx((loss, slope), rel=1e-5)


@pytest.mark.parametrize("name", POLICY_LOSSES)
@given(p=LOGPROBS, advantage=ADVANTAGES)
def test_on_policy_every_slope_is_minus_the_advantage(
    name: str, p: float, advantage: float
) -> None:
    assert one(name, p, p, advantage)[1] == pytest.approx(-advantage, rel=1e-5, abs=1e-6)


@given(p=LOGPROBS, q=LOGPROBS, advantage=ADVANTAGES)
def test_ppo_is_never_below_importance_sampling(p: float, q: float, advantage: float) -> None:
    plain = one("importance_sampling", p, q, advantage)[0]

    assert one("ppo", p, q, advantage)[0] >= plain - 1e-6 * abs(plain)


@pytest.mark.parametrize("name", POLICY_LOSSES)
@given(p=LOGPROBS, weight=st.floats(-3, 3, width=32))
def test_weights_multiply(name: str, p: float, weight: float) -> None:
    plain, weighted = one(name, p, -1.0, 2.0), one(name, p, -1.0, 2.0, weight)

    assert weighted == pytest.approx(np.multiply(plain, weight), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", LOSS_DEFAULTS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_weight_of_zero_hides_everything(name: str, bad: float) -> None:
    assert one(name, bad, bad, bad, weight=0.0) == (0.0, 0.0)


def test_cross_entropy_is_weighted_and_keeps_its_shape() -> None:
    losses = policy.cross_entropy(-jnp.ones((2, 3)), weights=jnp.arange(6.0).reshape(2, 3))

    assert losses.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("nll", {}, "unknown loss 'nll'; known losses: cross_entropy"),
        ("ppo", {"beta": 1.0}, "has no setting 'beta'; it takes: clip_low_threshold"),
        ("cross_entropy", {"beta": 1.0}, "it takes: none"),
        ("dro", {"beta": math.inf}, "must be a finite number"),
        ("ppo", {"clip_low_threshold": 2.0}, "is above clip_high_threshold"),
    ],
)
def test_a_loss_that_cannot_be_meant_is_refused(name: str, config: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LossSpec(name=name, config=config)
