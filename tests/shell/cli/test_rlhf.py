"""`cookbook-fx rlhf` and `rl shorter` on the tiny model: stages, their folders, what is said."""

import json
import re

import pytest

from tests.shell.cli.test_commands import rows


@pytest.fixture
def rlhf_arguments(tiny_model_directory, tmp_path, home) -> list[str]:
    """Three stages of one or two short steps."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": f"where is {name}", "chosen": name, "rejected": name * 9}) + "\n"
            for name in ("the cat", "the dog", "the mat")
        )
    )
    talks = tmp_path / "talks.jsonl"
    talks.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"where is {name}"},
                        {"role": "assistant", "content": "on the mat"},
                    ]
                }
            )
            + "\n"
            for name in "abcdefgh"
        )
    )
    return [
        "rlhf", "--model", str(tiny_model_directory), "--lora-rank", "4", "--data", str(talks),
        "--sft-steps", "2", "--preferences", str(pairs), "--reward-epochs", "1",
        "--reward-batch-size", "2", "--prompts", str(talks), "--rl-steps", "2",
        "--groups-per-batch", "2", "--group-size", "3", "--max-tokens", "5", "--num-test", "2",
    ]  # fmt: skip


def test_three_stages_follow_one_another_and_are_not_done_twice(command, tmp_path, rlhf_arguments):
    run = tmp_path / "run"
    status, out, err = command(*rlhf_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert re.findall(r"Stage (\d)", out) == ["1", "2", "3"]
    reports = [str(run / stage / "report.html") for stage in ("sft", "reward", "rl")]
    assert re.findall(r"Report: (\S+)", out) == reports
    assert re.search(r"on 2 held-out prompts, judged by length: \d won, \d lost, \d tied", out)
    reinforced = rows(run / "rl")
    assert len(reinforced) == 3
    assert "env/all/win_minus_loss" in reinforced[0]
    assert reinforced[0]["env/all/win_minus_loss"] == pytest.approx(0, abs=1e-6)
    policy = re.search(r"Trained model: (\S+)", out).group(1)
    before = {name: (run / name / "metrics.jsonl").read_text() for name in ("sft", "reward", "rl")}
    status, out, err = command(*rlhf_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert re.search(r"Trained model: (\S+)", out).group(1) == policy
    for name, text in before.items():
        assert (run / name / "metrics.jsonl").read_text() == text
    other = [*rlhf_arguments, "--rl-learning-rate", "0.1"]
    assert command(*other, "--run-dir", run)[0] == 1


def test_the_first_stage_can_be_left_out(command, tmp_path, rlhf_arguments):
    at = rlhf_arguments.index("--sft-steps")
    arguments = [*rlhf_arguments[:at], "--sft-steps", "0", *rlhf_arguments[at + 2 :]]
    status, out, err = command(*arguments, "--rl-steps", "1", "--run-dir", tmp_path / "run")
    assert (status, err) == (0, "")
    assert re.findall(r"Stage (\d)", out) == ["2", "3"]


def test_answers_compete_for_brevity(command, tmp_path, tiny_model_directory, home):
    status, out, err = command(
        "rl", "shorter", "--model", tiny_model_directory, "--lora-rank", "4", "--groups-per-batch",
        "2", "--group-size", "5", "--max-tokens", "6", "--max-steps", "1", "--num-test", "2",
        "--run-dir", tmp_path / "run",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "Task: shorter; a step is 5 attempts at each of 2 problems" in out
    (row, last) = rows(tmp_path / "run")
    assert row["env/all/win_minus_loss"] == pytest.approx(0, abs=1e-6)
    assert "test/env/all/ac_tokens_per_turn" in last
