"""Supervised fine-tuning: the loop over batches, and the promise that a killed run continues.

Nothing is waited for before the next batch is on its way. Because the engine does one trainer's
operations in the order of submission, an evaluation sent before a step measures the weights before
it, and a save sent after a step holds exactly the steps up to it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.reports import (
    OptimizerReport,
    Report,
    SupervisedStepReport,
    TimeReport,
    flatten,
)
from cookbook_fx.runs import RunPlan, Step
from cookbook_fx.supervised import Preparation, likelihood_report
from shell.clients import ForwardResult, OptimResult, Pending, Service, Trainer
from shell.evaluation import Evaluations, Evaluator, SubmittedEvaluations
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
from shell.training.config import SFTConfig
from shell.training.events import (
    Evaluated,
    Observer,
    RunBegan,
    StepDone,
    unobserved,
)


class Batches(Protocol):
    """The data of a run: the same batch for the same index and epoch seed, every time."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def get_batch(self, index: int, *, epoch_seed: int | None) -> Sequence[Datum]:
        """One batch of an epoch in the order that the seed gives."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SFTData:
    """What is trained and measured on.

    Args:
        train: the batches of an epoch.
        evaluators: what the weights are measured with, on the run's cadence and at its end.
        byte_lengths: bytes of text of each token id, 0 for control tokens; without it there are no
            bits per byte.
        preparation: what became of the conversations; told in the row of the first step.
    """

    train: Batches
    evaluators: tuple[Evaluator, ...] = ()
    byte_lengths: Int[np.ndarray, " vocab"] | None = None
    preparation: Preparation | None = None


class SFTResult(NamedTuple):
    """How a call of `train_supervised` ended.

    Fields:
        checkpoint: the last one recorded; None if stopped before there was any.
        finished: whether the run is complete; otherwise the same call continues it.
    """

    checkpoint: RunCheckpoint | None
    finished: bool


class _InFlight(NamedTuple):
    """A step that was submitted: what to wait for."""

    step: Step
    data: Sequence[Datum]
    learning_rate: float
    seconds_preparing: float
    evaluations: SubmittedEvaluations | None
    forward_backward: Pending[ForwardResult]
    optim_step: Pending[OptimResult]
    save: Pending[str] | None


async def train_supervised(
    config: SFTConfig,
    *,
    service: Service,
    data: SFTData,
    folder: RunFolder,
    observe: Observer = unobserved,
    stop: asyncio.Event | None = None,
) -> SFTResult:
    """Trains a LoRA on batches of examples, from the last checkpoint in `folder` if there is one.

    Each batch is trained on once, whatever happens between: a checkpoint records the next step,
    and `metrics.jsonl` ends up with each step once. On an engine that computes the same
    numbers every time, a continued run ends in the very weights of one never interrupted.

    Args:
        config: what to train, how long, how fast, and how often to look and save.
        service: the engine, from `shell.clients.connect`.
        data: what to train and measure on.
        folder: where the run leaves its measurements and checkpoints.
        observe: told of progress.
        stop: when set, no further step is submitted; those under way are finished and the state
            is saved.

    Raises:
        ConfigurationError: there is no batch to train on, or a setting is out of range.
        ServiceError: the engine failed, or has none of the recorded states.
        StorageError: the run folder cannot be written.
    """
    if len(data.train) == 0:
        raise ConfigurationError(
            "there is not one whole batch to train on; add data or lower the batch size"
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
        return SFTResult(checkpoint=latest, finished=True)
    trainer, start = await starting_trainer(
        config.model, seed=config.seed, service=service, folder=folder, observe=observe
    )
    first_step = 0 if start is None else start.next_step
    await asyncio.to_thread(folder.metrics.keep_before, first_step)
    await asyncio.to_thread(folder.checkpoints.keep_before, first_step + 1)
    run = _Run(
        config=config,
        plan=plan,
        learning_rates=rates,
        trainer=trainer,
        data=data,
        folder=folder,
        observe=observe,
    )
    observe(RunBegan(first_step=first_step, total_steps=plan.total_steps))
    return await run.go(start=start, stop=stop or asyncio.Event())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """What every part of one run needs."""

    config: SFTConfig
    plan: RunPlan
    learning_rates: Float[np.ndarray, " step"]
    trainer: Trainer
    data: SFTData
    folder: RunFolder
    observe: Observer

    async def go(self, *, start: RunCheckpoint | None, stop: asyncio.Event) -> SFTResult:
        """Keeps the pipeline filled, and ends the run in good order."""
        checkpoint = start
        next_step = 0 if start is None else start.next_step
        in_flight: deque[_InFlight] = deque()
        clock = time.perf_counter()
        steps = self.plan.steps(from_step=next_step)
        while True:
            step = None if stop.is_set() else next(steps, None)
            if step is not None:
                in_flight.append(await self._submit(step))
            if not in_flight:
                break
            if step is None or len(in_flight) > self.config.cadence.submit_ahead:
                done = in_flight.popleft()
                saved, clock = await self._finish(done, since=clock)
                checkpoint = saved or checkpoint
                next_step = done.step.index + 1
        if next_step == self.plan.total_steps:
            return SFTResult(checkpoint=await self._end(), finished=True)
        if next_step > (0 if checkpoint is None else checkpoint.next_step):
            checkpoint = await save_stopped(
                self.trainer, next_step=next_step, folder=self.folder, observe=self.observe
            )
        return SFTResult(checkpoint=checkpoint, finished=False)

    async def _submit(self, step: Step) -> _InFlight:
        """Sends everything that one step consists of, in the order it is to happen."""
        seed = epoch_seed(self.config.seed, step.epoch)
        with span("get_batch", step=step.index) as preparing:
            data = await asyncio.to_thread(self.data.train.get_batch, step.batch, epoch_seed=seed)
        learning_rate = float(self.learning_rates[step.index])
        is_last = step.index + 1 == self.plan.total_steps
        return _InFlight(
            step=step,
            data=data,
            learning_rate=learning_rate,
            seconds_preparing=preparing.seconds,
            evaluations=self._evaluations.submit(self.trainer) if step.evaluate else None,
            forward_backward=self.trainer.forward_backward(data),
            optim_step=self.trainer.optim_step(
                adam_params(self.config.adam, learning_rate=learning_rate)
            ),
            save=(
                self.trainer.save_state(
                    checkpoint_name(step.index + 1), ttl_seconds=self.config.cadence.ttl_seconds
                )
                if step.save and not is_last
                else None
            ),
        )

    async def _finish(self, done: _InFlight, *, since: float) -> tuple[RunCheckpoint | None, float]:
        """Waits for a step, writes its row, and records the checkpoint made after it."""
        index = done.step.index
        evaluated = await self._measure(index, done.evaluations)
        result = await done.forward_backward
        updated = await done.optim_step
        now = time.perf_counter()
        interval("step", began=since, ended=now, step=index)
        report = SupervisedStepReport(
            step=done.step,
            learning_rate=done.learning_rate,
            batch=likelihood_report(
                done.data, result.logprobs, byte_lengths=self.data.byte_lengths
            ),
        )
        engine = OptimizerReport(
            metrics={f"optim/{name}": value for name, value in updated.metrics.items()}
        )
        times = TimeReport(seconds={"total": now - since, "get_batch": done.seconds_preparing})
        about_data = [self.data.preparation] if index == 0 and self.data.preparation else []
        row = flatten(*about_data, report, *evaluated, engine, times)
        with span("write", step=index):
            await asyncio.to_thread(self.folder.metrics.append, index, row)
        event = StepDone(report=report, seconds=now - since)
        self.observe(event)
        if done.save is None:
            return None, now
        checkpoint = RunCheckpoint(next_step=index + 1, state_path=await done.save)
        await record_checkpoint(checkpoint, folder=self.folder, observe=self.observe)
        return checkpoint, now

    async def _end(self) -> RunCheckpoint:
        """Measures and saves the final weights; the record comes last and says it is all done."""
        total = self.plan.total_steps
        evaluations = self._evaluations.submit(self.trainer)
        state = self.trainer.save_state("final")
        sampler = self.trainer.save_for_sampling("final")
        row = {"epoch": self.plan.position(total).epoch, "progress": 1.0}
        row |= flatten(*await self._measure(total, evaluations))
        await asyncio.to_thread(self.folder.metrics.append, total, row)
        checkpoint = RunCheckpoint(
            next_step=total, state_path=await state, sampler_path=await sampler, final=True
        )
        await record_checkpoint(checkpoint, folder=self.folder, observe=self.observe)
        return checkpoint

    @property
    def _evaluations(self) -> Evaluations:
        return Evaluations(evaluators=self.data.evaluators, seed=self.config.seed)

    async def _measure(self, step: int, submitted: SubmittedEvaluations | None) -> list[Report]:
        """Waits for the evaluations before `step`."""
        if submitted is None:
            return []
        with span("evaluation", step=step):
            reports = await self._evaluations.measure(submitted)
        for report in reports:
            self.observe(Evaluated(step=step, report=report))
        return reports
