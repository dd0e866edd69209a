"""What a step learns from its groups: the choices, and the datums they lead to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Real

from cookbook_fx import numerics
from cookbook_fx.data import Datum, bucket
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.numerics import LossSpec, PolicyDiagnostics, policy_diagnostics
from cookbook_fx.numerics.masked import AnyArray
from cookbook_fx.rl.batch import BLOCK, TrajectoryBatch, trajectory_batch
from cookbook_fx.rl.shaping import (
    Estimator,
    batch_data,
    group_advantages,
    kl_shaped,
    token_advantages,
)
from cookbook_fx.rl.trajectory import TrajectoryGroup


def _none(rewards: AnyArray, *, mask: AnyArray) -> AnyArray:
    del rewards
    return np.zeros(mask.shape, np.float32)


_ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "group_centered": numerics.group_centered,
        "group_normalized": numerics.group_normalized,
        "leave_one_out": numerics.leave_one_out,
        "max_rl": numerics.max_rl,
        "none": _none,
    }
)
_CLIPPED_LOSSES = ("ppo", "cispo", "gspo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is made of rewards, and what is minimised.

    Args:
        advantages: how a trajectory is judged against its group: group_centered, group_normalized,
            leave_one_out or max_rl, as in `numerics`; none pays no heed to rewards and leaves the
            KL penalty, as distillation does.
        loss: a policy loss by Tinker's name: importance_sampling, ppo, cispo, dro or gspo.
        loss_config: its settings by Tinker's names, where they are not to be its defaults.
        truncate_ratios: with importance_sampling, the largest ratio r between the weights that
            learn and those that sampled; None is no limit. The gradient -r A ∇p becomes
            -min(r, c) A ∇p: cispo's, clipped at 0 and c, and so it is sent.
        remove_constant_reward_groups: leave groups out whose trajectories all earned the same.
            Without a KL penalty there is no other gradient to be had of them than 0.
        kl_penalty_coef: weight of the penalty for leaving a base policy, per nat; 0 is none.
        kl_discount_factor: charges a token also for what follows in its row, discounted so; 0
            charges each for itself alone.
        kl_centered: whether the penalty's mean is taken out, so that it favors no length. With a
            teacher in place of the base policy, False makes it on-policy distillation.

    Raises:
        ConfigurationError: a name, a setting or a combination of them that cannot work.

    Example:
        >>> Objective(loss="ppo", loss_config={"clip_high_threshold": 1.3}).loss_spec.settings
        {'clip_low_threshold': 0.8, 'clip_high_threshold': 1.3}
        >>> Objective(truncate_ratios=2.0).loss_spec.name
        'cispo'

    Reference: Espeholt et al. 2018, arXiv:1802.01561, section 4.1, for truncated ratios; MiniMax
        2025, arXiv:2506.13585, section 3.1, for cispo.
    """

    advantages: str = "group_centered"
    loss: str = "importance_sampling"
    loss_config: Mapping[str, float] = field(default_factory=dict)
    truncate_ratios: float | None = None
    remove_constant_reward_groups: bool = False
    kl_penalty_coef: float = 0.0
    kl_discount_factor: float = 0.0
    kl_centered: bool = True

    def __post_init__(self) -> None:
        if self.advantages not in _ESTIMATORS:
            raise ConfigurationError(
                f"`advantages` must be one of {', '.join(_ESTIMATORS)}; got {self.advantages!r}"
            )
        if not LossSpec(name=self.loss, config=self.loss_config).is_policy_loss:
            raise ConfigurationError(
                f"reinforcement learning needs a policy loss, such as importance_sampling or ppo; "
                f"got {self.loss!r}, which looks at no advantages"
            )
        if self.truncate_ratios is not None:
            if self.loss != "importance_sampling":
                raise ConfigurationError(
                    f"`truncate_ratios` is for the loss importance_sampling, got {self.loss!r}; "
                    "its own clipping is set in `loss_config`"
                )
            if not 0 < self.truncate_ratios < float("inf"):
                raise ConfigurationError(
                    "`truncate_ratios` is the largest ratio, a finite number above 0, commonly 2; "
                    f"got {self.truncate_ratios}"
                )
        if not 0 <= self.kl_penalty_coef < float("inf"):
            raise ConfigurationError(
                "`kl_penalty_coef` is what a nat costs, a finite number from 0 on; got "
                f"{self.kl_penalty_coef}"
            )
        if not 0 <= self.kl_discount_factor <= 1:
            raise ConfigurationError(
                "`kl_discount_factor` is a discount per token, from 0 to 1; got "
                f"{self.kl_discount_factor}"
            )
        if self.advantages == "none" and (
            self.kl_penalty_coef == 0 or self.remove_constant_reward_groups
        ):
            raise ConfigurationError(
                "without rewards (`advantages` none) there is only the KL penalty to learn from: "
                "it needs a `kl_penalty_coef` above 0, and the groups that "
                "`remove_constant_reward_groups` would leave out"
            )

    @property
    def loss_spec(self) -> LossSpec:
        """The loss as an engine is told of it."""
        if self.truncate_ratios is None:
            return LossSpec(name=self.loss, config=self.loss_config)
        bounds = {"clip_low_threshold": 0.0, "clip_high_threshold": self.truncate_ratios}
        return LossSpec(name="cispo", config=bounds)

    @property
    def is_clipped(self) -> bool:
        """Whether a token's ratio can drive the loss only so far, as off-policy data need it."""
        return self.loss_spec.name in _CLIPPED_LOSSES


