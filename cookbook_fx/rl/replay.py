"""A batch made again from its records: is it what was sent, and what else could have been?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cookbook_fx.data import Datum, bucket, power_of_two
from cookbook_fx.errors import DataError
from cookbook_fx.numerics import token_losses
from cookbook_fx.numerics.masked import AnyArray
from cookbook_fx.numerics.policy import Threshold
from cookbook_fx.rl.objective import (
    Objective,
    TrainingBatch,
    data_digest,
    objective_diagnostics,
    training_batch,
    training_data,
)
from cookbook_fx.rl.records import (
    DATUM_COLUMNS,
    BatchRecord,
    RecordedGroup,
    datum_digests,
    recorded_objective,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplayedBatch:
    """A batch as its records make it.

    Args:
        record: of what was sent.
        groups: those it was made of.
        objective: what it was made for.
        made: the same batch, made now.
        difference: how that differs from what was sent; None if it is the same, bit for bit.
    """

    record: BatchRecord
    groups: tuple[RecordedGroup, ...]
    objective: Objective
    made: TrainingBatch
    difference: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectiveFigures:
    """What an objective makes of datums, at the log-probabilities that the learner had.

    Args:
        advantages: of each token that is trained on, one datum's behind the other's.
        gradients: the derivative of the loss by each of their log-probabilities.
        loss: its sum.
        clip_fraction: share of the tokens that the loss clips.
        effective_sample_size: as in `PolicyDiagnostics`, a share of the tokens.
    """

    advantages: Float[np.ndarray, " sampled"]
    gradients: Float[np.ndarray, " sampled"]
    loss: float
    clip_fraction: float
    effective_sample_size: float


class EpisodeIndex(NamedTuple):
    """Where an episode stands: its group's index in the step, its own among the trajectories."""

    group: int
    trajectory: int


class ObjectiveComparison(NamedTuple):
    """Two objectives on the same tokens.

    Args:
        sign_changes: share of the tokens whose advantage is above, at or below 0 with one and not
            with the other.
        gradient_cosine: of the angle between the two gradients: 1 where both pull the same way, 0
            also where one of them does not pull.
    """

    sign_changes: float
    gradient_cosine: float


def replay_batch(record: BatchRecord, groups: Mapping[int, RecordedGroup]) -> ReplayedBatch:
    """Makes a batch once more, and compares it with what was sent.

    Args:
        record: what was sent.
        groups: the groups of its step, by index.

    Raises:
        DataError: a group is missing, or the records lead to no batch.
    """
    missing = [index for index in record.groups if index not in groups]
    if missing:
        raise DataError(
            f"the batch of step {record.step}, substep {record.substep}, minibatch "
            f"{record.minibatch} was made of the groups {list(record.groups)}, and no rollouts of "
            f"{missing} are recorded; restore rollouts.jsonl"
        )
    objective = recorded_objective(record)
    found = tuple(groups[index] for index in record.groups)
    made = training_batch(
        [one.group for one in found], objective, base_logprobs=record.base_logprobs
    )
    return ReplayedBatch(
        record=record,
        groups=found,
        objective=objective,
        made=made,
        difference=_difference(record, made.data),
    )


def remade_batch(replayed: ReplayedBatch, other: Objective) -> TrainingBatch:
    """A batch as another objective would have made it, of the rows that were trained on.

    The other's `remove_constant_reward_groups` is not looked at.

    Raises:
        DataError: the other has a KL penalty, and the base policy's log-probabilities were not
            recorded.
    """
    if other.kl_penalty_coef > 0 and replayed.record.base_logprobs is None:
        raise DataError(
            "what a KL penalty would have done cannot be told: the run had none, and recorded no "
            "log-probabilities of a base policy"
        )
    return training_data(replayed.made.batch, other, base_logprobs=replayed.record.base_logprobs)


def recorded_training_logprobs(replayed: ReplayedBatch) -> Sequence[Float[np.ndarray, " _"]]:
    """The learner's log-probabilities of each datum's targets.

    Raises:
        DataError: they were not recorded, or are not those of the batch as it is made now.
    """
    rows = replayed.record.training_logprobs
    if rows is None or [len(row) for row in rows] != [one.length for one in replayed.made.data]:
        raise DataError(
            "the loss cannot be told: the learner's log-probabilities of these tokens are not "
            "recorded"
        )
    return rows


def trajectory_advantages(made: TrainingBatch) -> Float[np.ndarray, " trajectory"]:
    """The mean advantage of each trajectory's tokens that are trained on; nan without any.

    With a KL penalty advantages differ from token to token; without one this is the trajectory's.
    """
    rows, count = made.batch.row_trajectory, len(made.batch.rewards)
    sums, sizes = (
        np.bincount(rows, weights=values, minlength=count)
        for values in (
            [
                float(np.sum(np.asarray(datum.advantages), where=_mask(datum)))
                for datum in made.data
            ],
            [np.count_nonzero(_mask(datum)) for datum in made.data],
        )
    )
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)


def episode_data(replayed: ReplayedBatch) -> dict[EpisodeIndex, list[Datum]]:
    """The datums of each episode of a batch; an episode that nothing is learnt from has none."""
    batch = replayed.made.batch
    firsts = np.cumsum(batch.group_sizes) - batch.group_sizes
    data: dict[EpisodeIndex, list[Datum]] = {}
    for datum, trajectory in zip(replayed.made.data, batch.row_trajectory.tolist(), strict=True):
        group = int(batch.trajectory_group[trajectory])
        place = EpisodeIndex(replayed.record.groups[group], trajectory - int(firsts[group]))
        data.setdefault(place, []).append(datum)
    return data


