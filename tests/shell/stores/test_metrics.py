"""metrics.jsonl is valid JSON with each step once, whatever is measured and whenever killed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import DataError, StorageError
from shell.stores import MetricsFile


def strict_rows(file: MetricsFile) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = file.path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_numpy_scalars_and_non_finite_numbers_become_valid_json(tmp_path):
    file = MetricsFile(path=tmp_path / "metrics.jsonl")
    file.append(
        np.int64(0),
        {
            "nll": np.float32(0.5),
            "tokens": np.int64(7),
            "zero_d": np.array(2.0),
            "nan": math.nan,
            "inf": -np.inf,
            "name": "x",
            "flag": np.bool_(True),
            "none": None,
        },
    )
    assert strict_rows(file) == [
        {
            "step": 0, "nll": 0.5, "tokens": 7, "zero_d": 2.0, "nan": None, "inf": None,
            "name": "x", "flag": True, "none": None,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("value", [[1], np.zeros(2), {"a": 1}, object()])
def test_what_is_no_scalar_is_refused_by_name_and_leaves_no_line(tmp_path, value):
    file = MetricsFile(path=tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match="'loss'"):
        file.append(0, {"loss": value})
    assert not file.path.exists()


def test_the_name_step_is_taken(tmp_path):
    with pytest.raises(DataError, match="step"):
        MetricsFile(path=tmp_path / "m").append(0, {"step": 1})


@given(written=st.integers(0, 8), cut=st.integers(1, 20), resume=st.integers(0, 8))
def test_resuming_leaves_each_step_before_the_resume_step_once(
    tmp_path_factory, written, cut, resume
):
    file = MetricsFile(path=tmp_path_factory.mktemp("m") / "metrics.jsonl")
    for step in range(written + 1):
        file.append(step, {"nll": 1 / (step + 1)})
    whole = file.path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    file.path.write_bytes(whole[: -min(cut, len(last))])
    file.keep_before(resume)
    for step in range(resume, written + 2):
        file.append(step, {"nll": 0.0})
    steps = [row["step"] for row in strict_rows(file)]
    survivors = written + 1 if cut == 1 else written
    assert steps == [*range(min(survivors, resume)), *range(resume, written + 2)]


def test_damage_in_the_middle_is_reported_with_its_line(tmp_path):
    file = MetricsFile(path=tmp_path / "metrics.jsonl")
    file.path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 2"):
        file.keep_before(2)


def test_a_full_disk_is_named_and_says_what_to_do():
    file = MetricsFile(path=Path("/dev/full"))
    with pytest.raises(StorageError, match=r"No space left on device; free some space"):
        file.append(0, {"nll": 1.0})