class TrainingBatch(NamedTuple):
    """What one forward and backward pass is made of.

    Fields:
        batch: the rows of the groups.
        data: the datums made of them, one a row; none where nothing is to be learnt.
        mean_kl: the KL penalty's mean, sampling against base policy, in nats a token; None
            without a penalty.
    """

    batch: TrajectoryBatch
    data: list[Datum]
    mean_kl: float | None


def objective_batch(groups: Sequence[TrajectoryGroup], objective: Objective) -> TrajectoryBatch:
    """The rows that an objective learns from: its `sequences()` are those a base model scores.

    Raises:
        DataError: as `trajectory_batch`.
    """
    return trajectory_batch(
        groups, remove_constant_reward_groups=objective.remove_constant_reward_groups
    )


def training_data(
    batch: TrajectoryBatch,
    objective: Objective,
    *,
    base_logprobs: Sequence[Sequence[Any] | np.ndarray] | None = None,
) -> TrainingBatch:
    """The datums of a batch, with advantages and, where asked for, the KL penalty in them.

    Args:
        batch: of `objective_batch`. The mean that the penalty is centered by is over its tokens.
        objective: the choices.
        base_logprobs: for each of `batch.sequences()` a value a token, under the base policy;
            needed with a penalty, and not looked at without.

    Raises:
        DataError: the base log-probabilities are missing, or are for other rows; or one of a
            sampled token is not finite.
    """
    estimator = _ESTIMATORS[objective.advantages]
    advantages = token_advantages(batch, group_advantages(batch, estimator))
    if objective.kl_penalty_coef == 0:
        return TrainingBatch(batch=batch, data=batch_data(batch, advantages), mean_kl=None)
    if base_logprobs is None:
        raise DataError(
            "a KL penalty needs the base policy's log-probabilities of every row; have it score "
            "what `objective_batch(groups, objective).sequences()` lists"
        )
    shaped = kl_shaped(
        batch,
        advantages,
        batch.column(base_logprobs),
        coef=objective.kl_penalty_coef,
        gamma=objective.kl_discount_factor,
        centered=objective.kl_centered,
    )
    data = batch_data(batch, shaped.advantages)
    return TrainingBatch(batch=batch, data=data, mean_kl=shaped.mean_kl)


