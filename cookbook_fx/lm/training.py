"""Training operations on datums: forward, forward_backward, optim_step, and scoring of prompts."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from cookbook_fx.data.datum import Datum
from cookbook_fx.data.families import find_families
from cookbook_fx.data.packing import MICRO_BATCH_TOKENS, PackedRows, each_alone, pack
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.lm.config import LMConfig
from cookbook_fx.lm.head import PromptResult, loss_and_gradients, target_logprobs
from cookbook_fx.lm.lora import LoRA, LowRank
from cookbook_fx.lm.sharding import device_count, divided, kept_divided, placed_rows
from cookbook_fx.lm.transformer import Tokens, hidden_states
from cookbook_fx.lm.weights import LMWeights
from cookbook_fx.numerics.policy import LossSpec, sequence_log_ratios, token_losses

_FEWEST_ENTRIES = 4096


class LossOutput(NamedTuple):
    """Result of a pass over datums.

    Args:
        loss_sum: the loss, summed over all tokens of all datums, never averaged.
        logprobs: per datum, log-probability (nats) of each target; shape of its target_tokens.
    """

    loss_sum: float
    logprobs: tuple[np.ndarray, ...]


class PromptScores(NamedTuple):
    """How likely a prompt was to the model.

    Args:
        logprobs: of each token given those before it; nan for the first.
        topk_ids: the likeliest tokens at each place, likeliest first; 0 in the first row.
        topk_logprobs: theirs; nan in the first row.
    """

    logprobs: Float[np.ndarray, " _"]
    topk_ids: Int[np.ndarray, "_ _"] | None
    topk_logprobs: Float[np.ndarray, "_ _"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamParams:
    """Settings of one step of AdamW, with Tinker's defaults.

    Args:
        learning_rate: of this step; a schedule is the caller's.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        eps: added to the root of the latter.
        weight_decay: decoupled: parameters shrink by learning_rate times this.
        grad_clip_norm: gradients with a larger global norm are scaled down to it; 0 is off.

    Raises:
        ConfigurationError: a value outside its range.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay", "grad_clip_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigurationError(
                    f"{name} must be finite and at least 0, got {getattr(self, name)}"
                )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )


class TrainState(eqx.Module):
    """What training changes: the adapter and its optimizer's moments and step count."""

    adapter: LoRA
    optimizer: optax.ScaleByAdamState


class OptimReport(NamedTuple):
    """What an optimizer step did; norms are over all trained parameters together.

    Args:
        step: number of this step, from 1.
        grad_norm: of the gradients as given, before clipping.
        update_norm: of the change to the parameters.
    """

    step: int
    grad_norm: float
    update_norm: float


def init_train_state(adapter: LoRA) -> TrainState:
    """A training state at step 0."""
    return TrainState(adapter=adapter, optimizer=optax.scale_by_adam().init(adapter))


def forward(
    weights: LMWeights, adapter: LoRA | None, datums: Sequence[Datum], *, loss: LossSpec
) -> LossOutput:
    """Loss and log-probabilities of datums, without gradients.

    Args:
        weights: frozen base model.
        adapter: None for the base model alone.
        datums: any lengths.
        loss: by name.

    Raises:
        DataError: a datum lacks what the loss needs, holds a token id the model does not have,
            or is longer than the model's context.
    """
    losses, logprobs = _outputs(datums, weights, loss)
    for rows, batch in _batches(datums, loss, weights.mesh):
        result = _forward(weights, adapter, batch, loss.settings, loss.name)
        rows.put(logprobs, np.asarray(result[0]))
        rows.put(losses, np.asarray(result[1]))
    return _loss_output(datums, losses, logprobs)


def forward_backward(
    weights: LMWeights,
    adapter: LoRA,
    gradients: LoRA | None,
    datums: Sequence[Datum],
    *,
    loss: LossSpec,
    between: Callable[[], object] | None = None,
) -> tuple[LoRA, LossOutput]:
    """Adds the gradient of the summed loss of datums to `gradients`.

    The same datums in the same order give the same bits.

    Args:
        weights: frozen base model.
        adapter: what the gradient is taken for.
        gradients: accumulated so far; None for none. Not changed.
        datums: any lengths; packed into micro-batches.
        loss: by name.
        between: called after each micro-batch, so that a long call does not keep others waiting.

    Raises:
        DataError: as for `forward`.
    """
    losses, logprobs = _outputs(datums, weights, loss)
    if gradients is None:
        gradients = jax.tree.map(jnp.zeros_like, adapter)
    if weights.mesh is not None:
        adapter, gradients = divided((adapter, gradients), weights.mesh)
    for rows, batch in _batches(datums, loss, weights.mesh):
        gradients, result = _forward_backward(
            weights, adapter, gradients, batch, loss.settings, loss.name
        )
        rows.put(logprobs, np.asarray(result[0]))
        rows.put(losses, np.asarray(result[1]))
        if between is not None:
            between()
    return gradients, _loss_output(datums, losses, logprobs)


