"""Training on preferences: the loop over pairs, and the promise that its reference never moves.

A step needs the policy's log-probabilities before it can be sent back what they are worth: one
forward pass and one backward pass. The next step's forward pass is submitted together with this
step's backward pass and update, and the reference's log-probabilities of later batches behind it,
so that the engine has work while a loss is differentiated here.
"""

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cookbook_fx.preference import (
    PairBatch,
    PairInputs,
    PairPreparation,
    PreferenceDataset,
    PreferenceObjective,
    PreferencePair,
    PreferenceStepMetrics,
    preference_report,
    token_preference_loss,
)
from cookbook_fx.reports import (
    OptimizerReport,
    PreferenceEvaluationReport,
    PreferenceStepReport,
    TimeReport,
    flatten,
)
from cookbook_fx.runs import RunPlan, Step
from shell.clients import (
    CustomLoss,
    CustomPass,
    CustomResult,
    NewLoRA,
    OptimResult,
    Pending,
    Service,
    Trainer,
    forward_backward_custom,
)
from shell.evaluation import PreferenceEvaluator, ReferenceScores, SubmittedPreferences
from shell.stores import RunCheckpoint, RunFolder
from shell.stores.tracing import interval, span
from shell.training.beginnings import (
    adam_params,
    checkpoint_name,
    epoch_seed,
    learning_rates,
    record_checkpoint,
    save_stopped,
    starting_trainer,
)
from shell.training.dpo_config import DPOConfig
from shell.training.events import Evaluated, Observer, RunBegan, StepDone, unobserved

_EVALUATED_TOGETHER = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DPOData:
    """What is trained and measured on.

    Args:
        train: the batches of an epoch.
        held_out: pairs the weights are measured on, on the run's cadence and at its end.
        preparation: what became of the comparisons; told in the row of the first step.
    """

    train: PreferenceDataset
    held_out: tuple[PreferencePair, ...] = ()
    preparation: PairPreparation | None = None


class DPOResult(NamedTuple):
    """How a call of `train_dpo` ended.

    Fields:
        checkpoint: the last one recorded; None if stopped before there was any.
        finished: whether the run is complete; otherwise the same call continues it.
    """

    checkpoint: RunCheckpoint | None
    finished: bool


class _Begun(NamedTuple):
    """A step whose forward pass is on its way, and the evaluation of the weights before it."""

    step: Step
    batch: PairBatch
    forward: CustomPass[PairInputs, PreferenceStepMetrics]
    evaluation: SubmittedPreferences | None


class _Updating(NamedTuple):
    """A step of which everything is on its way: what to wait for."""

    begun: _Begun
    learning_rate: float
    backward: Pending[CustomResult[PreferenceStepMetrics]]
    optim_step: Pending[OptimResult]
    save: Pending[str] | None


async def train_dpo(
    config: DPOConfig,
    *,
    service: Service,
    data: DPOData,
    folder: RunFolder,
    observe: Observer = unobserved,
    stop: asyncio.Event | None = None,
) -> DPOResult:
    """Trains a LoRA on pairs, from the last checkpoint in `folder` if there is one.

    The reference is what `config` names, a base model or saved weights, when the run is continued
    as when it began. Each batch is trained on once, whatever happens between: a checkpoint records
    the next step, and `metrics.jsonl` ends up with each step once. On an engine that computes the
    same numbers every time, a continued run ends in the very weights of one never interrupted.

    Args:
        config: what to train, on which loss, how long, how fast, and how often to look and save.
        service: the engine, from `shell.clients.connect`.
        data: what to train and measure on.
        folder: where the run leaves its measurements and checkpoints.
        observe: told of progress.
        stop: when set, no further step is begun; the one under way is finished and the state is
            saved.

    Raises:
        ConfigurationError: a setting is out of range.
        CheckpointNotFound: the engine does not have the reference's weights.
        ServiceError: the engine failed, or has none of the recorded states.
        StorageError: the run folder cannot be written.
    """
    objective = PreferenceObjective(
        loss=config.preference.loss, settings=config.preference.settings
    )
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
        return DPOResult(checkpoint=latest, finished=True)
    trainer, start = await starting_trainer(
        config.model, seed=config.seed, service=service, folder=folder, observe=observe
    )
    reference = await _reference(config, service) if objective.needs_reference else None
    first_step = 0 if start is None else start.next_step
    await asyncio.to_thread(folder.metrics.keep_before, first_step)
    await asyncio.to_thread(folder.checkpoints.keep_before, first_step + 1)
    run = _Run(
        config=config,
        objective=objective,
        loss=partial(token_preference_loss, loss=objective.loss),
        plan=plan,
        learning_rates=rates,
        trainer=trainer,
        reference=_train_scores(reference, data.train, seed=config.seed),
        evaluator=_evaluator(reference, data.held_out, objective),
        data=data,
        folder=folder,
        observe=observe,
    )
    observe(RunBegan(first_step=first_step, total_steps=plan.total_steps))
    return await run.go(start=start, stop=stop or asyncio.Event())


