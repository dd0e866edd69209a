"""What goes wrong around the reinforcement-learning loop ends in a clear error or is counted."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.errors import ConfigurationError, DataError, ServiceError
from cookbook_fx.rl import Objective
from shell.rollouts import MinViableGroup, RetryOnFailure, RolloutLimits, RolloutOptions, StepResult
from shell.training import ModelChoice, RLCadence, SamplingChoice, Schedule
from shell.training.events import GroupRolledOut, RunBegan, StepDone
from shell.training.rl import RLData
from shell.training.rl_config import RLConfig
from tests.rl_runs import Guess, Problem, Problems, RLRunner, lines, low_tokens, rows

MODES = {
    "synchronous": {},
    "stream-minibatch": {"num_minibatches": 2},
    "asynchronous": {"max_steps_off_policy": 2},
}
TOTAL = 3
TOLERANT = RolloutOptions(strategy=MinViableGroup(min_successful=3, max_retries=0))


class Broken(Exception):
    """An environment's own mistake."""


@pytest.fixture
def runner(engine, tiny_model_directory: Path) -> RLRunner:
    """3 batches of 3 groups of 4."""
    return RLRunner(
        endpoint=engine,
        config=RLConfig(
            model=ModelChoice(model=str(tiny_model_directory), lora_rank=4),
            schedule=Schedule(learning_rate=1e-2, lr_schedule="constant"),
            cadence=RLCadence(eval_every=None, save_every=1),
            sampling=SamplingChoice(max_tokens=4),
            seed=5,
        ),
        data=RLData(train=Problems(count=9)),
    )


@pytest.fixture(params=MODES)
def in_mode(request, runner) -> RLRunner:
    return replace(runner, config=replace(runner.config, **MODES[request.param]))


def problems(behaviour, *, broken: int = 4, **choice) -> RLData:
    """One problem, met in the second or third step, behaves differently."""
    return RLData(
        train=Problems(
            count=9,
            behaviour_of=lambda number: behaviour if number == broken else low_tokens,
            **choice,
        )
    )


async def raises(env: Guess) -> float:
    raise Broken("the sandbox is gone")


async def hangs(env: Guess) -> float:
    await asyncio.sleep(3600)
    return 0.0


def once_a_group(behaviour):
    """Only the first episode of each group behaves so."""
    met: set[int] = set()

    async def sometimes(env: Guess) -> float:
        if env.problem in met:
            return await low_tokens(env)
        met.add(env.problem)
        return await behaviour(env)

    return sometimes


class ReturnsNothing(Guess):
    async def step(self, action, *, extra=None):
        return None


class Nothings(Problems):
    def get_batch(self, index):
        return [_NothingProblem(number=each.number) for each in super().get_batch(index)]


class _NothingProblem(Problem):
    async def make_envs(self):
        return [ReturnsNothing(self.number, low_tokens), *(await super().make_envs())[1:]]


def test_what_an_environment_raises_ends_the_run_as_it_is(in_mode, tmp_path):
    began = time.perf_counter()
    with pytest.raises(Broken, match="the sandbox is gone") as caught:
        in_mode(tmp_path / "run", data=problems(raises))
    assert time.perf_counter() - began < 20
    assert any("episode" in note for note in caught.value.__notes__)
    assert not isinstance(caught.value.__context__, BaseExceptionGroup)


def test_what_an_environment_raises_is_counted_where_that_is_tolerated(in_mode, tmp_path):
    config = replace(in_mode.config, rollout=TOLERANT)
    data = RLData(train=Problems(count=9, behaviour_of=lambda n: once_a_group(raises)))
    assert in_mode(tmp_path / "run", config=config, data=data).finished
    for row in rows(tmp_path / "run")[:TOTAL]:
        assert row["rollout_errors/Broken"] == row["rollout_errors/total"] == 3
        assert row["rollout_errors/groups_skipped"] == 0
        assert row["env/all/total_episodes"] == row["train/num_datums"] == 9
    failed = [line for line in lines(tmp_path / "run", "rollouts.jsonl") if "error_type" in line]
    assert {line["error_message"] for line in failed} == {"the sandbox is gone"}


def test_a_group_that_fails_as_a_whole_is_skipped_and_counted(runner, tmp_path):
    config = replace(runner.config, rollout=TOLERANT)
    assert runner(tmp_path / "run", config=config, data=problems(raises)).finished
    written = rows(tmp_path / "run")[:TOTAL]
    assert sum(row["rollout_errors/groups_skipped"] for row in written) == 1
    assert sum(row["env/all/total_episodes"] for row in written) == 8 * 4
    assert sum(row["train/num_groups"] for row in written) == 9


def test_an_environment_that_hangs_ends_at_the_limit(in_mode, tmp_path):
    limits = RolloutLimits(rollout_seconds=1.0)
    config = replace(in_mode.config, rollout=replace(TOLERANT, limits=limits))
    data = RLData(train=Problems(count=9, behaviour_of=lambda n: once_a_group(hangs)))
    assert in_mode(tmp_path / "run", config=config, data=data).finished
    stops = [line.get("stop_reason") for line in lines(tmp_path / "run", "rollouts.jsonl")]
    assert stops.count("rollout_timeout") == 9


def test_an_environment_that_returns_nothing_is_an_error_where_errors_are(in_mode, tmp_path):
    with pytest.raises(DataError, match="None"):
        in_mode(tmp_path / "run", data=RLData(train=Nothings(count=9)))


def test_an_environment_that_returns_nothing_is_counted_where_that_is_tolerated(runner, tmp_path):
    config = replace(runner.config, rollout=TOLERANT)
    assert runner(tmp_path / "run", config=config, data=RLData(train=Nothings(count=9))).finished
    assert all(row["rollout_errors/total"] == 3 for row in rows(tmp_path / "run")[:TOTAL])


