"""The supervised loop: each batch once, each row once, and a crash changes nothing."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.errors import ConfigurationError, ServiceError
from shell.engine.checkpoints import CheckpointStore, parse_path
from shell.hub.weights import read_config
from shell.stores import RunCheckpoints
from shell.training.beginnings import epoch_seed
from shell.training.events import CheckpointSkipped, Evaluated, RunBegan, Saved, StepDone

TOTAL = 8


class Crash(Exception):
    """Stands for a process that dies."""


def rows(folder: Path, *, without_time: bool = True) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not (without_time and name.startswith("time/"))
        }
        for line in lines
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict:
    """What the uninterrupted run gave, made by whichever test needs it first."""
    return {"folder": tmp_path_factory.mktemp("reference") / "run"}


@pytest.fixture
def uninterrupted(runner, weights, reference) -> dict:
    if "weights" not in reference:
        result = runner(reference["folder"])
        reference["weights"] = weights(result.checkpoint.state_path)
        reference["batches"] = list(runner.batches)
        runner.batches.clear()
    return reference


def test_a_run_trains_each_batch_of_each_epoch_once_and_in_another_order(runner, uninterrupted):
    seeds = [epoch_seed(5, 0), epoch_seed(5, 1)]
    assert seeds[0] != seeds[1]
    assert uninterrupted["batches"] == [(index, seed) for seed in seeds for index in range(4)]


def test_metrics_have_each_step_once_under_upstreams_names(uninterrupted):
    written = rows(uninterrupted["folder"], without_time=False)
    assert [row["step"] for row in written] == [*range(TOTAL), TOTAL]
    names = {
        "epoch", "progress", "learning_rate", "num_sequences", "num_tokens", "num_loss_tokens",
        "train_mean_nll", "train_mean_bpb", "time/total", "time/get_batch",
    }  # fmt: skip
    for row in written[:TOTAL]:
        assert names <= set(row)
        assert ("test/nll" in row) == (row["step"] % 3 == 0)
    assert [row["learning_rate"] for row in written[:TOTAL]] == pytest.approx(
        [1e-2 * (1 - step / TOTAL) for step in range(TOTAL)]
    )
    assert [row["num_sequences"] for row in written[:4]] == [4, 4, 4, 2]
    assert written[TOTAL]["progress"] == 1.0
    assert written[TOTAL]["test/nll"] < written[0]["test/nll"] - 0.5


def test_an_evaluation_sees_the_weights_before_its_step(runner, tmp_path, uninterrupted):
    shorter = replace(runner.config, schedule=replace(runner.config.schedule, max_steps=TOTAL))
    never = replace(shorter, cadence=replace(shorter.cadence, eval_every=1, submit_ahead=3))
    runner(tmp_path / "run", config=never)
    often, seldom = rows(tmp_path / "run"), rows(uninterrupted["folder"])
    for step in (0, 3, 6, TOTAL):
        assert often[step]["test/nll"] == seldom[step]["test/nll"]


@pytest.mark.parametrize(
    ("kind", "count"),
    [(RunBegan, 1), (StepDone, 1), (StepDone, 4), (Saved, 1), (Saved, 2), (Evaluated, 4)],
)
def test_a_crashed_run_continues_to_the_same_weights_bit_for_bit(
    runner, weights, tmp_path, uninterrupted, kind, count
):
    seen = []

    def crash(event) -> None:
        seen.extend([event] if isinstance(event, kind) else [])
        if len(seen) == count:
            raise Crash

    with pytest.raises(Crash):
        runner(tmp_path / "run", observe=crash)
    began = []
    result = runner(tmp_path / "run", observe=began.append)
    assert result.finished
    (start,) = [event.first_step for event in began if isinstance(event, RunBegan)]
    trained = [event.report.step.index for event in began if isinstance(event, StepDone)]
    assert trained == list(range(start, TOTAL))
    assert rows(tmp_path / "run") == rows(uninterrupted["folder"])
    final = weights(result.checkpoint.state_path)
    assert len(final) == len(uninterrupted["weights"])
    for ours, theirs in zip(final, uninterrupted["weights"], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("submit_ahead", [0, 1, 3])
def test_a_run_asked_to_stop_saves_and_continues_to_the_same_weights(
    runner, weights, tmp_path, uninterrupted, submit_ahead
):
    cadence = replace(runner.config.cadence, submit_ahead=submit_ahead, save_every=None)
    config = replace(runner.config, cadence=cadence)
    stopped = runner(
        tmp_path / "run",
        config=config,
        stop_when=lambda event: isinstance(event, StepDone) and event.report.step.index == 1,
    )
    assert not stopped.finished
    assert stopped.checkpoint.next_step == 2 + submit_ahead
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(2 + submit_ahead))
    result = runner(tmp_path / "run", config=config)
    for ours, theirs in zip(
        weights(result.checkpoint.state_path), uninterrupted["weights"], strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_states_saved_on_the_way_expire_and_final_ones_do_not(
    runner, tiny_model_directory, engine_state, tmp_path
):
    result = runner(tmp_path / "run")
    model = str(tiny_model_directory)
    store = CheckpointStore(
        engine_state / "checkpoints", config=read_config(tiny_model_directory), base_model=model
    )
    final = store.find(parse_path(result.checkpoint.state_path))
    expiry = {c.path.name: c.expires_at for c in store.list(final.path.model_id)}
    assert expiry.pop("final") is None
    days = [(at - time.time()) / 86_400 for at in expiry.values()]
    assert days == pytest.approx([30] * 2, abs=0.1)


def test_a_run_stopped_before_its_first_step_leaves_nothing_to_clean_up(runner, tmp_path):
    stopped = runner(tmp_path / "run", stop_when=lambda event: isinstance(event, RunBegan))
    assert stopped.checkpoint is None
    assert not stopped.finished
    assert runner.batches == []


def test_a_finished_run_is_not_trained_again(runner, uninterrupted):
    events = []
    result = runner(uninterrupted["folder"], observe=events.append)
    assert result.finished
    assert result.checkpoint.next_step == TOTAL
    assert result.checkpoint.sampler_path.endswith("sampler_weights/final")
    assert events == []
    assert runner.batches == []


def test_a_state_that_is_gone_is_passed_over_for_the_one_before(
    runner, weights, tmp_path, uninterrupted, engine_state
):
    def crash(event) -> None:
        if isinstance(event, StepDone) and event.report.step.index == 6:
            raise Crash

    with pytest.raises(Crash):
        runner(tmp_path / "run", observe=crash)
    with RunCheckpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        first, second = checkpoints.all()
        broken = replace(second, state_path=second.state_path.replace("000006", "expired"))
        checkpoints.keep_before(6)
        checkpoints.save(broken)
    events = []
    result = runner(tmp_path / "run", observe=events.append)
    (skipped,) = [event for event in events if isinstance(event, CheckpointSkipped)]
    assert skipped.checkpoint == broken
    (began,) = [event for event in events if isinstance(event, RunBegan)]
    assert began.first_step == first.next_step
    assert rows(tmp_path / "run") == rows(uninterrupted["folder"])
    for ours, theirs in zip(
        weights(result.checkpoint.state_path), uninterrupted["weights"], strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_whose_states_are_all_gone_says_so(runner, tmp_path):
    stop_early = lambda event: isinstance(event, StepDone)  # noqa: E731
    runner(tmp_path / "run", stop_when=stop_early)
    with RunCheckpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        (only,) = checkpoints.all()
        checkpoints.keep_before(0)
        checkpoints.save(replace(only, state_path="tinker://nobody:train:0/weights/gone"))
    with pytest.raises(ServiceError, match="none of the 1 states"):
        runner(tmp_path / "run")


def test_data_without_a_batch_is_refused(runner, tmp_path):
    empty = replace(runner, data=replace(runner.data, train=()))
    with pytest.raises(ConfigurationError, match="batch"):
        empty(tmp_path / "run")


def test_a_warm_up_longer_than_the_run_is_refused_before_anything_is_trained(runner, tmp_path):
    schedule = replace(runner.config.schedule, warmup_steps=TOTAL)
    with pytest.raises(ConfigurationError, match="warmup_steps"):
        runner(tmp_path / "run", config=replace(runner.config, schedule=schedule))
    assert runner.batches == []
