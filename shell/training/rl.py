"""Reinforcement learning: one loop for the synchronous, the streaming and the asynchronous mode.

Weights of version v have v steps in them. Rollouts of a step begin when the version exists that its
pacing allows, its groups are trained on as they arrive or all together, and what follows from that
is told beside the next step. The modes are settings of `Pacing`; the loop does not know them.

A finished group is on the disk before it is trained on, and a checkpoint says which steps the
weights hold. So a run that was killed trains on what it finds there and rolls out the rest.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.reports import ReinforcementStepReport, Report, TimeReport, flatten
from cookbook_fx.reports.logtree import Scope
from cookbook_fx.reports.rollout_tree import group_scope
from cookbook_fx.rl import count_rollout_errors, full_sequences
from cookbook_fx.rl.records import RecordedGroup
from cookbook_fx.runs import RunPlan, Step
from cookbook_fx.tokens import Tokenizer
from shell.clients import Pending, Sampler, Service, Trainer
from shell.evaluation import Evaluations, Evaluator, SubmittedEvaluations
from shell.rollouts import RLDataset
from shell.rollouts.references import scores
from shell.stores import RunCheckpoint, RunFolder, logtree
from shell.stores.logtree import write_tree
from shell.stores.tracing import interval, span
from shell.training.background import Spawn, background, carried_out
from shell.training.beginnings import (
    adam_params,
    checkpoint_name,
    learning_rates,
    record_checkpoint,
    save_stopped,
    starting_trainer,
)
from shell.training.events import Advised, Evaluated, Observer, RunBegan, StepDone, unobserved
from shell.training.pipeline import Pipeline, reusable
from shell.training.rl_config import RLConfig
from shell.training.rl_step import (
    Learner,
    StepAnswers,
    SubmittedStep,
    account,
    batch_records,
)

# So many steps in a row without a single episode, and something is wrong that waiting won't mend.
_FAILED_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RLData:
    """What is trained and measured on.

    Args:
        train: the batches of an epoch, a batch a step.
        evaluators: what the weights are measured with, on the run's cadence and at its end.
        tokenizer: makes text of the episodes, for people who read the records; None writes none.
    """

    train: RLDataset
    evaluators: tuple[Evaluator, ...] = ()
    tokenizer: Tokenizer | None = None


class RLResult(NamedTuple):
    """How a call of `train_rl` ended.

    Fields:
        checkpoint: the last one recorded; None if stopped before there was any.
        finished: whether the run is complete; otherwise the same call continues it.
    """

    checkpoint: RunCheckpoint | None
    finished: bool


async def train_rl(
    config: RLConfig,
    *,
    service: Service,
    data: RLData,
    folder: RunFolder,
    observe: Observer = unobserved,
    stop: asyncio.Event | None = None,
) -> RLResult:
    """Trains a LoRA on what it samples, from the last checkpoint in `folder` if there is one.

    Each group is rolled out for one step and trained on once, whatever happens between; none is
    thrown away, and none is staler than the configuration allows. In the synchronous mode, on an
    engine that computes the same numbers every time, a continued run ends in the very weights of
    one never interrupted.

    Args:
        config: what to train, how, and how often to look and save.
        service: the engine, from `shell.clients.connect`.
        data: what to train and measure on.
        folder: where the run leaves its measurements, episodes and checkpoints.
        observe: told of progress.
        stop: when set, no further step begins to learn; one that has begun is finished, rollouts
            under way are given up, and the state is saved.

    Raises:
        ConfigurationError: there is no batch to train on, or a setting is out of range.
        DataError: an environment's rewards or metrics are no numbers.
        ServiceError: the engine failed, or has none of the recorded states.
        StorageError: the run folder cannot be written.
        Exception: whatever an environment raises under a strategy that does not tolerate it.
    """
    if len(data.train) == 0:
        raise ConfigurationError("there is not one batch to train on; add data")
    plan = RunPlan(
        num_batches=len(data.train),
        num_epochs=config.schedule.num_epochs,
        max_steps=config.schedule.max_steps,
        evaluate_every=config.cadence.eval_every,
        save_every=config.cadence.save_every,
    )
    rates = learning_rates(config.schedule, plan)
    latest = await asyncio.to_thread(folder.checkpoints.latest)
    if latest is not None and latest.final:
        return RLResult(checkpoint=latest, finished=True)
    trainer, start = await starting_trainer(
        config.model, seed=config.seed, service=service, folder=folder, observe=observe
    )
    first_step = 0 if start is None else start.next_step
    recorded = await asyncio.to_thread(_rewind, folder, first_step, config)
    references = await _references(config, service)
    if config.advice is not None:
        observe(Advised(advice=config.advice))
    observe(RunBegan(first_step=first_step, total_steps=plan.total_steps))
    async with background() as spawn:
        spawn(service.watch())
        pipeline = Pipeline(
            spawn=spawn,
            config=config,
            plan=plan,
            data=data.train,
            file=folder.rollouts,
            decode=None if data.tokenizer is None else data.tokenizer.decode,
            recorded=recorded,
            first_step=first_step,
            observe=observe,
            logtree_path=folder.logtree,
        )
        learner = Learner(
            trainer=trainer,
            objective=config.objective,
            references=references,
            pacing=config.pacing,
            spawn=spawn,
        )
        run = _Run(
            config=config,
            plan=plan,
            learning_rates=rates,
            trainer=trainer,
            data=data,
            folder=folder,
            observe=observe,
            spawn=spawn,
            pipeline=pipeline,
            learner=learner,
        )
        return await run.go(start=start, stop=stop or asyncio.Event())


def _rewind(folder: RunFolder, first_step: int, config: RLConfig) -> list[RecordedGroup]:
    """Takes back what was written after the checkpoint; the groups that are of use again."""
    folder.metrics.keep_before(first_step)
    folder.batches.keep_before(first_step)
    folder.checkpoints.keep_before(first_step + 1)
    return reusable(
        folder.rollouts,
        next_step=first_step,
        max_steps_off_policy=config.max_steps_off_policy,
    )


async def _references(config: RLConfig, service: Service) -> tuple[Sampler, ...]:
    if config.objective.kl_penalty_coef == 0:
        return ()
    return tuple(
        [
            await service.sampler(path=named.load_checkpoint)
            if named.load_checkpoint is not None
            else await service.sampler(base_model=named.base_model or config.model.model)
            for named in config.kl_references
        ]
    )


class _Weights(NamedTuple):
    """One version of the weights.

    Fields:
        sampler: to sample from them, once they are saved.
        evaluation: what is measured of them; None if that is not due.
    """

    sampler: asyncio.Task[Sampler]
    evaluation: asyncio.Task[list[Report]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What the steps told of so far amount to.

    Args:
        checkpoint: the last one recorded.
        clock: when the last step was told of.
        failed_steps: how many steps in a row had no episode left.
    """

    checkpoint: RunCheckpoint | None
    clock: float
    failed_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """What every part of one run needs."""

    config: RLConfig
    plan: RunPlan
    learning_rates: Float[np.ndarray, " step"]
    trainer: Trainer
    data: RLData
    folder: RunFolder
    observe: Observer
    spawn: Spawn
    pipeline: Pipeline
    learner: Learner

    async def go(self, *, start: RunCheckpoint | None, stop: asyncio.Event) -> RLResult:
        """Learns step after step, and ends the run in good order."""
        told = _Told(checkpoint=start, clock=time.perf_counter())
        telling: asyncio.Task[_Told] | None = None
        next_step = 0 if start is None else start.next_step
        weights = self._weights(self.trainer.snapshot(), version=next_step)
        for step in self.plan.steps(from_step=next_step):
            with span("waiting_for_rollouts", step=step.index) as waiting:
                goes_on = await self._goes_on(step, stop)
            if not goes_on:
                break
            with span("submit", step=step.index):
                submitted = await self._submit(step, waited=waiting.seconds)
            before, weights = weights, self._after(step, submitted, before=weights)
            save = self._save(step)
            # While one step learns, the one before is told of, and no more than that.
            told = told if telling is None else await telling
            telling = self.spawn(
                self._tell(step, submitted, before=before, after=weights, save=save, told=told)
            )
            next_step = step.index + 1
        told = told if telling is None else await telling
        if next_step == self.plan.total_steps:
            return RLResult(checkpoint=await self._end(weights), finished=True)
        checkpoint = told.checkpoint
        if next_step > (0 if checkpoint is None else checkpoint.next_step):
            checkpoint = await save_stopped(
                self.trainer, next_step=next_step, folder=self.folder, observe=self.observe
            )
        return RLResult(checkpoint=checkpoint, finished=False)

    async def _goes_on(self, step: Step, stop: asyncio.Event) -> bool:
        """Waits until a step can begin to learn; False if the run is to stop before that."""
        ready = self.spawn(self.learner.can_begin(self.pipeline.arrivals(step.index)))
        stopping = self.spawn(stop.wait())
        await asyncio.wait({ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        stopping.cancel()
        return not stop.is_set()

    async def _submit(self, step: Step, *, waited: float) -> SubmittedStep:
        learning_rate = float(self.learning_rates[step.index])
        return await self.learner.submit(
            self.pipeline.arrivals(step.index),
            adam=adam_params(self.config.adam, learning_rate=learning_rate),
            waited=waited,
        )

    def _weights(self, sampler: Awaitable[Sampler], *, version: int) -> _Weights:
        """Has rollouts begin with a version of the weights, and measures it where that is due."""
        published = self.spawn(self._publish(sampler, version=version))
        is_last = version == self.plan.total_steps
        evaluates = is_last or self.plan.step(version).evaluate
        evaluation = None
        if evaluates:
            submitted = self._evaluations.submit(self.trainer, published)
            evaluation = self.spawn(self._evaluate(submitted, version))
        return _Weights(sampler=published, evaluation=evaluation)

    def _after(self, step: Step, submitted: SubmittedStep, *, before: _Weights) -> _Weights:
        """The weights after a step: those before it if it taught nothing."""
        sampler = self.trainer.snapshot() if submitted.updates else before.sampler
        return self._weights(sampler, version=step.index + 1)

    async def _publish(self, sampler: Awaitable[Sampler], *, version: int) -> Sampler:
        ready = await sampler
        self.pipeline.begin(version=version, sampler=ready)
        return ready

    @property
    def _evaluations(self) -> Evaluations:
        return Evaluations(evaluators=self.data.evaluators, seed=self.config.seed)

    async def _evaluate(self, submitted: SubmittedEvaluations, version: int) -> list[Report]:
        tree = logtree.Tree(f"Evaluation after {version} steps")
        is_logged = self.config.cadence.logtree_every is not None
        with span("evaluation", step=version), tree.active() if is_logged else nullcontext():
            reports = await self._evaluations.measure(submitted)
        if tree.scope.children:
            await asyncio.to_thread(tree.write, self.folder.logtree(f"evaluation_{version:06d}"))
        for report in reports:
            self.observe(Evaluated(step=version, report=report))
        return reports

    def _save(self, step: Step) -> Pending[str] | None:
        next_step = step.index + 1
        if not step.save or next_step == self.plan.total_steps:
            return None
        return self.trainer.save_state(
            checkpoint_name(next_step), ttl_seconds=self.config.cadence.ttl_seconds
        )

    async def _tell(
        self,
        step: Step,
        submitted: SubmittedStep,
        *,
        before: _Weights,
        after: _Weights,
        save: Pending[str] | None,
        told: "_Told",
    ) -> "_Told":
        """Waits for a step, writes down what came of it, and records the checkpoint after it."""
        answers = await self._answers(submitted, after)
        trained = time.perf_counter()
        evaluated = [] if before.evaluation is None else await before.evaluation
        with span("account", step=step.index):
            found = await asyncio.to_thread(
                account, submitted, answers, objective=self.config.objective
            )
        most = min(_FAILED_STEPS, self.plan.total_steps)
        failed_steps = _failed_steps(submitted, told.failed_steps, most=most)
        now = time.perf_counter()
        report = ReinforcementStepReport(
            step=step,
            total_steps=self.plan.total_steps,
            learning_rate=float(self.learning_rates[step.index]),
            num_groups=len(submitted.groups),
            num_datums=len(submitted.data),
            num_tokens=sum(datum.length for datum in submitted.data),
            num_updates=len(submitted.updates),
            mean_reward=found.mean_reward,
        )
        times = TimeReport(
            seconds=dict(submitted.seconds)
            | {"total": now - told.clock, "training": trained - submitted.began}
        )
        interval("training", began=submitted.began, ended=trained, step=step.index)
        interval("step", began=told.clock, ended=now, step=step.index)
        row = flatten(report, *found.reports, *evaluated, times)
        with span("write", step=step.index):
            await carried_out(self._write, step, submitted, answers, row)
        self.pipeline.forget(step.index)
        self.observe(StepDone(report=report, seconds=now - told.clock, metrics=row))
        checkpoint = told.checkpoint
        if save is not None:
            checkpoint = RunCheckpoint(next_step=step.index + 1, state_path=await save)
            await record_checkpoint(checkpoint, folder=self.folder, observe=self.observe)
        return _Told(checkpoint=checkpoint, clock=now, failed_steps=failed_steps)

    async def _answers(self, submitted: SubmittedStep, after: _Weights) -> StepAnswers:
        passes = tuple([await each.answer for each in submitted.passes])
        updates = tuple([await answer for answer in submitted.updates])
        post_logprobs = None
        if self.config.compute_post_kl and passes:
            sequences = full_sequences(submitted.data)
            post_logprobs = await scores(await after.sampler, sequences)
        return StepAnswers(passes=passes, updates=updates, post_logprobs=post_logprobs)

    def _write(
        self,
        step: Step,
        submitted: SubmittedStep,
        answers: StepAnswers,
        row: Mapping[str, float | int],
    ) -> None:
        records = batch_records(
            submitted,
            answers,
            index=step.index,
            objective=self.config.objective,
            learning_rate=float(self.learning_rates[step.index]),
        )
        for record in records:
            self.folder.batches.append(record)
        if self.config.cadence.logs(step.index):
            write_tree(self._tree(step, submitted), self.folder.logtree(f"step_{step.index:06d}"))
        self.folder.metrics.append(step.index, row)

    def _tree(self, step: Step, submitted: SubmittedStep) -> Scope:
        """Some of a step's groups to look at."""
        notes = self.pipeline.notes(step.index)
        in_order = sorted(submitted.groups, key=lambda each: each.index)
        groups = tuple(
            group_scope(
                each.group,
                title=f"Group {each.index} of {len(in_order)}",
                tags=each.tags,
                tokenizer=self.data.tokenizer,
                notes=notes.get(each.index),
                attributes={"weights of step": each.sampler_step},
            )
            for each in in_order[: self.config.cadence.num_groups_to_log]
        )
        return Scope(title=f"Step {step.index}", children=groups)

    async def _end(self, weights: _Weights) -> RunCheckpoint:
        """Measures and saves the final weights; the record comes last and says it is all done."""
        total = self.plan.total_steps
        state = self.trainer.save_state("final")
        sampler = self.trainer.save_for_sampling("final")
        evaluated = [] if weights.evaluation is None else await weights.evaluation
        row = {"progress/batch": total, "progress/done_frac": 1.0, **flatten(*evaluated)}
        await asyncio.to_thread(self.folder.metrics.append, total, row)
        checkpoint = RunCheckpoint(
            next_step=total, state_path=await state, sampler_path=await sampler, final=True
        )
        await record_checkpoint(checkpoint, folder=self.folder, observe=self.observe)
        return checkpoint


def _failed_steps(submitted: SubmittedStep, before: int, *, most: int) -> int:
    """How many steps in a row had no episode left.

    Raises:
        DataError: too many.
    """
    groups = [each.group for each in submitted.groups]
    errors = [error for group in groups for error in group.rollout_errors]
    if any(group.trajectories_G for group in groups) or not errors:
        return 0
    if before + 1 < most:
        return before + 1
    kinds = count_rollout_errors(groups).by_type
    raise DataError(
        f"every episode of the last {most} steps failed, in the last one with "
        f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())}; the first said: "
        f"{errors[0].error_message}; mend the environment, then run the same command again"
    )
