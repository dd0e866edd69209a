"""The loop over preferences: a reference that never moves, and crashes that change nothing."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, ServiceError
from cookbook_fx.preference import (
    Comparison,
    LabeledComparison,
    PreferenceDataset,
    prepare_pairs,
)
from cookbook_fx.renderers import get_renderer
from shell.clients import connect
from shell.engine.serve import Endpoint
from shell.hub import load_tokenizer
from shell.stores import open_run_folder
from shell.training import Cadence, DPOConfig, ModelChoice, PreferenceChoice, Schedule
from shell.training.dpo import DPOData, DPOResult, train_dpo
from shell.training.events import Evaluated, Event, Observer, RunBegan, Saved, StepDone, unobserved

NAMES = ["the cat", "the dog", "the mat", "the door", "an assistant", "the other one", "a name"]
TOTAL = 8


class Crash(Exception):
    """Stands for a process that dies."""


def comparison(index: int) -> LabeledComparison:
    def said(text: str) -> tuple[Message, ...]:
        return (Message(role="assistant", content=text),)

    name = NAMES[index % 7]
    other = Comparison(
        prompt_conversation=(Message(role="user", content=f"where is {name} {index}"),),
        completion_A=said(f"{name} sat on {NAMES[(3 * index + 1) % 7]}"),
        completion_B=said("dog " * (index % 4 + 1)),
    )
    labeled = LabeledComparison(comparison=other, label="A")
    return labeled.swap() if index % 2 else labeled


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


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs the loop against one engine; `config` is for 2 epochs of 4 batches."""

    endpoint: Endpoint
    config: DPOConfig
    data: DPOData

    def __call__(
        self,
        folder: Path,
        *,
        config: DPOConfig | None = None,
        data: DPOData | None = None,
        observe: Observer = unobserved,
        stop_when: Callable[[Event], bool] | None = None,
    ) -> DPOResult:
        async def run() -> DPOResult:
            stop = asyncio.Event()

            def watch(event: Event) -> None:
                observe(event)
                if stop_when is not None and stop_when(event):
                    stop.set()

            base_url, api_key = self.endpoint.base_url, self.endpoint.api_key
            with open_run_folder(folder, config={}) as opened:
                async with connect(base_url=base_url, api_key=api_key) as service:
                    return await train_dpo(
                        config or self.config,
                        service=service,
                        data=data or self.data,
                        folder=opened,
                        observe=watch,
                        stop=stop,
                    )

        return asyncio.run(run())


@pytest.fixture(scope="module")
def pairs(tiny_model_directory: Path):
    renderer = get_renderer("chatml", load_tokenizer(tiny_model_directory))
    return prepare_pairs(map(comparison, range(18)), renderer=renderer, max_length=128).pairs