def optim_step(
    state: TrainState, gradients: LoRA | None, adam: AdamParams
) -> tuple[TrainState, OptimReport]:
    """One step of AdamW, as torch computes it.

    Args:
        state: before the step; not changed.
        gradients: accumulated sum; None counts as zeros.
        adam: settings; none of them is compiled in.

    Raises:
        DataError: the gradients or the update are not finite; nothing has been changed then.

    Reference: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    if gradients is None:
        gradients = jax.tree.map(jnp.zeros_like, state.adapter)
    new, grad_norm, update_norm = _optim_step(
        state,
        gradients,
        *(
            adam.learning_rate,
            adam.beta1,
            adam.beta2,
            adam.eps,
            adam.weight_decay,
            adam.grad_clip_norm,
        ),
    )
    if not np.isfinite(grad_norm) or not np.isfinite(update_norm):
        raise DataError(
            f"the norms of gradient and update are {float(grad_norm)} and {float(update_norm)}, "
            "not finite numbers; the step was not taken. Look for infinite advantages or "
            "logprobs, or lower the learning rate"
        )
    return new, OptimReport(
        step=int(new.optimizer.count), grad_norm=float(grad_norm), update_norm=float(update_norm)
    )


def score_prompts(
    weights: LMWeights,
    adapter: LoRA | None,
    prompts: Sequence[Int[np.ndarray, " _"]],
    *,
    top_k: int = 0,
) -> tuple[PromptScores, ...]:
    """Log-probability of every prompt token given those before it.

    A prompt's scores are the same to the last bit whatever others are scored with it.

    Args:
        weights: frozen base model.
        adapter: None for the base model alone.
        prompts: token ids, at least one each.
        top_k: also report that many of the likeliest tokens at each place.

    Raises:
        DataError: an empty prompt, one longer than the context, or a token id the model lacks.
        ConfigurationError: top_k below 0 or above the vocabulary's size.
    """
    if not 0 <= top_k <= weights.config.vocab_size:
        raise ConfigurationError(
            f"top_k must be from 0 to {weights.config.vocab_size}, got {top_k}"
        )
    # The first token is predicted by nothing, the last predicts nothing that is asked for.
    datums = [
        Datum(tokens=prompt, target_tokens=np.append(prompt[1:], prompt[:1])) for prompt in prompts
    ]
    _check(datums, weights.config)
    total = sum(datum.length for datum in datums)
    logprobs = np.zeros((total, 1), np.float32)
    ids, likeliest = np.zeros((total, top_k), np.int32), np.zeros((total, top_k), np.float32)
    columns = _columns(datums, LossSpec())
    # XLA sums small arrays in another order than large ones; only tiny models ever have those.
    min_tokens = -(-_FEWEST_ENTRIES // weights.config.hidden_size)
    devices = device_count(weights.mesh)
    for rows in each_alone(
        [datum.length for datum in datums],
        min_tokens=min_tokens,
        max_tokens=MICRO_BATCH_TOKENS * devices,
        divisible_by=devices,
    ):
        result = _score(weights, adapter, _batch(rows, columns, weights.mesh), top_k)
        for flat, values in zip((logprobs, ids, likeliest), result, strict=True):
            rows.put(flat, np.asarray(values))
    ends = np.cumsum([datum.length for datum in datums])[:-1]
    parts = (np.split(x, ends) for x in (logprobs, ids, likeliest))
    return tuple(_prompt_scores(p, i, q) for p, i, q in zip(*parts, strict=True))


def _prompt_scores(logprobs: np.ndarray, ids: np.ndarray, likeliest: np.ndarray) -> PromptScores:
    """Moves what each position predicts to the place it is predicted for."""
    top_k = ids.shape[1]
    logprobs, ids, likeliest = (np.roll(x, 1, axis=0) for x in (logprobs[:, 0], ids, likeliest))
    logprobs[0], ids[0], likeliest[0] = np.nan, 0, np.nan
    return PromptScores(logprobs, ids if top_k else None, likeliest if top_k else None)


# Traced, so that a changed threshold compiles nothing.
_Settings: TypeAlias = Mapping[str, Float[Array, ""] | float]


class _Columns(NamedTuple):
    """All datums of a call end to end.

    `policy` is sampling log-probabilities and advantages; `ratio_mask` is True at the tokens that
    make up the ratio of their sequence, where the loss has one.
    """

    ids: Int[np.ndarray, " token"]
    targets: Int[np.ndarray, "token candidate"]
    weights: Float[np.ndarray, "token candidate"]
    policy: tuple[Float[np.ndarray, " token"], Float[np.ndarray, " token"]] | None
    ratio_mask: Bool[np.ndarray, " token"] | None


class _Batch(NamedTuple):
    """A micro-batch on the device.

    `order` lists the flat places of `tokens` with those that have something to learn first, so
    that the rest can skip the backward half of the head; the columns after it are in that order.
    """

    tokens: Tokens
    ratio_mask: Bool[Array, "row token"] | None
    order: Int[Array, " token"]
    targets: Int[Array, "token candidate"]
    weights: Float[Array, "token candidate"]
    policy: tuple[Float[Array, " token"], Float[Array, " token"]] | None


class _Outputs(NamedTuple):
    """Per target, in the layout of the packed rows."""

    logprobs: Float[Array, "row token candidate"]
    losses: Float[Array, "row token candidate"]


def _batches(
    datums: Sequence[Datum], loss: LossSpec, mesh: Mesh | None
) -> Iterator[tuple[PackedRows, _Batch]]:
    """Packs datums into micro-batches of few shapes; what they share is in them once."""
    columns = _columns(datums, loss)
    lengths = [datum.length for datum in datums]
    ends = np.cumsum(lengths)[:-1]
    beginnings = [
        table[: silent.argmin() if not silent.all() else None]
        for table, silent in zip(
            np.split(np.column_stack([columns.ids, columns.targets]), ends),
            np.split(_silent(columns, loss), ends),
            strict=True,
        )
    ]
    families = find_families(beginnings, lengths, max_tokens=MICRO_BATCH_TOKENS)
    devices = device_count(mesh)
    for rows in pack(
        lengths,
        families=families,
        max_tokens=MICRO_BATCH_TOKENS * devices,
        divisible_by=devices,
    ):
        yield rows, _batch(rows, columns, mesh)


def _silent(columns: _Columns, loss: LossSpec) -> Bool[np.ndarray, " token"]:
    """Where neither the loss nor its gradient can be other than 0, whatever the model says."""
    silent: np.ndarray = (columns.weights == 0).all(axis=1)
    # DRO pulls towards the sampling policy also where the advantage is 0.
    if columns.policy is not None and loss.name != "dro":
        silent |= columns.policy[1] == 0
    if columns.ratio_mask is not None:
        silent &= ~columns.ratio_mask
    return silent


def _columns(datums: Sequence[Datum], loss: LossSpec) -> _Columns:
    shape = (sum(d.length for d in datums), max(_candidates(d).shape[1] for d in datums))
    targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    start = 0
    for datum in datums:
        candidates = _candidates(datum)
        here = (slice(start, start + datum.length), slice(candidates.shape[1]))
        targets[here] = candidates
        weights[here] = 1 if datum.weights is None else datum.weights.reshape(candidates.shape)
        start += datum.length
    policy = None
    if loss.is_policy_loss:
        policy = _joined(d.logprobs for d in datums), _joined(d.advantages for d in datums)
    ids = np.concatenate([datum.tokens for datum in datums]).astype(np.int32)
    ratio_mask = _ratio_mask(datums, weights) if loss.name == "gspo" else None
    return _Columns(ids, targets, weights, policy, ratio_mask)


def _ratio_mask(datums: Sequence[Datum], weights: np.ndarray) -> np.ndarray:
    mask: np.ndarray = weights[:, 0] != 0
    start = 0
    for datum in datums:
        if datum.sequence_ratio_mask is not None:
            mask[start : start + datum.length] = datum.sequence_ratio_mask
        start += datum.length
    return mask


def _joined(columns: Iterable[np.ndarray | None]) -> np.ndarray:
    return np.concatenate([c for c in columns if c is not None]).astype(np.float32)


def _batch(rows: PackedRows, columns: _Columns, mesh: Mesh | None) -> _Batch:
    learns = (rows.take(columns.weights, fill=0.0) != 0).any(axis=-1)
    if columns.policy is not None:
        learns &= rows.take(columns.policy[1], fill=0.0) != 0
    rank = np.where(learns, 0, np.where(rows.real, 1, 2))
    order = np.argsort(rank.reshape(-1), kind="stable").astype(np.int32)

    def ordered(flat: np.ndarray) -> Array:
        values = rows.take(flat, fill=0.0)
        return jnp.asarray(values.reshape(-1, *values.shape[2:])[order])

    ids = rows.take(columns.ids, fill=0.0)
    tokens = Tokens(*map(jnp.asarray, (ids, rows.positions, rows.segments, rows.beginnings)))
    mask = columns.ratio_mask
    return _Batch(
        tokens=placed_rows(tokens, mesh),
        ratio_mask=None if mask is None else jnp.asarray(rows.take(mask, fill=0.0)),
        order=jnp.asarray(order),
        targets=ordered(columns.targets),
        weights=ordered(columns.weights),
        policy=columns.policy and (ordered(columns.policy[0]), ordered(columns.policy[1])),
    )


def _candidates(datum: Datum) -> np.ndarray:
    return datum.target_tokens.reshape(datum.length, -1)


def _outputs(
    datums: Sequence[Datum], weights: LMWeights, loss: LossSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Checks the datums and makes room for their losses and logprobs."""
    _check(datums, weights.config)
    for number, datum in enumerate(datums):
        if not loss.is_policy_loss:
            continue
        missing = [name for name in ("logprobs", "advantages") if getattr(datum, name) is None]
        if missing:
            raise DataError(
                f"loss {loss.name} needs logprobs and advantages, "
                f"datum {number} has no {' and no '.join(missing)}"
            )
        if datum.target_tokens.ndim != 1:
            raise DataError(
                f"loss {loss.name} takes one target per token, datum {number} has target_tokens of "
                f"shape {datum.target_tokens.shape}; only cross_entropy takes several"
            )
    shape = (sum(d.length for d in datums), max(_candidates(d).shape[1] for d in datums))
    dtype = jnp.promote_types(weights.final_norm.dtype, jnp.float32)
    return np.zeros(shape, dtype), np.zeros(shape, dtype)


