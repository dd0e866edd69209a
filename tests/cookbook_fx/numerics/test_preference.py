"""Preference losses by hand, by their closed forms and symmetries, and against optax."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import DataError
from cookbook_fx.numerics import policy, preference
from cookbook_fx.numerics.preference import (
    dpo,
    hinge,
    ipo,
    kto,
    kto_reference_point,
    orpo,
    preference_gradients,
    preference_metrics,
    robust_dpo,
    sequence_logprobs,
    simpo,
)

RATIO_LOSSES = [dpo, robust_dpo, ipo, hinge]
LOSSES = [*RATIO_LOSSES, simpo, orpo]
MARGINS = st.floats(-60, 60, width=32)
BETAS = st.sampled_from([0.05, 0.1, 0.5])
FLIPS = st.sampled_from([0.0, 0.1, 0.3, 0.45])
SMOOTH = {"beta": 1.0, "label_smoothing": 0.25}
few = settings(max_examples=30)


def of_margin(loss: Callable, margin: float | np.ndarray, **options: float) -> jax.Array:
    """A loss of these margins, spread unevenly over all four log-probabilities."""
    margin = np.asarray(margin, np.float32)
    return loss(
        np.asarray(0.75 * margin - 3),
        np.asarray(-0.5 * margin - 2),
        reference_chosen=np.asarray(0.25 * margin - 3),
        reference_rejected=np.full_like(margin, -2),
        **options,
    )


def slope(loss: Callable, margin: float, **options: float) -> tuple[float, float]:
    """Gradient of a loss by the chosen and the rejected log-probability."""
    zero = jnp.zeros(())

    def value(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return loss(
            chosen, rejected, reference_chosen=zero, reference_rejected=zero, **options
        ).sum()

    chosen, rejected = jax.grad(value, (0, 1))(jnp.asarray(float(margin)), zero)
    return float(chosen), float(rejected)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


@pytest.mark.parametrize(
    ("loss", "options", "margin", "value"),
    [
        (dpo, {"beta": 0.1}, 0.0, math.log(2)),
        (dpo, {"beta": 0.5}, 2 * math.log(3), math.log(4 / 3)),
        (dpo, {"beta": 0.5}, -2 * math.log(3), math.log(4)),
        (dpo, SMOOTH, math.log(3), 2 * math.log(2) - 0.75 * math.log(3)),
        (robust_dpo, SMOOTH, math.log(3), 2 * math.log(2) - 1.5 * math.log(3)),
        (ipo, {"beta": 0.1}, 5.0, 0.0),
        (ipo, {"beta": 0.25}, -1.0, 9.0),
        (hinge, {"beta": 0.5}, 1.0, 0.5),
        (hinge, {"beta": 0.5}, 2.0, 0.0),
        (hinge, {"beta": 0.5}, -2.0, 2.0),
    ],
)  # fmt: skip
def test_losses_by_hand(
    loss: Callable, options: dict[str, float], margin: float, value: float
) -> None:
    assert float(of_margin(loss, margin, **options)) == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_simpo_by_hand() -> None:
    chosen, rejected = jnp.array([-1.0, -1.0]), jnp.array([-2.0, -1.5])

    losses = simpo(chosen, rejected, beta=2.0, gamma=2 - math.log(3))

    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(1 + math.e / 3)], rel=1e-5)


def test_orpo_by_hand() -> None:
    chosen, rejected = jnp.log(jnp.array([0.75, 0.5])), jnp.log(jnp.array([0.5, 0.9]))

    losses = orpo(chosen, rejected, beta=0.5)

    # Odds of 3 against 1, and of 1 against 9.
    hand = [math.log(4 / 3) + 0.5 * math.log(4 / 3), math.log(2) + 0.5 * math.log(10)]
    assert losses.tolist() == pytest.approx(hand, rel=1e-5)


def test_kto_by_hand() -> None:
    losses = kto(
        jnp.array([-1.0, -1.0, -3.0]),
        reference_logprobs=jnp.array([-3.0, -3.0, -4.0]),
        desirable=jnp.array([True, False, True]),
        kl=1.0,
        beta=math.log(3),
        desirable_weight=2.0,
        undesirable_weight=4.0,
    )

    # r - z₀ of 1, 1 and 0: sigmoids of ln 3, which are 3/4, and of 0.
    assert losses.tolist() == pytest.approx([2 * 0.25, 4 * 0.75, 2 * 0.5], rel=1e-6)


def test_the_reference_point_of_kto_is_a_mean_that_is_never_negative() -> None:
    logprobs, reference = jnp.array([-1.0, -2.0, jnp.nan]), jnp.array([-2.0, -2.5, 0.0])
    mask = jnp.array([True, True, False])

    assert float(kto_reference_point(logprobs, reference, mask=mask)) == 0.75
    assert float(kto_reference_point(reference, logprobs, mask=mask)) == 0
    assert float(kto_reference_point(jnp.zeros(0), jnp.zeros(0))) == 0


def test_nothing_is_learnt_through_the_reference_point_of_kto() -> None:
    def loss(logprobs: jax.Array) -> jax.Array:
        reference = jnp.zeros(2)
        kl = kto_reference_point(logprobs, reference)
        return kto(logprobs, reference_logprobs=reference, desirable=reference == 0, kl=kl).sum()

    gradient = jax.grad(loss)(jnp.array([1.0, 3.0]))

    hand = [-0.1 * math.exp(0.1 * r) / (1 + math.exp(0.1 * r)) ** 2 for r in (-1, 1)]
    assert gradient.tolist() == pytest.approx(hand, rel=1e-5)


def test_sequences_add_up_and_average_over_what_counts() -> None:
    logprobs = np.array([[-1.0, -2.0, -4.0], [np.nan, -3.0, -np.inf], [np.nan] * 3], np.float32)
    weights = np.array([[1.0, 1.0, 0.5], [0.0, 1.0, 0.0], [0.0] * 3], np.float32)

    assert sequence_logprobs(logprobs, weights).tolist() == [-5, -3, 0]
    assert sequence_logprobs(logprobs, weights, average=True).tolist() == [-2, -3, 0]


@pytest.mark.parametrize("average", [False, True])
def test_the_gradient_of_a_sequence_is_its_weights(average: bool) -> None:
    logprobs = jnp.array([[-1.0, -jnp.inf, -2.0], [jnp.nan, jnp.nan, jnp.nan]])
    weights = jnp.array([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])

    gradient = jax.grad(lambda x: sequence_logprobs(x, weights, average=average).sum())(logprobs)

    assert gradient.tolist() == [[0.25, 0, 0.75] if average else [1, 0, 3], [0, 0, 0]]


def test_a_token_that_counts_and_is_impossible_makes_the_sequence_impossible() -> None:
    assert sequence_logprobs(jnp.array([-1.0, -jnp.inf]), jnp.ones(2)) == -jnp.inf


def test_half_precision_is_added_up_in_single() -> None:
    sums = sequence_logprobs(jnp.full(4096, -1.001, jnp.bfloat16), jnp.ones(4096, jnp.bfloat16))

    assert sums.dtype == jnp.float32
    assert float(sums) == -4096


@few
@given(margin=MARGINS, beta=BETAS)
def test_dpo_swapped_differs_by_the_reward_margin(margin: float, beta: float) -> None:
    forth, back = of_margin(dpo, margin, beta=beta), of_margin(dpo, -margin, beta=beta)

    assert float(forth - back) == pytest.approx(-beta * margin, rel=1e-5, abs=1e-5)


@few
@given(margin=MARGINS, beta=BETAS)
def test_the_slope_of_dpo_is_its_closed_form_and_opposite_for_the_rejected(
    margin: float, beta: float
) -> None:
    chosen, rejected = slope(dpo, margin, beta=beta)

    assert chosen == pytest.approx(-beta / (1 + math.exp(beta * margin)), rel=1e-5)
    assert rejected == -chosen


@pytest.mark.parametrize("loss", RATIO_LOSSES)
@few
@given(margin=MARGINS, shift=st.sampled_from([-64.0, -2.0, 0.5, 128.0]))
def test_what_policy_and_reference_share_does_not_matter(
    loss: Callable, margin: float, shift: float
) -> None:
    margin = round(margin)
    zero = jnp.zeros(())
    chosen = jnp.asarray(float(margin))

    plain = loss(chosen, zero, reference_chosen=zero, reference_rejected=zero)
    shifted = loss(
        chosen + shift, zero - shift, reference_chosen=zero + shift, reference_rejected=zero - shift
    )

    assert float(shifted) == float(plain)


@few
@given(margin=MARGINS, flip=FLIPS)
def test_smoothing_mixes_the_two_labels(margin: float, flip: float) -> None:
    right, wrong = float(of_margin(dpo, margin)), float(of_margin(dpo, -margin))
    mixed = (1 - flip) * right + flip * wrong
    unmixed = ((1 - flip) * right - flip * wrong) / (1 - 2 * flip)

    near = partial(pytest.approx, rel=1e-4, abs=1e-5)
    assert float(of_margin(dpo, margin, label_smoothing=flip)) == near(mixed)
    assert float(of_margin(robust_dpo, margin, label_smoothing=flip)) == near(unmixed)


@few
@given(margin=MARGINS)
def test_smoothing_of_a_half_knows_no_preference(margin: float) -> None:
    forth = of_margin(dpo, margin, label_smoothing=0.5)

    assert float(forth) == pytest.approx(float(of_margin(dpo, -margin, label_smoothing=0.5)))


@few
@given(margin=MARGINS, flip=FLIPS)
def test_the_robust_loss_is_unbiased_under_flipped_labels(margin: float, flip: float) -> None:
    kept = of_margin(robust_dpo, margin, label_smoothing=flip)
    flipped = of_margin(robust_dpo, -margin, label_smoothing=flip)

    expected = (1 - flip) * float(kept) + flip * float(flipped)
    assert expected == pytest.approx(float(of_margin(dpo, margin)), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("loss", [dpo, robust_dpo])
def test_no_smoothing_is_dpo_to_the_bit(loss: Callable) -> None:
    margins = np.linspace(-50, 50, 101)

    unsmoothed = of_margin(loss, margins, label_smoothing=0.0)

    assert unsmoothed.tolist() == of_margin(dpo, margins).tolist()


def test_smoothed_dpo_is_lowest_where_the_labels_are_as_sure_as_they_are() -> None:
    assert slope(dpo, math.log(9), beta=1.0, label_smoothing=0.1)[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_ipo_is_lowest_at_its_margin(beta: float) -> None:
    best = 1 / (2 * beta)

    assert slope(ipo, best, beta=beta) == pytest.approx((0, 0), abs=1e-5)
    assert slope(ipo, best - 1, beta=beta) == pytest.approx((-2, 2), rel=1e-4)
    assert slope(ipo, best + 1, beta=beta) == pytest.approx((2, -2), rel=1e-4)


@pytest.mark.parametrize(("margin", "expected"), [(1.9, -0.5), (2, 0), (2.1, 0), (1e4, 0)])
def test_hinge_has_no_slope_from_its_margin_on(margin: float, expected: float) -> None:
    assert slope(hinge, margin, beta=0.5) == (expected, -expected)


def test_simpo_and_orpo_learn_to_widen_the_difference() -> None:
    chosen, rejected = jnp.array([-1.5, -0.2]), jnp.array([-0.5, -2.0])
    for loss in (simpo, orpo):
        up, down = jax.jit(jax.grad(lambda *pair, loss=loss: loss(*pair).sum(), (0, 1)))(
            chosen, rejected
        )

        assert (up < 0).all()
        assert (down > 0).all()


@pytest.mark.parametrize("loss", RATIO_LOSSES)
@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_large_margins_of_ratios_stay_finite(loss: Callable, margin: float) -> None:
    assert np.isfinite(of_margin(loss, margin, beta=1.0))
    assert np.isfinite(slope(loss, margin, beta=1.0)).all()


def test_large_margins_of_dpo_are_linear_or_nothing() -> None:
    assert of_margin(dpo, np.array([-1e4, 1e4]), beta=1.0).tolist() == [1e4, 0]
    assert slope(dpo, -1e4, beta=1.0) == (-1, 1)
    assert slope(dpo, 1e4, beta=1.0) == (0, 0)


@pytest.mark.parametrize("loss", [simpo, orpo])
def test_averages_from_certain_to_hopeless_stay_finite(loss: Callable) -> None:
    ends = np.array([0.0, -1e-38, -1e-9, -1e-7, -1.0, -100.0, -1e4], np.float32)
    chosen, rejected = np.repeat(ends, len(ends)), np.tile(ends, len(ends))

    values = loss(chosen, rejected)
    up, down = jax.jit(jax.grad(lambda *pair: loss(*pair).sum(), (0, 1)))(chosen, rejected)

    assert np.isfinite(values).all()
    assert np.isfinite(up).all()
    assert np.isfinite(down).all()
    assert (up <= 0).all()
    assert (down >= 0).all()


def test_the_odds_of_nearly_certain_completions_keep_their_digits() -> None:
    rejected = np.array([-1e-6, -1e-4, -1e-2])
    odds = np.exp(rejected) / -np.expm1(rejected)

    losses = orpo(np.full(3, np.log(0.5), np.float32), rejected.astype(np.float32), beta=1.0)

    np.testing.assert_allclose(losses, np.log(2) + np.log1p(odds), rtol=1e-6)


def test_a_rejected_completion_that_is_certain_is_pushed_down_the_hardest() -> None:
    rejected = jnp.array([0.0, -1e-6, -1e-3, -1.0])

    push = jax.grad(lambda r: orpo(jnp.full(4, -1.0), r).sum())(rejected)

    assert push.tolist() == sorted(push.tolist(), reverse=True)
    assert len(set(push.tolist())) == 4


def test_impossible_completions_have_the_limits_of_dpo() -> None:
    chosen, rejected = jnp.array([-jnp.inf, -1.0]), jnp.array([-1.0, -jnp.inf])
    zeros = jnp.zeros(2)

    def loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return dpo(chosen, rejected, reference_chosen=zeros, reference_rejected=zeros)

    up, down = jax.jit(jax.grad(lambda *pair: loss(*pair).sum(), (0, 1)))(chosen, rejected)

    assert loss(chosen, rejected).tolist() == [math.inf, 0]
    assert up.tolist() == pytest.approx([-0.1, 0])
    assert down.tolist() == pytest.approx([0.1, 0])


@pytest.mark.parametrize("loss", [dpo, robust_dpo])
def test_impossible_completions_are_infinite_with_smoothing_too(loss: Callable) -> None:
    chosen, rejected = jnp.array([-jnp.inf, -1.0]), jnp.array([-1.0, -jnp.inf])
    zeros = {"reference_chosen": jnp.zeros(2), "reference_rejected": jnp.zeros(2)}

    def values(chosen: jax.Array) -> jax.Array:
        return loss(chosen, rejected, label_smoothing=0.2, **zeros)

    # Of labels that are flipped in part, either completion's impossibility costs, or gains, all.
    assert values(chosen).tolist() == [math.inf, math.inf if loss is dpo else -math.inf]
    share = 0.2 if loss is dpo else -0.2 / 0.6
    up = jax.grad(lambda chosen: values(chosen).sum())(chosen)
    assert up.tolist() == pytest.approx([-0.1 * (1 - share), 0.1 * share])


@pytest.mark.parametrize("logprob", [-1e4, 1e4])
def test_kto_saturates(logprob: float) -> None:
    def loss(logprobs: jax.Array) -> jax.Array:
        good = jnp.array([True, False])
        return kto(logprobs, reference_logprobs=jnp.zeros(2), desirable=good, kl=0.5)

    values, pullback = jax.vjp(loss, jnp.full(2, logprob))

    assert values.tolist() == ([1, 0] if logprob < 0 else [0, 1])
    assert pullback(jnp.ones(2))[0].tolist() == [0, 0]


def reference(
    loss: Callable, c: np.ndarray, r: np.ndarray, rc: np.ndarray, rr: np.ndarray
) -> np.ndarray:
    """The formulas as the papers print them, in NumPy."""
    m, e = (c - rc) - (r - rr), 0.1
    odds = (np.exp(c) / (1 - np.exp(c))) / (np.exp(r) / (1 - np.exp(r)))
    return {
        dpo: lambda: -log_sigmoid(0.1 * m),
        robust_dpo: lambda: (
            (-(1 - e) * log_sigmoid(0.1 * m) + e * log_sigmoid(-0.1 * m)) / (1 - 2 * e)
        ),
        ipo: lambda: (m - 1 / (2 * 0.1)) ** 2,
        hinge: lambda: np.maximum(0, 1 - 0.1 * m),
        simpo: lambda: -log_sigmoid(2.0 * c - 2.0 * r - 0.5),
        orpo: lambda: -c - 0.1 * log_sigmoid(np.log(odds)),
    }[loss]()


def random_pairs(low: float) -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(7).uniform(low, -0.05, (4, 50)))


def call(loss: Callable, c: object, r: object, rc: object, rr: object) -> jax.Array:
    if loss in RATIO_LOSSES:
        return loss(c, r, reference_chosen=rc, reference_rejected=rr)
    return loss(c, r)


@pytest.mark.parametrize("loss", LOSSES)
def test_values_agree_with_the_papers_in_float64_and_float32(loss: Callable) -> None:
    arrays = random_pairs(-30.0)
    expected = reference(loss, *arrays)

    with jax.enable_x64(True):
        double = call(loss, *arrays)
        assert double.dtype == np.float64
        np.testing.assert_allclose(double, expected, rtol=1e-12, atol=1e-13)
    single = call(loss, *(array.astype(np.float32) for array in arrays))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_finite_differences(loss: Callable) -> None:
    c, r, rc, rr = random_pairs(-6.0)
    h = 1e-6
    with jax.enable_x64(True):
        up, down = jax.jit(jax.grad(lambda c, r: call(loss, c, r, rc, rr).sum(), (0, 1)))(c, r)
        np.testing.assert_allclose(
            up, (reference(loss, c + h, r, rc, rr) - reference(loss, c - h, r, rc, rr)) / (2 * h),
            rtol=1e-6, atol=1e-8,
        )  # fmt: skip
        np.testing.assert_allclose(
            down, (reference(loss, c, r + h, rc, rr) - reference(loss, c, r - h, rc, rr)) / (2 * h),
            rtol=1e-6, atol=1e-8,
        )  # fmt: skip


def test_kto_agrees_with_the_paper_in_float64() -> None:
    policy, ref, _, _ = random_pairs(-30.0)
    good = np.arange(50) % 3 == 0
    gain = 0.2 * (policy - ref - 0.7)
    utility = np.where(good, 1.5 / (1 + np.exp(-gain)), 0.5 / (1 + np.exp(gain)))

    with jax.enable_x64(True):
        losses = kto(
            policy, reference_logprobs=ref, desirable=good, kl=0.7, beta=0.2,
            desirable_weight=1.5, undesirable_weight=0.5,
        )  # fmt: skip
        np.testing.assert_allclose(losses, np.where(good, 1.5, 0.5) - utility, atol=1e-12)


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_dpo_is_the_cross_entropy_of_optax(flip: float) -> None:
    margins = np.linspace(-40, 40, 81, dtype=np.float32)

    expected = optax.losses.sigmoid_binary_cross_entropy(
        0.1 * margins, np.full(81, 1 - flip, np.float32)
    )

    np.testing.assert_allclose(of_margin(dpo, margins, label_smoothing=flip), expected, rtol=1e-5)


def test_hinge_is_the_hinge_of_optax() -> None:
    margins = np.linspace(-40, 40, 81, dtype=np.float32)

    expected = optax.losses.hinge_loss(0.1 * margins, np.ones(81, np.float32))

    np.testing.assert_allclose(of_margin(hinge, margins), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_the_same_alone_and_under_jit_and_vmap(loss: Callable) -> None:
    arrays = [array.astype(np.float32) for array in random_pairs(-6.0)]

    plain = call(loss, *arrays)

    np.testing.assert_allclose(jax.jit(jax.vmap(partial(call, loss)))(*arrays), plain, rtol=1e-5)


def test_other_settings_compile_nothing() -> None:
    zeros = jnp.zeros(17)
    sequences = jnp.zeros((17, 2, 3))

    def both(beta: float, flip: float) -> None:
        dpo(
            zeros, zeros, reference_chosen=zeros, reference_rejected=zeros,
            beta=beta, label_smoothing=flip,
        )  # fmt: skip
        preference_gradients(
            sequences, weights=sequences, reference_logprobs=jnp.zeros((17, 2)),
            beta=beta, label_smoothing=flip,
        )  # fmt: skip

    both(0.1, 0.0)
    programs = dpo._cache_size(), preference_gradients._cache_size()
    both(0.2, 0.1)

    assert (dpo._cache_size(), preference_gradients._cache_size()) == programs


def test_metrics_by_hand() -> None:
    chosen, rejected = jnp.array([-1.0, -4.0, -2.0]), jnp.array([-3.0, -3.0, -2.0])

    metrics = preference_metrics(
        jnp.array([1.0, 2.0, 6.0]), chosen, rejected,
        reference_chosen=jnp.array([-2.0, -2.0, -1.0]),
        reference_rejected=jnp.array([-3.0, -5.0, -1.0]), beta=0.5,
    )  # fmt: skip

    # Log-ratios 1, -2, -1 of the chosen and 0, 2, -1 of the rejected: one win, one loss, one tie.
    assert metrics.loss == 3
    assert float(metrics.accuracy) == pytest.approx(1 / 3)
    assert float(metrics.chosen_reward) == pytest.approx(0.5 * -2 / 3)
    assert float(metrics.rejected_reward) == pytest.approx(0.5 * 1 / 3)
    assert float(metrics.margin) == pytest.approx(0.5 * -1)
    assert metrics.num_pairs == 3


@few
@given(seed=st.integers(0, 1000))
def test_accuracies_of_a_batch_and_of_its_swap_add_up_to_one(seed: int) -> None:
    chosen, rejected = np.random.default_rng(seed).normal(size=(2, 5)).astype(np.float32)

    forth = preference_metrics(chosen, chosen, rejected)
    back = preference_metrics(chosen, rejected, chosen)

    assert float(forth.accuracy + back.accuracy) == pytest.approx(1)
    assert float(forth.margin) == pytest.approx(-float(back.margin), rel=1e-5)
    assert forth.chosen_reward == back.rejected_reward


def test_ties_are_not_accurate() -> None:
    metrics = preference_metrics(jnp.zeros(2), -jnp.ones(2), -jnp.ones(2))

    assert metrics.accuracy == 0


def test_metrics_of_no_pairs_are_zero() -> None:
    empty = np.zeros(0, np.float32)
    nothing = np.full(3, np.nan, np.float32)

    for metrics in (
        preference_metrics(empty, empty, empty),
        preference_metrics(nothing, nothing, nothing, mask=np.zeros(3, bool)),
    ):
        assert [float(value) for value in metrics] == [0] * 6


def token_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Four pairs of up to six tokens after a prompt of one."""
    random = np.random.default_rng(seed)
    weights = (np.arange(7) < random.integers(2, 7, (4, 2, 1))).astype(np.float32)
    weights[..., 0] = 0
    return {
        "logprobs": -random.exponential(size=(4, 2, 7)).astype(np.float32),
        "weights": weights,
        "reference_logprobs": -random.exponential(3, size=(4, 2)).astype(np.float32),
    }


