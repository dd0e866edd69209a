"""The models being trained: what each holds, and what an operation makes of it.

Everything here runs on the compute thread. A model is a frozen value; an operation gives the next
value and a result, or raises and leaves the value as it was. So a failed forward_backward keeps
the gradients accumulated before it, and a failed optimizer step keeps weights and moments. Only
the gradients that made a step fail are dropped: keeping them would fail every later step too.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.lm import (
    LMWeights,
    LoRA,
    LoRAConfig,
    LossOutput,
    OptimReport,
    TrainState,
    forward,
    forward_backward,
    init_lora,
    init_train_state,
    optim_step,
)
from shell.engine.checkpoints import (
    Checkpoint,
    CheckpointPath,
    CheckpointStore,
    Segment,
    parse_path,
)
from shell.engine.memory import Memory
from shell.engine.requests import (
    ForwardBackward,
    LoadState,
    Operation,
    OptimStep,
    SaveExternal,
    SaveForSampler,
    SaveState,
    Unusable,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A model in training; `gradients` is None until something has been accumulated."""

    lora: LoRAConfig
    state: TrainState
    gradients: LoRA | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """Weights for an ephemeral sampling session."""

    adapter: LoRA


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Which checkpoint a model now continues from."""

    path: str


_SEGMENTS: Mapping[type[Operation], Segment] = {
    SaveState: "weights",
    SaveForSampler: "sampler_weights",
    SaveExternal: "external_weights",
}
Result = LossOutput | OptimReport | Checkpoint | Snapshot | Loaded


class Models:
    """All models of one key's clients by id; used from the compute thread only.

    Args:
        base: the base model.
        store: where states are saved.
        memory: what there is room for.
        between: called now and then in the middle of a long operation.
    """

    def __init__(
        self,
        base: LMWeights,
        store: CheckpointStore,
        memory: Memory,
        *,
        between: Callable[[], object],
    ) -> None:
        self._base = base
        self._store = store
        self._memory = memory
        self._between = between
        self._models: dict[str, Model] = {}

    def create(self, model_id: str, lora: LoRAConfig) -> None:
        """A fresh adapter."""
        self._memory.take_model(model_id, lora)
        self._models[model_id] = Model(
            lora=lora, state=init_train_state(init_lora(self._base.config, lora))
        )

    def create_from_state(self, model_id: str, path: str, *, with_optimizer: bool) -> LoRAConfig:
        """An adapter as a checkpoint has it, and of its shape."""
        loaded = self._load(path, with_optimizer=with_optimizer)
        self._memory.take_model(model_id, loaded.lora)
        self._models[model_id] = loaded
        return loaded.lora

    def drop(self, model_id: str) -> None:
        """Frees what a model holds."""
        self._models.pop(model_id, None)
        self._memory.give_back(model_id)

    def perform(self, model_id: str, operation: Operation) -> Result:
        """Runs one operation.

        Raises:
            CookbookError: the operation cannot be carried out; the model is as before.
        """
        model = self._models.get(model_id)
        if model is None:
            raise ConfigurationError(
                f"model {model_id} holds nothing to work on: its creation failed or it was freed"
            )
        match operation:
            case Unusable(reason=reason):
                raise DataError(reason)
            case ForwardBackward(datums=datums, forward_only=True):
                self._memory.require_pass(datums)
                return forward(
                    self._base, model.state.adapter, operation.datums, loss=operation.loss
                )
            case ForwardBackward(datums=datums):
                self._memory.require_pass(datums)
                self._models[model_id], output = _accumulate(
                    self._base, model, operation, between=self._between
                )
                return output
            case OptimStep(adam=adam):
                # Gone before the attempt: see the module's docstring.
                self._models[model_id] = replace(model, gradients=None)
                state, report = optim_step(model.state, model.gradients, adam)
                self._models[model_id] = replace(model, state=state, gradients=None)
                return report
            case SaveForSampler(name=None):
                return Snapshot(adapter=model.state.adapter)
            case SaveState() | SaveForSampler() | SaveExternal():
                return self._save(model_id, model, operation)
            case LoadState(path=path, with_optimizer=with_optimizer):
                self._models[model_id] = self._load_into(model, path, with_optimizer=with_optimizer)
                return Loaded(path=path)

    def _save(
        self, model_id: str, model: Model, operation: SaveState | SaveForSampler | SaveExternal
    ) -> Checkpoint:
        segment = _SEGMENTS[type(operation)]
        return self._store.save(
            CheckpointPath(model_id=model_id, segment=segment, name=operation.name or ""),
            adapter=model.state.adapter,
            optimizer=model.state.optimizer if segment == "weights" else None,
            lora=model.lora,
            ttl_seconds=operation.ttl_seconds,
            user_metadata=operation.user_metadata,
            overwrite=isinstance(operation, SaveState) and operation.overwrite,
        )

    def _load(self, path: str, *, with_optimizer: bool) -> Model:
        checkpoint = self._store.find(parse_path(path))
        if with_optimizer:
            state = self._store.load_state(checkpoint)
        else:
            state = init_train_state(self._store.load_adapter(checkpoint))
        return Model(lora=checkpoint.lora, state=state)

    def _load_into(self, model: Model, path: str, *, with_optimizer: bool) -> Model:
        loaded = self._load(path, with_optimizer=with_optimizer)
        if replace(loaded.lora, seed=model.lora.seed) != model.lora:
            raise DataError(
                f"{path} holds an adapter of another shape ({loaded.lora}) than this model's "
                f"({model.lora}); create a model from it instead"
            )
        return loaded


def _accumulate(
    base: LMWeights, model: Model, operation: ForwardBackward, *, between: Callable[[], object]
) -> tuple[Model, LossOutput]:
    gradients, output = forward_backward(
        base,
        model.state.adapter,
        model.gradients,
        operation.datums,
        loss=operation.loss,
        between=between,
    )
    if not math.isfinite(output.loss_sum):
        raise DataError(
            f"the summed loss is {output.loss_sum}, not a finite number; these gradients were not "
            "kept. Look for infinite weights, advantages or logprobs, or lower the learning rate"
        )
    return replace(model, gradients=gradients), output
