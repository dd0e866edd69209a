"""One episode: prompt, action, observation, action, until the environment or a limit ends it."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from cookbook_fx.errors import DataError
from cookbook_fx.rl import StopReason, Trajectory, Transition
from cookbook_fx.rl.trajectory import Logs, Metrics, Reward
from cookbook_fx.runs import derived_seed
from cookbook_fx.tokens import TokensWithLogprobs
from shell.rollouts.attempts import Result, times_cancelled, within
from shell.rollouts.checks import (
    checked_answer,
    checked_mapping,
    checked_metrics,
    checked_reward,
    checked_stop,
    kind,
    token_ids,
)
from shell.rollouts.completers import ContextOverflow, TokenCompleter
from shell.rollouts.env import (
    ActionExtra,
    Env,
    InitialObservationOverflow,
    StepResult,
    StopCondition,
)
from shell.rollouts.limits import Progress, RolloutLimits
from shell.rollouts.options import DEFAULT_OPTIONS, RolloutOptions
from shell.stores.tracing import span

STOP_METRIC_PREFIX = "stop/"


class Prompt(NamedTuple):
    """What to sample after, and where to stop."""

    observation: Int[np.ndarray, " token"]
    stop: StopCondition

    def same(self, other: "Prompt") -> bool:
        """Whether it asks for the same."""
        return list(self.stop) == list(other.stop) and np.array_equal(
            self.observation, other.observation
        )


class Seeds(NamedTuple):
    """Where an episode's seeds come from.

    Fields:
        group: the seed of its group; None leaves all to chance.
        member: which of the group's episodes it is.
        attempt: how often it was begun before.
    """

    group: int | None
    member: int = 0
    attempt: int = 0

    def turn(self, turn: int) -> int | None:
        """The seed of one turn, unrelated to that of any other.

        Example:
            >>> Seeds(5, member=1).turn(2) == Seeds(5, member=1).turn(2), Seeds(None).turn(2)
            (True, None)
        """
        if self.group is None:
            return None
        return derived_seed(self.group, self.member, turn, self.attempt)


async def do_single_rollout(
    policy: TokenCompleter,
    env: Env,
    *,
    options: RolloutOptions = DEFAULT_OPTIONS,
    seed: int | None = None,
) -> Trajectory:
    """Plays one episode.

    Args:
        policy: answers each observation.
        env: a new environment.
        options: its limits and its policy on parse errors; the rest is for groups.
        seed: of all samples; None leaves them to chance.

    Returns:
        The turns. The last one's metric `stop/<reason>` and `stop_reason` say why there are no
        more: the environment's reason, None if it gave none, or the limit's. An episode that ended
        before its first action has one empty turn, which gives nothing to train on.

    Raises:
        DataError: the environment or the policy returned what it may not.
        TimeLimitExceeded: a request took longer than `sample_seconds`.
        Exception: whatever environment or policy raise.
    """
    began = await begin(env, limits=options.limits)
    if isinstance(began, Trajectory):
        return began
    return await play(
        policy,
        env,
        began,
        options=options,
        seeds=Seeds(seed),
        deadline=deadline_from_now(options.limits),
    )


async def begin(env: Env, *, limits: RolloutLimits) -> Prompt | Trajectory:
    """The first prompt, or the whole episode where it ended before its first action."""
    clock = asyncio.timeout(limits.rollout_seconds)
    try:
        async with clock:
            with span("environment begin"):
                initial = await env.initial_observation()
    except TimeoutError:
        if not clock.expired():
            raise
        return _without_actions(StopReason.ROLLOUT_TIMEOUT)
    where = f"{type(env).__name__}.initial_observation"
    if isinstance(initial, InitialObservationOverflow):
        return _overflown(initial, where=where)
    if not isinstance(initial, tuple) or len(initial) != 2:
        raise DataError(
            f"{where} must return an observation and a stop condition, or an "
            f"InitialObservationOverflow; got {kind(initial)}"
        )
    observation, stop = initial
    return Prompt(token_ids(observation, where=where), checked_stop(stop, where=where))


def deadline_from_now(limits: RolloutLimits) -> float | None:
    """When an episode that starts now must have ended, by the event loop's clock."""
    seconds = limits.rollout_seconds
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


async def play(
    policy: TokenCompleter,
    env: Env,
    prompt: Prompt,
    *,
    options: RolloutOptions,
    seeds: Seeds,
    deadline: float | None,
    first: TokensWithLogprobs | None = None,
) -> Trajectory:
    """Plays an episode from its first prompt on.

    Args:
        policy: answers each observation.
        env: the environment that gave the prompt.
        prompt: what it gave.
        options: how to play.
        seeds: of the samples.
        deadline: when to stop; the turns so far are kept.
        first: the first answer, where it is known already.
    """
    episode = _Episode(policy=policy, env=env, options=options, seeds=seeds, prompt=prompt)
    clock = asyncio.timeout_at(deadline)
    try:
        async with clock:
            with span("episode", member=seeds.member, attempt=seeds.attempt):
                return await episode.turns(deadline, first)
    except TimeoutError:
        if not clock.expired():
            raise
        return episode.stopped(StopReason.ROLLOUT_TIMEOUT)