def objective_figures(
    data: Sequence[Datum],
    training_logprobs: Sequence[Float[np.ndarray, " _"]],
    objective: Objective,
) -> ObjectiveFigures:
    """What an objective's loss makes of datums, at the log-probabilities that the learner had.

    Args:
        data: as `training_data` makes them; of several batches, too.
        training_logprobs: of each datum's targets.
        objective: whose loss it is.

    Raises:
        DataError: there are not as many log-probabilities as datums have targets.

    Example:
        >>> ids, p = np.array([5, 6]), np.array([0.0, -1.0], np.float32)
        >>> datum = Datum(tokens=ids, target_tokens=ids, logprobs=p,
        ...     weights=np.array([0, 1], np.float32), advantages=np.array([0, 2], np.float32))
        >>> figures = objective_figures([datum], [p], Objective())
        >>> figures.advantages.tolist(), figures.gradients.tolist(), figures.loss
        ([2.0], [-2.0], -2.0)
    """
    diagnostics = objective_diagnostics(data, training_logprobs, objective)
    loss = objective.loss_spec
    value, gradient = jax.device_get(
        _loss_and_gradient(
            loss.name,
            _table(training_logprobs),
            weights=_table([datum.weights for datum in data]),
            sampling_logprobs=_table([datum.logprobs for datum in data]),
            advantages=_table([datum.advantages for datum in data]),
            settings=loss.settings,
        )
    )
    # The table has rows and columns of padding.
    rows = [row[: datum.length] for datum, row in zip(data, gradient, strict=False)]
    return ObjectiveFigures(
        advantages=_on_mask([datum.advantages for datum in data], data),
        gradients=_on_mask(rows, data),
        loss=float(value),
        clip_fraction=float(diagnostics.clip_fraction_low + diagnostics.clip_fraction_high),
        effective_sample_size=float(diagnostics.effective_sample_size),
    )


def compare_objectives(sent: ObjectiveFigures, other: ObjectiveFigures) -> ObjectiveComparison:
    """How much two objectives disagree about the same tokens.

    Example:
        >>> one, two = (
        ...     ObjectiveFigures(advantages=np.array(signs, np.float32),
        ...         gradients=-np.array(signs, np.float32), loss=0.0, clip_fraction=0.0,
        ...         effective_sample_size=1.0)
        ...     for signs in ([1.0, 1.0], [1.0, -1.0]))
        >>> compare_objectives(one, two)
        ObjectiveComparison(sign_changes=0.5, gradient_cosine=0.0)
    """
    changed = np.sign(sent.advantages) != np.sign(other.advantages)
    one, two = sent.gradients.astype(np.float64), other.gradients.astype(np.float64)
    sizes = float(np.linalg.norm(one) * np.linalg.norm(two))
    return ObjectiveComparison(
        sign_changes=float(changed.mean()) if changed.size else 0.0,
        gradient_cosine=float(one @ two) / sizes if sizes else 0.0,
    )


def _difference(record: BatchRecord, data: Sequence[Datum]) -> str | None:
    """How datums differ from those of a record: where they first do."""
    if data_digest(data) == record.digest:
        return None
    if len(data) != record.num_datums:
        return f"{record.num_datums} datums were sent, {len(data)} are made now"
    for index, (made, sent) in enumerate(
        zip_longest(datum_digests(data), record.datum_digests, fillvalue="")
    ):
        columns = zip(DATUM_COLUMNS, made.split("."), sent.split("."), strict=False)
        for name, one, other in columns:
            if one != other:
                return f"datum {index} has other {name} than was sent"
    return "the datums have another digest than was sent"


@partial(jax.jit, static_argnames="name")
def _loss_and_gradient(
    name: str,
    logprobs: Float[AnyArray, "row token"],
    *,
    weights: Float[AnyArray, "row token"],
    sampling_logprobs: Float[AnyArray, "row token"],
    advantages: Float[AnyArray, "row token"],
    settings: Mapping[str, Threshold],
) -> tuple[Float[Array, ""], Float[Array, "row token"]]:
    """A loss summed over the tokens of all rows, and its derivatives by their log-probabilities."""

    def of_row(p: Array, w: Array, q: Array, a: Array) -> Array:
        losses: Array = token_losses(
            name,
            p[:, None],
            weights=w[:, None],
            sampling_logprobs=q,
            advantages=a,
            settings=settings,
        )
        return losses

    def total(p: Array) -> Array:
        return jnp.sum(
            jax.vmap(of_row)(p, *map(jnp.asarray, (weights, sampling_logprobs, advantages)))
        )

    found: tuple[Array, Array] = jax.value_and_grad(total)(jnp.asarray(logprobs))
    return found


def _mask(datum: Datum) -> np.ndarray:
    # Always there: the datums are of `batch_data`.
    return np.asarray(datum.weights) > 0


def _on_mask(columns: Sequence[Any], data: Sequence[Datum]) -> Float[np.ndarray, " sampled"]:
    """What columns hold for the tokens that are trained on."""
    kept = [column[_mask(datum)] for column, datum in zip(columns, data, strict=True)]
    return np.concatenate([np.zeros(0, np.float32), *kept])


def _table(rows: Sequence[Any]) -> Float[np.ndarray, "row token"]:
    """Rows of one length, padded with 0; of few shapes, so that batches compile little."""
    width = bucket(max(map(len, rows), default=0))
    table = np.zeros((power_of_two(len(rows)), width), np.float32)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table
