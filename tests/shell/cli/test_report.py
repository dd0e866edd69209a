"""`cookbook-fx report` and `watch` on folders as runs leave them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest

from cookbook_fx.reports.samples import ShownText
from cookbook_fx.rl import Objective, Trajectory, TrajectoryGroup, Transition, training_batch
from cookbook_fx.rl.records import batch_record, group_records
from cookbook_fx.tokens import TokensWithLogprobs
from shell.cli.reporting import read_story
from shell.hub import load_tokenizer
from shell.stores import BatchesFile, MetricsFile, RolloutsFile, SamplesFile
from tests.shell.cli.test_bad_input import refused

STEPS = 3


def episode(tokens: list[int], reward: float) -> Trajectory:
    sampled = TokensWithLogprobs(tokens=tokens, maybe_logprobs=[-0.5] * len(tokens))
    turn = Transition(ob=[1, 40, 41], ac=sampled, reward=reward, episode_done=True)
    return Trajectory(transitions=[turn], final_ob=[])


@pytest.fixture
def run(tmp_path: Path, tiny_model_directory: Path, home: Path) -> Path:
    """What 3 of 4 steps of reinforcement leave."""
    folder = tmp_path / "a <run>"
    folder.mkdir()
    config = {"model": {"model": str(tiny_model_directory)}, "seed": 0}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tiny_model_directory)
    for step in range(STEPS):
        group = TrajectoryGroup(
            trajectories_G=[episode([50, 51], 1.0), episode([52], 0.0)],
            final_rewards_G=[0.0, 0.0],
            metrics_G=[{}, {}],
        )
        RolloutsFile(path=folder / "rollouts.jsonl").append(
            group_records(
                group, step=step, group_index=0, sampler_step=step, texts=tokenizer.decode
            )
        )
        objective = Objective()
        BatchesFile(path=folder / "batches.jsonl").append(
            batch_record(
                training_batch([group], objective).data,
                objective,
                step=step,
                substep=0,
                minibatch=0,
                groups=[0],
                learning_rate=0.1,
            )
        )
        MetricsFile(path=folder / "metrics.jsonl").append(
            step,
            {
                "env/all/reward/total": 0.5,
                "time/total": 2.0,
                "progress/done_frac": (step + 1) / 4,
                "optim/kl_sample_train_v1": 1e-5,
            },
        )
    return folder


def test_a_report_is_one_page_in_the_folder(command, run):
    status, out, err = command("report", run)
    assert (status, err) == (0, "")
    assert out == f"Report: {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    assert "<h1>a &lt;run&gt;</h1>" in page
    assert "3 of 4" in re.sub(r"<[^>]*>|\s+", " ", page).replace("  ", " ").replace("  ", " ")
    assert len(page) < 3_000_000
    assert not re.search(r"<(?:script|img|iframe)[^>]+src=|<link(?! rel=\"icon\")", page)


def test_samples_are_colored_by_what_was_learnt(run):
    story = read_story(run, name="run", num_columns=2, say=print)
    assert story.remarks == ()
    assert [column.title for column in story.samples] == ["Step 0", "Step 2"]
    best, worst = story.samples[0].samples
    assert (best.heading, worst.heading) == ("reward 1, advantage +0.5", "reward 0, advantage -0.5")
    assert 'class="up4"' in best.colored["advantage"]
    assert 'class="down4"' in worst.colored["advantage"]
    assert 'class="down1"' in best.colored["log-probability"]
    assert [one.rewards.tolist() for one in story.rewards] == [[1.0, 0.0]] * STEPS


def test_without_a_tokenizer_texts_are_shown_as_recorded(run):
    (run / "config.json").write_text("{}")
    story = read_story(run, name="run", num_columns=2, say=print)
    assert "no tokenizer" in story.remarks[0]
    assert list(story.samples[0].samples[0].colored) == ["advantage"]


def test_without_batches_samples_are_shown_all_the_same(run):
    (run / "batches.jsonl").unlink()
    (best, _) = read_story(run, name="run", num_columns=1, say=print).samples[0].samples
    assert best.heading == "reward 1, not learnt from"


def test_kept_texts_are_columns_of_their_own_and_replace_their_likes(run):
    file = SamplesFile(path=run / "samples.jsonl")
    for tokens in ([50, 51], [52]):
        file.replace(
            [ShownText(title="Said", prompt=[40], tokens=tokens, logprobs=[-1.0] * len(tokens))]
        )
    file.replace([ShownText(title="Trained on", tokens=np.array([50]), weights=np.array([np.nan]))])
    said, trained, *_ = read_story(run, name="run", num_columns=1, say=print).samples
    assert (said.title, len(said.samples), trained.title) == ("Said", 1, "Trained on")


def test_runs_are_compared_on_one_page(command, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    path = tmp_path / "both.html"
    assert command("report", run, other, "--output", path) == (0, f"Report: {path}\n", "")
    assert "a &lt;run&gt;, other</h1>" in path.read_text()


def test_a_run_at_a_url_is_reported_here(command, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = f"file://{run}"
    assert command("report", url, "--output", "there.html") == (0, "Report: there.html\n", "")
    assert (tmp_path / "there.html").read_text().count("<html") == 1
    assert not (run / "report.html").exists()


def test_a_run_that_has_measured_nothing_has_a_report(command, run):
    for name in ("metrics.jsonl", "rollouts.jsonl", "batches.jsonl"):
        (run / name).unlink()
    assert command("report", run)[0] == 0


def test_what_is_no_run_is_refused(command, run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no run folder" in refused(command, "report", tmp_path / "empty")
    assert "no run folder" in refused(command, "watch", tmp_path / "nowhere")
    assert "not with itself" in refused(command, "report", run, run)
    (run / "config.json").write_text("[")
    assert "config.json is damaged" in refused(command, "report", run)


def test_watching_a_run_that_is_over_tells_its_steps_once(command, run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "env/all')
    with (run / "rollouts.jsonl").open("a") as file:
        file.write('{"step":3,"group":0,')
    status, out, err = command("watch", run)
    assert (status, err) == (0, "")
    assert re.findall(r"^step (\d/4)  Reward: training 0.5", out, re.MULTILINE) == [
        "1/4",
        "2/4",
        "3/4",
    ]
    assert "3 of 4 steps, not running" in out
    assert "step 2, group 0, episode 1: reward 0" in out


def test_watching_goes_on_until_the_run_ends(run, home):
    """Two processes: the one that holds the folder writes a step, and lets it go."""
    lock = filelock.FileLock(run / ".lock")
    lock.acquire()
    watching = subprocess.Popen(
        [sys.executable, "-m", "shell.cli.main", "watch", str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    with watching:
        lines = [watching.stdout.readline() for _ in range(STEPS)]
        assert lines[-1].startswith("step 3/4")
        MetricsFile(path=run / "metrics.jsonl").append(
            3, {"env/all/reward/total": 1.0, "time/total": 2.0, "progress/done_frac": 1.0}
        )
        assert watching.stdout.readline().startswith("step 4/4  Reward: training 1")
        lock.release()
        rest, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert "4 of 4 steps, finished" in rest


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_a_browser_draws_the_page(command, run):
    assert command("report", run)[0] == 0
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--virtual-time-budget=15000", "--dump-dom",
         (run / "report.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.count('class="bk-Figure"') + done.stdout.count("bk-Figure") >= 3
