"""Episodes and batches as plain JSON values, and back again, bit for bit.

What is written is what a batch is made of: token ids as integers, log-probabilities as float32.
JSON has no number for nan and the infinities; in rewards, metrics and log-probabilities they stand
there as the strings "NaN", "Infinity" and "-Infinity", and one nan comes back as any other. An
observation that begins with all of the turn before, as a conversation's does, is written without
that beginning, so that a long episode takes the space of its tokens.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int32

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.rl.objective import Objective, data_digest
from cookbook_fx.rl.trajectory import (
    Metrics,
    RolloutError,
    Trajectory,
    TrajectoryGroup,
    Transition,
)
from cookbook_fx.tokens import TokensWithLogprobs
from cookbook_fx.tokens.sampled import TokenIds

_INT32 = np.iinfo(np.int32)

JSONObject = dict[str, Any]
Rows = tuple[Float32[np.ndarray, " _"], ...]


class TurnTexts(NamedTuple):
    """A turn as text.

    Args:
        observed: what is new in its observation, all of it in a first turn.
        sampled: its action.
    """

    observed: str
    sampled: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutRecord:
    """One episode of a group, or one that failed.

    Args:
        step: the training step it is for, from 0.
        group: index of its group among the step's.
        member: its index in the group; failures come last.
        group_size: records of the group, those of failures included. A group without any has one
            that holds no episode and has size 0, so that it is known to be done.
        sampler_step: steps done by the weights it was begun with.
        tags: its group's logging tags.
        seed: its group's.
        seconds: how long its group took.
        trajectory: the episode; None if it failed.
        final_reward: earned on top of its turns' rewards.
        metrics: numbers about it as a member of its group.
        error: why it failed.
        texts: its turns as text, where a tokenizer was at hand.
    """

    step: int
    group: int
    member: int
    group_size: int
    sampler_step: int
    tags: tuple[str, ...] = ()
    seed: int | None = None
    seconds: float | None = None
    trajectory: Trajectory | None = None
    final_reward: Any = 0.0
    metrics: Metrics = field(default_factory=dict)
    error: RolloutError | None = None
    texts: tuple[TurnTexts, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedGroup:
    """A group as it was recorded.

    Args:
        step: the training step it is for.
        index: its place among the step's groups.
        sampler_step: steps done by the weights it was begun with.
        tags: its logging tags.
        seed: its own.
        seconds: how long it took.
        group: the episodes; tokens as int32, log-probabilities as float32.
        texts: for each trajectory its turns as text; None where no text was recorded.
    """

    step: int
    index: int
    sampler_step: int
    tags: tuple[str, ...]
    seed: int | None
    seconds: float | None
    group: TrajectoryGroup
    texts: tuple[tuple[TurnTexts, ...] | None, ...]


def group_records(
    group: TrajectoryGroup,
    *,
    step: int,
    group_index: int,
    sampler_step: int,
    tags: Sequence[str] = (),
    seed: int | None = None,
    seconds: float | None = None,
    texts: Callable[[Sequence[int]], str] | None = None,
) -> list[RolloutRecord]:
    """A group as records, one an episode, from which `groups_of` makes it again.

    Args:
        group: of any size, 0 included.
        step: the training step it is for, from 0.
        group_index: its place among the step's groups.
        sampler_step: steps done by the weights it was begun with.
        tags: its logging tags.
        seed: its own.
        seconds: how long it took.
        texts: a tokenizer's `decode`, to record texts too; None records none.

    Returns:
        At least one record.

    Example:
        >>> from cookbook_fx.rl import RolloutError, Trajectory, TrajectoryGroup, group_records
        >>> nothing = Trajectory(transitions=[], final_ob=[])
        >>> group = TrajectoryGroup(
        ...     trajectories_G=[nothing], final_rewards_G=[1], metrics_G=[{}],
        ...     rollout_errors=[RolloutError(error_type="OSError", error_message="no network")])
        >>> records = group_records(group, step=3, group_index=0, sampler_step=3)
        >>> [(record.member, record.group_size, record.error is None) for record in records]
        [(0, 2, True), (1, 2, False)]
    """
    size = len(group.trajectories_G) + len(group.rollout_errors)
    of_group: JSONObject = {
        "step": step,
        "group": group_index,
        "group_size": size,
        "sampler_step": sampler_step,
        "tags": tuple(tags),
        "seed": seed,
        "seconds": seconds,
    }
    episodes = zip(group.trajectories_G, group.final_rewards_G, group.metrics_G, strict=True)
    records = [
        RolloutRecord(
            **of_group,
            member=member,
            trajectory=trajectory,
            final_reward=final_reward,
            metrics=metrics,
            texts=None if texts is None else _turn_texts(trajectory, texts),
        )
        for member, (trajectory, final_reward, metrics) in enumerate(episodes)
    ]
    records += [
        RolloutRecord(**of_group, member=member, error=error)
        for member, error in enumerate(group.rollout_errors, start=len(records))
    ]
    return records or [RolloutRecord(**of_group, member=0)]


def groups_of(records: Iterable[RolloutRecord]) -> Iterator[RecordedGroup]:
    """The groups that `group_records` made records of.

    Args:
        records: each group's together and in order; read as far as the groups are asked for.

    Raises:
        DataError: a group's records are not all there, or not in order.

    Example:
        >>> from cookbook_fx.rl import Trajectory, TrajectoryGroup, group_records, groups_of
        >>> nothing = Trajectory(transitions=[], final_ob=[])
        >>> group = TrajectoryGroup(
        ...     trajectories_G=[nothing], final_rewards_G=[1], metrics_G=[{"correct": True}])
        >>> records = group_records(group, step=3, group_index=0, sampler_step=2, tags=["sums"])
        >>> (found,) = groups_of(records)
        >>> found.step, found.sampler_step, found.tags, found.group.metrics_G
        (3, 2, ('sums',), [{'correct': True}])
    """
    for (step, index), found in groupby(records, key=lambda record: (record.step, record.group)):
        yield _group_of(step, index, list(found))


def record_to_json(record: RolloutRecord) -> JSONObject:
    """A record as values that JSON has.

    Rewards and metrics become plain numbers. In logs, which are for people, what JSON cannot hold
    becomes its text.

    Raises:
        DataError: a metric or reward is no number, or a token id no integer.

    Example:
        >>> record_to_json(RolloutRecord(
        ...     step=0, group=1, member=0, group_size=1, sampler_step=0,
        ...     error=RolloutError(error_type="OSError", error_message="no network")))["error_type"]
        'OSError'
    """
    # The first five stand at the head of each line, where they are read without the rest.
    value: JSONObject = {
        "step": int(record.step),
        "group": int(record.group),
        "member": int(record.member),
        "group_size": int(record.group_size),
        "sampler_step": int(record.sampler_step),
        "tags": list(record.tags),
        "seed": None if record.seed is None else int(record.seed),
        "seconds": None if record.seconds is None else float(record.seconds),
    }
    if record.error is not None:
        value["error_type"] = record.error.error_type
        value["error_message"] = record.error.error_message
    if record.trajectory is not None:
        value["stop_reason"] = record.trajectory.stop_reason
        value["final_reward"] = _number(record.final_reward, "the final reward")
        value["metrics"] = _metrics(record.metrics)
        value |= _trajectory_to_json(record.trajectory, record.texts)
    return value


def record_from_json(value: Any) -> RolloutRecord:
    """The record that `record_to_json` wrote.

    Raises:
        DataError: the value is no such record; says what it lacks.

    Example:
        >>> record_from_json({"step": 0})
        Traceback (most recent call last):
        cookbook_fx.errors.DataError: an episode's record needs 'group'
    """
    with _reading("an episode's record"):
        episode: JSONObject = {}
        if "transitions" in value:
            episode = {
                "trajectory": _trajectory_from_json(value),
                "final_reward": _from_number(value["final_reward"]),
                "metrics": _from_metrics(value["metrics"]),
                "texts": _texts_from_json(value["transitions"]),
            }
        if "error_type" in value:
            episode["error"] = RolloutError(
                error_type=str(value["error_type"]), error_message=str(value["error_message"])
            )
        return RolloutRecord(
            step=int(value["step"]),
            group=int(value["group"]),
            member=int(value["member"]),
            group_size=int(value["group_size"]),
            sampler_step=int(value["sampler_step"]),
            tags=tuple(map(str, value["tags"])),
            seed=value["seed"],
            seconds=value["seconds"],
            **episode,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchRecord:
    """One batch as it was sent to be learned from: enough to make it again and compare.

    Args:
        step: the training step, from 0.
        substep: which of the step's optimizer steps.
        minibatch: which of the substep's batches.
        groups: indices of the groups it was made of, in their order.
        objective: what was learned, as JSON values.
        learning_rate: the optimizer step's.
        digest: of all its datums.
        num_datums: how many there were.
        num_tokens: that the model read.
        datum_digests: of each datum's columns, as from `datum_digests`.
        base_logprobs: of the tokens of each row, where a KL penalty asked for them.
        training_logprobs: of each datum's targets, as the engine answered.
    """

    step: int
    substep: int
    minibatch: int
    groups: tuple[int, ...]
    objective: Mapping[str, Any]
    learning_rate: float
    digest: str
    num_datums: int
    num_tokens: int
    datum_digests: tuple[str, ...] = ()
    base_logprobs: Rows | None = None
    training_logprobs: Rows | None = None


def batch_record(
    data: Sequence[Datum],
    objective: Objective,
    *,
    step: int,
    substep: int,
    minibatch: int,
    groups: Sequence[int],
    learning_rate: float,
    base_logprobs: Sequence[Sequence[Any] | np.ndarray] | None = None,
    training_logprobs: Sequence[Sequence[Any] | np.ndarray] | None = None,
) -> BatchRecord:
    """The record of datums that are sent to be learned from.

    Args:
        data: as `training_data` made them.
        objective: what it made them for.
        step: the training step, from 0.
        substep: which of the step's optimizer steps.
        minibatch: which of the substep's batches.
        groups: indices of the groups they were made of, in their order.
        learning_rate: the optimizer step's.
        base_logprobs: as given to `training_data`.
        training_logprobs: of each datum's targets, as the engine answered.

    Example:
        >>> ids = np.array([5, 6], np.int32)
        >>> record = batch_record(
        ...     [Datum(tokens=ids, target_tokens=ids)], Objective(loss="ppo"),
        ...     step=0, substep=0, minibatch=0, groups=[0], learning_rate=1e-4)
        >>> record.num_tokens, record.objective["loss"]
        (2, 'ppo')
    """
    return BatchRecord(
        step=step,
        substep=substep,
        minibatch=minibatch,
        groups=tuple(groups),
        objective={name: getattr(objective, name) for name in objective.__slots__}
        | {"loss_config": dict(objective.loss_config)},
        learning_rate=learning_rate,
        digest=data_digest(data),
        num_datums=len(data),
        num_tokens=sum(datum.length for datum in data),
        datum_digests=datum_digests(data),
        base_logprobs=_float32_rows(base_logprobs),
        training_logprobs=_float32_rows(training_logprobs),
    )


def recorded_objective(record: BatchRecord) -> Objective:
    """The objective of a batch's record.

    Raises:
        DataError: this version of the library knows no such objective.
    """
    try:
        return Objective(**record.objective)
    except (TypeError, ConfigurationError) as error:
        raise DataError(f"the recorded objective cannot be used: {error}") from error


def batch_to_json(record: BatchRecord) -> JSONObject:
    """A batch's record as values that JSON has."""
    return {
        "step": int(record.step),
        "substep": int(record.substep),
        "minibatch": int(record.minibatch),
        "groups": list(record.groups),
        "objective": dict(record.objective),
        "learning_rate": float(record.learning_rate),
        "digest": record.digest,
        "num_datums": int(record.num_datums),
        "num_tokens": int(record.num_tokens),
        "datum_digests": list(record.datum_digests),
        "base_logprobs": _rows_to_json(record.base_logprobs),
        "training_logprobs": _rows_to_json(record.training_logprobs),
    }