def _check(datums: Sequence[Datum], config: LMConfig) -> None:
    if not datums:
        raise DataError("expected at least one datum, got none")
    for number, datum in enumerate(datums):
        if datum.length > config.max_position_embeddings:
            raise DataError(
                f"datum {number} has {datum.length} tokens, the model's context holds "
                f"{config.max_position_embeddings}; shorten or truncate it"
            )
        for name in ("tokens", "target_tokens"):
            ids = getattr(datum, name)
            if ids.size and not 0 <= ids.min() <= ids.max() < config.vocab_size:
                wrong = ids[(ids < 0) | (ids >= config.vocab_size)].flat[0]
                raise DataError(
                    f"{name} of datum {number} holds the id {wrong}, the vocabulary ends at "
                    f"{config.vocab_size - 1}; was it tokenized for another model?"
                )


def _loss_output(datums: Sequence[Datum], losses: np.ndarray, logprobs: np.ndarray) -> LossOutput:
    ends = np.cumsum([datum.length for datum in datums])[:-1]
    return LossOutput(
        loss_sum=float(losses.sum(dtype=np.float64)),
        logprobs=tuple(
            part[:, : _candidates(datum).shape[1]].reshape(datum.target_tokens.shape)
            for datum, part in zip(datums, np.split(logprobs, ends), strict=True)
        ),
    )


