"""All episodes of a group at once, and all groups of a batch, each under one owner."""

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.rl import RolloutError, Trajectory, TrajectoryGroup
from cookbook_fx.tokens import TokensWithLogprobs
from shell.rollouts.attempts import Failure, Result, attempted, concurrently, within
from shell.rollouts.checks import checked_answer
from shell.rollouts.completers import ContextOverflow, GroupTokenCompleter, TokenCompleter
from shell.rollouts.env import Env, EnvGroupBuilder
from shell.rollouts.episode import (
    Prompt,
    Seeds,
    begin,
    deadline_from_now,
    play,
    within_sample_time,
)
from shell.rollouts.grading import Finished, graded
from shell.rollouts.limits import Progress
from shell.rollouts.options import DEFAULT_OPTIONS, RolloutOptions
from shell.rollouts.strategies import FailFast, Verdict, after_failure
from shell.stores import logtree


async def do_batch_rollout(
    builders: Sequence[EnvGroupBuilder],
    policy: TokenCompleter,
    *,
    options: RolloutOptions = DEFAULT_OPTIONS,
    seeds: Sequence[int] | None = None,
    concurrency: int | None = None,
) -> list[TrajectoryGroup]:
    """Plays many groups at once; results in the order of the builders.

    Args:
        builders: makes each group.
        policy: acts in all of them.
        options: how they are played.
        seeds: one for each group; None leaves samples to chance.
        concurrency: groups under way at a time; None is all of them.

    Raises:
        ConfigurationError: there are not as many seeds as builders, or `concurrency` is below 1.
        Exception: as `do_group_rollout`; the other groups are cancelled and cleaned up first.
    """
    if seeds is not None and len(seeds) != len(builders):
        raise ConfigurationError(
            f"each group needs a seed, got {len(seeds)} seeds for {len(builders)} groups"
        )
    if concurrency is not None and concurrency < 1:
        raise ConfigurationError(f"`concurrency` must be at least 1, got {concurrency}")
    slots = nullcontext() if concurrency is None else asyncio.Semaphore(concurrency)

    async def one(index: int) -> TrajectoryGroup:
        async with slots:
            try:
                return await do_group_rollout(
                    builders[index],
                    policy,
                    options=options,
                    seed=None if seeds is None else seeds[index],
                )
            except Exception as error:
                error.add_note(f"in group {index} of the batch")
                raise

    return await concurrently(one, range(len(builders)))


async def do_group_rollout(
    builder: EnvGroupBuilder,
    policy: TokenCompleter,
    *,
    options: RolloutOptions = DEFAULT_OPTIONS,
    seed: int | None = None,
) -> TrajectoryGroup:
    """Plays all episodes of a group at once, rewards them, and cleans up whatever happens.

    Where all begin with the same prompt, a `GroupTokenCompleter` is asked once for all their first
    answers. The same seed and environments that do the same make the same requests.

    Args:
        builder: makes the environments.
        policy: acts in them.
        options: how they are played, and what happens if one fails.
        seed: of all samples; None leaves them to chance.

    Returns:
        The episodes that succeeded, in the order of their environments, and the errors of those
        that did not, repeated ones included. Where too few succeeded, or the group could not be
        made or rewarded, there are errors only. With `FailFast` there are none.

    Raises:
        Exception: with `FailFast`, the first error as it was raised, with notes on where; the
            other episodes are cancelled and the group is cleaned up first.
    """
    run = _GroupRun(builder=builder, policy=policy, options=options, seed=seed)
    try:
        group = await run.play()
    except BaseException as error:
        cleaned = await run.clean_up()
        if cleaned is not None:
            error.add_note(f"then {run.name}.cleanup failed as well: {cleaned.error!r}")
        raise
    cleaned = await run.clean_up()
    if cleaned is not None:
        run.record(cleaned)
    return replace(group, rollout_errors=tuple(run.errors))


class _GivenUp(Exception):
    """Too much of the group failed."""