def batch_of(loss: Callable, seed: int = 0) -> dict[str, np.ndarray]:
    batch = token_batch(seed)
    if loss not in RATIO_LOSSES:
        del batch["reference_logprobs"]
    return batch


def run(loss: Callable, batch: dict, **options: object) -> preference.PreferenceGradients:
    rest = {name: array for name, array in batch.items() if name != "logprobs"}
    return preference_gradients(batch["logprobs"], loss=loss, beta=0.3, **rest, **options)


@pytest.mark.parametrize("loss", [dpo, orpo])
def test_the_pass_over_a_batch_is_the_composition_of_its_parts(loss: Callable) -> None:
    batch = batch_of(loss)
    average = loss in (simpo, orpo)
    references = {}
    if "reference_logprobs" in batch:
        references["reference_chosen"] = batch["reference_logprobs"][:, 0]
        references["reference_rejected"] = batch["reference_logprobs"][:, 1]

    @jax.jit
    def composed(logprobs: jax.Array) -> tuple[preference.PreferenceMetrics, jax.Array]:
        def objective(logprobs: jax.Array) -> tuple[jax.Array, preference.PreferenceMetrics]:
            chosen, rejected = jnp.unstack(
                sequence_logprobs(logprobs, batch["weights"], average=average), axis=1
            )
            losses = loss(chosen, rejected, beta=0.3, **references)
            metrics = preference_metrics(losses, chosen, rejected, beta=0.3, **references)
            return losses.mean(), metrics

        gradients, metrics = jax.grad(objective, has_aux=True)(logprobs)
        return metrics, gradients

    metrics, gradients = run(loss, batch)

    expected_metrics, expected = composed(batch["logprobs"])
    np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-5)
    np.testing.assert_allclose(gradients, expected, rtol=1e-5)