def _token_losses(
    name: str,
    settings: _Settings,
    logprobs: Array,
    columns: tuple[Array, tuple[Array, Array] | None],
) -> Array:
    weights, policy = columns
    sampling_logprobs, advantages = (None, None) if policy is None else policy
    return token_losses(
        name,
        logprobs,
        weights=weights,
        sampling_logprobs=sampling_logprobs,
        advantages=advantages,
        settings=settings,
    )


def _token_wise(name: str, batch: _Batch, logprobs: Callable[[], Array]) -> tuple[str, _Batch]:
    """A loss that is a sum of per-token terms, and the batch with which it is the one named.

    The head takes tokens some hundreds at a time, in any order. GSPO asks for whole sequences, but
    only to find their ratios s, undifferentiated: with p - log s in the place of the sampling
    log-probabilities every token's ratio is s exp(p - sg(p)), and the rest of GSPO is PPO.
    """
    if name != "gspo" or batch.policy is None or batch.ratio_mask is None:
        return name, batch
    sampling_logprobs, advantages = batch.policy
    current = jax.lax.stop_gradient(logprobs()[:, 0])
    ratios = sequence_log_ratios(
        _in_rows(current, batch),
        sampling_logprobs=_in_rows(sampling_logprobs, batch),
        mask=batch.ratio_mask,
        segments=batch.tokens.segments,
    )
    return "ppo", batch._replace(policy=(current - _in_order(ratios, batch), advantages))