def batch_from_json(value: Any) -> BatchRecord:
    """The record that `batch_to_json` wrote.

    Raises:
        DataError: the value is no such record; says what it lacks.
    """
    with _reading("a batch's record"):
        return BatchRecord(
            step=int(value["step"]),
            substep=int(value["substep"]),
            minibatch=int(value["minibatch"]),
            groups=tuple(map(int, value["groups"])),
            objective=dict(value["objective"]),
            learning_rate=float(value["learning_rate"]),
            digest=str(value["digest"]),
            num_datums=int(value["num_datums"]),
            num_tokens=int(value["num_tokens"]),
            datum_digests=tuple(map(str, value["datum_digests"])),
            base_logprobs=_rows_from_json(value["base_logprobs"]),
            training_logprobs=_rows_from_json(value["training_logprobs"]),
        )


DATUM_COLUMNS = (
    "tokens", "target_tokens", "weights", "logprobs", "advantages", "sequence_ratio_mask",
)  # fmt: skip


def datum_digests(data: Sequence[Datum]) -> tuple[str, ...]:
    """Short digests of each datum's columns, by which a datum that differs is found.

    Returns:
        For each datum the digests of `DATUM_COLUMNS` over dtype, shape and bytes, with dots
        between.
    """
    return tuple(
        ".".join(_column_digest(getattr(datum, name)) for name in DATUM_COLUMNS) for datum in data
    )