def test_the_token_gradients_of_dpo_are_their_closed_form() -> None:
    batch = token_batch()
    sums = (batch["logprobs"].astype(np.float64) * batch["weights"]).sum(-1)
    ratios = sums - batch["reference_logprobs"]
    pull = 0.3 / (1 + np.exp(0.3 * (ratios[:, 0] - ratios[:, 1]))) / 4
    expected = batch["weights"] * np.stack([-pull, pull], axis=1)[..., None]

    _, gradients = run(dpo, batch)

    np.testing.assert_allclose(gradients, expected, rtol=1e-5)


def test_cross_entropy_weighted_with_the_negative_gradients_has_the_same_gradients() -> None:
    batch = token_batch()
    _, gradients = run(dpo, batch)

    surrogate = jax.jit(jax.grad(lambda x: policy.cross_entropy(x, weights=-gradients).sum()))(
        batch["logprobs"]
    )

    np.testing.assert_array_equal(surrogate, gradients)


@few
@given(seed=st.integers(0, 1000))
def test_swapped_pairs_have_opposite_pulls_and_complementary_accuracy(seed: int) -> None:
    batch = token_batch(seed)
    metrics, gradients = run(dpo, batch)
    back_metrics, back = run(dpo, {name: array[:, ::-1] for name, array in batch.items()})

    assert float(metrics.accuracy + back_metrics.accuracy) == pytest.approx(1)
    assert float(metrics.loss - back_metrics.loss) == pytest.approx(
        -float(metrics.margin), abs=1e-5
    )
    # σ(x) + σ(-x) = 1: the two pulls at a token add up to beta, shared by four pairs.
    pulls = np.abs(gradients) + np.abs(back[:, ::-1])
    np.testing.assert_allclose(pulls, 0.3 / 4 * batch["weights"], rtol=1e-5)
    assert (np.sign(gradients) == -np.sign(back[:, ::-1])).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e30])
