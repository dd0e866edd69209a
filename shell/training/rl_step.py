"""One step's learning: from groups as they arrive to what the engine answers, and its account."""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from cookbook_fx import rl
from cookbook_fx.data import Datum
from cookbook_fx.distillation import GroupReference, JudgedBatch, teacher_kl
from cookbook_fx.lm import AdamParams
from cookbook_fx.reports import (
    OptimizerReport,
    PolicyReport,
    Report,
    RolloutReport,
    TeacherReport,
)
from cookbook_fx.rl import Objective, TrainingBatch
from cookbook_fx.rl.records import BatchRecord, RecordedGroup, batch_record
from cookbook_fx.runs import Pacing
from shell.clients import ForwardResult, OptimResult, Sampler, Trainer
from shell.rollouts.references import Rows, reference_logprobs
from shell.stores.tracing import span
from shell.training.background import Spawn
from shell.training.pipeline import Arrivals

Answer = TypeVar("Answer")


class Pass(NamedTuple):
    """A forward and backward pass that was submitted.

    Fields:
        substep: which of the step's optimizer steps it is for.
        minibatch: which of the substep's passes.
        groups: indices of the groups it was made of.
        references: what each of them is judged by.
        training: what was made of them; there is at least one datum.
        base_logprobs: of each row's tokens, where there is a KL penalty.
        answer: the engine's.
    """

    substep: int
    minibatch: int
    groups: tuple[int, ...]
    references: tuple[GroupReference, ...]
    training: TrainingBatch
    base_logprobs: Rows | None
    answer: asyncio.Task[ForwardResult]


class SubmittedStep(NamedTuple):
    """A step of which everything is on its way to the engine.

    Fields:
        groups: all groups of the step, in the order of the data, whatever became of them.
        passes: of groups that have something to teach.
        updates: the engine's answers to the optimizer steps; none where there was no pass.
        began: when it could begin, on the clock of `time.perf_counter`.
        seconds: where the time went, by name.
    """

    groups: tuple[RecordedGroup, ...]
    passes: tuple[Pass, ...]
    updates: tuple[asyncio.Task[OptimResult], ...]
    began: float
    seconds: Mapping[str, float]

    @property
    def data(self) -> list[Datum]:
        """What was trained on, in the order of submission."""
        return [datum for each in self.passes for datum in each.training.data]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learner:
    """Learns from the groups of one step after another.

    Args:
        trainer: the weights that learn.
        objective: what is learnt.
        references: what a KL penalty pulls towards, or teachers; none without it.
        pacing: how a step is divided.
        spawn: starts a task of the run.
    """

    trainer: Trainer
    objective: Objective
    references: Sequence[Sampler]
    pacing: Pacing
    spawn: Spawn

    async def can_begin(self, arrivals: Arrivals) -> None:
        """Waits until there are groups enough for the first pass."""
        parts = self.pacing.parts(await arrivals.count())
        await self._part(arrivals, 0, parts[0][0])

    async def submit(self, arrivals: Arrivals, *, adam: AdamParams, waited: float) -> SubmittedStep:
        """Sends a step's passes as its groups arrive, waiting for none of the answers.

        A substep in which no group has anything to teach sends nothing, so that the optimizer does
        not move on momentum alone.
        """
        passes: list[Pass] = []
        updates = []
        taken = 0
        start = time.perf_counter()
        references = await arrivals.references()
        for substep, sizes in enumerate(self.pacing.parts(len(references))):
            before = len(passes)
            for minibatch, size in enumerate(sizes):
                with span("waiting_for_rollouts") as waiting:
                    groups = await self._part(arrivals, taken, taken + size)
                waited += waiting.seconds
                taken += size
                judges = [references[each.index] for each in groups]
                sent = await self._send(groups, judges, substep=substep, minibatch=minibatch)
                passes += [] if sent is None else [sent]
            if len(passes) > before:
                updates.append(self._answer(self.trainer.optim_step(adam)))
        return SubmittedStep(
            groups=tuple(_in_order(await arrivals.first(taken))),
            passes=tuple(passes),
            updates=tuple(updates),
            began=start,
            seconds={"waiting_for_rollouts": waited},
        )

    async def _part(self, arrivals: Arrivals, begin: int, end: int) -> list[RecordedGroup]:
        """The groups from `begin` to `end`: as they arrive, or in the order of the data."""
        if self.pacing.streams:
            return _in_order((await arrivals.first(end))[begin:end])
        return _in_order(await arrivals.first(await arrivals.count()))[begin:end]

    async def _send(
        self,
        groups: Sequence[RecordedGroup],
        judges: Sequence[GroupReference],
        *,
        substep: int,
        minibatch: int,
    ) -> Pass | None:
        """Submits one pass; None if there is nothing to learn from the groups."""
        batch = await asyncio.to_thread(
            rl.objective_batch, [each.group for each in groups], self.objective
        )
        base_logprobs = None
        if self.references:
            with span("reference_logprobs"):
                base_logprobs = await reference_logprobs(self.references, batch, judges)
        with span("training_data"):
            training = await asyncio.to_thread(
                rl.training_data, batch, self.objective, base_logprobs=base_logprobs
            )
        if not training.data:
            return None
        loss = self.objective.loss_spec
        pending = await asyncio.to_thread(
            self.trainer.forward_backward, training.data, loss=loss.name, config=loss.config
        )
        return Pass(
            substep=substep,
            minibatch=minibatch,
            groups=tuple(each.index for each in groups),
            references=tuple(judges),
            training=training,
            base_logprobs=base_logprobs,
            answer=self._answer(pending),
        )

    def _answer(self, pending: Awaitable[Answer]) -> asyncio.Task[Answer]:
        """Waits for it beside the run, so that a failure ends the run at once."""
        return self.spawn(_awaited(pending))