def _column_digest(column: np.ndarray | None) -> str:
    if column is None:
        return "-"
    digest = hashlib.blake2b(f"{column.dtype.str}{column.shape}".encode(), digest_size=4)
    digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _turn_texts(
    trajectory: Trajectory, decode: Callable[[Sequence[int]], str]
) -> tuple[TurnTexts, ...]:
    return tuple(
        TurnTexts(observed=decode(ob[known:].tolist()), sampled=decode(ac.tolist()))
        for ob, ac, known in _turns(trajectory)
    )


def _group_of(step: int, index: int, records: list[RolloutRecord]) -> RecordedGroup:
    first = records[0]
    wanted = list(range(max(1, first.group_size)))
    members = [record.member for record in records]
    if members != wanted:
        raise DataError(
            f"group {index} of step {step} has {first.group_size} episodes and needs a record of "
            f"each, in order; got those of {members}"
        )
    episodes = [(record, record.trajectory) for record in records if record.trajectory is not None]
    return RecordedGroup(
        step=step,
        index=index,
        sampler_step=first.sampler_step,
        tags=first.tags,
        seed=first.seed,
        seconds=first.seconds,
        group=TrajectoryGroup(
            trajectories_G=[trajectory for _, trajectory in episodes],
            final_rewards_G=[record.final_reward for record, _ in episodes],
            metrics_G=[record.metrics for record, _ in episodes],
            rollout_errors=[record.error for record in records if record.error is not None],
        ),
        texts=tuple(record.texts for record, _ in episodes),
    )


