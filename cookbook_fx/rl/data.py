"""Reinforcement learning over groups and datums, by the names tinker-cookbook gives it.

The same arithmetic as `TrajectoryBatch` and `shaping`, for programs that keep groups and datums in
lists. Everything returns new data. In a datum the mask is `weights`: a token was sampled and is
trained on where its weight is above 0. Log-probabilities are in nats.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from cookbook_fx import numerics
from cookbook_fx.data import Datum
from cookbook_fx.errors import DataError
from cookbook_fx.numerics.masked import AnyArray
from cookbook_fx.rl.batch import TrajectoryBatch, row_layout, trajectory_batch
from cookbook_fx.rl.shaping import batch_data, estimate_by_group, kl_shaped, token_advantages
from cookbook_fx.rl.trajectory import Trajectory, TrajectoryGroup


class DatumSource(NamedTuple):
    """Which trajectory a datum was made from.

    Args:
        group_idx: index of the group.
        traj_idx: index of the trajectory in its group.
    """

    group_idx: int
    traj_idx: int


class KLPenalized(NamedTuple):
    """Datums with a KL penalty in their advantages.

    Args:
        data: as given but for `advantages`.
        kl_policy_base: mean of log p_sampling - log p_base over the mask, in nats a token.
    """

    data: list[Datum]
    kl_policy_base: float


def compute_advantages(groups: Sequence[TrajectoryGroup]) -> list[Float[np.ndarray, " rollout"]]:
    """Each trajectory's total reward less the mean of its group.

    Returns:
        One array a group, in float32 whatever numbers the rewards are; empty for an empty group, 0
        for a group of one.

    Example:
        >>> from cookbook_fx.rl import Trajectory, TrajectoryGroup
        >>> nothing = Trajectory(transitions=[], final_ob=[])
        >>> compute_advantages([TrajectoryGroup(
        ...     trajectories_G=[nothing] * 2, final_rewards_G=[1, 0], metrics_G=[{}, {}])])
        [array([ 0.5, -0.5], dtype=float32)]

    Reference: Shao et al. 2024, arXiv:2402.03300, without the division of its equation 4.1 by the
        standard deviation.
    """
    rewards = [group.get_total_rewards() for group in groups]
    sizes = np.array([len(of_group) for of_group in rewards], np.int64)
    flat = np.array([reward for of_group in rewards for reward in of_group], np.float64)
    advantages = estimate_by_group(flat, sizes, numerics.group_centered)
    return np.split(advantages, np.cumsum(sizes)[:-1]) if len(sizes) else []


def trajectory_to_data(trajectory: Trajectory, advantage: float) -> list[Datum]:
    """The datums of one trajectory, all its sampled tokens with the same advantage.

    Turns share a datum while each observation begins with the observation and action before it.

    Returns:
        None where no token follows another. Turns marked as parse errors are masked.

    Raises:
        DataError: tokens and log-probabilities of an action differ in number or are missing, or
            the advantage is not finite.

    Example:
        >>> from cookbook_fx.rl import Transition
        >>> from cookbook_fx.tokens import TokensWithLogprobs
        >>> turn = Transition(ob=[1, 2], reward=0, episode_done=True, ac=TokensWithLogprobs(
        ...     tokens=[3], maybe_logprobs=[-1.0]))
        >>> (datum,) = trajectory_to_data(Trajectory(transitions=[turn], final_ob=[]), 2.0)
        >>> datum.target_tokens.tolist(), datum.advantages.tolist()
        ([2, 3], [0.0, 2.0])
    """
    alone = TrajectoryGroup(trajectories_G=[trajectory], final_rewards_G=[0.0], metrics_G=[{}])
    batch = trajectory_batch([alone])
    return batch_data(batch, token_advantages(batch, np.array([advantage], np.float32)))


def assemble_training_data(
    groups: Sequence[TrajectoryGroup], advantages: Sequence[Real[AnyArray, "..."]]
) -> tuple[list[Datum], list[DatumSource]]:
    """The datums of all trajectories, and where each comes from.

    Args:
        groups: any sizes.
        advantages: for each group one for each trajectory, as from `compute_advantages`.

    Returns:
        Two lists of one length, in the order of groups, trajectories and turns.

    Raises:
        DataError: advantages for another number of groups or trajectories, or not finite; data as
            for `trajectory_to_data`.

    Example:
        >>> from cookbook_fx.rl import TrajectoryGroup, Transition
        >>> from cookbook_fx.tokens import TokensWithLogprobs
        >>> turn = Transition(ob=[1, 2], reward=0, episode_done=True, ac=TokensWithLogprobs(
        ...     tokens=[3], maybe_logprobs=[-1.0]))
        >>> group = TrajectoryGroup(
        ...     trajectories_G=[Trajectory(transitions=[turn], final_ob=[])] * 2,
        ...     final_rewards_G=[1, 0], metrics_G=[{}, {}])
        >>> data, sources = assemble_training_data([group], compute_advantages([group]))
        >>> [datum.advantages.tolist() for datum in data]
        [[0.0, 0.5], [0.0, -0.5]]
        >>> sources[1]
        DatumSource(group_idx=0, traj_idx=1)
    """
    if len(groups) != len(advantages):
        raise DataError(
            f"advantages are needed for each of {len(groups)} groups, got {len(advantages)}"
        )
    for index, (group, of_group) in enumerate(zip(groups, advantages, strict=True)):
        if np.shape(of_group) != (len(group.trajectories_G),):
            raise DataError(
                f"group {index} has {len(group.trajectories_G)} trajectories and needs an "
                f"advantage for each, got shape {np.shape(of_group)}"
            )
    batch = trajectory_batch(groups)
    flat = np.concatenate([np.zeros(0, np.float32), *advantages])
    data = batch_data(batch, token_advantages(batch, flat))
    firsts = np.cumsum(batch.group_sizes) - batch.group_sizes
    members = batch.row_trajectory - firsts[batch.row_group]
    return data, list(map(DatumSource, batch.row_group.tolist(), members.tolist()))


def remove_constant_reward_groups(groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
    """Keeps the groups whose total rewards differ: from the others centering leaves no advantage.

    What is indexed by group no longer fits afterwards. Where tags or metrics of the groups are
    needed, `trajectory_batch(groups, remove_constant_reward_groups=True)` drops the rows instead
    and leaves every index as it was.

    Returns:
        The first group if no group's rewards differ; empty for no groups.

    Example:
        >>> from cookbook_fx.rl import Trajectory, TrajectoryGroup
        >>> nothing = Trajectory(transitions=[], final_ob=[])
        >>> same, different = (TrajectoryGroup(
        ...     trajectories_G=[nothing] * 2, final_rewards_G=rewards, metrics_G=[{}, {}])
        ...     for rewards in ([1, 1], [1, 0]))
        >>> remove_constant_reward_groups([same, different]) == [different]
        True
    """
    kept = [group for group in groups if len(set(group.get_total_rewards())) > 1]
    return kept or list(groups[:1])


def compute_kl_sample_train(
    data: Sequence[Datum], training_logprobs: Sequence[Real[AnyArray, "..."]]
) -> numerics.SampleTrainKL:
    """How far the weights that learn are from those that sampled, over the sampled tokens.

    Args:
        data: with `logprobs`; `weights` of None count as all sampled.
        training_logprobs: of each datum's targets, as `forward_backward` answers.

    Returns:
        As `numerics.sample_train_kl`; zeros where nothing is unmasked.

    Raises:
        DataError: a datum without `logprobs`, or log-probabilities for other tokens than it has.

    Example:
        >>> ids, p = np.array([5, 6]), np.array([-1.0, -1.0], np.float32)
        >>> datum = Datum(tokens=ids, target_tokens=ids, logprobs=p)
        >>> float(compute_kl_sample_train([datum], [p - 0.5]).kl_v1)
        0.5
    """
    batch = _batch_of(data)
    columns = _training_columns(data, training_logprobs)
    training = _lay_out(columns, batch.row_starts + 1, np.zeros_like(batch.sampling_logprobs))
    distance: numerics.SampleTrainKL = numerics.sample_train_kl(
        batch.sampling_logprobs, training, batch.mask
    )
    return distance


def compute_post_kl(
    data: Sequence[Datum], post_logprobs: Sequence[Sequence[float | None] | np.ndarray]
) -> numerics.SampleTrainKL:
    """How far the weights after a step are from those that sampled, over the sampled tokens.

    Args:
        data: as for `compute_kl_sample_train`.
        post_logprobs: of all tokens of each of `full_sequences(data)`, as `compute_logprobs`
            answers under the new weights; the first is not looked at.

    Returns:
        As `compute_kl_sample_train`; tinker-cookbook logs `kl_v1` as `kl_pre_post_v1`.

    Raises:
        DataError: as for `compute_kl_sample_train`.

    Example:
        >>> ids, p = np.array([5, 6]), np.array([-1.0, -1.0], np.float32)
        >>> datum = Datum(tokens=ids, target_tokens=ids, logprobs=p)
        >>> float(compute_post_kl([datum], [[None, -1.0, -2.0]]).kl_v1)
        0.5
    """
    batch = _batch_of(data)
    post = batch.column(post_logprobs)
    distance: numerics.SampleTrainKL = numerics.sample_train_kl(
        batch.sampling_logprobs, post, batch.mask
    )
    return distance


def incorporate_kl_penalty(
    data: Sequence[Datum],
    base_logprobs: Sequence[Sequence[float | None] | np.ndarray],
    *,
    coef: float,
    gamma: float = 0.0,
) -> KLPenalized:
    """Datums whose advantages also say to stay near the base model: `kl_shaped`, for datums.

    Args:
        data: with `logprobs` and `advantages`; `weights` of None count as all sampled. They stay
            as they are.
        base_logprobs: of all tokens of each of `full_sequences(data)`, as `compute_logprobs`
            answers; the first is not looked at.
        coef: weight of the penalty, per nat.
        gamma: discount per token, 0 to 1.

    Raises:
        ConfigurationError: γ is not between 0 and 1, or `coef` is not finite.
        DataError: a datum lacks a column, log-probabilities are for other tokens than its own, or
            those of a sampled token are not finite.

    Example:
        >>> ids, p = np.array([5, 6]), np.array([-1.0, -1.0], np.float32)
        >>> datum = Datum(tokens=ids, target_tokens=ids, logprobs=p, advantages=np.zeros_like(p))
        >>> penalized, mean = incorporate_kl_penalty([datum], [[None, -2.0, -1.0]], coef=0.5)
        >>> penalized[0].advantages.tolist(), mean
        ([-0.25, 0.25], 0.5)
    """
    batch = _batch_of(data)
    unshaped = _lay_out(
        _columns(data, "advantages"), batch.row_starts + 1, np.zeros_like(batch.sampling_logprobs)
    )
    shaped = kl_shaped(batch, unshaped, batch.column(base_logprobs), coef=coef, gamma=gamma)
    ends = batch.row_starts + batch.row_lengths
    penalized = [
        replace(datum, advantages=shaped.advantages[first + 1 : end])
        for datum, first, end in zip(data, batch.row_starts.tolist(), ends.tolist(), strict=True)
    ]
    return KLPenalized(data=penalized, kl_policy_base=shaped.mean_kl)


def full_sequences(data: Sequence[Datum]) -> list[Int[np.ndarray, " _"]]:
    """Each datum's tokens with its last target: what a base model or teacher is asked to score.

    Example:
        >>> ids = np.array([5, 6, 7])
        >>> full_sequences([Datum(tokens=ids[:-1], target_tokens=ids[1:])])
        [array([5, 6, 7])]
    """
    return [np.append(datum.tokens, datum.target_tokens[-1]) for datum in data]


def _batch_of(data: Sequence[Datum]) -> TrajectoryBatch:
    """A batch in which every datum is the only row of a group of one."""
    masks = [_mask(index, datum) for index, datum in enumerate(data)]
    lengths = np.array([datum.length + 1 for datum in data], np.int64)
    starts, size = row_layout(lengths)
    tokens = _lay_out([datum.tokens for datum in data], starts, np.zeros(size, np.int32))
    tokens[starts + lengths - 1] = [datum.target_tokens[-1] for datum in data]
    mask = _lay_out(masks, starts + 1, np.zeros(size, bool))
    logprobs = _lay_out(_columns(data, "logprobs"), starts + 1, np.zeros(size, np.float32))
    return TrajectoryBatch(
        tokens=tokens,
        mask=mask,
        sampling_logprobs=np.where(mask, logprobs, np.float32(0)),
        row_starts=starts,
        row_lengths=lengths,
        row_trajectory=np.arange(len(data)),
        trajectory_group=np.arange(len(data)),
        rewards=np.zeros(len(data)),
        group_sizes=np.ones(len(data), np.int64),
    )


def _mask(index: int, datum: Datum) -> np.ndarray:
    if datum.target_tokens.ndim != 1:
        raise DataError(
            f"datum {index} has {datum.target_tokens.shape[1]} candidates a token; reinforcement "
            "learning needs the one that was sampled"
        )
    return np.ones(datum.length, bool) if datum.weights is None else datum.weights > 0


def _columns(data: Sequence[Datum], name: str) -> list[np.ndarray]:
    columns = [getattr(datum, name) for datum in data]
    for index, column in enumerate(columns):
        if column is None:
            raise DataError(f"datum {index} has no {name}; make it from sampled trajectories")
    return columns


def _training_columns(
    data: Sequence[Datum], logprobs: Sequence[Real[AnyArray, "..."]]
) -> list[np.ndarray]:
    if len(logprobs) != len(data):
        raise DataError(
            f"log-probabilities are needed for each of {len(data)} datums, got {len(logprobs)}"
        )
    columns = [np.asarray(row) for row in logprobs]
    for index, (datum, column) in enumerate(zip(data, columns, strict=True)):
        if column.shape != datum.tokens.shape:
            raise DataError(
                f"datum {index} has {datum.length} targets and needs a log-probability for each, "
                f"got shape {column.shape}"
            )
    return columns


def _lay_out(
    rows: list[np.ndarray], firsts: Int[np.ndarray, " row"], flat: np.ndarray
) -> np.ndarray:
    """Writes each row into `flat` from its place on."""
    for row, first in zip(rows, firsts.tolist(), strict=True):
        flat[first : first + len(row)] = row
    return flat
