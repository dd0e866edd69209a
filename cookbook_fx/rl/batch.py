"""All episodes of a step as one ragged batch: flat buffers and where each row begins.

A row is a token sequence that the learner reads in one go: an episode's turns as long as each
observation goes on from what was there, and a new row where it does not. Rows stand one behind the
other in flat buffers, each from a multiple of `BLOCK` on. So every step that follows is an array
function over the whole batch, and what is known per row or per trajectory is an index away.
"""

import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from cookbook_fx.data import bucket
from cookbook_fx.errors import DataError
from cookbook_fx.numerics.returns import BLOCK as BLOCK
from cookbook_fx.rl.trajectory import PARSE_ERROR_MASKED, Trajectory, TrajectoryGroup, Transition
from cookbook_fx.tokens.sampled import TokenIds

_INT32 = np.dtype(np.int32)
_INT32_MAX = np.iinfo(np.int32).max
_ITEM = 4  # bytes of an int32 and of a float32
_LARGEST_REWARD = sys.float_info.max
# XLA on CPU reads a host buffer in place from such an address on and copies it from any other:
# 1.1 ms for 17 MB, in every call. NumPy aligns to 16.
_ALIGNMENT = 64
# From an array as from a list, without a warning; what may not be infinite is refused by value.
_INFINITE_BEYOND_FLOAT32 = np.errstate(over="ignore")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectoryBatch:
    """The rows, trajectories and groups of a step, on the host.

    Flat arrays hold one value a token and are as long as a bucket says; between rows and behind
    the last one stands padding: tokens 0, mask False, log-probabilities 0. Viewed as
    `[-1, BLOCK]` they are the block layout that `numerics.discounted_sums` takes along with
    `block_starts`. Do not change them.

    Args:
        tokens: token ids.
        mask: True at sampled tokens that are trained on. Never at the first token of a row, which
            nothing precedes.
        sampling_logprobs: log-probability (nats) of each token of the mask when it was sampled, 0
            elsewhere.
        row_starts: where each row begins, a multiple of `BLOCK`.
        row_lengths: tokens of each row, at least 2.
        row_trajectory: the trajectory each row is of, counted over all groups; ascending. One
            trajectory may have several rows or none.
        trajectory_group: the group each trajectory is of; ascending.
        rewards: total reward of each trajectory.
        group_sizes: trajectories of each group, 0 for a group without any.
    """

    tokens: Int32[np.ndarray, " flat"]
    mask: Bool[np.ndarray, " flat"]
    sampling_logprobs: Float32[np.ndarray, " flat"]
    row_starts: Int64[np.ndarray, " row"]
    row_lengths: Int64[np.ndarray, " row"]
    row_trajectory: Int64[np.ndarray, " row"]
    trajectory_group: Int64[np.ndarray, " trajectory"]
    rewards: Float64[np.ndarray, " trajectory"]
    group_sizes: Int64[np.ndarray, " group"]

    @property
    def row_group(self) -> Int64[np.ndarray, " row"]:
        """The group each row is of."""
        groups: np.ndarray = self.trajectory_group[self.row_trajectory]
        return groups

    @property
    def block_starts(self) -> Bool[np.ndarray, " block"]:
        """True at the blocks with which a row begins; False at those it goes on in, and behind."""
        starts = np.zeros(len(self.tokens) // BLOCK, bool)
        starts[self.row_starts // BLOCK] = True
        return starts

    def sequences(self) -> list[Int32[np.ndarray, " token"]]:
        """The tokens of each row, as views: what a base model or a teacher is asked to score."""
        return [
            self.tokens[start : start + length]
            for start, length in zip(
                self.row_starts.tolist(), self.row_lengths.tolist(), strict=True
            )
        ]

    @_INFINITE_BEYOND_FLOAT32
    def column(self, rows: Sequence[Sequence[Any] | np.ndarray]) -> Float32[np.ndarray, " flat"]:
        """Lays out one value for each token of each row, as a scoring model answers.

        Args:
            rows: for each row in order, a value a token. The first may be None or nan, as nothing
                predicts the first token; it becomes 0.

        Returns:
            The values where the tokens stand and 0 at the padding.

        Raises:
            DataError: there are not as many rows as the batch has, or not as many values as a row
                has tokens; a value is missing, nan or no number.
        """
        if len(rows) != len(self.row_starts):
            raise DataError(
                f"a column needs values for each of the {len(self.row_starts)} rows of the batch, "
                f"got {len(rows)}; score what sequences() lists, in its order"
            )
        flat = _aligned_zeros(len(self.tokens), np.float32)
        buffer = flat.data.cast("B")
        layout = zip(rows, self.row_starts.tolist(), self.row_lengths.tolist(), strict=True)
        for row, (values, start, length) in enumerate(layout):
            if len(values) != length:
                raise DataError(
                    f"row {row} has {length} tokens and needs as many values, got {len(values)}"
                )
            try:
                numbers = _number_bytes(values, is_first_missing=values[0] is None)
            except DataError as error:
                raise DataError(f"row {row}: {error}") from None
            buffer[_ITEM * start : _ITEM * (start + length)] = numbers
        first = flat[self.row_starts]
        flat[self.row_starts] = np.where(np.isnan(first), 0, first)
        if np.isnan(flat.max()):
            at = int(np.flatnonzero(np.isnan(flat))[0])
            row = int(np.searchsorted(self.row_starts, at, side="right")) - 1
            raise DataError(
                f"row {row}: the value of token {at - int(self.row_starts[row])} is nan; only the "
                "first token's may be missing"
            )
        return flat


@_INFINITE_BEYOND_FLOAT32
def trajectory_batch(
    groups: Sequence[TrajectoryGroup], *, remove_constant_reward_groups: bool = False
) -> TrajectoryBatch:
    """Lays the episodes of all groups out in rows.

    A turn whose observation begins with all of the turn before, its observation and its action,
    goes on in that turn's row with what is new. Any other observation begins a new row. Tokens
    that turns sampled make up the mask, except those of turns that the environment masked
    (`PARSE_ERROR_MASKED`).

    Args:
        groups: a group may be of any size, 0 included. What is indexed by group, such as tags,
            fits the batch as it fits `groups`.
        remove_constant_reward_groups: leave out the rows of groups whose trajectories all earned
            the same, groups of one included: their group-centered advantages are 0. Their
            trajectories and rewards stay, so that indices mean what they meant.

    Returns:
        The batch. Sequences of fewer than two tokens have nothing to predict and give no row; the
        reward of their trajectory counts nonetheless. The flat size is `bucket` of the number of
        blocks, also where there is no row at all.

    Raises:
        DataError: a total reward is not finite; a token id is not an integer from 0 to 2³¹ - 1; a
            token to train on has no log-probability, or one that is nan or infinite upwards. The
            message says which group, trajectory and turn, counting from 0.

    Example:
        >>> from cookbook_fx.rl import Trajectory, TrajectoryGroup, Transition
        >>> from cookbook_fx.tokens import TokensWithLogprobs
        >>> def turn(ob, ac, reward):
        ...     action = TokensWithLogprobs(tokens=ac, maybe_logprobs=[-0.5] * len(ac))
        ...     return Transition(ob=ob, ac=action, reward=reward, episode_done=reward > 0)
        >>> episode = [turn([1, 2], [3], 0), turn([1, 2, 3, 4], [5, 6], 0), turn([1, 9], [7], 1)]
        >>> group = TrajectoryGroup(
        ...     trajectories_G=[Trajectory(transitions=episode, final_ob=[])],
        ...     final_rewards_G=[0.5],
        ...     metrics_G=[{}],
        ... )
        >>> batch = trajectory_batch([group])
        >>> [row.tolist() for row in batch.sequences()]
        [[1, 2, 3, 4, 5, 6], [1, 9, 7]]
        >>> batch.mask[:7].tolist()
        [False, False, True, False, True, True, False]
        >>> batch.rewards.tolist(), batch.row_trajectory.tolist()
        ([1.5], [0, 0])
    """
    totals = [group.get_total_rewards() for group in groups]
    rewards = _finite_rewards(totals)
    rows = [
        row
        for group, total in enumerate(totals)
        if not (remove_constant_reward_groups and len(set(total)) <= 1)
        for number, trajectory in enumerate(groups[group].trajectories_G)
        for row in _rows(trajectory, group=group, number=number)
        if len(row.tokens) >= 2 * _ITEM
    ]
    sizes = np.array([len(total) for total in totals], np.int64)
    first_trajectory = np.cumsum(sizes) - sizes
    lengths = np.array([len(row.tokens) // _ITEM for row in rows], np.int64)
    starts, size = row_layout(lengths)
    flat = _write(rows, starts, size=size)
    return TrajectoryBatch(
        tokens=flat.tokens,
        mask=flat.mask,
        sampling_logprobs=flat.sampling_logprobs,
        row_starts=starts,
        row_lengths=lengths,
        row_trajectory=first_trajectory[np.array([row.group for row in rows], np.int64)]
        + np.array([row.trajectory for row in rows], np.int64),
        trajectory_group=np.repeat(np.arange(len(sizes)), sizes),
        rewards=rewards,
        group_sizes=sizes,
    )


class RowLayout(NamedTuple):
    """Where each row begins, and how long the flat buffers are."""

    starts: Int64[np.ndarray, " row"]
    size: int


def row_layout(lengths: Int64[np.ndarray, " row"]) -> RowLayout:
    """Rows one behind the other, each from a block's start on, up to a bucket of blocks.

    Example:
        >>> row_layout(np.array([33, 5]))
        RowLayout(starts=array([ 0, 64]), size=512)
    """
    blocks = -(-lengths // BLOCK)
    return RowLayout((np.cumsum(blocks) - blocks) * BLOCK, bucket(int(blocks.sum())) * BLOCK)


def _finite_rewards(totals: list[list[float | int]]) -> Float64[np.ndarray, " trajectory"]:
    for group, total in enumerate(totals):
        for trajectory, reward in enumerate(total):
            # One that is not finite would silently spoil the advantages of its whole group.
            if not abs(reward) <= _LARGEST_REWARD:
                raise DataError(
                    f"group {group}, trajectory {trajectory}: a total reward must be finite, got "
                    f"{reward}; mend the environment's reward, or leave the trajectory out"
                )
    return np.array([reward for total in totals for reward in total], np.float64)


class _Turn(NamedTuple):
    number: int
    first: int  # the place of its action in the row
    end: int
    logprobs: bytes  # of its action; none where it is not trained on


class _Row(NamedTuple):
    group: int
    trajectory: int
    turns: list[_Turn]
    tokens: bytes


def _rows(trajectory: Trajectory, *, group: int, number: int) -> list[_Row]:
    """The rows of a trajectory. As bytes, tokens of any kind are compared all at once."""
    rows = []
    turns: list[_Turn] = []
    tokens = b""
    for turn, transition in enumerate(trajectory.transitions):
        try:
            observation = _token_bytes(transition.ob)
            action = _token_bytes(transition.ac.tokens)
            logprobs = _logprob_bytes(transition)
        except DataError as error:
            raise DataError(f"{_place(group, number, turn)}: {error}") from None
        if not observation.startswith(tokens):
            rows.append(_Row(group, number, turns, tokens))
            turns = []
        tokens = observation + action
        turns.append(_Turn(turn, len(observation) // _ITEM, len(tokens) // _ITEM, logprobs))
    rows.append(_Row(group, number, turns, tokens))
    return rows


def _logprob_bytes(transition: Transition) -> bytes:
    if transition.metrics.get(PARSE_ERROR_MASKED, 0) >= 1 or not len(transition.ac.tokens):
        return b""
    return _number_bytes(transition.ac.logprobs)


class _Flat(NamedTuple):
    tokens: Int32[np.ndarray, " flat"]
    mask: Bool[np.ndarray, " flat"]
    sampling_logprobs: Float32[np.ndarray, " flat"]


def _write(rows: list[_Row], starts: Int64[np.ndarray, " row"], *, size: int) -> _Flat:
    mask = _aligned_zeros(size, bool)
    flat = _Flat(_aligned_zeros(size, np.int32), mask, _aligned_zeros(size, np.float32))
    tokens, logprobs = (x.data.cast("B") for x in (flat.tokens, flat.sampling_logprobs))
    for (_, _, turns, row), start in zip(rows, starts.tolist(), strict=True):
        tokens[_ITEM * start : _ITEM * start + len(row)] = row
        for _, first, end, numbers in turns:
            if numbers:
                logprobs[_ITEM * (start + first) : _ITEM * (start + end)] = numbers
                mask[start + first : start + end] = True
    flat.mask[starts] = False
    flat.sampling_logprobs[starts] = 0
    if flat.tokens.min() < 0:
        _refuse(rows, starts, flat.tokens, flat.tokens < 0, _TOKEN_WANTED)
    # A maximum tells of nan as well.
    if not flat.sampling_logprobs.max() < np.inf:
        wrong = ~(flat.sampling_logprobs < np.inf)
        _refuse(rows, starts, flat.sampling_logprobs, wrong, _LOGPROB_WANTED)
    return flat


_TOKEN_WANTED = f"a token id must be an integer from 0 to {_INT32_MAX}"
_LOGPROB_WANTED = "a sampled token's log-probability must be a number below infinity"


def _token_bytes(values: TokenIds) -> bytes:
    """Token ids as int32; negative ones are left to be found all at once."""
    if not isinstance(values, np.ndarray):
        return _packed(f"{len(values)}i", values, _TOKEN_WANTED)
    if values.ndim == 1 and values.dtype == _INT32:
        return values.tobytes()
    if values.ndim != 1 or (values.dtype.kind not in "iu" and values.size):
        raise DataError(
            "token ids must be integers in one dimension, got an array of "
            f"{values.dtype} of shape {values.shape}"
        )
    # Looked at before they are written: a wider type would wrap around.
    outside = values[(values < 0) | (values > _INT32_MAX)]
    if outside.size:
        raise DataError(f"{_TOKEN_WANTED}, got {outside[0]}")
    return values.astype(np.int32).tobytes()


def _number_bytes(values: Sequence[Any] | np.ndarray, *, is_first_missing: bool = False) -> bytes:
    """Numbers as float32; 0 for the first if that is None."""
    if not isinstance(values, np.ndarray):
        # None packs as one byte that is False, three follow: a slice would cost a copy.
        layout = f"?3x{len(values) - 1}f" if is_first_missing else f"{len(values)}f"
        return _packed(layout, values, "expected a number")
    if values.ndim != 1 or (values.dtype.kind not in "fiu" and values.size):
        raise DataError(
            f"expected numbers in one dimension, got an array of {values.dtype} "
            f"of shape {values.shape}"
        )
    return values.astype(np.float32, copy=False).tobytes()


def _packed(layout: str, values: Sequence[Any], wanted: str) -> bytes:
    # A third to a half faster than an array made of a list, and strict: that cuts 1.5 down to 1
    # and reads "7" as 7.
    try:
        return _packer(layout)(*values)
    except struct.error:
        code = layout[-1]
        first = int(layout[0] == "?")
        wrong = next(i for i in range(first, len(values)) if not _packs(code, values[i]))
        raise DataError(f"{wanted}, got {values[wrong]!r} at position {wrong}") from None


@lru_cache(maxsize=1 << 14)
def _packer(layout: str) -> Callable[..., bytes]:
    return struct.Struct(layout).pack


def _packs(code: str, value: object) -> bool:
    try:
        struct.pack(code, value)
    except struct.error:
        return False
    return True


def _refuse(
    rows: list[_Row],
    starts: Int64[np.ndarray, " row"],
    values: np.ndarray,
    wrong: Bool[np.ndarray, " flat"],
    wanted: str,
) -> None:
    at = int(np.flatnonzero(wrong)[0])
    index = int(np.searchsorted(starts, at, side="right")) - 1
    row, position = rows[index], at - int(starts[index])
    turn = next(turn for turn in row.turns if position < turn.end)
    place = _place(row.group, row.trajectory, turn.number)
    raise DataError(f"{place}: {wanted}, got {values[at]}")


def _place(group: int, trajectory: int, turn: int) -> str:
    return f"group {group}, trajectory {trajectory}, turn {turn}"


def _aligned_zeros(count: int, dtype: type) -> np.ndarray:
    size = count * np.dtype(dtype).itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype)