async def _awaited(pending: Awaitable[Answer]) -> Answer:
    return await pending


def _in_order(groups: Sequence[RecordedGroup]) -> list[RecordedGroup]:
    return sorted(groups, key=lambda each: each.index)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepAnswers:
    """What the engine answered to a step.

    Args:
        passes: for each pass the log-probabilities of each datum's targets.
        updates: for each optimizer step the engine's measurements.
        post_logprobs: of all tokens of each datum, under the weights after the step; None if not
            asked for.
    """

    passes: tuple[ForwardResult, ...]
    updates: tuple[OptimResult, ...]
    post_logprobs: Rows | None = None


class Account(NamedTuple):
    """What is told of a step, besides its times.

    Fields:
        mean_reward: over all episodes.
        reports: of the episodes by tag, of where they come from, of how far the policies lie
            apart, and of what the engine measured, on average over the updates.
    """

    mean_reward: float
    reports: tuple[Report, ...]


def account(step: SubmittedStep, answers: StepAnswers, *, objective: Objective) -> Account:
    """What came of a step. Tags and rewards are of all its groups, not of those trained on alone.

    Raises:
        DataError: an environment's metric is no number.
    """
    groups = [each.group for each in step.groups]
    trajectories = rl.compute_trajectory_metrics(groups, [each.tags for each in step.groups])
    rollouts = RolloutReport(
        errors=rl.count_rollout_errors(groups),
        sampler_steps=tuple(each.sampler_step for each in step.groups),
        seconds=tuple(each.seconds for each in step.groups if each.seconds is not None),
    )
    return Account(
        mean_reward=trajectories[-1].mean_total_reward,
        reports=(
            *trajectories,
            rollouts,
            _policy(step, answers, objective),
            *_teachers(step, objective),
            _optimizer(answers.updates),
        ),
    )


def _policy(step: SubmittedStep, answers: StepAnswers, objective: Objective) -> PolicyReport:
    data = step.data
    if not data:
        return PolicyReport()
    post = answers.post_logprobs
    logprobs = [row for result in answers.passes for row in result.logprobs]
    return PolicyReport(
        sample_train=rl.objective_diagnostics(data, logprobs, objective),
        pre_post=None if post is None else rl.compute_post_kl(data, post),
        kl_policy_base=(
            _mean_kl([each.training for each in step.passes]) if objective.kl_centered else None
        ),
    )


def _teachers(step: SubmittedStep, objective: Objective) -> list[TeacherReport]:
    """How far the policy is from its teachers, where the KL term is a lesson and no penalty."""
    judged = [
        JudgedBatch(
            each.training.batch,
            each.base_logprobs,
            references=[judge.index for judge in each.references],
        )
        for each in step.passes
        if each.base_logprobs is not None
    ]
    return [TeacherReport(kl=teacher_kl(judged))] if judged and not objective.kl_centered else []


def _mean_kl(batches: Sequence[TrainingBatch]) -> float | None:
    """Over the sampled tokens of all passes."""
    counts = [np.count_nonzero(each.batch.mask) for each in batches]
    means = [each.mean_kl for each in batches if each.mean_kl is not None]
    if len(means) < len(batches):
        return None
    return float(np.dot(means, counts) / max(1, sum(counts)))


def _optimizer(updates: Sequence[OptimResult]) -> OptimizerReport:
    names = dict.fromkeys(name for update in updates for name in update.metrics)
    values = {name: [u.metrics[name] for u in updates if name in u.metrics] for name in names}
    return OptimizerReport(
        metrics={f"optim/{name}": sum(found) / len(found) for name, found in values.items()}
    )


def batch_records(
    step: SubmittedStep,
    answers: StepAnswers,
    *,
    index: int,
    objective: Objective,
    learning_rate: float,
) -> list[BatchRecord]:
    """What was sent, pass by pass, so that it can be made again and compared."""
    return [
        batch_record(
            each.training.data,
            objective,
            step=index,
            substep=each.substep,
            minibatch=each.minibatch,
            groups=each.groups,
            learning_rate=learning_rate,
            base_logprobs=each.base_logprobs,
            training_logprobs=result.logprobs,
        )
        for each, result in zip(step.passes, answers.passes, strict=True)
    ]
