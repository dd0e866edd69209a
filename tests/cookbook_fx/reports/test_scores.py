"""Means, standard errors and pass@k against their definitions."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.reports import ScoreReport, flatten, mean_scores, pass_at_k


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    draws = [any(drawn) for drawn in combinations(answers, k)]
    assert pass_at_k(len(answers), sum(answers), k) == pytest.approx(np.mean(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 0), (3, 1, 4), (3, 4, 1), (3, -1, 1)])
def test_what_cannot_be_drawn_is_refused(n, c, k):
    with pytest.raises(ConfigurationError, match="pass@k"):
        pass_at_k(n, c, k)


def test_the_standard_error_is_of_the_examples_not_of_their_answers():
    once = mean_scores([[{"s": 0.25}], [{"s": 0.75}], [{"s": 0.5}]])
    repeated = mean_scores([[{"s": value}] * 8 for value in (0.25, 0.75, 0.5)])
    assert once == repeated
    assert once["s_stderr"] == pytest.approx(0.25 / np.sqrt(3))


def test_a_score_that_is_missing_counts_as_0_and_no_score_at_all_is_none():
    assert mean_scores([[{"s": 1.0}], [{}]])["s"] == 0.5
    assert mean_scores([[{}], [{}]]) == {}


def test_pass_at_k_is_told_of_binary_scores_up_to_the_number_of_answers():
    found = mean_scores([[{"a": float(index < right)} for index in range(6)] for right in (1, 3)])
    assert [name for name in found if "@" in name] == [f"a/pass@{k}" for k in (1, 2, 4, 6)]
    assert found["a/pass@2"] == pytest.approx((1 - 10 / 15 + 1 - 3 / 15) / 2)
    assert not [name for name in mean_scores([[{"a": 0.5}] * 2]) if "@" in name]


@pytest.mark.parametrize("answers", [[], [[]], [[{}], [{}, {}]]])
def test_uneven_answers_are_refused(answers):
    with pytest.raises(DataError, match="same number"):
        mean_scores(answers)


def test_a_report_is_named_by_its_evaluation():
    assert flatten(ScoreReport(name="gsm", scores={"accuracy": 0.5})) == {"gsm/accuracy": 0.5}
