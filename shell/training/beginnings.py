"""How every loop begins a run, and the names and settings that all of them give the engine."""

import asyncio

import numpy as np
from jaxtyping import Float

from cookbook_fx.errors import ServiceError
from cookbook_fx.lm import AdamParams
from cookbook_fx.numerics import learning_rate_multiplier
from cookbook_fx.runs import RunPlan, derived_seed
from shell.clients import CheckpointNotFound, NewLoRA, Service, Trainer
from shell.stores import RunCheckpoint, RunFolder
from shell.training.background import carried_out
from shell.training.config import Adam, ModelChoice, Schedule
from shell.training.events import CheckpointSkipped, Observer, Saved

# A person who pressed Ctrl-C waits for a save, but not for ever.
_LAST_SAVE_SECONDS = 60.0


async def starting_trainer(
    model: ModelChoice, *, seed: int, service: Service, folder: RunFolder, observe: Observer
) -> tuple[Trainer, RunCheckpoint | None]:
    """The weights to begin with: the latest state that can still be loaded, or new ones.

    Returns:
        The trainer, and the checkpoint it continues from; None for a new run.

    Raises:
        ServiceError: states are recorded and the engine has none of them, or it fails.
    """
    recorded = await asyncio.to_thread(folder.checkpoints.all)
    for checkpoint in reversed(recorded):
        try:
            return await service.restore(checkpoint.state_path, with_optimizer=True), checkpoint
        except CheckpointNotFound as error:
            observe(CheckpointSkipped(checkpoint=checkpoint, reason=str(error)))
    if recorded:
        raise ServiceError(
            f"none of the {len(recorded)} states recorded in {folder.path} can be loaded from "
            "this engine; continue on the engine that saved them, or begin anew in another "
            "--run-dir"
        )
    if model.load_checkpoint is not None:
        return await service.restore(model.load_checkpoint, with_optimizer=False), None
    lora = NewLoRA(
        base_model=model.model,
        rank=model.lora_rank,
        seed=seed,
        train_mlp=model.train_mlp,
        train_attn=model.train_attn,
        train_unembed=model.train_unembed,
    )
    return await service.create(lora), None


async def save_stopped(
    trainer: Trainer, *, next_step: int, folder: RunFolder, observe: Observer
) -> RunCheckpoint:
    """Saves the state of a run that was asked to stop, unless that takes too long.

    Raises:
        ServiceError: it takes too long, or the engine fails.
    """
    try:
        async with asyncio.timeout(_LAST_SAVE_SECONDS):
            state_path = await trainer.save_state(checkpoint_name(next_step))
    except TimeoutError as error:
        raise ServiceError(
            f"the engine did not save the state within {_LAST_SAVE_SECONDS:g} seconds; the "
            "run continues from the checkpoint before"
        ) from error
    checkpoint = RunCheckpoint(next_step=next_step, state_path=state_path)
    await record_checkpoint(checkpoint, folder=folder, observe=observe)
    return checkpoint


async def record_checkpoint(
    checkpoint: RunCheckpoint, *, folder: RunFolder, observe: Observer
) -> None:
    """Writes a checkpoint's record down, and tells of it."""
    await carried_out(folder.checkpoints.save, checkpoint)
    observe(Saved(checkpoint=checkpoint))


def checkpoint_name(next_step: int) -> str:
    """What the engine calls the state before a step."""
    return f"{next_step:06d}"


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch's order; unrelated for different runs and different epochs."""
    return derived_seed(seed, epoch)


def learning_rates(schedule: Schedule, plan: RunPlan) -> Float[np.ndarray, " step"]:
    """The learning rate of every step of the run.

    Raises:
        ConfigurationError: the schedule does not fit the run's steps.
    """
    multipliers = learning_rate_multiplier(
        schedule.lr_schedule,
        np.arange(plan.total_steps),
        plan.total_steps,
        warmup_steps=schedule.warmup_steps,
    )
    return schedule.learning_rate * np.asarray(multipliers, np.float64)


def adam_params(adam: Adam, *, learning_rate: float) -> AdamParams:
    """The optimizer's settings of one step."""
    return AdamParams(
        learning_rate=learning_rate,
        beta1=adam.beta1,
        beta2=adam.beta2,
        eps=adam.eps,
        weight_decay=adam.weight_decay,
        grad_clip_norm=adam.grad_clip_norm,
    )
