"""Small worlds to learn in, and a way to run the loop on them against an engine."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from shell.clients import connect
from shell.engine.serve import Endpoint
from shell.rollouts import Env, EnvGroupBuilder, RLDataset, StepResult
from shell.stores import open_run_folder
from shell.training.events import Event, Observer, unobserved
from shell.training.rl import RLData, RLResult, train_rl
from shell.training.rl_config import RLConfig

Behaviour = Callable[["Guess"], Awaitable[float]]
"""What an environment does with its action: it answers with the reward."""


@dataclass(eq=False)
class Guess(Env):
    """One turn: the prompt is the problem's number, the reward is up to the behaviour."""

    problem: int
    behaviour: Behaviour
    action: Sequence[int] = ()

    async def initial_observation(self):
        return [1, 60 + self.problem % 40, 61], [2]

    async def step(self, action, *, extra=None):
        self.action = action
        reward = await self.behaviour(self)
        return StepResult(
            reward=reward,
            episode_done=True,
            next_observation=[],
            next_stop_condition=[],
            metrics={"length": len(action)},
        )


async def low_tokens(env: Guess) -> float:
    """Pays for tokens from the lower half of the vocabulary: something to learn."""
    return float(np.mean(np.asarray(env.action) < 150))


async def constant(env: Guess) -> float:
    return 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem(EnvGroupBuilder):
    number: int
    size: int = 4
    behaviour: Behaviour = low_tokens

    async def make_envs(self):
        return [Guess(self.number, self.behaviour) for _ in range(self.size)]

    def logging_tags(self):
        return [f"kind{self.number % 2}"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Problems(RLDataset):
    """`count` problems, `groups` of them a batch; the last batch has what is left."""

    count: int
    groups: int = 3
    size: int = 4
    behaviour_of: Callable[[int], Behaviour] = lambda number: low_tokens
    order: tuple[int, ...] | None = None
    asked: list[int] = field(default_factory=list)

    def __len__(self):
        return -(-self.count // self.groups)

    def get_batch(self, index):
        self.asked.append(index)
        numbers = self.order or tuple(range(self.count))
        return [
            Problem(number=number, size=self.size, behaviour=self.behaviour_of(number))
            for number in numbers[index * self.groups : (index + 1) * self.groups]
        ]

    def with_epoch(self, seed):
        order = np.random.default_rng(seed).permutation(self.count)
        return replace(self, order=tuple(order.tolist()))


@dataclass(frozen=True, kw_only=True)
class RLRunner:
    """Runs the loop against one engine."""

    endpoint: Endpoint
    config: RLConfig
    data: RLData

    def __call__(
        self,
        folder: Path,
        *,
        config: RLConfig | None = None,
        data: RLData | None = None,
        observe: Observer = unobserved,
        stop_when: Callable[[Event], bool] | None = None,
        seconds: float = 60,
    ) -> RLResult:
        async def run() -> RLResult:
            stop = asyncio.Event()

            def watch(event: Event) -> None:
                observe(event)
                if stop_when is not None and stop_when(event):
                    stop.set()

            base_url, api_key = self.endpoint.base_url, self.endpoint.api_key
            with open_run_folder(folder, config={}) as opened:
                async with (
                    asyncio.timeout(seconds),
                    connect(base_url=base_url, api_key=api_key) as service,
                ):
                    return await train_rl(
                        config or self.config,
                        service=service,
                        data=data or self.data,
                        folder=opened,
                        observe=watch,
                        stop=stop,
                    )

        return asyncio.run(run())


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def rows(folder: Path, *, without_time: bool = True) -> list[dict]:
    return [
        {
            name: value
            for name, value in row.items()
            if not (without_time and name.startswith("time/"))
        }
        for row in lines(folder, "metrics.jsonl")
    ]
