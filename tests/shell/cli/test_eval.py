"""`eval` end to end: several tasks at once, results kept, answers not asked for twice."""

import json
from pathlib import Path

import pytest

from tests.shell.cli.conftest import write_conversations


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "pets.jsonl"
    rows = [
        {"prompt": "where is the cat", "reference": "."},
        {"question": "where is the dog", "answer": ["no such thing", "(?s).*"]},
        {"messages": [{"role": "user", "content": "where"}], "target": "^$(?!)"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tasks_are_measured_together_kept_and_continued(
    command, tmp_path, home, questions, tiny_model_directory
):
    held_out = write_conversations(tmp_path / "heldout.jsonl", begin=0, end=3)
    out_dir = tmp_path / "out"
    arguments = [
        "eval", tiny_model_directory, "--questions", questions, "--question-grader", "regex",
        "--nll", held_out, "--max-tokens", 6, "--out-dir", out_dir, "--show", 2,
    ]  # fmt: skip
    status, out, err = command(*arguments)
    assert status == 0, err
    kept = json.loads((out_dir / "results.json").read_text())
    results = kept["results"]
    assert results["pets/accuracy"] == pytest.approx(2 / 3)
    assert results["heldout/nll"] > 4
    assert f"{results['pets/accuracy']:.4f} ± {results['pets/accuracy_stderr']:.4f}" in out
    assert (kept["model"], kept["renderer"]) == (str(tiny_model_directory), "chatml")
    assert "question 2\nuser: where is the dog\n[accuracy 1]\n" in out
    assert "question 3" not in out
    answers = (out_dir / "answers-pets.jsonl").read_bytes()
    assert answers.count(b"\n") == 3

    status, _, _ = command(*arguments)
    assert status == 0
    assert (out_dir / "answers-pets.jsonl").read_bytes() == answers
    assert json.loads((out_dir / "results.json").read_text()) == kept


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "line 2: one of reference, answer, target, output is wanted"),
        ({"reference": "a"}, "line 2: one of prompt, question, input, messages is wanted"),
        ({"prompt": "a", "answer": True}, "line 2: the right answer must be"),
        ({"prompt": " ", "answer": "b"}, "line 2: the prompt must be"),
        ({"prompt": "a", "answer": 5, "choices": ["x", "y"]}, "line 2: the right answer must be a"),
        ({"prompt": "a", "answer": 0, "choices": "xy"}, "line 2: `choices` must be"),
    ],
)
def test_a_bad_line_is_told_by_its_number(
    command, tmp_path, home, tiny_model_directory, tiny_engine, monkeypatch, row, said
):
    monkeypatch.setenv("TINKER_API_KEY", tiny_engine.api_key)
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"prompt": "a", "reference": "b"}) + "\n" + json.dumps(row) + "\n")
    status, _, err = command(
        "eval", tiny_model_directory, "--questions", path, "--base-url", tiny_engine.base_url
    )
    assert status == 1
    assert f"bad.jsonl, {said}" in err


def test_what_cannot_be_measured_is_refused(command, tmp_path, home, tiny_model_directory):
    status, _, err = command("eval", tiny_model_directory)
    assert status == 1
    assert "nothing to measure on" in err
    twice = [
        write_conversations(tmp_path / name / "a.jsonl", begin=0, end=1) for name in _made(tmp_path)
    ]
    status, _, err = command("eval", tiny_model_directory, "--nll", *twice)
    assert status == 1
    assert "two tasks would be called a" in err


def _made(tmp_path: Path) -> list[str]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return ["one", "two"]


@pytest.mark.slow
def test_a_run_measures_chosen_tasks_on_its_cadence(
    command, tmp_path, home, questions, sft_arguments
):
    status, out, err = command(
        *sft_arguments, "--max-steps", "2", "--eval-every", "1", "--run-dir", tmp_path / "run",
        "--questions", questions, "--question-grader", "regex",
    )  # fmt: skip
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["pets/num_examples"] for row in rows] == [3, 3, 3]
    assert all(row["pets/accuracy"] == pytest.approx(2 / 3) for row in rows)
    assert out.count("pets after") == 3
