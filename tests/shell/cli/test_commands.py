"""The commands, end to end on the tiny model: trained, killed, continued, asked."""

import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from shell.engine.checkpoints import CheckpointStore, parse_path
from shell.hub.weights import read_config
from shell.stores import RunCheckpoint, RunCheckpoints
from tests.shell.cli.conftest import start

TOTAL = 12


def last_checkpoint(run: Path) -> RunCheckpoint | None:
    with RunCheckpoints(run / "checkpoints") as checkpoints:
        return checkpoints.latest()


def final_weights(run: Path, home: Path, model: Path) -> list[np.ndarray]:
    checkpoint = last_checkpoint(run)
    assert checkpoint.final
    store = CheckpointStore(home / "checkpoints", config=read_config(model), base_model=str(model))
    state = store.load_state(store.find(parse_path(checkpoint.state_path)))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("time/")}
        for line in lines
    ]


def wait_for_rows(process: subprocess.Popen, run: Path, count: int) -> None:
    """Returns once so many steps are written, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        file = run / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)


def assert_same_run(run: Path, reference: Path, home: Path, model: Path) -> None:
    assert rows(run) == rows(reference)
    pairs = zip(final_weights(run, home, model), final_weights(reference, home, model), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)


def test_sft_trains_tells_and_leaves_a_run_that_sample_can_ask(
    command, tmp_path, home, sft_arguments, tiny_model_directory
):
    run = tmp_path / "run"
    status, out, err = command(*sft_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert out.index("where is the cat\n") < out.index("before training:\n")
    assert "after training:\non the" in out
    nll = [float(found) for found in re.findall(r"held-out NLL after \d+ steps: ([\d.]+)", out)]
    assert nll[-1] < nll[0] / 2
    assert f"step {TOTAL}/{TOTAL}" in out
    assert [row["step"] for row in rows(run)] == list(range(TOTAL + 1))
    assert json.loads((run / "config.json").read_text())["model"]["renderer"] == "chatml"
    sampler_path = last_checkpoint(run).sampler_path
    assert f"cookbook-fx sample --checkpoint {sampler_path}" in out

    status, out, err = command(*sft_arguments, "--run-dir", run)
    assert status == 0
    assert "This run is finished" in out
    assert f"{nll[0]:.4f} after 0 steps, {nll[-1]:.4f} after {TOTAL} steps" in out

    question = ("sample", "where is the cat", "--max-tokens", "12")
    status, trained, _ = command(*question, "--checkpoint", sampler_path)
    assert status == 0
    assert trained.startswith("on the")
    status, untrained, _ = command(*question, "--model", tiny_model_directory)
    assert status == 0
    assert untrained != trained


def test_a_killed_run_continues_to_the_same_weights_bit_for_bit(
    command, tmp_path, home, sft_arguments, tiny_model_directory
):
    assert command(*sft_arguments, "--run-dir", tmp_path / "whole")[0] == 0
    run = tmp_path / "killed"
    with start([*sft_arguments, "--run-dir", str(run)], cwd=tmp_path) as process:
        wait_for_rows(process, run, 5)
        process.kill()
    status, out, err = command(*sft_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert "Continuing after step" in out
    assert_same_run(run, tmp_path / "whole", home, tiny_model_directory)


@pytest.mark.slow
def test_three_kills_at_random_points_change_nothing(
    command, tmp_path, home, sft_arguments, tiny_model_directory
):
    assert command(*sft_arguments, "--run-dir", tmp_path / "whole")[0] == 0
    run = tmp_path / "killed"
    chance = random.Random()
    for _ in range(3):
        done = len(rows(run)) if (run / "metrics.jsonl").exists() else 0
        with start([*sft_arguments, "--run-dir", str(run)], cwd=tmp_path) as process:
            wait_for_rows(process, run, done + chance.randint(0, 3))
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
    assert command(*sft_arguments, "--run-dir", run)[0] == 0
    assert_same_run(run, tmp_path / "whole", home, tiny_model_directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_continues(
    command, tmp_path, home, sft_arguments, tiny_model_directory, number
):
    # So long that it cannot be over before the signal comes.
    arguments = [*sft_arguments, "--num-epochs", "200", "--save-every", "None"]
    arguments += ["--run-dir", str(tmp_path / "run")]
    with start(arguments, cwd=tmp_path) as process:
        wait_for_rows(process, tmp_path / "run", 3)
        process.send_signal(number)
        # As supervisors do that signal a process and then its group.
        time.sleep(0.05)
        process.send_signal(number)
        out = process.communicate(timeout=60)[0]
    assert process.returncode == 130, out
    assert out.count("Stopping") == 1
    assert "The same command continues this run" in out
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint.next_step == len(rows(tmp_path / "run"))


def test_a_second_interrupt_quits_at_once(tmp_path, home, sft_arguments):
    arguments = [*sft_arguments, "--num-epochs", "200", "--save-every", "None"]
    arguments += ["--run-dir", str(tmp_path / "run")]
    with start(arguments, cwd=tmp_path) as process:
        wait_for_rows(process, tmp_path / "run", 1)
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        out = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    # A stop in good order ends with 130 as well, but saves and says so first.
    assert "Stopping" in out
    assert "The same command continues" not in out
    assert last_checkpoint(tmp_path / "run") is None


def test_the_same_command_runs_on_another_engine(
    command, tmp_path, home, sft_arguments, tiny_engine, monkeypatch
):
    monkeypatch.setenv("TINKER_API_KEY", tiny_engine.api_key)
    status, out, err = command(
        *sft_arguments, "--base-url", tiny_engine.base_url, "--run-dir", tmp_path / "run"
    )
    assert (status, err) == (0, "")
    assert f"Engine: {tiny_engine.base_url}" in out
    path = last_checkpoint(tmp_path / "run").sampler_path
    status, out, _ = command(
        "sample", "where is the cat", "--checkpoint", path, "--max-tokens", "12",
        "--base-url", tiny_engine.base_url,
    )  # fmt: skip
    assert status == 0
    assert out.startswith("on the")
    assert not (home / "checkpoints").exists()


def test_sample_prints_as_many_answers_as_asked(command, home, tiny_model_directory):
    arguments = ("sample", "where", "--model", tiny_model_directory, "--max-tokens", "3")
    status, out, _ = command(*arguments, "--num-samples", "3", "--temperature", "1")
    assert status == 0
    assert len(out.splitlines()) >= 3


def test_models_lists_the_built_in_one(command, home):
    status, out, _ = command("models")
    assert status == 0
    assert "smollm2" in out
    assert "chatml" in out


def test_serve_tells_where_it_is_and_ends_cleanly(tmp_path, home, tiny_model_directory):
    with start(["serve", "--model", str(tiny_model_directory)], cwd=tmp_path) as process:
        told = ""
        while "TINKER_API_KEY=tml-" not in told and process.poll() is None:
            told += process.stdout.readline()
        assert re.search(r"http://127\.0\.0\.1:\d+", told)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