def test_padding_may_hold_anything(loss: Callable, bad: float) -> None:
    batch = batch_of(loss)
    metrics, gradients = run(loss, batch)
    padded = {
        name: np.concatenate([array, np.full_like(array[:2], bad)]) for name, array in batch.items()
    }
    padded["logprobs"][:4] = np.where(batch["weights"] == 0, bad, batch["logprobs"])

    padded_metrics, padded_gradients = run(loss, padded, mask=np.arange(6) < 4)

    np.testing.assert_allclose(padded_metrics, metrics, rtol=1e-6)
    np.testing.assert_allclose(padded_gradients[:4], gradients, rtol=1e-6)
    assert (padded_gradients[4:] == 0).all()


@pytest.mark.parametrize("loss", [dpo, orpo])
def test_more_columns_of_padding_change_nothing(loss: Callable) -> None:
    batch = batch_of(loss)
    metrics, gradients = run(loss, batch)
    wider = dict(batch)
    for name in ("logprobs", "weights"):
        wider[name] = np.pad(batch[name], ((0, 0), (0, 0), (0, 9)))

    wider_metrics, wider_gradients = run(loss, wider)

    np.testing.assert_allclose(wider_metrics, metrics, rtol=1e-5)
    np.testing.assert_allclose(wider_gradients[..., :7], gradients, rtol=1e-5)
    assert (wider_gradients[..., 7:] == 0).all()


