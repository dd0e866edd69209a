"""Evaluators of both kinds side by side, by themselves and on the cadence of a run."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import get_renderer
from cookbook_fx.reports import ScoreReport
from cookbook_fx.supervised import SupervisedDataset
from shell.clients import connect
from shell.evaluation import (
    CustomEvaluator,
    EvaluationExample,
    Evaluations,
    Matches,
    NLLEvaluator,
    SamplerNLLEvaluator,
    WinRateEvaluator,
)
from shell.hub import load_tokenizer
from shell.recipes.rl.shorter import prefer_shorter
from shell.stores import open_run_folder
from shell.training import (
    Cadence,
    ModelChoice,
    RLCadence,
    SamplingChoice,
    Schedule,
    SFTConfig,
)
from shell.training.rl import RLData
from shell.training.rl_config import RLConfig
from shell.training.sft import SFTData, train_supervised
from tests.rl_runs import Problems, RLRunner, rows


@dataclass(eq=False)
class Counted:
    """Notes how many are at work at once."""

    name: str
    at_work: list = field(default_factory=list)
    most: list = field(default_factory=list)

    async def __call__(self, sampler, *, seed):
        self.at_work.append(self)
        self.most.append(len(self.at_work))
        await asyncio.sleep(0.01)
        self.at_work.remove(self)
        return [ScoreReport(name=self.name, scores={"seed": seed})]


def test_no_more_are_at_work_than_allowed_and_reports_are_in_order():
    at_work, most = [], []
    evaluators = [Counted(str(number), at_work, most) for number in range(7)]
    evaluations = Evaluations(evaluators=evaluators, seed=3, concurrency=3)
    reports = asyncio.run(evaluations.of_sampler(None))
    assert [report.name for report in reports] == list("0123456")
    assert {report.scores["seed"] for report in reports} == {3}
    assert max(most) == 3


def test_the_first_failure_is_raised_as_it_is():
    async def broken(sampler, *, seed):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(Evaluations(evaluators=[Counted("a"), broken]).of_sampler(None))


def test_weights_that_are_not_in_training_have_no_passes():
    ids = np.arange(1, 5, dtype=np.int32)
    data = (Datum(tokens=ids[:-1], target_tokens=ids[1:]),)
    with pytest.raises(ConfigurationError, match="NLLEvaluator measures weights in training"):
        asyncio.run(Evaluations(evaluators=[NLLEvaluator(data=data)]).of_sampler(None))
    with pytest.raises(ConfigurationError, match="concurrency"):
        Evaluations(evaluators=[], concurrency=0)


def test_both_kinds_measure_the_same_weights_on_the_cadence_of_a_run(
    tiny_engine, tiny_model_directory, tmp_path
):
    """The sampler's likelihoods are the trainer's, at every step though training goes on."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 300, 12).astype(np.int32) for _ in range(4)]
    data = tuple(
        Datum(tokens=row[:-1], target_tokens=row[1:], weights=np.ones(11, np.float32))
        for row in rows
    )
    renderer = get_renderer("chatml", load_tokenizer(tiny_model_directory))
    asked = EvaluationExample(prompt=(Message(role="user", content="where is the cat"),))
    config = SFTConfig(
        model=ModelChoice(model=str(tiny_model_directory), lora_rank=4),
        schedule=Schedule(learning_rate=1e-2, num_epochs=1),
        cadence=Cadence(eval_every=1, save_every=None, submit_ahead=2),
    )

    async def run():
        async with connect(base_url=tiny_engine.base_url, api_key=tiny_engine.api_key) as service:
            base = await service.sampler(base_model=str(tiny_model_directory))
            matches = Matches(
                prompts=[asked.prompt], renderer=renderer, judge=prefer_shorter, max_tokens=4
            )
            evaluators = (
                SamplerNLLEvaluator(data=data, name="sampler"),
                NLLEvaluator(data=data, name="trainer"),
                CustomEvaluator(
                    dataset=[asked], grader=lambda message, example: len(message.text) >= 0,
                    renderer=renderer, max_tokens=4, name="custom",
                ),
                WinRateEvaluator(matches=matches, opponent=base, name="base"),
            )  # fmt: skip
            with open_run_folder(tmp_path / "run", config={}) as folder:
                await train_supervised(
                    config,
                    service=service,
                    data=SFTData(
                        train=SupervisedDataset(datums=data, batch_size=2), evaluators=evaluators
                    ),
                    folder=folder,
                )
                return folder.metrics.rows()

    measured = asyncio.run(run())
    assert len(measured) == 3
    for row in measured:
        assert row["sampler/nll"] == pytest.approx(row["trainer/nll"], abs=1e-4)
        assert row["custom/accuracy"] == row["base/num_matches"] == 1
        assert row["base/win_rate"] + row["base/loss_rate"] + row["base/tie_rate"] == 1
    assert measured[-1]["trainer/nll"] < measured[0]["trainer/nll"] - 0.02


def test_reinforcement_measures_both_kinds_of_the_same_weights(
    tiny_engine, tiny_model_directory, tmp_path
):
    """Also where it samples for later steps meanwhile."""
    row = np.arange(60, 72, dtype=np.int32)
    held_out = (Datum(tokens=row[:-1], target_tokens=row[1:], weights=np.ones(11, np.float32)),)
    seen = []

    def grader(message, example):
        seen.append(message.text)
        return {"length": len(message.text)}

    evaluators = (
        SamplerNLLEvaluator(data=held_out, name="sampler"),
        NLLEvaluator(data=held_out, name="trainer"),
        CustomEvaluator(
            dataset=[EvaluationExample(prompt=(Message(role="user", content="where"),))],
            grader=grader,
            renderer=get_renderer("chatml", load_tokenizer(tiny_model_directory)),
            max_tokens=4,
            name="custom",
        ),
    )
    runner = RLRunner(
        endpoint=tiny_engine,
        config=RLConfig(
            model=ModelChoice(model=str(tiny_model_directory), lora_rank=4),
            schedule=Schedule(learning_rate=3e-2, lr_schedule="constant", num_epochs=1),
            cadence=RLCadence(eval_every=1, save_every=None),
            sampling=SamplingChoice(max_tokens=4),
            max_steps_off_policy=1,
        ),
        data=RLData(train=Problems(count=4, groups=2), evaluators=evaluators),
    )
    runner(tmp_path / "run", seconds=300)
    measured = rows(tmp_path / "run")
    assert len(measured) == len(seen) == 3
    for row in measured:
        assert row["sampler/nll"] == pytest.approx(row["trainer/nll"], abs=1e-4)
        assert row["custom/num_examples"] == 1
    assert [row["custom/length"] for row in measured] == list(map(len, seen))
    assert len({row["trainer/nll"] for row in measured}) == 3
