"""Environments that follow a script, and policies that answer the same to the same request."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cookbook_fx.tokens import TokensWithLogprobs
from shell.rollouts import Env, EnvGroupBuilder, StepResult

STOP = [2]


class Request(NamedTuple):
    """What a policy was asked."""

    prompt: tuple[int, ...]
    stop: tuple[Any, ...]
    max_tokens: int | None
    seed: int | None
    num_samples: int | None = None


def answer_to(request: Request, index: int = 0) -> TokensWithLogprobs:
    """One to four tokens that depend on all of the request; as many as allowed at most."""
    words = [*request.prompt, request.seed or 0, index]
    draws = np.random.default_rng(words).integers(3, 50, size=5).tolist()
    longest = 4 if request.max_tokens is None else request.max_tokens
    count = min(1 + draws[0] % 4, longest)
    return TokensWithLogprobs(
        tokens=draws[1 : 1 + count], maybe_logprobs=[-token / 64 for token in draws[1 : 1 + count]]
    )


@dataclass
class AlonePolicy:
    """Answers one request at a time and notes them all."""

    requests: list[Request] = field(default_factory=list)

    async def __call__(self, prompt, stop, *, max_tokens=None, seed=None):
        request = Request(tuple(np.asarray(prompt).tolist()), tuple(stop), max_tokens, seed)
        self.requests.append(request)
        await asyncio.sleep(0)
        return answer_to(request)


@dataclass
class GroupPolicy(AlonePolicy):
    """Answers for a whole group as well."""

    async def many(self, prompt, stop, *, num_samples, max_tokens=None, seed=None):
        ids = tuple(np.asarray(prompt).tolist())
        request = Request(ids, tuple(stop), max_tokens, seed, num_samples)
        self.requests.append(request)
        await asyncio.sleep(0)
        return [answer_to(request, index) for index in range(num_samples)]


@dataclass
class ScriptedEnv(Env):
    """Gives a prompt and goes on for some turns, each worth 1; `before` may do anything first.

    Its observation is one list that it goes on writing into.
    """

    prompt: list[int] = field(default_factory=lambda: [5, 6])
    turns: int = 1
    before: Callable[[int], Any] | None = None
    result: Callable[[StepResult], Any] = lambda result: result
    heard: list[dict] = field(default_factory=list)
    taken: int = 0

    async def initial_observation(self):
        await self._before(0)
        return self.prompt, STOP

    async def step(self, action, *, extra=None):
        self.taken += 1
        self.heard.append(extra)
        await self._before(self.taken)
        self.prompt += [*action, 1]
        return self.result(StepResult(1.0, self.taken >= self.turns, self.prompt, STOP))

    async def _before(self, turn: int) -> None:
        if self.before is not None:
            waiting = self.before(turn)
            if waiting is not None:
                await waiting


def raises(error: BaseException, *, at: int = 1) -> Callable[[int], None]:
    """Raises before a turn; the first observation is turn 0."""

    def before(turn: int) -> None:
        if turn == at:
            raise error

    return before


def hangs(*, at: int = 1) -> Callable[[int], Any]:
    """Waits forever before a turn."""
    return lambda turn: asyncio.Event().wait() if turn == at else None


@dataclass
class ScriptedGroup(EnvGroupBuilder):
    """Makes the environments of each attempt from functions, the last attempt's again and again."""

    attempts: Sequence[Callable[[], Sequence[Env]]]
    rewards: Callable[[Sequence[Any]], Any] | None = None
    cleanup_error: Exception | None = None
    made: int = 0
    cleaned: int = 0
    graded: list = field(default_factory=list)

    async def make_envs(self):
        make = self.attempts[min(self.made, len(self.attempts) - 1)]
        self.made += 1
        return make()

    async def compute_group_rewards(self, trajectory_group, env_group):
        self.graded.append((trajectory_group, env_group))
        if self.rewards is not None:
            given = self.rewards(trajectory_group)
            return await given if asyncio.iscoroutine(given) else given
        return [(0.25, {"graded": 1}) for _ in trajectory_group]

    async def cleanup(self):
        await asyncio.sleep(0)
        self.cleaned += 1
        if self.cleanup_error is not None:
            raise self.cleanup_error


def group_of(count: int, **options) -> ScriptedGroup:
    """Environments that all do the same."""
    return ScriptedGroup([lambda: [ScriptedEnv(**_fresh(options)) for _ in range(count)]])


def _fresh(options: dict) -> dict:
    return options | ({"prompt": list(options["prompt"])} if "prompt" in options else {})