@pytest.mark.parametrize("loss", [dpo, orpo])
def test_no_pairs_are_a_pass_without_effect(loss: Callable) -> None:
    batch = batch_of(loss)
    empty = {name: array[:0] for name, array in batch.items()}

    metrics, gradients = run(loss, empty)

    assert [float(value) for value in metrics] == [0] * 6
    assert gradients.shape == (0, 2, 7)
    metrics, gradients = run(loss, batch, mask=np.zeros(4, bool))
    assert [float(value) for value in metrics] == [0] * 6
    assert (gradients == 0).all()


def test_settings_reach_the_loss() -> None:
    batch = token_batch()

    plain, smooth = run(dpo, batch), run(dpo, batch, label_smoothing=0.5)

    assert float(smooth.metrics.loss) == pytest.approx(
        float(plain.metrics.loss + 0.5 * plain.metrics.margin), rel=1e-5
    )


def test_a_loss_without_its_reference_or_with_an_unknown_setting_is_refused() -> None:
    batch = token_batch()

    with pytest.raises(TypeError, match="label_smothing"):
        run(dpo, batch, label_smothing=0.1)
    with pytest.raises(TypeError, match="reference_chosen"):
        run(simpo, batch)
    del batch["reference_logprobs"]
    with pytest.raises(TypeError, match="reference_chosen"):
        run(dpo, batch)


@pytest.mark.parametrize("shape", [(6, 4), (3, 1, 4)])
def test_rows_that_are_not_pairs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"\[\*pair, 2, token\].*reshape\(-1, 2, token\)"):
        preference_gradients(
            np.zeros(shape, np.float32), weights=np.zeros(shape, np.float32), beta=0.1
        )


def test_a_pass_works_in_float64_and_under_jit_and_vmap() -> None:
    batch = token_batch()
    metrics, gradients = run(dpo, batch)

    with jax.enable_x64(True):
        double = run(dpo, {name: array.astype(np.float64) for name, array in batch.items()})
        assert double.gradients.dtype == np.float64
        np.testing.assert_allclose(double.gradients, gradients, rtol=1e-5)
    stacked = {name: np.stack([array, array]) for name, array in batch.items()}
    mapped = jax.jit(jax.vmap(partial(run, dpo)))(stacked)
    np.testing.assert_allclose(mapped.gradients[1], gradients, rtol=1e-6)
    np.testing.assert_allclose(mapped.metrics.loss, [metrics.loss] * 2, rtol=1e-6)
