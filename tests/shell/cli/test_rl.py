"""`cookbook-fx rl`, end to end on the tiny model: it trains, tells, stops and continues."""

import json
import re
import signal

import pytest

from tests.shell.cli.conftest import start
from tests.shell.cli.test_bad_input import refused
from tests.shell.cli.test_commands import last_checkpoint, rows, wait_for_rows

STEPS = 4


@pytest.fixture
def rl_arguments(tiny_model_directory, home) -> list[str]:
    """`rl` for 4 short steps, saved after each, measured every 2."""
    return [
        "rl", "--model", str(tiny_model_directory), "--lora-rank", "4", "--groups-per-batch", "2",
        "--group-size", "16", "--max-tokens", "40", "--max-steps", str(STEPS), "--save-every", "1",
        "--eval-every", "2", "--num-test", "3", "--learning-rate", "0.01", "--largest", "1",
    ]  # fmt: skip


def test_rl_trains_tells_and_leaves_a_run_that_replay_and_sample_can_use(
    command, tmp_path, rl_arguments
):
    run = tmp_path / "run"
    status, out, err = command(*rl_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert "Task: arithmetic; a step is 16 attempts at each of 2 problems" in out
    assert re.search(rf"step {STEPS}/{STEPS}  reward -?\d\.\d+  ", out)
    assert re.findall(r"held-out reward after (\d) steps", out) == ["0", "2", "4"]
    assert f"Mean reward of each of {STEPS} steps" in out
    assert re.search(r"Reward: .* in the first step, .* in the last step", out)
    assert re.search(r"Held-out reward: -?[\d.]+ after 0 steps, -?[\d.]+ after 4 steps", out)
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))
    config = json.loads((run / "config.json").read_text())
    assert (config["recipe"]["name"], config["recipe"]["largest"]) == ("arithmetic", 1)
    episodes = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(episodes) == STEPS * 2 * 16
    # By chance alone some answer ends well or is right, so that something is learnt.
    assert any(row.get("env/all/by_group/frac_mixed") for row in rows(run))

    replay = re.search(r"cookbook-fx (replay \S+ --step 3 --show 4)", out).group(1).split()
    status, out, err = command(*replay)
    assert (status, err) == (0, "")
    assert "What is " in out

    status, out, err = command(*rl_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert "This run is finished" in out
    path = last_checkpoint(run).sampler_path
    assert command("sample", "What is 1 + 1?", "--checkpoint", path, "--max-tokens", "3")[0] == 0


def test_a_killed_run_continues_with_the_episodes_that_were_done(command, tmp_path, rl_arguments):
    run = tmp_path / "run"
    with start([*rl_arguments, "--run-dir", str(run)], cwd=tmp_path) as process:
        wait_for_rows(process, run, 2)
        process.kill()
    done = (run / "rollouts.jsonl").read_text()
    status, out, err = command(*rl_arguments, "--run-dir", run)
    assert (status, err) == (0, "")
    assert "Continuing after step" in out
    assert [row["step"] for row in rows(run)] == list(range(STEPS + 1))
    # Of a group that a crash tore, only whole ones count.
    assert (run / "rollouts.jsonl").read_text().startswith(done[: len(done) // 2])
    assert last_checkpoint(run).final


def test_an_interrupted_run_saves_and_continues(command, tmp_path, rl_arguments):
    run = tmp_path / "run"
    arguments = [*rl_arguments, "--max-steps", "None", "--save-every", "None"]
    with start([*arguments, "--run-dir", str(run)], cwd=tmp_path) as process:
        wait_for_rows(process, run, 2)
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=60)[0]
    assert process.returncode == 130, out
    assert "The same command continues this run" in out
    assert last_checkpoint(run).next_step == len(rows(run))


@pytest.mark.parametrize(
    "mode",
    [
        ("--num-minibatches", "2", "--num-substeps", "1"),
        (
            "--max-steps-off-policy",
            "2",
            "--loss",
            "ppo",
            "--loss-config",
            "clip_high_threshold=1.3",
        ),
        ("--kl-penalty-coef", "0.1", "--compute-post-kl", "--advantages", "group_normalized"),
    ],
)
def test_every_mode_is_a_matter_of_options(command, tmp_path, rl_arguments, mode):
    status, _, err = command(*rl_arguments, *mode, "--run-dir", tmp_path / "run")
    assert (status, err) == (0, "")
    assert len(rows(tmp_path / "run")) == STEPS + 1


def test_advice_is_given_where_the_settings_are_risky(command, tmp_path, rl_arguments):
    arguments = (*rl_arguments, "--max-steps", "1", "--run-dir", tmp_path / "run")
    status, out, _ = command(*arguments, "--max-steps-off-policy", "1")
    assert status == 0
    assert "Advice: " in out
    assert "clipped loss" in out


@pytest.mark.parametrize("recipe", [("guess-number", "--guesses", "2"), ("math",)])
def test_other_tasks_run_by_name(command, tmp_path, rl_arguments, recipe):
    at = rl_arguments.index("--largest")
    arguments = [a for i, a in enumerate(rl_arguments) if i not in (at, at + 1)]
    if recipe[0] == "guess-number":
        at = arguments.index("--num-test")
        del arguments[at : at + 2]
    arguments += ["--max-steps", "1", "--run-dir", str(tmp_path / "run")]
    status, out, err = command("rl", *recipe, *arguments[1:])
    assert (status, err) == (0, "")
    assert f"Task: {recipe[0]}" in out
    lines = (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()
    tags = {tuple(json.loads(line)["tags"]) for line in lines}
    assert tags == {(recipe[0].replace("-", "_"),)}


def test_what_is_wrong_is_said_before_an_engine_is_started(command, tmp_path, rl_arguments):
    run = ("--run-dir", tmp_path / "run")
    assert "name=value" in refused(command, *rl_arguments, *run, "--loss-config", "clip")
    assert "ratio of a sequence" in refused(command, *rl_arguments, *run, "--loss", "gspo")
    missing = ("rl", "math", "--data", tmp_path / "none.jsonl", *run)
    assert "none.jsonl cannot be read" in refused(command, *missing)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_numbers_out_of_range_are_refused_as_options_are(command, capsys, rl_arguments):
    with pytest.raises(SystemExit) as left:
        command(*rl_arguments, "--groups-per-batch", "0")
    assert left.value.code == 2
    assert "`groups_per_batch` must be" in capsys.readouterr().err


def test_a_run_of_another_task_is_refused_with_the_difference(command, tmp_path, rl_arguments):
    run = ("--run-dir", tmp_path / "run")
    assert command(*rl_arguments, *run, "--max-steps", "1")[0] == 0
    err = refused(command, *rl_arguments, *run, "--max-steps", "1", "--largest", "3")
    assert "recipe.largest: there 1, now 3" in err
