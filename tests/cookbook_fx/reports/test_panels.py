"""Which numbers are drawn, and what of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.reports.panels import Curve, curves, panels, phases, progress, smoothed, thinned


def rl_rows(count=4):
    return [
        {
            "step": step,
            "progress/done_frac": (step + 1) / 8,
            "optim/lr": 0.1,
            "env/all/reward/total": step / 4,
            "env/all/format": 1.0,
            "env/all/total_turns": 3,
            "rollout_errors/total": 0,
            "time/total": 2.0,
            "time/training": 1.5,
            "time/sampling_time_max": 9.0,
        }
        | ({"test/env/all/reward/total": 0.5} if step % 2 == 0 else {})
        for step in range(count)
    ]


def test_a_curve_has_the_finite_numbers_and_no_others():
    values = [1, None, math.nan, math.inf, True, "2", 10**400, 2.5]
    found = curves([{"step": step, "x": value} for step, value in enumerate(values)])["x"]
    assert found.steps.tolist() == [0, 7]
    assert found.values.tolist() == [1, 2.5]
    assert curves([{"step": 0, "x": None}]) == {}


def test_panels_hold_what_belongs_together():
    found = {panel.title: panel for panel in panels(curves(rl_rows()))}
    assert list(found) == ["Reward", "Learning rate", "Environment: format"]
    trained, held_out = found["Reward"].lines
    assert (trained.label, trained.is_held_out) == ("training", False)
    assert (held_out.label, held_out.is_held_out) == ("held out", True)
    assert held_out.curve.steps.tolist() == [0, 2]


def test_failures_are_a_panel_once_there_are_any():
    rows = rl_rows()
    rows[1]["rollout_errors/total"] = 2
    assert "Failed episodes" in [panel.title for panel in panels(curves(rows))]


def test_lines_of_a_panel_are_told_apart_by_where_their_names_differ():
    rows = [{"step": 0, "a/test/nll": 1.0, "b/test/nll": 2.0, "train_mean_nll": 3.0}]
    (panel,) = panels(curves(rows))
    assert [line.label for line in panel.lines] == ["training", "a", "b"]


def test_what_no_phase_accounts_for_is_other_and_groups_do_not_count_twice():
    found = phases(curves(rl_rows()))
    assert {name: part.values.tolist() for name, part in found.items()} == {
        "training": [1.5] * 4,
        "other": [0.5] * 4,
    }
    assert phases(curves([{"step": 0, "loss": 1.0}])) == {}


@pytest.mark.parametrize(("count", "left"), [(1, 14.0), (4, 8.0), (8, 0.0)])
def test_the_time_left_is_that_of_the_steps_left_at_this_pace(count, left):
    done = progress(curves(rl_rows(count)))
    assert (done.steps, done.total, done.seconds_left) == (count, 8, left)


def test_progress_of_supervised_rows_counts_the_row_behind_the_last_step_as_none():
    rows = [{"step": step, "progress": step / 5, "time/total": 1.0} for step in range(5)]
    assert progress(curves(rows[:1])) == (1, None, None)
    assert progress(curves(rows[:3])) == (3, 5, 2.0)
    assert progress(curves([*rows, {"step": 5, "progress": 1.0}])) == (5, 5, 0.0)
    assert progress({}) == (0, None, None)


finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=50), st.integers(1, 60))
def test_smoothing_stays_within_what_it_smooths_and_leaves_a_level_exactly(values, window):
    array = np.array(values)
    found = smoothed(array, window=window)
    assert found.shape == array.shape
    slack = 1e-6 * (1 + np.abs(array).max())
    assert (found >= array.min() - slack).all()
    assert (found <= array.max() + slack).all()
    level = np.full(len(values), values[0])
    assert smoothed(level, window=window).tolist() == level.tolist()


@given(st.lists(finite, max_size=80), st.integers(1, 20))
def test_thinning_keeps_order_and_mean_of_even_parts(values, limit):
    points = Curve(np.arange(len(values), dtype=float), np.array(values, dtype=float))
    found = thinned(points, limit=limit)
    assert len(found.steps) == min(limit, len(values))
    assert (np.diff(found.steps) > 0).all()
    if len(values) and len(values) % limit == 0:
        assert np.isclose(found.values.mean(), points.values.mean())
