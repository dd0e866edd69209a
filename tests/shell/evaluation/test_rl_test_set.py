"""Held-out environments: what they amount to, by tag; the same seed measures the same."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.reports import flatten
from shell.clients import Sample, connect
from shell.evaluation import RLTestSetEvaluator
from shell.rollouts import (
    Env,
    EnvGroupBuilder,
    MinViableGroup,
    RLDataset,
    RolloutLimits,
    RolloutOptions,
    StepResult,
)


@dataclass
class Guess(Env):
    """One prompt; an answer that begins with an even token earns 1."""

    prompt: list[int]
    playing: set[int] = field(default_factory=set)
    most: list[int] = field(default_factory=list)

    async def initial_observation(self):
        if self.prompt[0] == 13:
            raise OSError("no such environment")
        self.playing.add(id(self))
        self.most.append(len(self.playing))
        return self.prompt, [2]

    async def step(self, action, *, extra=None):
        await asyncio.sleep(0)
        self.playing.discard(id(self))
        right = bool(action[0] % 2 == 0)
        return StepResult(
            reward=float(right), episode_done=True, next_observation=[], next_stop_condition=[],
            metrics={"correct": right},
        )  # fmt: skip


@dataclass
class Guesses(EnvGroupBuilder):
    prompt: list[int]
    members: int = 2
    playing: set[int] = field(default_factory=set)
    most: list[int] = field(default_factory=list)

    async def make_envs(self):
        return [Guess(self.prompt, self.playing, self.most) for _ in range(self.members)]

    def logging_tags(self):
        return ["low" if self.prompt[0] < 12 else "high"]


@dataclass
class Data(RLDataset):
    batches: list[list[EnvGroupBuilder]]

    def get_batch(self, index):
        return self.batches[index]

    def __len__(self):
        return len(self.batches)


@dataclass
class FixedSampler:
    """Begins each answer with the sum of prompt, seed and sample number; notes requests."""

    requests: list = field(default_factory=list)
    fixed: bool = False

    async def sample(self, request):
        self.requests.append(request)
        first = int(request.prompt[0]) + (0 if self.fixed else request.seed)
        await asyncio.sleep(0)
        return tuple(
            Sample(
                tokens=np.array([3 + (first + index) % 90, 2], np.int32),
                logprobs=np.zeros(2, np.float32),
                stop_reason="stop",
            )
            for index in range(request.num_samples)
        )


def measured(evaluator, sampler, seed: int = 0):
    (report,) = asyncio.run(evaluator(sampler, seed=seed))
    return report


def test_numbers_are_those_of_all_groups_and_of_each_tag():
    # Answers begin with 3 + the prompt, so that odd prompts earn 1 with their first sample.
    data = Data([[Guesses([10], 1), Guesses([11], 1)], [Guesses([21], 1)]])
    report = measured(
        RLTestSetEvaluator(dataset=data, max_tokens=4, name="held_out"), FixedSampler(fixed=True)
    )
    row = flatten(report)
    assert report.score == row["held_out/env/all/by_group/frac_any_positive"] == 2 / 3
    assert row["held_out/env/all/reward/total"] == pytest.approx(2 / 3)
    assert row["held_out/env/low/reward/total"] == 0.5
    assert row["held_out/env/high/correct"] == 1
    assert row["held_out/env/low/by_group/frac_any_positive"] == 0.5
    assert row["held_out/env/high/by_group/frac_any_positive"] == 1
    assert row["held_out/env/all/total_episodes"] == 3
    assert row["held_out/rollout_errors/total"] == 0
    assert all(name.startswith("held_out/") for name in row)


def test_the_same_seed_asks_the_same_and_another_something_else():
    data = Data([[Guesses([10]), Guesses([11])]])
    evaluator = RLTestSetEvaluator(dataset=data, max_tokens=4, temperature=0.5)
    seeds = {}
    for seed in (0, 0, 1):
        sampler = FixedSampler()
        measured(evaluator, sampler, seed)
        asked = [(request.prompt.tolist(), request.seed) for request in sampler.requests]
        assert all(request.temperature == 0.5 for request in sampler.requests)
        assert seeds.setdefault(seed, asked) == asked
    assert seeds[0] != seeds[1]


def test_no_more_groups_are_under_way_than_allowed():
    playing, most = set(), []
    groups = [Guesses([index], 2, playing, most) for index in range(20, 32)]
    evaluator = RLTestSetEvaluator(dataset=Data([groups]), max_tokens=4, concurrency=3)
    measured(evaluator, FixedSampler())
    assert max(most) == 6


def test_no_more_groups_are_played_than_wanted():
    data = Data([[Guesses([10]), Guesses([11])], [Guesses([21])], [Guesses([22])]])
    sampler = FixedSampler()
    measured(RLTestSetEvaluator(dataset=data, max_tokens=4, limit=3), sampler)
    assert {int(request.prompt[0]) for request in sampler.requests} == {10, 11, 21}
    with pytest.raises(ConfigurationError, match="limit"):
        RLTestSetEvaluator(dataset=data, max_tokens=4, limit=0)


def test_limits_are_honored():
    options = RolloutOptions(limits=RolloutLimits(turn_tokens=3))
    sampler = FixedSampler()
    evaluator = RLTestSetEvaluator(dataset=Data([[Guesses([10])]]), max_tokens=9, options=options)
    measured(evaluator, sampler)
    assert {request.max_tokens for request in sampler.requests} == {3}


def test_what_fails_counts_as_not_solved_or_ends_the_evaluation():
    data = Data([[Guesses([13]), Guesses([11], 1)]])
    options = RolloutOptions(strategy=MinViableGroup())
    report = measured(
        RLTestSetEvaluator(dataset=data, max_tokens=4, options=options), FixedSampler(fixed=True)
    )
    assert report.score == 0.5
    row = flatten(report)
    assert row["test/rollout_errors/groups_skipped"] == 1
    assert row["test/rollout_errors/OSError"] >= 1
    with pytest.raises(OSError, match="no such environment"):
        measured(RLTestSetEvaluator(dataset=data, max_tokens=4), FixedSampler())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": Data([])}, "at least one batch"),
        ({"max_tokens": 0}, "`max_tokens`"),
        ({"concurrency": 0}, "`concurrency`"),
        ({"temperature": float("nan")}, "`temperature`"),
    ],
)
def test_what_cannot_work_is_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        RLTestSetEvaluator(**{"dataset": Data([[Guesses([10])]]), "max_tokens": 4} | change)


def test_a_real_engine_measures_the_same_twice(tiny_engine, tiny_model_directory):
    data = Data([[Guesses([index], 4) for index in (20, 30)]])
    evaluator = RLTestSetEvaluator(dataset=data, max_tokens=4)

    async def run():
        base_url, api_key = tiny_engine.base_url, tiny_engine.api_key
        async with connect(base_url=base_url, api_key=api_key) as service:
            sampler = await service.sampler(base_model=str(tiny_model_directory))
            return [flatten(*await evaluator(sampler, seed=seed)) for seed in (3, 3)]

    first, second = asyncio.run(run())
    assert first == second
    assert first["test/env/all/total_episodes"] == 8
