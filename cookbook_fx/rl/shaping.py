"""From a batch to what a training step learns: advantages, their penalty, the datums.

Each function is one link of a chain and may be replaced by your own: between them are arrays with
a value a trajectory or a value a token, the latter in the flat layout of `TrajectoryBatch`.
Nothing is changed in place, and a batch without rows passes through all of it. All of it is work of
the host between programs, not for `jit`: inside your own, compose what it calls, `numerics`.

Example:
    >>> from cookbook_fx import rl
    >>> from cookbook_fx.tokens import TokensWithLogprobs
    >>> def answered(*tokens, reward):
    ...     action = TokensWithLogprobs(tokens=tokens, maybe_logprobs=[-1.0] * len(tokens))
    ...     turn = rl.Transition(ob=[1, 2], ac=action, reward=reward, episode_done=True)
    ...     return rl.Trajectory(transitions=[turn], final_ob=[])
    >>> group = rl.TrajectoryGroup(
    ...     trajectories_G=[answered(5, 6, reward=1), answered(7, reward=0)],
    ...     final_rewards_G=[0, 0], metrics_G=[{}, {}])
    >>> batch = rl.trajectory_batch([group])
    >>> advantages = token_advantages(batch, group_advantages(batch))
    >>> base = batch.column([[None, -2, -2, -1], [None, -2, -3]])
    >>> shaped = kl_shaped(batch, advantages, base, coef=0.5)
    >>> [datum.advantages.tolist() for datum in batch_data(batch, shaped.advantages)]
    [[0.0, 0.5, 1.0], [0.0, -1.0]]
    >>> shaped.mean_kl
    1.0
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Integer, Real

from cookbook_fx import numerics
from cookbook_fx.data import Datum, power_of_two
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.numerics.masked import AnyArray
from cookbook_fx.rl.batch import BLOCK, TrajectoryBatch

# (rewards [group, rollout], *, mask) -> advantages of the same shape.
Estimator = Callable[..., AnyArray]

# Tables with fewer groups or rollouts are padded to this many: a program more costs a second.
_SMALLEST_TABLE = 8


class KLShaped(NamedTuple):
    """Advantages with the penalty for leaving the base model in them.

    Args:
        advantages: a value a token.
        mean_kl: mean of log p_sampling - log p_base over the mask, in nats a token: an estimate
            of KL(sampling || base).
    """

    advantages: Float[np.ndarray, " flat"]
    mean_kl: float


def group_advantages(
    batch: TrajectoryBatch, estimator: Estimator = numerics.group_centered
) -> Float[np.ndarray, " trajectory"]:
    """How much better each trajectory did than its group, in the sense of your choice.

    Args:
        batch: groups may differ in size; trajectories without a row count like the others.
        estimator: `numerics.group_centered`, `group_normalized`, `leave_one_out`, `max_rl`, or any
            function of (rewards [group, rollout], *, mask) that answers in the rewards' shape.
            Rewards are handed over padded with 0, where the mask is False, to powers of two, so
            that group sizes that vary compile little.

    Returns:
        In float32, in the order of `batch.rewards`; empty for no trajectories. What groups of one
        and groups of equal rewards get is the estimator's to say, and 0 for those named above.

    Raises:
        DataError: the estimator answered in another shape.

    Example:
        See the top of this file.

    Reference: Shao et al. 2024, arXiv:2402.03300, section 4.1, for groups as baselines.
    """
    return estimate_by_group(batch.rewards, batch.group_sizes, estimator)


def estimate_by_group(
    rewards: Real[np.ndarray, " trajectory"],
    group_sizes: Integer[np.ndarray, " group"],
    estimator: Estimator,
) -> Float[np.ndarray, " trajectory"]:
    """`group_advantages` of bare rewards.

    Args:
        rewards: group after group.
        group_sizes: trajectories of each group, 0 allowed; they add up to the rewards.
        estimator: as for `group_advantages`.

    Raises:
        DataError: the estimator answered in another shape.

    Example:
        >>> estimate_by_group(np.array([1, 0, 5]), np.array([2, 1]), numerics.group_centered)
        array([ 0.5, -0.5,  0. ], dtype=float32)
    """
    groups = power_of_two(max(len(group_sizes), _SMALLEST_TABLE))
    rollouts = power_of_two(int(group_sizes.max(initial=_SMALLEST_TABLE)))
    mask = np.arange(rollouts) < np.pad(group_sizes, (0, groups - len(group_sizes)))[:, None]
    table = np.zeros(mask.shape)
    table[mask] = rewards
    # Rewards beyond float32 are refused as the infinite advantages they lead to. The warning of the
    # conversion, where warnings are errors, jaxlib 0.10 would not survive.
    with np.errstate(over="ignore"):
        advantages = np.asarray(estimator(table, mask=mask), np.float32)
    if advantages.shape != mask.shape:
        raise DataError(
            f"an estimator must answer rewards of shape {mask.shape} with advantages of that "
            f"shape, got {advantages.shape}"
        )
    present: np.ndarray = advantages[mask]
    return present


def token_advantages(
    batch: TrajectoryBatch, advantages: Real[AnyArray, "..."]
) -> Float[np.ndarray, " flat"]:
    """Gives every sampled token the advantage of its trajectory.

    Args:
        batch: says which tokens were sampled, and by which trajectory.
        advantages: one for each trajectory of the batch, those without rows included.

    Returns:
        A value a token; 0 off the mask.

    Raises:
        DataError: the batch has another number of trajectories, or an advantage is not finite.

    Example:
        See the top of this file.
    """
    of_trajectory = np.asarray(advantages, np.float32)
    if of_trajectory.shape != batch.rewards.shape:
        raise DataError(
            f"the batch has {len(batch.rewards)} trajectories and needs an advantage for each, in "
            f"one dimension; got shape {of_trajectory.shape}"
        )
    if not np.isfinite(of_trajectory).all():
        first = int(np.argmin(np.isfinite(of_trajectory)))
        raise DataError(
            f"advantages must be finite, that of trajectory {first} is {of_trajectory[first]} "
            f"(its reward is {batch.rewards[first]})"
        )
    return _spread(batch, of_trajectory)


def trajectory_mean_weights(batch: TrajectoryBatch) -> Float[np.ndarray, " flat"]:
    """wₜ = 1 / (N nᵢ) at each of the nᵢ sampled tokens of trajectory i: every episode counts alike.

    Multiplied into advantages they make the summed loss GRPO's mean over episodes of their means
    over tokens: `numerics.sequence_mean_weights` for this layout, with an episode's rows together.
    `numerics.token_mean_weights(batch.mask)` is the mean over all tokens, DAPO's.

    Args:
        batch: N is the number of its trajectories with a token on the mask.

    Returns:
        A value a token, adding up to 1; 0 off the mask, and everywhere where nothing is unmasked.

    Example:
        >>> from cookbook_fx import rl
        >>> from cookbook_fx.tokens import TokensWithLogprobs
        >>> def answered(*tokens):
        ...     action = TokensWithLogprobs(tokens=tokens, maybe_logprobs=[-1.0] * len(tokens))
        ...     turn = rl.Transition(ob=[1, 2], ac=action, reward=1, episode_done=True)
        ...     return rl.Trajectory(transitions=[turn], final_ob=[])
        >>> batch = rl.trajectory_batch([rl.TrajectoryGroup(
        ...     trajectories_G=[answered(5, 6), answered(7)],
        ...     final_rewards_G=[0, 0], metrics_G=[{}, {}])])
        >>> trajectory_mean_weights(batch)[batch.mask].tolist()
        [0.25, 0.25, 0.5]

    Reference: Shao et al. 2024, arXiv:2402.03300, equation 3.
    """
    of_block = np.count_nonzero(batch.mask.reshape(-1, BLOCK), axis=1)
    rows = _rows_of_blocks(batch)
    counts = np.bincount(
        batch.row_trajectory[rows],
        weights=of_block[: len(rows)],
        minlength=len(batch.rewards),
    )
    present = np.count_nonzero(counts)
    return _spread(batch, (1 / np.maximum(counts * present, 1)).astype(np.float32))


def kl_shaped(
    batch: TrajectoryBatch,
    advantages: Real[AnyArray, "..."],
    base_logprobs: Float[AnyArray, "..."],
    *,
    coef: float,
    gamma: float = 0.0,
    centered: bool = True,
) -> KLShaped:
    """Adds to advantages a penalty for sampling what a base model or teacher finds unlikely.

    With δₜ = log p_sampling - log p_base of each sampled token and δ̄ their mean over the batch:

        Aₜ + coef Σₖ γᵏ (δ̄ - δₜ₊ₖ),  k = 0, 1, 2...

    over the sampled tokens that follow in the row, and for γ = 0 over the token itself alone. Only
    sampled tokens receive it: prompts stay as they are, discounted or not.

    Args:
        batch: where the tokens stand, and how likely they were when sampled.
        advantages: a value a token, as from `token_advantages`.
        base_logprobs: a value a token, as from `TrajectoryBatch.column`; anything off the mask.
        coef: weight of the penalty, per nat.
        gamma: discount per token, 0 to 1.
        centered: False leaves δ̄ out; with a teacher as base, γ = 0 and advantages of 0 that is
            on-policy distillation by the reverse KL.

    Returns:
        The new advantages and δ̄. Where nothing is unmasked, the advantages as given and 0.

    Raises:
        ConfigurationError: γ is not between 0 and 1, or `coef` is not finite.
        DataError: a column has not the batch's flat size, or the base log-probability of a
            sampled token is nan or -inf. (One of -inf from sampling makes δ = 0.)

    Example:
        See the top of this file.

    Reference: Ziegler et al. 2019, arXiv:1909.08593, section 2; Agarwal et al. 2024,
        arXiv:2306.13649, for the reverse KL to a teacher.
    """
    if not 0 <= gamma <= 1:
        raise ConfigurationError(f"`gamma` is a discount per token, from 0 to 1; got {gamma}")
    if not np.isfinite(coef):
        raise ConfigurationError(f"`coef` is what a nat costs, a finite number; got {coef}")
    unshaped = _of_tokens(batch, advantages, "advantages")
    base = _of_tokens(batch, base_logprobs, "base_logprobs")
    penalty, mean_kl = jax.device_get(
        numerics.kl_penalty(
            batch.sampling_logprobs.reshape(-1, BLOCK),
            base.reshape(-1, BLOCK),
            batch.mask.reshape(-1, BLOCK),
            # As Python's numbers: of another kind they would make another program, or a wider type.
            coef=float(coef),
            gamma=float(gamma),
            centered=centered,
            starts=batch.block_starts,
        )
    )
    if not np.isfinite(mean_kl):
        _refuse_infinite(batch, base)
    return KLShaped(advantages=unshaped + penalty.reshape(-1), mean_kl=float(mean_kl))


def batch_data(batch: TrajectoryBatch, advantages: Real[AnyArray, "..."]) -> list[Datum]:
    """One datum a row: each token predicts the next, those sampled with their advantage.

    Args:
        batch: its log-probabilities and tokens are viewed, not copied.
        advantages: a value a token; multiply them with `numerics.token_mean_weights` and its kind
            to turn the summed loss into a mean.

    Returns:
        In the order of the batch's rows, with `logprobs`, `advantages` and, as `weights`, the mask
        as 0 and 1. Each has one token fewer than its row.

    Raises:
        DataError: the advantages have not the batch's flat size.

    Example:
        See the top of this file.
    """
    columns = _of_tokens(batch, advantages, "advantages")
    weights = batch.mask.astype(np.float32)
    tokens, logprobs = batch.tokens, batch.sampling_logprobs
    # As Tinker takes targets: widened all at once, and not datum by datum when they are sent.
    targets = tokens.astype(np.int64)
    ends = batch.row_starts + batch.row_lengths
    return [
        Datum(
            tokens=tokens[first : end - 1],
            target_tokens=targets[first + 1 : end],
            weights=weights[first + 1 : end],
            logprobs=logprobs[first + 1 : end],
            advantages=columns[first + 1 : end],
        )
        for first, end in zip(batch.row_starts.tolist(), ends.tolist(), strict=True)
    ]


def _rows_of_blocks(batch: TrajectoryBatch) -> Integer[np.ndarray, " block"]:
    """The row each block is of, up to the last block of the last row."""
    return np.repeat(np.arange(len(batch.row_lengths)), -(-batch.row_lengths // BLOCK))


def _spread(
    batch: TrajectoryBatch, of_trajectory: Float[np.ndarray, " trajectory"]
) -> Float[np.ndarray, " flat"]:
    """Each trajectory's value at its tokens of the mask, 0 elsewhere."""
    rows = _rows_of_blocks(batch)
    of_block = np.zeros(batch.mask.size // BLOCK, np.float32)
    of_block[: len(rows)] = of_trajectory[batch.row_trajectory[rows]]
    # Selecting with `np.where` takes ten times as long where the mask is ragged.
    values = np.repeat(of_block, BLOCK)
    values *= batch.mask
    values += 0  # -0.0, which a negative value leaves off the mask, becomes 0.0
    return values


def _of_tokens(batch: TrajectoryBatch, column: AnyArray, name: str) -> np.ndarray:
    """The column as NumPy's float32, refused where it is not the batch's."""
    values = np.asarray(column, np.float32)
    if values.shape != batch.mask.shape:
        raise DataError(
            f"{name} must have a value for each token of the batch, shape {batch.mask.shape}, got "
            f"{values.shape}; `token_advantages` and `TrajectoryBatch.column` lay them out"
        )
    return values


def _refuse_infinite(batch: TrajectoryBatch, base: np.ndarray) -> None:
    # Subtracted once more only to say where: the mean has told that there is such a place.
    counts = batch.mask & (batch.sampling_logprobs > -np.inf)
    distances = np.abs(np.where(counts, batch.sampling_logprobs - base, 0))
    place = int(np.argmax(distances))
    row = int(np.searchsorted(batch.row_starts, place, side="right")) - 1
    raise DataError(
        f"base log-probabilities of sampled tokens must be finite, that of token "
        f"{place - int(batch.row_starts[row])} of row {row} is {base[place]}; clip them from below "
        "or leave the trajectory out"
    )
