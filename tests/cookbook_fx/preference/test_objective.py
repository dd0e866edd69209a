"""Losses of pairs beside float64, their gradients, and what ties cost."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.preference import (
    PREFERENCE_LOSSES,
    PairInputs,
    PreferenceObjective,
    preference_loss,
    preference_report,
    preference_step,
    token_preference_loss,
)


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def dpo_in_float64(completions, reference, is_tie, beta):
    """Loss, gradient and metrics of DPO, a tie being a label of one half."""
    margin = (completions - reference) @ np.array([1.0, -1.0]) * beta
    label = np.where(is_tie, 0.5, 1.0)
    losses = -label * log_sigmoid(margin) - (1 - label) * log_sigmoid(-margin)
    slope = beta * (1 / (1 + np.exp(-margin)) - label) / len(margin)
    return losses.mean(), np.stack([slope, -slope], axis=1), margin


@given(st.integers(0, 1000), st.integers(1, 9), st.floats(0.01, 2))
@settings(max_examples=25)
def test_dpo_with_ties_is_its_float64_reference(seed, count, beta):
    random = np.random.default_rng(seed)
    completions, reference = random.normal(-20, 5, (2, count, 2))
    is_tie = random.random(count) < 0.4
    inputs = PairInputs(reference, is_tie, {"beta": beta, "label_smoothing": 0.0})
    step = preference_step(completions.astype(np.float32), inputs, loss="dpo")
    loss, gradients, margin = dpo_in_float64(completions, reference, is_tie, beta)
    assert float(step.loss) == pytest.approx(loss, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(step.gradients, gradients, rtol=1e-3, atol=1e-5)
    report = preference_report(step.metrics, loss="dpo", num_tokens=7)
    assert (report.num_pairs, report.num_ties) == (count, is_tie.sum())
    if is_tie.all():
        assert report.accuracy is None
        assert report.margin is None
    else:
        assert report.accuracy == pytest.approx((margin[~is_tie] > 0).mean(), abs=1e-6)
        assert report.margin == pytest.approx(margin[~is_tie].mean(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("loss", sorted(PREFERENCE_LOSSES))
def test_every_loss_falls_with_the_margin_and_ties_do_not_care_which_is_which(loss):
    kind = PREFERENCE_LOSSES[loss]
    completions = np.array([[-0.5, -0.9], [-1.5, -0.4], [-0.7, -0.7]], np.float32)
    zeros, settings = np.zeros((3, 2), np.float32), dict(kind.defaults)
    preferred = PairInputs(zeros, np.zeros(3, bool), settings)
    _, slopes = jax.value_and_grad(lambda values: preference_loss(values, preferred, loss=loss)[0])(
        completions
    )
    assert (np.asarray(slopes[:, 0]) < 0).all()
    assert (np.asarray(slopes[:, 1]) > 0).all()
    tied = PairInputs(zeros, np.ones(3, bool), settings)
    value, _ = preference_loss(completions, tied, loss=loss)
    swapped, _ = preference_loss(completions[:, ::-1], tied, loss=loss)
    assert float(value) == pytest.approx(float(swapped), rel=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_a_tie_pulls_both_completions_together_where_upstream_prefers_one(loss):
    inputs = PairInputs(np.zeros((2, 2)), np.array([True, True]), {"beta": 0.5})
    step = preference_step(np.array([[-1.0, -5.0], [-5.0, -1.0]]), inputs, loss=loss)
    # Down with whichever is ahead.
    assert step.gradients[0, 0] > 0 > step.gradients[0, 1]
    assert step.gradients[1, 0] < 0 < step.gradients[1, 1]
    level = preference_step(np.array([[-3.0, -3.0]] * 2), inputs, loss=loss)
    np.testing.assert_allclose(level.gradients, 0, atol=1e-7)


def test_kto_compares_with_the_other_kinds_mean_and_is_half_at_the_start():
    inputs = PairInputs(np.full((2, 2), -3.0), np.zeros(2, bool), {"beta": 0.1})
    value, _ = preference_loss(np.full((2, 2), -3.0), inputs, loss="kto")
    assert float(value) == 0.5


@pytest.mark.parametrize("loss", sorted(PREFERENCE_LOSSES))
def test_tokens_count_by_their_weights_and_padding_not_at_all(loss):
    random = np.random.default_rng(0)
    logprobs = -random.exponential(size=(4, 8)).astype(np.float32)
    weights = (np.arange(8) < random.integers(1, 8, (4, 1))).astype(np.float32)
    kind = PREFERENCE_LOSSES[loss]
    inputs = PairInputs(-np.ones((2, 2)), np.zeros(2, bool), dict(kind.defaults))
    values = (logprobs * weights).sum(-1) / (weights.sum(-1) if kind.averages else 1)
    expected, _ = preference_loss(values.reshape(2, 2), inputs, loss=loss)
    garbage = np.where(weights == 0, -np.inf, logprobs).astype(np.float32)
    for rows in (logprobs, garbage):
        value, _ = token_preference_loss(rows, weights, inputs, loss=loss)
        assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_an_empty_batch_is_a_loss_of_zero_and_no_crash():
    inputs = PairInputs(np.zeros((0, 2)), np.zeros(0, bool), {"beta": 0.1})
    step = preference_step(np.zeros((0, 2)), inputs, loss="dpo")
    report = preference_report(step.metrics, loss="dpo", num_tokens=0)
    assert (report.loss, report.num_pairs, report.accuracy) == (0, 0, None)


@pytest.mark.parametrize(
    ("loss", "given", "said"),
    [
        ("dpq", {}, "dpo, hinge"),
        ("ipo", {"gamma": 1.0}, "beta; got gamma"),
        ("dpo", {"beta": 0.0}, "beta"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing"),
    ],
)
def test_objectives_that_cannot_be_are_refused(loss, given, said):
    with pytest.raises(ConfigurationError, match=said):
        PreferenceObjective(loss=loss, settings=given)
