import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics import SCHEDULES, learning_rate_multiplier


def reference(name, step, total, warmup, fraction):
    """The docstring's formulas in double precision."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    step = min(step, total)
    share = (step - warmup) / (total - warmup)
    decay = max(1, round(fraction * total))
    return {
        "constant": 1.0,
        "linear": 1 - share,
        "cosine": (1 + math.cos(math.pi * share)) / 2,
        "wsd": min(1.0, (total - step) / decay),
    }[name]


@settings(max_examples=40)
@given(
    name=st.sampled_from(list(SCHEDULES)),
    total=st.integers(2, 60),
    warm=st.floats(0, 0.5),
    data=st.data(),
)
def test_every_schedule_follows_its_formula_and_stays_at_its_end(name, total, warm, data):
    warmup = int(warm * total)
    fraction = data.draw(st.sampled_from([0.1, 0.2, 0.5]))
    # One length for all, so that nothing is compiled again.
    steps = np.arange(65)
    curve = learning_rate_multiplier(
        name, steps, total, warmup_steps=warmup, decay_fraction=fraction
    )
    expected = [reference(name, int(step), total, warmup, fraction) for step in steps]
    np.testing.assert_allclose(curve, expected, atol=2e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_at_a_time_and_under_jit_it_is_the_same_curve(name):
    curve = learning_rate_multiplier(name, np.arange(7), 6, warmup_steps=2)
    one_by_one = [
        float(learning_rate_multiplier(name, step, 6, warmup_steps=2)) for step in range(7)
    ]
    jitted = jax.jit(lambda step: learning_rate_multiplier(name, step, 6, warmup_steps=2))
    np.testing.assert_allclose(one_by_one, curve, atol=1e-6)
    np.testing.assert_allclose([jitted(step) for step in range(7)], curve, atol=1e-6)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert {float(learning_rate_multiplier(name, 0, 9)) for name in SCHEDULES} == {1.0}


STEPS = np.arange(-3, 62)


@settings(max_examples=60)
@given(
    name=st.sampled_from(list(SCHEDULES)),
    total=st.integers(1, 60),
    warm=st.floats(0, 0.5),
    fraction=st.sampled_from([0.1, 0.2, 0.5]),
)
def test_every_schedule_is_bounded_and_nowhere_steeper_than_its_parts(name, total, warm, fraction):
    warmup = int(warm * total)
    if name == "wsd":
        warmup = min(warmup, total - max(1, round(fraction * total)))
    curve = np.asarray(
        learning_rate_multiplier(name, STEPS, total, warmup_steps=warmup, decay_fraction=fraction)
    )
    assert (curve >= 0).all()
    assert (curve <= 1).all()
    decay = {
        "constant": 0.0,
        "linear": 1 / (total - warmup),
        "cosine": math.pi / 2 / (total - warmup),
        "wsd": 1 / max(1, round(fraction * total)),
    }[name]
    assert np.abs(np.diff(curve)).max() <= max(1 / (warmup + 1), decay) + 1e-6
    rising, falling = STEPS < warmup, STEPS >= warmup
    assert (np.diff(curve[rising]) >= 0).all()
    assert (np.diff(curve[falling]) <= 0).all()
    # The two parts meet: warm-up's line, drawn one step further, is the full rate.
    assert curve[STEPS == warmup] == 1
    if warmup:
        assert curve[STEPS == warmup - 1] == pytest.approx(warmup / (warmup + 1))
    # And the clamps hold still on both sides.
    assert set(curve[STEPS >= total].tolist()) == {float(name == "constant")}
    np.testing.assert_allclose(curve[STEPS <= 0], 1 / (warmup + 1), rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_run_that_goes_on_too_long_is_not_trained_backwards(name):
    """Unclamped formulas give -0.25 for linear at step 5 of 4, and let cosine rise again."""
    past_the_end = learning_rate_multiplier(name, np.array([4, 5, 8, 1_000_000]), 4)
    assert past_the_end.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_the_end_is_exactly_0_however_long_the_run(name):
    """Of 1 - T · (1 / T), some T leave 6e-8."""
    for total in (47, 141, 218):
        assert (
            learning_rate_multiplier(name, np.arange(total, total + 65), total).tolist()
            == [0.0] * 65
        )


def test_they_agree_with_optax_where_it_has_the_same():
    steps = jnp.arange(65)
    for total, warmup in [(10, 4), (60, 0), (50, 7)]:
        start = 1 / (warmup + 1)
        cosine = optax.warmup_cosine_decay_schedule(start, 1.0, warmup, total)
        constant = optax.warmup_constant_schedule(start, 1.0, warmup)
        for name, schedule in [("cosine", cosine), ("constant", constant)]:
            ours = learning_rate_multiplier(name, steps, total, warmup_steps=warmup)
            np.testing.assert_allclose(ours, schedule(steps), atol=1e-6)
    linear = learning_rate_multiplier("linear", steps, 40)
    np.testing.assert_allclose(linear, optax.linear_schedule(1.0, 0.0, 40)(steps), atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_may_be_mapped_scanned_and_of_any_shape(name):
    def multiplier(step):
        return learning_rate_multiplier(name, step, 6, warmup_steps=2)

    steps = jnp.arange(-1, 9)
    curve = multiplier(steps)
    np.testing.assert_allclose(jax.vmap(multiplier)(steps), curve, atol=1e-6)
    _, scanned = jax.lax.scan(lambda step, _: (step + 1, multiplier(step)), -1, length=10)
    np.testing.assert_allclose(scanned, curve, atol=1e-6)
    assert multiplier(steps.reshape(2, 5)).shape == (2, 5)
    assert multiplier(jnp.zeros(0, int)).shape == (0,)
    assert jnp.asarray(multiplier(3)).dtype == jnp.float32


def test_the_curve_scales_with_the_run():
    """A run k times as long, without warm-up, passes through the same multipliers."""
    for name in SCHEDULES:
        short = learning_rate_multiplier(name, np.arange(11), 10)
        long = learning_rate_multiplier(name, 100 * np.arange(11), 1000)
        np.testing.assert_allclose(long, short, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "total", "options", "complaint"),
    [
        ("linaer", 4, {}, "constant, linear, cosine, wsd; got 'linaer'"),
        ("linear", 0, {}, "`total_steps` must be at least 1, got 0"),
        ("linear", -3, {}, "got -3"),
        (
            "linear",
            4,
            {"warmup_steps": 4},
            "`warmup_steps` must be .* below the run's 4 steps, got 4",
        ),
        ("linear", 4, {"warmup_steps": -1}, "got -1"),
        ("wsd", 4, {"decay_fraction": 0.0}, r"`decay_fraction` must be in \(0, 1\]"),
        ("wsd", 10, {"warmup_steps": 6, "decay_fraction": 0.5}, "4 steps after its warm-up"),
    ],
)
def test_impossible_schedules_are_refused(name, total, options, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        learning_rate_multiplier(name, 0, total, **options)
