"""Curves that can be read off."""

import pytest

from shell.cli.curves import curve


def test_columns_rise_with_the_values():
    assert curve([0.0, 1.0, 2.0], width=3, height=2).splitlines() == [
        "   2.000 ┤  █",
        "   0.000 ┤▁██",
    ]


def test_many_values_share_columns_by_their_mean():
    text = curve([0.0, 2.0, 3.0, 5.0], width=2, height=1, is_unicode=False)
    assert text == "   1.000 |##"
    assert len(curve([1.0] * 1000, width=60).splitlines()[0]) == 10 + 60


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [-1.0, -1.0, -1.0]])
def test_one_value_is_a_full_curve(values):
    lines = curve(values, height=3, is_unicode=False).splitlines()
    assert all(line.endswith("#" * 4 * len(values)) for line in lines)
    assert all(line.isascii() for line in lines)
