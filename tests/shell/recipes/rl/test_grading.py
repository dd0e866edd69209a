"""What counts as the same answer, by hand and for numbers written in every way."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell.recipes.rl.grading import (
    extract_boxed,
    final_answer,
    last_integer,
    same_answer,
    solves,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is \\boxed{42}.", "42"),
        ("\\boxed{1} or rather \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\fbox{x}", "x"),
        ("$\\boxed 7$", "7"),
        ("\\boxed{ 3 }", "3"),
        ("\\boxed{4", None),
        ("\\boxedx{4}", None),
        ("4", None),
        ("", None),
    ],
)
def test_the_last_box_holds_the_answer(text, answer):
    assert extract_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4\n#### 4", "4"),
        ("#### 3\n#### 4\nthat is all", "4"),
        ("####: 1,000 ", "1,000"),
        ("#### 3 but \\boxed{4}", "4"),
        ("4", None),
        ("#### ", None),
        ("####\n4", None),
    ],
)
def test_a_solution_ends_in_a_box_or_after_four_number_signs(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "integer"),
    [
        ("9", 9),
        ("4 + 5 = 9.", 9),
        ("1,234", 1234),
        ("it is -3", -3),
        ("nine", None),
        ("", None),
        ("7" * 9000, int("7" * 1000)),
    ],
)
def test_the_last_integer_counts(text, integer):
    assert last_integer(text) == integer


SAME = [
    ("1/2", "0.5"), ("\\frac12", ".5"), ("\\frac{1}{2}", "\\dfrac{2}{4}"), ("3.0", "3"),
    ("1,234", "1234"), ("1{,}234{,}567", "1234567"), ("1\\,000", "1000"), ("12.", "12"),
    ("$18", "18"), ("\\$1,000.50", "1000.5"), ("18 dollars", "18"), ("18\\text{ cm}^2", "18"),
    ("18 square feet", "18"), ("50\\%", "50"), ("90^\\circ", "90"), ("90°", "90"), ("−3", "-3"),
    ("2 1/2", "2.5"), ("-2 1/2", "-2.5"), ("2\\frac{1}{2}", "5/2"), ("-\\frac{1}{3}", "-1/3"),
    ("x=5", "5"), ("5", "x = 5"), ("x=5", "x = 5"),
    ("10^3", "1000"), ("2^{-1}", "1/2"), ("5!", "120"), ("-(1-2)", "1"), ("|-3|", "3"),
    ("2\\sqrt{3}", "\\sqrt{12}"), ("\\sqrt[3]{8}", "2"), ("2\\pi", "2pi"), ("e^{i\\pi}", "-1"),
    ("(x+1)^2", "x^2+2x+1"), ("x^2-1", "(x-1)(x+1)"), ("2x", "x*2"), ("\\frac{ab}{2}", "ba/2"),
    ("(1,2)", "( 1 , 4/2 )"), ("\\left(\\frac12,3\\right)", "(0.5,3)"), ("(1,234)", "(1, 234)"),
    ("\\{1,2\\}", "\\{2, 1\\}"), ("1, 2", "2,1"), ("(1,2),(3,4)", "(3,4),(1,2)"),
    ("[0,\\infty)", "[ 0, \\infty )"), ("\\text{Monday}", "monday"), ("x \\le 3", "x\\leq 3"),
]  # fmt: skip
DIFFERENT = [
    ("1", "2"), ("0.333", "1/3"), ("", "1"), ("", ""), ("x", "y"), ("x=1", "y=1"), ("2 3", "6"),
    ("Monday", "Mondya"), ("3 apples and 4 pears", "3"), ("1234", "(1,234)"), ("3 or 4", "3"),
    ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("(1,2]", "[1,2)"), ("1,2", "1,2,3"),
    ("1,1,2", "1,2,2"), ("1/0", "1/0+1"), ("9^9^9^9", "9^9^9^8"), ("1e400", "1"), ("x+1", "x"),
    ("\\frac{1}", "1"), ("(1", "1"), ("2x", "2y"), ("-5", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_these_are_the_same(one, other):
    assert same_answer(one, other)
    assert same_answer(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_these_are_not(one, other):
    assert not same_answer(one, other)
    assert not same_answer(other, one)


integers = st.integers(-(10**12), 10**12)


@given(integers, st.integers(1, 10**6))
def test_a_number_is_itself_however_it_is_written(numerator, denominator):
    number = Fraction(numerator, denominator)
    sign = "-" if number < 0 else ""
    whole, rest = divmod(abs(numerator), denominator)
    spellings = [
        f"{numerator}/{denominator}",
        f"\\frac{{{numerator}}}{{{denominator}}}",
        f"{sign}\\dfrac{{{abs(numerator)}}}{{{denominator}}}",
        f"{sign}{whole} {rest}/{denominator}",
        f"{numerator} \\div {denominator}",
    ]
    for spelling in spellings:
        assert same_answer(spelling, str(number)), spelling
        assert not same_answer(spelling, str(number + 1)), spelling


@given(integers)
def test_thousands_currency_and_units_change_no_integer(integer):
    for spelling in (f"{integer:,}", f"${integer:,}", f"{integer} cows", f"{integer}\\%"):
        assert same_answer(spelling, str(integer)), spelling
        assert not same_answer(spelling, str(integer + 1)), spelling


@given(st.lists(integers, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_sets_have_no_order_and_tuples_have_one(members, chance):
    shuffled = chance.sample(members, len(members))
    sets = ["\\{" + ", ".join(map(str, order)) + "\\}" for order in (members, shuffled)]
    tuples = ["(" + ", ".join(map(str, order)) + ")" for order in (members, shuffled)]
    assert same_answer(*sets)
    assert same_answer(*tuples) == (members == shuffled)


@given(st.text(), st.text())
def test_any_texts_are_compared_without_failing_and_either_way_round(one, other):
    assert same_answer(one, other) == same_answer(other, one)
    final_answer(one)
    last_integer(one)


@given(st.text(alphabet="0123456789(){}[]|,.+-*/^\\!xeiπ frac", max_size=60))
def test_what_nearly_is_an_expression_is_graded_too(text):
    graded = same_answer(text, "1")
    assert same_answer("1", text) == graded
    if any(character.isalnum() for character in text):
        assert same_answer(text, text)


@pytest.mark.parametrize(
    "hostile",
    [
        "9^" * 190 + "9", "(" * 300, "-" * 399 + "1", "\\frac" * 70, "1" + "a" * 398 + "!",
        "1 " + "ab " * 120, "{" * 190 + "}" * 190, "x^" * 190 + "x", "100^100" * 50,
        "{" + "{1,2}," * 55 + "3}", "\\sqrt" * 60 + "2", "99!" * 120, "1" * 400, "9" * 10**6,
        "1," * 199 + "1", "\\boxed{" * 50,
    ],
)  # fmt: skip
def test_no_answer_takes_long(hostile):
    began = time.process_time()
    for other in ("1", hostile[:-1] + "2", "{" + "{2,1}," * 50 + "3}"):
        same_answer(hostile, other)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("solution", "right"),
    [("\\boxed{18}", True), ("9 + 9\n#### 18.0", True), ("#### 17", False), ("18", False)],
)
def test_a_solution_is_judged_by_the_answer_it_ends_in(solution, right):
    assert solves(solution, "18") == right