@dataclass(slots=True, kw_only=True, eq=False)
class _Episode:
    """An episode under way."""

    policy: TokenCompleter
    env: Env
    options: RolloutOptions
    seeds: Seeds
    prompt: Prompt
    transitions: list[Transition] = field(default_factory=list)

    async def turns(self, deadline: float | None, first: TokensWithLogprobs | None) -> Trajectory:
        before = times_cancelled()
        while True:
            if times_cancelled() > before:
                # The environment swallowed it.
                raise asyncio.CancelledError
            if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                return self.stopped(StopReason.ROLLOUT_TIMEOUT)
            limit = self.options.limits.stop_before(self._progress())
            if limit is not None:
                return self.stopped(limit)
            try:
                answer = await self._sample() if first is None else first
            except ContextOverflow:
                return self.stopped(StopReason.CONTEXT_OVERFLOW)
            first = None
            if await self._step(answer):
                return Trajectory(
                    transitions=tuple(self.transitions),
                    final_ob=self.prompt.observation,
                    stop_reason=_stop_reason(self.transitions[-1].metrics),
                )

    def stopped(self, reason: StopReason) -> Trajectory:
        """The turns so far, the last one marked with the reason."""
        if not self.transitions:
            return _without_actions(reason, final_ob=self.prompt.observation)
        *earlier, last = self.transitions
        last = replace(last, episode_done=True, metrics=_stopped(last.metrics, reason))
        return Trajectory(
            transitions=(*earlier, last), final_ob=self.prompt.observation, stop_reason=reason
        )

    def _progress(self) -> Progress:
        return Progress(
            turns=len(self.transitions),
            observed_tokens=len(self.prompt.observation),
            sampled_tokens=sum(len(turn.ac.tokens) for turn in self.transitions),
        )

    async def _sample(self) -> TokensWithLogprobs:
        limits, progress = self.options.limits, self._progress()
        request = self.policy(
            self.prompt.observation,
            self.prompt.stop,
            max_tokens=limits.budget(progress),
            seed=self.seeds.turn(progress.turns),
        )
        return checked_answer(await within_sample_time(request, limits=limits), self.policy)

    async def _step(self, answer: TokensWithLogprobs) -> bool:
        """Takes the action; whether it was the last."""
        extra = ActionExtra(
            stop_reason=answer.stop_reason,
            max_tool_calls=self.options.limits.tool_calls,
            parse_errors=self.options.parse_errors,
        )
        with span("environment step", turn=len(self.transitions)):
            result = await self.env.step(np.asarray(answer.tokens, np.int64).tolist(), extra=extra)
        where = f"{type(self.env).__name__}.step"
        if not isinstance(result, StepResult):
            raise DataError(f"{where} must return a StepResult, got {kind(result)}")
        self.transitions.append(
            Transition(
                ob=self.prompt.observation,
                ac=answer,
                reward=checked_reward(result.reward, where=where),
                episode_done=bool(result.episode_done),
                metrics=checked_metrics(result.metrics, where=where),
                logs=checked_mapping(result.logs, where=where),
            )
        )
        self.prompt = Prompt(
            token_ids(result.next_observation, where=where),
            checked_stop(result.next_stop_condition, where=where),
        )
        return bool(result.episode_done)


async def within_sample_time(request: Awaitable[Result], *, limits: RolloutLimits) -> Result:
    """A request to the policy, ended after `sample_seconds`."""
    return await within(
        limits.sample_seconds, request, what="a request to the policy", limit="sample_seconds"
    )


def _stop_reason(metrics: Mapping[str, Any]) -> str | None:
    reasons = (name for name, value in metrics.items() if value)
    stops = (name for name in reasons if name.startswith(STOP_METRIC_PREFIX))
    return next((name.removeprefix(STOP_METRIC_PREFIX) for name in stops), None)


def _stopped(metrics: Metrics, reason: str) -> Metrics:
    """The metrics with this stop reason and no other."""
    others = {
        name: value for name, value in metrics.items() if not name.startswith(STOP_METRIC_PREFIX)
    }
    return others | {f"{STOP_METRIC_PREFIX}{reason}": 1.0}


def _overflown(initial: InitialObservationOverflow, *, where: str) -> Trajectory:
    metrics = checked_metrics(initial.metrics, where=where)
    return _without_actions(
        _stop_reason(metrics) or StopReason.MAX_TOKENS,
        reward=checked_reward(initial.reward, where=where),
        metrics=metrics,
        logs=checked_mapping(initial.logs, where=where),
    )


_NO_TOKENS = np.zeros(0, np.int32)


def _without_actions(
    reason: str,
    *,
    final_ob: Int[np.ndarray, " token"] = _NO_TOKENS,
    reward: Reward = 0.0,
    metrics: Metrics = MappingProxyType({}),
    logs: Logs = MappingProxyType({}),
) -> Trajectory:
    """An episode that ended before its first action.

    Its one turn is empty and carries what is known of it; no token of it is trained on.
    """
    turn = Transition(
        ob=_NO_TOKENS,
        ac=TokensWithLogprobs(tokens=[], maybe_logprobs=[]),
        reward=reward,
        episode_done=True,
        metrics=_stopped(metrics, reason),
        logs=logs,
    )
    return Trajectory(transitions=(turn,), final_ob=final_ob, stop_reason=reason)