def training_batch(
    groups: Sequence[TrajectoryGroup],
    objective: Objective,
    *,
    base_logprobs: Sequence[Sequence[Any] | np.ndarray] | None = None,
) -> TrainingBatch:
    """What one forward and backward pass over `groups` is made of: a function of its arguments.

    Args:
        groups: those of one pass, whatever their sizes; a failed group may be empty.
        objective: the choices.
        base_logprobs: as for `training_data`.

    Raises:
        DataError: as `objective_batch` and `training_data`.

    Example:
        >>> from cookbook_fx import rl
        >>> from cookbook_fx.tokens import TokensWithLogprobs
        >>> def answered(token, reward):
        ...     action = TokensWithLogprobs(tokens=[token], maybe_logprobs=[-1.0])
        ...     turn = rl.Transition(ob=[1, 2], ac=action, reward=reward, episode_done=True)
        ...     return rl.Trajectory(transitions=[turn], final_ob=[])
        >>> group = rl.TrajectoryGroup(
        ...     trajectories_G=[answered(5, 1), answered(6, 0)],
        ...     final_rewards_G=[0, 0], metrics_G=[{}, {}])
        >>> made = training_batch([group], Objective())
        >>> [datum.advantages.tolist() for datum in made.data]
        [[0.0, 0.5], [0.0, -0.5]]
    """
    batch = objective_batch(groups, objective)
    return training_data(batch, objective, base_logprobs=base_logprobs)


def data_digest(data: Sequence[Datum]) -> str:
    """SHA-256 over dtype, shape and bytes of every column of every datum, in order.

    Example:
        >>> ids = np.array([5, 6], np.int32)
        >>> one, other = Datum(tokens=ids, target_tokens=ids), Datum(tokens=ids, target_tokens=-ids)
        >>> data_digest([one]) == data_digest([one]), data_digest([one]) == data_digest([other])
        (True, False)
    """
    digest = hashlib.sha256()
    for datum in data:
        for name in _COLUMNS:
            column = getattr(datum, name)
            if column is None:
                digest.update(f"{name} None;".encode())
                continue
            digest.update(f"{name} {column.dtype.str} {column.shape};".encode())
            digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


_COLUMNS = (
    "tokens",
    "target_tokens",
    "weights",
    "logprobs",
    "advantages",
    "sequence_ratio_mask",
)


def objective_diagnostics(
    data: Sequence[Datum],
    training_logprobs: Sequence[Real[AnyArray, "..."]],
    objective: Objective,
) -> PolicyDiagnostics:
    """How far the weights that learn are from those that sampled, and what the loss's clip stops.

    Clip fractions are those of the loss itself: of ppo the tokens left without gradient, of cispo
    the tokens whose ratio is cut; 0 for losses that clip no token's ratio.

    Args:
        data: as `training_data` makes them.
        training_logprobs: of each datum's targets, as `forward_backward` answers.
        objective: whose loss it was.

    Raises:
        DataError: there are not as many log-probabilities as datums have targets.

    Example:
        >>> ids, p = np.array([5, 6]), np.array([0.0, -1.0], np.float32)
        >>> datum = Datum(tokens=ids, target_tokens=ids, logprobs=p, advantages=p,
        ...     weights=np.array([0, 1], np.float32))
        >>> float(objective_diagnostics([datum], [p - 0.5], Objective()).kl_v1)
        0.5
    """
    lengths = [datum.length for datum in data]
    if [np.shape(row) for row in training_logprobs] != [(length,) for length in lengths]:
        raise DataError(
            f"log-probabilities are needed for each target of {len(data)} datums, with "
            f"{sum(lengths)} targets; got {len(training_logprobs)} rows with "
            f"{sum(map(np.size, training_logprobs))} numbers"
        )
    size = bucket(-(-sum(lengths) // BLOCK)) * BLOCK
    loss = objective.loss_spec
    low, high = _NO_CLIP
    if loss.name in ("ppo", "cispo"):
        low, high = loss.settings["clip_low_threshold"], loss.settings["clip_high_threshold"]
    advantages = _flat([datum.advantages for datum in data], size)
    found: PolicyDiagnostics = policy_diagnostics(
        _flat(training_logprobs, size),
        sampling_logprobs=_flat([datum.logprobs for datum in data], size),
        mask=_flat([datum.weights for datum in data], size) > 0,
        advantages=None if loss.name == "cispo" else advantages,
        clip_low_threshold=low,
        clip_high_threshold=high,
    )
    return found


_NO_CLIP = (0.0, float("inf"))


def _flat(rows: Sequence[Any], size: int) -> Float[np.ndarray, " flat"]:
    """One row behind the other, then zeros: sizes from a few buckets compile little."""
    flat = np.zeros(size, np.float32)
    joined = np.concatenate([np.zeros(0, np.float32), *rows])
    flat[: len(joined)] = joined
    return flat