class _Begun(NamedTuple):
    """An episode before its first action, or one that ended there."""

    env: Env
    prompt: Prompt | Trajectory
    seeds: Seeds


@dataclass(slots=True, kw_only=True, eq=False)
class _GroupRun:
    """A group under way."""

    builder: EnvGroupBuilder
    policy: TokenCompleter
    options: RolloutOptions
    seed: int | None
    size: int = 0
    lost: int = 0
    retries: int = 0
    attempts: list[int] = field(default_factory=list)
    errors: list[RolloutError] = field(default_factory=list)

    @property
    def name(self) -> str:
        return type(self.builder).__name__

    async def play(self) -> TrajectoryGroup:
        try:
            envs = await self._needed(self._make_envs(), doing=f"making {self.name}")
            finished = await self._episodes(envs)
            grading = graded(self.builder, finished, policy=self.options.termination)
            return await self._needed(grading, doing=f"rewarding {self.name}")
        except _GivenUp:
            return TrajectoryGroup(trajectories_G=(), final_rewards_G=(), metrics_G=())

    async def clean_up(self) -> Failure | None:
        """Frees what the group holds; the failure to, if any."""
        outcome = await attempted(self._clean_up(), doing=f"cleaning up {self.name}")
        return outcome if isinstance(outcome, Failure) else None

    async def _clean_up(self) -> None:
        await self._within_limit(self.builder.cleanup(), what=f"{self.name}.cleanup")

    def record(self, failure: Failure) -> None:
        """Keeps the error of a failure, unless it ends the run."""
        if isinstance(self.options.strategy, FailFast):
            raise failure.error
        self.errors.append(failure.record)

    async def _needed(self, work: Awaitable[Result], *, doing: str) -> Result:
        """The result of what a group cannot be without."""
        outcome = await attempted(work, doing=doing)
        if isinstance(outcome, Failure):
            self.record(outcome)
            raise _GivenUp
        return outcome

    async def _episodes(self, envs: Sequence[Env]) -> list[Finished]:
        self.size = len(envs)
        self.attempts = [0] * self.size
        begun = await concurrently(partial(self._begin, envs=envs), range(self.size))
        ends = deadline_from_now(self.options.limits)
        answers = await self._shared_answers(begun, ends)
        played = await concurrently(
            lambda member: self._play(begun[member], answers[member], ends), range(self.size)
        )
        return [each for each in played if each is not None]

    async def _make_envs(self) -> Sequence[Env]:
        return await self._within_limit(self._checked_envs(), what=f"{self.name}.make_envs")

    async def _within_limit(self, work: Awaitable[Result], *, what: str) -> Result:
        seconds = self.options.limits.rollout_seconds
        return await within(seconds, work, what=what, limit="rollout_seconds")

    async def _checked_envs(self) -> Sequence[Env]:
        envs = await self.builder.make_envs()
        where = f"{self.name}.make_envs"
        if not isinstance(envs, Sequence) or not envs:
            got = "none" if isinstance(envs, Sequence) else repr(envs)
            raise DataError(f"{where} must return at least one environment, got {got}")
        for env in envs:
            if not isinstance(env, Env):
                raise DataError(f"{where} must return instances of Env, got {env!r}")
        if self.size and len(envs) != self.size:
            raise DataError(
                f"{where} must return as many environments each time, got {self.size} and then "
                f"{len(envs)}"
            )
        return envs

    async def _begin(self, member: int, envs: Sequence[Env] | None = None) -> _Begun | None:
        """An episode up to its first prompt, in a new environment where none is given.

        Begun anew where that fails and may be; None where the episode is left out.
        """
        while True:
            outcome = await attempted(
                self._first_prompt(member, envs), doing=f"beginning {self._episode(member)}"
            )
            if not isinstance(outcome, Failure):
                return outcome
            if not self._is_retried(member, outcome):
                return None
            envs = None

    async def _first_prompt(self, member: int, envs: Sequence[Env] | None) -> _Begun:
        env = (await self._make_envs() if envs is None else envs)[member]
        prompt = await begin(env, limits=self.options.limits)
        return _Begun(env, prompt, Seeds(self.seed, member, self.attempts[member]))

    async def _play(
        self, begun: _Begun | None, first: TokensWithLogprobs | None, ends: float | None
    ) -> Finished | None:
        """An episode to its end, played again where it fails and may be."""
        while begun is not None:
            env, prompt, seeds = begun
            if isinstance(prompt, Trajectory):
                return Finished(env, prompt)
            playing = play(
                self.policy,
                env,
                prompt,
                options=self.options,
                seeds=seeds,
                deadline=ends,
                first=first,
            )
            doing = f"playing {self._episode(seeds.member)} in {type(env).__name__}"
            with logtree.scope_header(f"Episode {seeds.member}"):
                outcome = await attempted(playing, doing=doing)
            if not isinstance(outcome, Failure):
                return Finished(env, outcome)
            if not self._is_retried(seeds.member, outcome):
                return None
            begun, first = await self._begin(seeds.member), None
            ends = deadline_from_now(self.options.limits)
        return None

    def _episode(self, member: int) -> str:
        return f"episode {member} of {self.size} of {self.name}"

    def _is_retried(self, member: int, failure: Failure) -> bool:
        verdict = self._verdict(failure, lost=self.lost)
        if verdict is Verdict.LEAVE_OUT:
            self.lost += 1
            return False
        self.attempts[member] += 1
        return True

    def _verdict(self, failure: Failure, *, lost: int) -> Verdict:
        """Whether to leave out or repeat what failed; ends the group where neither may be."""
        self.record(failure)
        verdict = after_failure(
            self.options.strategy, size=self.size, lost=lost, retries=self.retries
        )
        if verdict is Verdict.GIVE_UP:
            raise _GivenUp
        if verdict is Verdict.RETRY:
            self.retries += 1
        return verdict

    async def _shared_answers(
        self, begun: Sequence[_Begun | None], ends: float | None
    ) -> list[TokensWithLogprobs | None]:
        """Every episode's first answer, from one request; Nones where they cannot share one."""
        answers: list[TokensWithLogprobs | None] = [None] * self.size
        prompts = {
            member: each.prompt
            for member, each in enumerate(begun)
            if each is not None and isinstance(each.prompt, Prompt)
        }
        if len(prompts) < 2 or not isinstance(self.policy, GroupTokenCompleter):
            return answers
        prompt, *others = prompts.values()
        if not all(prompt.same(other) for other in others):
            return answers
        request = self._sample_many(self.policy, prompt, count=len(prompts), ends=ends)
        outcome = await attempted(
            request, doing=f"asking for the first answers of {self.name}, all in one request"
        )
        if isinstance(outcome, Failure):
            # It costs one repetition: each episode then asks for itself. Nothing is left out.
            self._verdict(outcome, lost=self.size)
            return answers
        for member, answer in zip(prompts, outcome, strict=False):
            answers[member] = answer
        return answers

    async def _sample_many(
        self, policy: GroupTokenCompleter, prompt: Prompt, *, count: int, ends: float | None
    ) -> Sequence[TokensWithLogprobs]:
        """The answers; none where a limit forbids them, which each episode will find by itself."""
        limits = self.options.limits
        progress = Progress(0, len(prompt.observation), 0)
        if limits.stop_before(progress) is not None:
            return ()
        request = policy.many(
            prompt.observation,
            prompt.stop,
            num_samples=count,
            max_tokens=limits.budget(progress),
            seed=self.seed,
        )
        clock = asyncio.timeout_at(ends)
        try:
            async with clock:
                answers = await within_sample_time(request, limits=limits)
        except ContextOverflow:
            return ()
        except TimeoutError:
            if not clock.expired():
                raise
            return ()
        if len(answers) != count:
            raise DataError(
                f"the policy {type(policy).__name__} was asked for {count} answers and gave "
                f"{len(answers)}"
            )
        return [checked_answer(answer, policy) for answer in answers]
