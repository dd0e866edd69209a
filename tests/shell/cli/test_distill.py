"""`cookbook-fx distill`, end to end on the tiny model: it learns, tells, stops and continues."""

import json
import re

import pytest

from tests.shell.cli.conftest import start
from tests.shell.cli.test_commands import last_checkpoint, rows, wait_for_rows

STEPS = 3


@pytest.fixture
def teacher(command, tmp_path, sft_arguments) -> str:
    status, out, err = command(*sft_arguments, "--run-dir", tmp_path / "teacher")
    assert (status, err) == (0, "")
    return re.search(r"Trained model: (\S+)", out).group(1)


@pytest.fixture
def distill_arguments(tiny_model_directory, tmp_path, teacher) -> list[str]:
    """`distill` from two teachers for 3 short steps, saved after each, measured every 2."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"where is the {name}"}) + "\n" for name in "abcdefgh"]
    prompts.write_text("".join(lines))
    return [
        "distill", "--model", str(tiny_model_directory), "--lora-rank", "4", "--teacher", teacher,
        str(tiny_model_directory), "--data", "starter", str(prompts), "--groups-per-batch", "3",
        "1", "--max-tokens", "6", "--max-steps", str(STEPS), "--save-every", "1", "--eval-every",
        "2", "--num-test", "2", "--learning-rate", "0.01", "--question", "where is the cat",
    ]  # fmt: skip


def test_distill_learns_tells_and_leaves_a_run(command, tmp_path, distill_arguments):
    run = tmp_path / "run"
    status, out, err = command(*distill_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert f"Report: {run / 'report.html'}" in out
    assert (run / "report.html").stat().st_size > 100_000
    assert "of 363 prompts; 2 to test on" in out
    assert "of 6 prompts; 2 to test on" in out
    assert re.search(rf"step {STEPS}/{STEPS}  .*KL to teacher -?\d\.\d+", out)
    assert re.findall(r"held-out KL to teacher after (\d) steps", out) == ["0", "2", "3"]
    assert re.search(r"Held-out KL to teacher of dataset_1: -?[\d.]+ after 0 steps", out)
    for who in ("the student before training", "the teacher", "the student after training"):
        assert f"{who}:" in out
    written = rows(run)
    assert [row["step"] for row in written] == list(range(STEPS + 1))
    assert {"teacher_kl", "teacher_kl/dataset_0", "teacher_kl/dataset_1"} <= written[0].keys()
    assert written[0]["train/num_groups"] == 4
    # The second teacher is the student's own base model.
    assert written[0]["teacher_kl/dataset_1"] == pytest.approx(0, abs=1e-4)
    status, out, _ = command("replay", run, "--step", "0")
    assert status == 0, out
    status, out, err = command(*distill_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert "This run is finished" in out


def test_a_killed_run_continues(command, tmp_path, distill_arguments):
    run = tmp_path / "run"
    with start([*distill_arguments, "--run-dir", str(run)], cwd=tmp_path) as process:
        wait_for_rows(process, run, 2)
        process.kill()
    status, _, err = command(*distill_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))
    assert last_checkpoint(run).final


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "name one with --teacher"),
        (("--teacher", "tinker://a", "tinker://b", "--data", "starter"), "for each teacher"),
        (("--teacher", "tinker://a", "--groups-per-batch", "0"), "at least 1"),
        (("--teacher", "tinker://a", "--data", "nowhere.jsonl"), "cannot be read"),
        (("--teacher", "tinker://a", "--num-test", "-1"), "at least 0"),
    ],
)
def test_what_cannot_be_taught_is_refused_at_once(command, tmp_path, home, capsys, options, said):
    try:
        status, _, err = command("distill", *options, "--run-dir", tmp_path / "run")
    except SystemExit as refused:  # where the command line itself finds it
        status, err = refused.code, capsys.readouterr().err
    assert status in (1, 2)
    assert said in " ".join(err.split())