def test_a_run_in_which_everything_fails_ends_and_continues_once_that_is_mended(runner, tmp_path):
    config = replace(
        runner.config,
        rollout=RolloutOptions(strategy=RetryOnFailure(max_retries=0)),
        schedule=replace(runner.config.schedule, num_epochs=2),
    )
    broken = RLData(train=Problems(count=9, behaviour_of=lambda number: raises))
    with pytest.raises(DataError, match=r"the last 3 steps failed.*Broken.*the sandbox is gone"):
        runner(tmp_path / "run", config=config, data=broken)
    assert [row["rollout_errors/groups_skipped"] for row in rows(tmp_path / "run")] == [3] * 2
    events = []
    assert runner(tmp_path / "run", config=config, observe=events.append).finished
    (began,) = [event.first_step for event in events if isinstance(event, RunBegan)]
    assert began == 2
    written = rows(tmp_path / "run")
    assert [row["step"] for row in written] == list(range(7))
    assert [row["rollout_errors/total"] > 0 for row in written[:6]] == [True] * 2 + [False] * 4


def test_rollouts_that_hang_do_not_keep_a_run_from_stopping(runner, tmp_path):
    began = time.perf_counter()
    first = lambda event: isinstance(event, GroupRolledOut)  # noqa: E731
    data = problems(hangs, broken=0, groups=9)
    stopped = runner(tmp_path / "run", data=data, stop_when=first)
    assert stopped == (None, False)
    assert time.perf_counter() - began < 20
    reused = []
    mended = RLData(train=Problems(count=9, groups=9))
    runner(tmp_path / "run", data=mended, observe=reused.append)
    assert any(event.reused for event in reused if isinstance(event, GroupRolledOut))


@pytest.mark.parametrize("value", ["much", None])
def test_a_metric_that_is_no_number_is_refused_before_anything_is_trained(runner, tmp_path, value):
    class Talkative(Guess):
        async def step(self, action, *, extra=None):
            return StepResult(1.0, True, [], [], metrics={"effort": value})

    class Talk(Problem):
        async def make_envs(self):
            return [Talkative(self.number, low_tokens)]

    class Talks(Problems):
        def with_epoch(self, seed):
            return self

        def get_batch(self, index):
            return [Talk(number=0)]

    with pytest.raises(DataError, match="effort"):
        runner(tmp_path / "run", data=RLData(train=Talks(count=3)))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_reward_that_is_not_finite_is_refused(runner, tmp_path):
    async def infinite(env: Guess) -> float:
        return float("inf")

    with pytest.raises(DataError, match="finite"):
        runner(tmp_path / "run", data=problems(infinite))


def test_an_evaluator_that_fails_ends_the_run(runner, tmp_path):
    async def evaluator(sampler, *, seed):
        raise Broken("no test data")

    data = replace(runner.data, evaluators=(evaluator,))
    with pytest.raises(Broken):
        runner(tmp_path / "run", data=data)


def test_a_metric_named_like_one_of_the_loops_is_refused(runner, tmp_path):
    class Thief(Guess):
        async def step(self, action, *, extra=None):
            return StepResult(1.0, True, [], [], metrics={"reward/total": 5.0})

    class Thieves(Problems):
        def with_epoch(self, seed):
            return self

        def get_batch(self, index):
            return [_Thief(number=0)]

    class _Thief(Problem):
        async def make_envs(self):
            return [Thief(self.number, low_tokens)]

    with pytest.raises(ConfigurationError, match="reward/total"):
        runner(tmp_path / "run", data=RLData(train=Thieves(count=3)))


def test_a_prompt_the_engine_refuses_ends_the_run_with_its_reason(runner, tmp_path):
    class Endless(Guess):
        async def initial_observation(self):
            return [1] + [60] * 600, [2]

    class Long(Problem):
        async def make_envs(self):
            return [Endless(self.number, low_tokens)]

    class Longs(Problems):
        def with_epoch(self, seed):
            return self

        def get_batch(self, index):
            return [Long(number=0)]

    with pytest.raises(ServiceError, match="context"):
        runner(tmp_path / "run", data=RLData(train=Longs(count=3)))


@pytest.mark.parametrize(
    "points", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 12))]
)
def test_a_run_killed_at_random_points_trains_each_group_once(runner, tmp_path, points):
    random = np.random.default_rng(points)
    config = replace(
        runner.config,
        objective=Objective(truncate_ratios=2.0),
        max_steps_off_policy=1,
        num_minibatches=1 + points % 2,
        schedule=replace(runner.config.schedule, num_epochs=2),
    )
    finished, attempts = False, 0
    while not finished:
        attempts += 1
        left = int(random.integers(3, 20)) if attempts < 4 else None
        seen = []

        def crash(event, seen=seen, left=left) -> None:
            seen.append(event)
            if len(seen) == left:
                raise Broken

        try:
            finished = runner(tmp_path / "run", config=config, observe=crash).finished
        except Broken:
            continue
        steps = [event.report.step.index for event in seen if isinstance(event, StepDone)]
        assert steps == list(range(6 - len(steps), 6))
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(7))
    trained = [
        (line["step"], group)
        for line in lines(tmp_path / "run", "batches.jsonl")
        for group in line["groups"]
    ]
    assert sorted(trained) == [(step, group) for step in range(6) for group in range(3)]
    rolled_out = [
        (line["step"], line["group"], line["member"])
        for line in lines(tmp_path / "run", "rollouts.jsonl")
    ]
    assert sorted(rolled_out) == [
        (step, group, member) for step in range(6) for group in range(3) for member in range(4)
    ]