async def _reference(config: DPOConfig, service: Service) -> Trainer:
    """The reference's weights, never to be trained.

    A trainer and no sampler: scoring is a forward pass there, while a sampler reads the tokens
    twice, once to score them and once to continue them.
    """
    if config.reference.startswith("tinker://"):
        return await service.restore(config.reference, with_optimizer=False)
    # Adds nothing as long as it is new. Of the policy's shape, it rounds as the policy does.
    lora = NewLoRA(
        base_model=config.reference,
        rank=config.model.lora_rank,
        seed=config.seed,
        train_mlp=config.model.train_mlp,
        train_attn=config.model.train_attn,
        train_unembed=config.model.train_unembed,
    )
    return await service.create(lora)


def _train_scores(
    reference: Trainer | None, dataset: PreferenceDataset, *, seed: int
) -> ReferenceScores:
    """Asked for in the first epoch's batches, which then are what is needed."""
    first = epoch_seed(seed, 0)
    groups = [dataset.get_batch(i, epoch_seed=first).positions for i in range(len(dataset))]
    return ReferenceScores(reference, dataset.pairs, groups=groups)


def _evaluator(
    reference: Trainer | None, pairs: tuple[PreferencePair, ...], objective: PreferenceObjective
) -> PreferenceEvaluator | None:
    if not pairs:
        return None
    places = np.arange(len(pairs))
    groups = [
        places[start : start + _EVALUATED_TOGETHER]
        for start in range(0, len(pairs), _EVALUATED_TOGETHER)
    ]
    return PreferenceEvaluator(
        pairs=pairs,
        objective=objective,
        reference=ReferenceScores(reference, pairs, groups=groups),
        batch_size=_EVALUATED_TOGETHER,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """What every part of one run needs."""

    config: DPOConfig
    objective: PreferenceObjective
    loss: CustomLoss[PairInputs, PreferenceStepMetrics]
    plan: RunPlan
    learning_rates: Float[np.ndarray, " step"]
    trainer: Trainer
    reference: ReferenceScores
    evaluator: PreferenceEvaluator | None
    data: DPOData
    folder: RunFolder
    observe: Observer

    async def go(self, *, start: RunCheckpoint | None, stop: asyncio.Event) -> DPOResult:
        """Keeps the engine busy, and ends the run in good order."""
        checkpoint = start
        next_step = 0 if start is None else start.next_step
        clock = time.perf_counter()
        begun = self._begin(next_step, stop)
        while begun is not None:
            updating = await self._update(begun)
            following = self._begin(begun.step.index + 1, stop)
            saved, clock = await self._finish(updating, since=clock)
            checkpoint = saved or checkpoint
            next_step = begun.step.index + 1
            begun = following
        if next_step == self.plan.total_steps:
            return DPOResult(checkpoint=await self._end(), finished=True)
        if next_step > (0 if checkpoint is None else checkpoint.next_step):
            checkpoint = await save_stopped(
                self.trainer, next_step=next_step, folder=self.folder, observe=self.observe
            )
        return DPOResult(checkpoint=checkpoint, finished=False)

    def _begin(self, index: int, stop: asyncio.Event) -> _Begun | None:
        """Sends what a step begins with; None if there is to be no such step."""
        if index >= self.plan.total_steps or stop.is_set():
            return None
        step = self.plan.step(index)
        batch = self._batch(index)
        evaluation = (
            self.evaluator.submit(self.trainer)
            if step.evaluate and self.evaluator is not None
            else None
        )
        forward = forward_backward_custom(self.trainer, batch.datums, self.loss)
        last = min(index + self.config.cadence.submit_ahead, self.plan.total_steps - 1)
        for later in range(index, last + 1):
            self.reference.ask(self._batch(later).positions)
        return _Begun(step=step, batch=batch, forward=forward, evaluation=evaluation)

    def _batch(self, index: int) -> PairBatch:
        step = self.plan.step(index)
        return self.data.train.get_batch(
            step.batch, epoch_seed=epoch_seed(self.config.seed, step.epoch)
        )

    async def _update(self, begun: _Begun) -> _Updating:
        """Turns a forward pass into a backward pass, and sends all that follows it."""
        with span("reference_logprobs", step=begun.step.index):
            reference = await self.reference.at(begun.batch.positions)
        inputs = PairInputs(
            reference=reference,
            is_tie=np.array([pair.is_tie for pair in begun.batch.pairs]),
            settings=self.objective.all_settings,
        )
        with span("forward", step=begun.step.index):
            backward = await begun.forward.backward(inputs)
        learning_rate = float(self.learning_rates[begun.step.index])
        optim_step = self.trainer.optim_step(
            adam_params(self.config.adam, learning_rate=learning_rate)
        )
        next_step = begun.step.index + 1
        is_due = begun.step.save and next_step < self.plan.total_steps
        save = (
            self.trainer.save_state(
                checkpoint_name(next_step), ttl_seconds=self.config.cadence.ttl_seconds
            )
            if is_due
            else None
        )
        return _Updating(begun, learning_rate, backward, optim_step, save)

    async def _finish(self, done: _Updating, *, since: float) -> tuple[RunCheckpoint | None, float]:
        """Waits for a step, writes its row, and records the checkpoint made after it."""
        step, batch = done.begun.step, done.begun.batch
        evaluated = await self._measure(step.index, done.begun.evaluation)
        result = await done.backward
        updated = await done.optim_step
        now = time.perf_counter()
        interval("step", began=since, ended=now, step=step.index)
        report = PreferenceStepReport(
            step=step,
            learning_rate=done.learning_rate,
            batch=preference_report(
                result.metrics,
                loss=self.objective.loss,
                num_tokens=sum(pair.num_tokens for pair in batch.pairs),
            ),
        )
        engine = OptimizerReport(
            metrics={f"optim/{name}": value for name, value in updated.metrics.items()}
        )
        about_data = [self.data.preparation] if step.index == 0 and self.data.preparation else []
        times = TimeReport(seconds={"total": now - since})
        row = flatten(*about_data, report, *evaluated, engine, times)
        with span("write", step=step.index):
            await asyncio.to_thread(self.folder.metrics.append, step.index, row)
        self.observe(StepDone(report=report, seconds=now - since))
        if done.save is None:
            return None, now
        checkpoint = RunCheckpoint(next_step=step.index + 1, state_path=await done.save)
        await record_checkpoint(checkpoint, folder=self.folder, observe=self.observe)
        return checkpoint, now

    async def _end(self) -> RunCheckpoint:
        """Measures and saves the final weights; the record comes last and says it is all done."""
        total = self.plan.total_steps
        evaluation = None if self.evaluator is None else self.evaluator.submit(self.trainer)
        state = self.trainer.save_state("final")
        sampler = self.trainer.save_for_sampling("final")
        row = {"epoch": self.plan.position(total).epoch, "progress": 1.0}
        row |= flatten(*await self._measure(total, evaluation))
        await asyncio.to_thread(self.folder.metrics.append, total, row)
        checkpoint = RunCheckpoint(
            next_step=total, state_path=await state, sampler_path=await sampler, final=True
        )
        await record_checkpoint(checkpoint, folder=self.folder, observe=self.observe)
        return checkpoint

    async def _measure(
        self, step: int, submitted: SubmittedPreferences | None
    ) -> list[PreferenceEvaluationReport]:
        """Waits for the evaluation before `step`."""
        if submitted is None or self.evaluator is None:
            return []
        with span("evaluation", step=step):
            report = await self.evaluator.measure(submitted)
        self.observe(Evaluated(step=step, report=report))
        return [report]