class _TurnArrays(NamedTuple):
    ob: Int32[np.ndarray, " token"]
    ac: Int32[np.ndarray, " token"]
    known: int  # tokens that the observation begins with and the turn before ended with


def _turns(trajectory: Trajectory) -> Iterator[_TurnArrays]:
    earlier = np.zeros(0, np.int32)
    for turn in trajectory.transitions:
        ob, ac = _tokens(turn.ob), _tokens(turn.ac.tokens)
        yield _TurnArrays(ob, ac, _known(ob, earlier))
        earlier = np.concatenate([ob, ac])


def _known(ob: Int32[np.ndarray, " token"], earlier: Int32[np.ndarray, " earlier"]) -> int:
    return len(earlier) if np.array_equal(ob[: len(earlier)], earlier) else 0


def _trajectory_to_json(trajectory: Trajectory, texts: tuple[TurnTexts, ...] | None) -> JSONObject:
    turns = list(_turns(trajectory))
    transitions = [
        _transition_to_json(turn, arrays)
        for turn, arrays in zip(trajectory.transitions, turns, strict=True)
    ]
    for transition, text in zip(transitions, texts or (), strict=texts is not None):
        transition |= {"ob_text": text.observed, "ac_text": text.sampled}
    final_ob = _tokens(trajectory.final_ob)
    known = _known(final_ob, np.concatenate(turns[-1][:2])) if turns else 0
    return {
        "transitions": transitions,
        "final_ob_known": known,
        "final_ob": final_ob[known:].tolist(),
    }


def _transition_to_json(turn: Transition, arrays: _TurnArrays) -> JSONObject:
    logprobs = turn.ac.maybe_logprobs
    return {
        "ob_known": arrays.known,
        "ob": arrays.ob[arrays.known :].tolist(),
        "ac": arrays.ac.tolist(),
        "logprobs": None if logprobs is None else _floats(logprobs),
        "ac_stop_reason": turn.ac.stop_reason,
        "reward": _number(turn.reward, "a turn's reward"),
        "episode_done": bool(turn.episode_done),
        "metrics": _metrics(turn.metrics),
        "logs": _plain(turn.logs),
    }


def _trajectory_from_json(value: Any) -> Trajectory:
    transitions: list[Transition] = []
    earlier = np.zeros(0, np.int32)
    for turn in value["transitions"]:
        ob = np.concatenate([earlier[: turn["ob_known"]], _array(turn["ob"], np.int32)])
        ac = _array(turn["ac"], np.int32)
        logprobs = turn["logprobs"]
        transitions.append(
            Transition(
                ob=ob,
                ac=TokensWithLogprobs(
                    tokens=ac,
                    maybe_logprobs=None if logprobs is None else _array(logprobs, np.float32),
                    stop_reason=turn["ac_stop_reason"],
                ),
                reward=_from_number(turn["reward"]),
                episode_done=turn["episode_done"],
                metrics=_from_metrics(turn["metrics"]),
                logs=turn["logs"],
            )
        )
        earlier = np.concatenate([ob, ac])
    known = earlier[: value["final_ob_known"]]
    return Trajectory(
        transitions=transitions,
        final_ob=np.concatenate([known, _array(value["final_ob"], np.int32)]),
        stop_reason=value["stop_reason"],
    )