def _in_rows(values: Array, batch: _Batch) -> Array:
    """Back from `order` to the layout of the rows."""
    values = jnp.zeros_like(values).at[batch.order].set(values, unique_indices=True)
    return values.reshape(*batch.tokens.ids.shape, *values.shape[1:])


def _in_order(values: Array, batch: _Batch) -> Array:
    return values.reshape(-1, *values.shape[2:])[batch.order]


def _unembed(adapter: LoRA | None) -> tuple[LowRank | None, float]:
    return (None, 1.0) if adapter is None else (adapter.unembed, adapter.scale)


@partial(jax.jit, static_argnames="name")
def _forward(
    weights: LMWeights, adapter: LoRA | None, batch: _Batch, settings: _Settings, name: str
) -> _Outputs:
    hidden = _in_order(hidden_states(weights, adapter, batch.tokens), batch)
    unembed, scale = _unembed(adapter)
    logprobs = target_logprobs(hidden, weights.head, unembed, batch.targets, scale=scale).logprobs
    token_wise, batch = _token_wise(name, batch, lambda: logprobs)
    losses = _token_losses(token_wise, settings, logprobs, (batch.weights, batch.policy))
    return _Outputs(_in_rows(logprobs, batch), _in_rows(losses, batch))


@partial(jax.jit, static_argnames="name")
def _forward_backward(
    weights: LMWeights,
    adapter: LoRA,
    gradients: LoRA,
    batch: _Batch,
    settings: _Settings,
    name: str,
) -> tuple[LoRA, _Outputs]:
    trunk = dataclasses.replace(adapter, unembed=None)
    hidden, backward = jax.vjp(lambda lora: hidden_states(weights, lora, batch.tokens), trunk)
    head = _in_order(hidden, batch), weights.head, adapter.unembed, batch.targets
    token_wise, batch = _token_wise(
        name, batch, lambda: target_logprobs(*head, scale=adapter.scale).logprobs
    )
    result = loss_and_gradients(
        *head,
        partial(_token_losses, token_wise, settings),
        (batch.weights, batch.policy),
        scale=adapter.scale,
    )
    (new,) = backward(_in_rows(result.hidden_gradient, batch))
    new = dataclasses.replace(new, unembed=result.unembed_gradient)
    outputs = _Outputs(_in_rows(result.logprobs, batch), _in_rows(result.losses, batch))
    return kept_divided(jax.tree.map(jnp.add, gradients, new), weights.mesh), outputs


@partial(jax.jit, static_argnames="top_k")
def _score(weights: LMWeights, adapter: LoRA | None, batch: _Batch, top_k: int) -> PromptResult:
    hidden = _in_order(hidden_states(weights, adapter, batch.tokens), batch)
    unembed, scale = _unembed(adapter)
    result = target_logprobs(hidden, weights.head, unembed, batch.targets, scale=scale, top_k=top_k)
    return PromptResult(*(_in_rows(values, batch) for values in result))


@jax.jit
def _optim_step(
    state: TrainState,
    gradients: LoRA,
    learning_rate: Float[Array, ""],
    beta1: Float[Array, ""],
    beta2: Float[Array, ""],
    eps: Float[Array, ""],
    weight_decay: Float[Array, ""],
    grad_clip_norm: Float[Array, ""],
) -> tuple[TrainState, Array, Array]:
    grad_norm = optax.tree.norm(gradients)
    clipped = (grad_clip_norm > 0) & (grad_norm > grad_clip_norm)
    factor = jnp.where(clipped, grad_clip_norm / grad_norm, 1.0)
    gradients = jax.tree.map(lambda g: factor * g, gradients)
    adamw = optax.adamw(learning_rate, b1=beta1, b2=beta2, eps=eps, weight_decay=weight_decay)
    # Only the first transformation of the chain has a state that is not empty.
    updates, (moments, *_) = adamw.update(
        gradients, (state.optimizer, optax.EmptyState(), optax.EmptyState()), state.adapter
    )
    adapter = optax.apply_updates(state.adapter, updates)
    return TrainState(adapter=adapter, optimizer=moments), grad_norm, optax.tree.norm(updates)