@pytest.fixture
def runner(engine: Endpoint, tiny_model_directory: Path, pairs) -> Runner:
    return Runner(
        endpoint=engine,
        config=DPOConfig(
            model=ModelChoice(model=str(tiny_model_directory), lora_rank=4),
            schedule=Schedule(learning_rate=1e-2, num_epochs=2),
            cadence=Cadence(eval_every=3, save_every=3, submit_ahead=1),
            seed=5,
        ),
        data=DPOData(train=PreferenceDataset(pairs=pairs[:14], batch_size=4), held_out=pairs[14:]),
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict:
    """What the uninterrupted run gave, made by whichever test needs it first."""
    return {"folder": tmp_path_factory.mktemp("reference") / "run"}


@pytest.fixture
def uninterrupted(runner, weights, reference) -> dict:
    if "weights" not in reference:
        result = runner(reference["folder"])
        reference["state"] = result.checkpoint.state_path
        reference["weights"] = weights(result.checkpoint.state_path)
    return reference


def assert_same_weights(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left, right)


def test_it_learns_what_is_preferred_and_writes_it_under_upstreams_names(uninterrupted):
    written = rows(uninterrupted["folder"], without_time=False)
    assert [row["step"] for row in written] == [*range(TOTAL), TOTAL]
    names = {
        "epoch", "progress", "learning_rate", "dpo_loss", "accuracy", "margin", "chosen_reward",
        "rejected_reward", "num_pairs", "num_tokens", "time/total",
    }  # fmt: skip
    for row in written[:TOTAL]:
        assert names <= set(row)
        assert ("test/accuracy" in row) == (row["step"] % 3 == 0)
    assert [row["num_pairs"] for row in written[:4]] == [4, 4, 4, 2]
    # Policy and reference are the same at first.
    assert written[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert written[0]["test/margin"] == pytest.approx(0, abs=1e-5)
    assert written[0]["dpo_loss"] == pytest.approx(np.log(2))
    assert written[TOTAL - 1]["dpo_loss"] < 0.3
    assert written[TOTAL]["test/accuracy"] == 1
    assert written[TOTAL]["test/dpo_loss"] < 0.3


@pytest.mark.parametrize(
    ("kind", "count"),
    [(RunBegan, 1), (StepDone, 1), (StepDone, 4), (StepDone, 6), (Saved, 2), (Evaluated, 4)],
)
def test_a_crashed_run_keeps_its_reference_and_ends_in_the_same_weights_bit_for_bit(
    runner, weights, tmp_path, uninterrupted, kind, count
):
    seen = []

    def crash(event) -> None:
        seen.extend([event] if isinstance(event, kind) else [])
        if len(seen) == count:
            raise Crash

    with pytest.raises(Crash):
        runner(tmp_path / "run", observe=crash)
    result = runner(tmp_path / "run")
    assert result.finished
    # Rewards are relative to the reference: were it taken from the resumed weights, as upstream
    # takes it, they would begin at 0 again.
    assert rows(tmp_path / "run") == rows(uninterrupted["folder"])
    assert_same_weights(weights(result.checkpoint.state_path), uninterrupted["weights"])


@pytest.mark.parametrize("submit_ahead", [0, 3])
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
    assert stopped.checkpoint.next_step == 3
    result = runner(tmp_path / "run", config=config)
    assert_same_weights(weights(result.checkpoint.state_path), uninterrupted["weights"])


def test_a_finished_run_is_not_trained_again(runner, uninterrupted):
    events = []
    result = runner(uninterrupted["folder"], observe=events.append)
    assert result.finished
    assert events == []


def test_training_goes_on_from_a_checkpoint_which_then_is_the_reference(
    runner, tmp_path, uninterrupted
):
    model = replace(runner.config.model, load_checkpoint=uninterrupted["state"])
    runner(tmp_path / "run", config=replace(runner.config, model=model))
    assert rows(tmp_path / "run")[0]["margin"] == pytest.approx(0, abs=1e-5)


def test_any_checkpoint_can_be_the_reference(runner, tmp_path, uninterrupted):
    choice = PreferenceChoice(reference_model_name=uninterrupted["state"])
    config = replace(
        runner.config, preference=choice, schedule=replace(runner.config.schedule, max_steps=1)
    )
    runner(tmp_path / "run", config=config)
    first = rows(tmp_path / "run")[0]
    # The trained weights prefer what the new ones do not yet.
    assert first["margin"] < -0.1
    assert first["accuracy"] == 0


def test_a_reference_that_the_engine_does_not_have_is_refused(runner, tmp_path):
    for name in ("tinker://nobody:train:0/weights/gone", "some/other-model"):
        choice = PreferenceChoice(reference_model_name=name)
        with pytest.raises(ServiceError, match=name):
            runner(tmp_path / "run", config=replace(runner.config, preference=choice))


@pytest.mark.parametrize("loss", ["ipo", "hinge", "kto", "robust_dpo", "simpo", "orpo"])
def test_every_loss_learns(runner, tmp_path, loss):
    config = replace(runner.config, preference=PreferenceChoice(loss=loss))
    runner(tmp_path / "run", config=config)
    written = rows(tmp_path / "run")
    assert written[-1][f"test/{loss}_loss"] < written[0][f"test/{loss}_loss"]
    assert written[-1]["test/accuracy"] >= 0.75


def test_ties_alone_pull_towards_no_preference(runner, pairs, tmp_path, uninterrupted):
    """Training on half ties from weights that prefer A strongly brings the margin back."""
    tied = tuple(replace(pair, is_tie=True) for pair in pairs)
    config = replace(
        runner.config,
        model=replace(runner.config.model, load_checkpoint=uninterrupted["state"]),
        preference=PreferenceChoice(reference_model_name=runner.config.model.model),
    )
    runner(
        tmp_path / "run",
        config=config,
        data=DPOData(train=PreferenceDataset(pairs=tied[:14], batch_size=4), held_out=pairs[14:]),
    )
    written = rows(tmp_path / "run")
    assert "accuracy" not in written[0]
    assert written[0]["num_ties"] == 4
    assert written[0]["test/margin"] > 1
    assert abs(written[-1]["test/margin"]) < written[0]["test/margin"] / 2


def test_settings_that_the_loss_does_not_have_are_refused_before_anything_is_done(runner, tmp_path):
    choice = PreferenceChoice(loss="ipo", gamma=0.5)
    with pytest.raises(ConfigurationError, match="gamma"):
        runner(tmp_path / "run", config=replace(runner.config, preference=choice))