def _texts_from_json(transitions: Any) -> tuple[TurnTexts, ...] | None:
    if not all("ac_text" in turn for turn in transitions):
        return None
    return tuple(TurnTexts(turn["ob_text"], turn["ac_text"]) for turn in transitions)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Says of a value that is no record what it lacks."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{what} needs {error}") from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"{what} cannot be read: {error}") from error


def _tokens(values: TokenIds) -> Int32[np.ndarray, " token"]:
    array = np.asarray(values)
    if not array.size:
        return np.zeros(0, np.int32)
    if array.dtype.kind not in "iu":
        raise DataError(f"token ids must be integers, got {array.dtype}")
    if array.dtype != np.int32 and (array.min() < _INT32.min or array.max() > _INT32.max):
        raise DataError(f"token ids must be below 2³¹, got {array.max()}")
    return array.astype(np.int32, copy=False)


def _array(values: Any, dtype: type[np.generic]) -> np.ndarray:
    return np.array(values, dtype).reshape(len(values))


def _float32_rows(rows: Sequence[Sequence[Any] | np.ndarray] | None) -> Rows | None:
    return None if rows is None else tuple(_float32(row) for row in rows)


def _float32(values: Sequence[Any] | np.ndarray) -> Float32[np.ndarray, " token"]:
    # None, which stands for an unknown log-probability, becomes nan.
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def _rows_to_json(rows: Rows | None) -> list[list[float | str]] | None:
    return None if rows is None else [_floats(row) for row in rows]


def _rows_from_json(rows: Any) -> Rows | None:
    return None if rows is None else tuple(_array(row, np.float32) for row in rows)


# JSON has no such numbers; Python's float() reads them back.
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def _finite(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _floats(values: Sequence[Any] | np.ndarray) -> list[float | str]:
    """Numbers that print short and are the float32 of `values` when read."""
    array = _float32(values)
    numbers: list[float | str] = _shortest(array).tolist()
    if np.isfinite(array).all():
        return numbers
    return [_finite(float(number)) for number in numbers]


_POWERS = 10.0 ** np.arange(23)


def _shortest(values: Float32[np.ndarray, " value"]) -> Float[np.ndarray, " value"]:
    """For each float32 a float64 of few decimal digits that rounds to it.

    A float64 prints in the fewest digits that tell it from its neighbors: 17 for most float32, and
    9 or fewer for the decimal number nearest to one, which identifies it just as well.
    """
    exact = values.astype(np.float64)
    shortest = exact
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.floor(np.log10(np.abs(exact)))
        for digits in (9, 8, 7, 6):
            places = digits - 1 - magnitude
            # Up to here powers of ten are exact, and so the quotient is the decimal's own float64.
            possible = (places >= 0) & (places < len(_POWERS))
            power = _POWERS[np.where(possible, places, 0).astype(np.int64)]
            decimal = np.rint(exact * power) / power
            shortest = np.where(
                possible & (decimal.astype(np.float32) == values), decimal, shortest
            )
    return shortest


def _number(value: Any, what: str) -> int | float | str:
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | int):
        return value
    if isinstance(value, Real):
        return _finite(float(value))
    raise DataError(
        f"{what} must be a number, got {value!r} of type {type(value).__name__}; convert it with "
        "float(), or log it with the turn's logs"
    )


def _from_number(value: Any) -> int | float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return float(value)
    if isinstance(value, int | float):
        return value
    raise ValueError(f"{value!r} is no number")


def _metrics(metrics: Metrics) -> JSONObject:
    return {str(name): _number(value, f"the metric {name!r}") for name, value in metrics.items()}


def _from_metrics(metrics: Any) -> dict[str, int | float]:
    return {name: _from_number(value) for name, value in metrics.items()}


def _plain(value: Any) -> Any:
    """What people logged, as JSON; the text of what JSON has no value for."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case np.generic() | np.ndarray():
            return _plain(value.tolist())
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return str(value)
