import math

import jax
import numpy as np
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


@settings(max_examples=40, deadline=None)
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
