"""On-policy distillation over a real engine: every mode learns from every teacher."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.data import Datum
from cookbook_fx.distillation import teaching_objective
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.lm import AdamParams
from cookbook_fx.renderers import get_renderer
from cookbook_fx.reports import flatten
from cookbook_fx.rl import data_digest, recorded_objective, training_batch
from shell.clients import NewLoRA, connect
from shell.evaluation import TeacherKLEvaluator
from shell.hub import load_tokenizer
from shell.rollouts import PromptOnlyDatasetBuilder
from shell.stores import BatchesFile, RolloutsFile
from shell.training import ModelChoice, RLCadence, SamplingChoice, Schedule
from shell.training.distillation import (
    DistillationDatasetConfig,
    TeacherConfig,
    distillation_data,
)
from shell.training.rl import RLData
from shell.training.rl_config import RLConfig
from tests.rl_runs import RLRunner, rows

MODES = {
    "synchronous": {},
    "stream-minibatch": {"num_minibatches": 2},
    "asynchronous": {"max_steps_off_policy": 1, "objective": teaching_objective(loss="ppo")},
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_directory: Path):
    return load_tokenizer(tiny_model_directory)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    names = ("cat", "dog", "mat", "door", "name", "assistant")
    path.write_text("".join(f'{{"prompt": "where is the {name}"}}\n' for name in names))
    return path


@pytest.fixture(scope="module")
def teachers(engine, tiny_model_directory: Path) -> list[str]:
    """Two LoRAs that have come to like some tokens, saved for sampling."""
    return [asyncio.run(_teacher(engine, str(tiny_model_directory), first)) for first in (60, 80)]


async def _teacher(engine, model: str, first: int) -> str:
    async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
        trainer = await service.create(NewLoRA(base_model=model, rank=4, seed=first))
        random = np.random.default_rng(first)
        for _ in range(8):
            ids = random.integers(3, 300, 40).astype(np.int32)
            datum = Datum(tokens=ids, target_tokens=(first + ids % 60).astype(np.int32))
            passed = trainer.forward_backward([datum])
            stepped = trainer.optim_step(AdamParams(learning_rate=0.015))
            await passed
            await stepped
        return await trainer.save_for_sampling(f"likes-{first}")


def dataset(tokenizer, prompts: Path, teacher: TeacherConfig, *, groups: int = 2):
    return DistillationDatasetConfig(
        dataset_builder=PromptOnlyDatasetBuilder(
            dataset_name=str(prompts),
            groups_per_batch=5,
            group_size=8,
            renderer=get_renderer("chatml", tokenizer),
            tokenizer=tokenizer,
            test_source=str(prompts),
        ),
        teacher_config=teacher,
        groups_per_batch=groups,
    )


def teacher_of(path: str, **options) -> TeacherConfig:
    return TeacherConfig(base_model="tiny", load_checkpoint_path=path, **options)


def runner_of(engine, model: Path, made, **options) -> RLRunner:
    return RLRunner(
        endpoint=engine,
        config=RLConfig(
            **{"objective": teaching_objective()} | options,
            model=ModelChoice(model=str(model), lora_rank=4),
            schedule=Schedule(learning_rate=2e-2, lr_schedule="constant", num_epochs=4),
            cadence=RLCadence(eval_every=None, save_every=None),
            sampling=SamplingChoice(max_tokens=12),
            kl_references=made.teachers,
            seed=3,
        ),
        data=RLData(train=made.train),
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_student_comes_closer_to_both_its_teachers_in_every_mode(
    engine, tiny_model_directory, tokenizer, prompts, teachers, tmp_path, mode
):
    configs = [dataset(tokenizer, prompts, teacher_of(path)) for path in teachers]
    made = asyncio.run(distillation_data(configs, tokenizer=tokenizer))
    runner = runner_of(engine, tiny_model_directory, made, **MODES[mode])
    assert runner(tmp_path / "run").finished
    written = rows(tmp_path / "run")[:-1]
    assert len(written) == 12
    assert "kl_policy_base" not in written[0]
    for name in ("teacher_kl", "teacher_kl/dataset_0", "teacher_kl/dataset_1"):
        found = [row[name] for row in written]
        assert np.mean(found[-3:]) < np.mean(found[:3]) - 0.15, (name, found)
    check_remade(tmp_path / "run")


def check_remade(folder: Path) -> None:
    """Every batch is made again from its records, bit for bit."""
    groups = {(g.step, g.index): g for g in RolloutsFile(path=folder / "rollouts.jsonl").groups()}
    for batch in BatchesFile(path=folder / "batches.jsonl").batches():
        made = training_batch(
            [groups[batch.step, index].group for index in batch.groups],
            recorded_objective(batch),
            base_logprobs=batch.base_logprobs,
        )
        assert data_digest(made.data) == batch.digest


def test_the_advantages_are_the_teachers_opinion_and_nothing_else(
    engine, tiny_model_directory, tokenizer, prompts, teachers, tmp_path
):
    configs = [dataset(tokenizer, prompts, teacher_of(path)) for path in teachers]
    made = asyncio.run(distillation_data(configs, tokenizer=tokenizer))
    runner = runner_of(engine, tiny_model_directory, made, objective=teaching_objective(coef=0.5))
    config = replace(runner.config, schedule=Schedule(learning_rate=0.0, max_steps=1))
    runner(tmp_path / "run", config=config)
    (batch,) = BatchesFile(path=tmp_path / "run" / "batches.jsonl").batches()
    groups = list(RolloutsFile(path=tmp_path / "run" / "rollouts.jsonl").groups())
    assert [group.index for group in sorted(groups, key=lambda g: g.index)] == [0, 1, 2, 3]
    ordered = [group.group for group in sorted(groups, key=lambda group: group.index)]
    made_again = training_batch(
        ordered, recorded_objective(batch), base_logprobs=batch.base_logprobs
    )
    opinions = iter(batch.base_logprobs)
    differences = {0: [], 1: []}
    data = iter(made_again.data)
    for index, group in enumerate(ordered):
        for trajectory in group.trajectories_G:
            (turn,) = trajectory.transitions
            teacher = next(opinions)[len(turn.ob) :]
            datum = next(data)
            expected = -0.5 * (np.asarray(turn.ac.logprobs) - teacher)
            # Nothing leaks onto the prompt, which comes one token earlier as targets.
            assert not datum.advantages[: len(turn.ob) - 1].any()
            np.testing.assert_allclose(
                datum.advantages[len(turn.ob) - 1 :], expected, rtol=1e-4, atol=1e-5
            )
            differences[index // 2].append(-2 * expected)
    (row, _) = rows(tmp_path / "run")
    for index, found in differences.items():
        mean = np.concatenate(found).mean()
        assert row[f"teacher_kl/dataset_{index}"] == pytest.approx(mean, rel=1e-4)


def test_a_teacher_is_asked_in_its_own_format_and_judges_the_very_tokens(
    engine, tiny_model_directory, tokenizer, prompts, teachers, tmp_path
):
    shown = (Message(role="user", content="hello"), Message(role="assistant", content="the cat"))
    own = teacher_of(teachers[0], renderer="role_colon", demonstrations=shown)
    configs = [
        dataset(tokenizer, prompts, own),
        dataset(tokenizer, prompts, replace(own, renderer=None)),
    ]
    made = asyncio.run(distillation_data(configs, tokenizer=tokenizer))
    runner = runner_of(engine, tiny_model_directory, made)
    config = replace(runner.config, schedule=Schedule(learning_rate=0.0, max_steps=1))
    runner(tmp_path / "run", config=config)
    (batch,) = BatchesFile(path=tmp_path / "run" / "batches.jsonl").batches()
    groups = {g.index: g for g in RolloutsFile(path=tmp_path / "run" / "rollouts.jsonl").groups()}
    student = get_renderer("chatml", tokenizer)
    formats = {0: get_renderer("role_colon", tokenizer), 1: student}

    async def check() -> None:
        async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
            teacher = await service.sampler(path=teachers[0])
            opinions = iter(batch.base_logprobs)
            for index in range(4):
                for trajectory in groups[index].group.trajectories_G:
                    (turn,) = trajectory.transitions
                    conversation = _conversation_of(turn.ob, prompts, student)
                    prompt = formats[index // 2].build_generation_prompt((*shown, *conversation))
                    scored = await teacher.score(np.concatenate([prompt, turn.ac.tokens]))
                    opinion = next(opinions)
                    np.testing.assert_allclose(
                        opinion[len(turn.ob) :], scored[len(prompt) :], atol=1e-4
                    )
                    assert not opinion[: len(turn.ob)].any()

    asyncio.run(check())


def _conversation_of(ob, prompts: Path, student):
    for line in prompts.read_text().splitlines():
        conversation = (Message(role="user", content=json.loads(line)["prompt"]),)
        if np.array_equal(student.build_generation_prompt(conversation), ob):
            return conversation
    raise AssertionError("a prompt of no file was sampled from")


def test_groups_per_batch_is_kept_whatever_the_builders_own_batches_are(
    tokenizer, prompts, tiny_model_directory
):
    configs = [
        dataset(tokenizer, prompts, teacher_of("tinker://one"), groups=count) for count in (1, 3)
    ]
    made = asyncio.run(distillation_data(configs, tokenizer=tokenizer))
    assert len(made.train) == 2  # of 6 prompts in threes
    for epoch in (made.train, made.train.with_epoch(7)):
        seen = []
        for index in range(2):
            builders, indices = epoch.batch_with_indices(index)
            assert list(indices) == [0, 1, 1, 1]
            assert [builder.reference().index for builder in builders] == [0, 1, 1, 1]
            seen += [builder.group.conversation for builder in builders[1:]]
        assert len(set(seen)) == 6
    assert made.train.with_epoch(7).get_batch(1)[2].group.conversation == (
        made.train.with_epoch(7).get_batch(1)[2].group.conversation
    )
    assert [builder.dataset for builder in made.test] == [0] * 6 + [1] * 6


def test_held_out_prompts_are_measured_teacher_by_teacher(
    engine, tiny_model_directory, tokenizer, prompts, teachers
):
    configs = [dataset(tokenizer, prompts, teacher_of(path)) for path in teachers]
    made = asyncio.run(distillation_data(configs, tokenizer=tokenizer))

    async def measure(student: str) -> dict[str, float]:
        async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
            models = [await service.sampler(path=path) for path in teachers]
            evaluator = TeacherKLEvaluator(groups=made.test, teachers=models, max_tokens=8)
            (report,) = await evaluator(await service.sampler(path=student), seed=0)
            return flatten(report)

    found = asyncio.run(measure(teachers[0]))
    assert found["test/teacher_kl/dataset_0"] == pytest.approx(0, abs=1e-4)
    assert found["test/teacher_kl/dataset_1"] > 0.2
    assert found["test/teacher_kl"] == pytest.approx(
        found["test/teacher_kl/dataset_1"] / 2, rel=0.5
    )


def test_a_run_that_lacks_a_teacher_says_so(
    engine, tiny_model_directory, tokenizer, prompts, teachers, tmp_path
):
    configs = [dataset(tokenizer, prompts, teacher_of(path)) for path in teachers]
    made = asyncio.run(distillation_data(configs, tokenizer=tokenizer))
    runner = runner_of(engine, tiny_model_directory, made._replace(teachers=made.teachers[:1]))
    with pytest.raises(ConfigurationError, match="reference 1, and the run has 1"):
        runner(tmp_path / "run")


def test_what_cannot_be_distilled_is_refused():
    with pytest.raises(ConfigurationError, match="at least one data set"):
        asyncio.run(distillation_data([], tokenizer=None))
