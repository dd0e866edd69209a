"""Records of a run's starts survive being written."""

import json

import pytest

from cookbook_fx.errors import DataError
from cookbook_fx.runs import CodeState, RunStart, start_from_json, start_to_json


def test_a_start_comes_back_equal_from_json():
    start = RunStart(
        at="2026-01-01T00:00:00+00:00",
        command=("a", "b"),
        directory="/d",
        python="3.11",
        platform="p",
        packages={"jax": "1"},
        code=CodeState(commit="c", branch=None, changes=("?? x",), diff="code.diff", left_out="y"),
    )
    assert start_from_json(json.loads(json.dumps(start_to_json(start)))) == start


@pytest.mark.parametrize("value", [None, [], {}, {"at": 1}, {"at": "x", "code": 3}])
def test_what_is_no_start_is_refused(value):
    with pytest.raises(DataError, match="run's start"):
        start_from_json(value)
