"""Losses a policy is trained with, per token and by the names Tinker gives them.

Throughout, p are the log-probabilities (nats) of the targets under the current weights, q those
recorded when the targets were sampled, A the advantages and r = exp(p - q). A loss is minimised,
is summed over tokens (never averaged), and is multiplied by `weights`: any sign, 0 where nothing is
learnt. Where a weight is 0, loss and gradient are exactly 0, whatever the other inputs hold.

Elsewhere infinities follow the formulas, with one addition: where p and q are both -inf they agree,
and r is 1. p = -inf alone has r = 0. q = -inf alone has an infinite r, which a clip bounds in value
and gradient on the side it clips; nothing else does, so give such tokens the weight 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics import masked
from cookbook_fx.numerics.masked import AnyArray

Threshold = Float[AnyArray, ""] | float


@jax.jit
def cross_entropy(
    logprobs: Float[AnyArray, "*token"], *, weights: Float[AnyArray, "*token"]
) -> Float[Array, "*token"]:
    """Weighted negative log-likelihood: -w p.

    Args:
        logprobs: p.
        weights: w.

    Example:
        >>> cross_entropy(jnp.array([-1.0, -jnp.inf]), weights=jnp.array([0.5, 0.0])).tolist()
        [0.5, 0.0]
    """
    return _weighted(lambda p: -p, weights, logprobs)


@jax.jit
def importance_sampling(
    logprobs: Float[AnyArray, "*token"],
    *,
    sampling_logprobs: Float[AnyArray, "*token"],
    advantages: Float[AnyArray, "*token"],
    weights: Float[AnyArray, "*token"],
) -> Float[Array, "*token"]:
    """Policy gradient with the sampling distribution divided out: -r A.

    Args:
        logprobs: p.
        sampling_logprobs: q.
        advantages: A.
        weights: multiplied into the loss.

    Example:
        >>> importance_sampling(
        ...     jnp.array([-1.0]), sampling_logprobs=jnp.array([-1.0]),
        ...     advantages=jnp.array([2.0]), weights=jnp.ones(1)).tolist()
        [-2.0]

    Reference: Schulman et al. 2017, arXiv:1707.06347, equation 6.
    """
    return _weighted(
        lambda p, q, advantage: -jnp.exp(log_ratio(p, q)) * advantage,
        weights,
        logprobs,
        sampling_logprobs,
        advantages,
    )


@jax.jit
def ppo(
    logprobs: Float[AnyArray, "*token"],
    *,
    sampling_logprobs: Float[AnyArray, "*token"],
    advantages: Float[AnyArray, "*token"],
    weights: Float[AnyArray, "*token"],
    clip_low_threshold: Threshold = 0.8,
    clip_high_threshold: Threshold = 1.2,
) -> Float[Array, "*token"]:
    """The clipped surrogate: -min(r A, clip(r, low, high) A).

    The gradient is -r A, and 0 where the clip binds (`clip_binds`).

    Args:
        logprobs: p.
        sampling_logprobs: q.
        advantages: A.
        weights: multiplied into the loss.
        clip_low_threshold: the smallest ratio itself, not its distance from 1.
        clip_high_threshold: the largest ratio itself.

    Example:
        >>> ppo(jnp.log(jnp.array([2.0])), sampling_logprobs=jnp.zeros(1),
        ...     advantages=jnp.ones(1), weights=jnp.ones(1), clip_high_threshold=1.5).tolist()
        [-1.5]

    Reference: Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    return _weighted(
        lambda p, q, advantage: _clipped_surrogate(
            log_ratio(p, q), advantage, clip_low_threshold, clip_high_threshold
        ),
        weights,
        logprobs,
        sampling_logprobs,
        advantages,
    )


@jax.jit
def cispo(
    logprobs: Float[AnyArray, "*token"],
    *,
    sampling_logprobs: Float[AnyArray, "*token"],
    advantages: Float[AnyArray, "*token"],
    weights: Float[AnyArray, "*token"],
    clip_low_threshold: Threshold = 0.0,
    clip_high_threshold: Threshold = 4.0,
) -> Float[Array, "*token"]:
    """Policy gradient with a clipped, undifferentiated ratio: -sg(clip(r, low, high)) p A.

    Args:
        logprobs: p.
        sampling_logprobs: q.
        advantages: A.
        weights: multiplied into the loss.
        clip_low_threshold: the smallest ratio itself.
        clip_high_threshold: the largest ratio itself.

    Example:
        >>> cispo(jnp.array([-0.5]), sampling_logprobs=jnp.array([-0.5]),
        ...     advantages=jnp.array([2.0]), weights=jnp.ones(1)).tolist()
        [1.0]

    Reference: MiniMax 2025, arXiv:2506.13585, section 3.1.
    """

    def loss(p: Array, q: Array, advantage: Array) -> Array:
        ratio = jnp.exp(log_ratio(jax.lax.stop_gradient(p), q))
        return -jnp.clip(ratio, clip_low_threshold, clip_high_threshold) * p * advantage

    return _weighted(loss, weights, logprobs, sampling_logprobs, advantages)


@jax.jit
def dro(
    logprobs: Float[AnyArray, "*token"],
    *,
    sampling_logprobs: Float[AnyArray, "*token"],
    advantages: Float[AnyArray, "*token"],
    weights: Float[AnyArray, "*token"],
    beta: Threshold = 0.05,
) -> Float[Array, "*token"]:
    """Direct reward optimisation: -(p A - beta/2 (p - q)^2).

    Args:
        logprobs: p.
        sampling_logprobs: q.
        advantages: A.
        weights: multiplied into the loss.
        beta: pull towards the sampling policy; 0.05 is the value of Tinker's own example.

    Example:
        >>> dro(jnp.array([-1.0]), sampling_logprobs=jnp.array([-3.0]),
        ...     advantages=jnp.ones(1), weights=jnp.ones(1), beta=0.5).tolist()
        [2.0]

    Reference: Richemond et al. 2024, arXiv:2405.19107.
    """
    return _weighted(
        lambda p, q, advantage: -(p * advantage - 0.5 * beta * log_ratio(p, q) ** 2),
        weights,
        logprobs,
        sampling_logprobs,
        advantages,
    )


@jax.jit
def gspo(
    logprobs: Float[AnyArray, "*row token"],
    *,
    sampling_logprobs: Float[AnyArray, "*row token"],
    advantages: Float[AnyArray, "*row token"],
    weights: Float[AnyArray, "*row token"],
    clip_low_threshold: Threshold,
    clip_high_threshold: Threshold,
    segments: Int[AnyArray, "*row token"] | None = None,
    sequence_ratio_mask: Bool[AnyArray, "*row token"] | None = None,
) -> Float[Array, "*row token"]:
    """PPO's clipped surrogate with the ratio of the whole sequence at each of its tokens.

    With s = exp(mean over the sequence of sg(p) - q), the geometric mean of its ratios, token i has
    the ratio s exp(p_i - sg(p_i)): in value s, in gradient s times its own. Where all advantages of
    a sequence are equal that is GSPO; the form per token allows them to differ. The gradient is
    -s A, and 0 where the clip binds (`clip_binds`).

    Args:
        logprobs: p; a row of the last axis is one sequence, if `segments` does not divide it.
        sampling_logprobs: q.
        advantages: A.
        weights: multiplied into the loss.
        clip_low_threshold: the smallest ratio of a sequence. Averaging brings s close to 1: the
            paper clips to 1 - 3e-4 and 1 + 4e-4.
        clip_high_threshold: the largest.
        segments: as for `sequence_log_ratios`.
        sequence_ratio_mask: which tokens enter s; None for those with a weight other than 0. A
            sequence without any has s = 1.

    Example:
        >>> gspo(jnp.array([-1.0, -3.0]), sampling_logprobs=jnp.array([-2.0, -2.0]),
        ...     advantages=jnp.array([1.0, 2.0]), weights=jnp.ones(2),
        ...     clip_low_threshold=0.9, clip_high_threshold=1.1).tolist()
        [-1.0, -2.0]

    Reference: Zheng et al. 2025, arXiv:2507.18071, equations 5-7, and section 4.3 for GSPO-token.
    """
    s = sequence_log_ratios(
        logprobs,
        sampling_logprobs=sampling_logprobs,
        mask=jnp.asarray(weights) != 0 if sequence_ratio_mask is None else sequence_ratio_mask,
        segments=segments,
    )
    return _weighted(
        lambda p, s, advantage: _clipped_surrogate(
            s + log_ratio(p, jax.lax.stop_gradient(p)),
            advantage,
            clip_low_threshold,
            clip_high_threshold,
        ),
        weights,
        logprobs,
        s,
        advantages,
    )


@jax.jit
def sequence_log_ratios(
    logprobs: Float[AnyArray, "*row token"],
    *,
    sampling_logprobs: Float[AnyArray, "*row token"],
    mask: Bool[AnyArray, "*row token"],
    segments: Int[AnyArray, "*row token"] | None = None,
) -> Float[Array, "*row token"]:
    """At each token, the mean of p - q over the masked tokens of its sequence; no gradient.

    Args:
        logprobs: p.
        sampling_logprobs: q.
        mask: which tokens are averaged.
        segments: a number per sequence, the same at all its tokens, which stand side by side in one
            row, and another at its neighbours'; None where each row is one sequence.

    Returns:
        Log-ratios (nats), off the mask too; 0 throughout a sequence with nothing on the mask.

    Example:
        >>> sequence_log_ratios(
        ...     jnp.array([-1.0, -3.0, -1.0]), sampling_logprobs=jnp.array([-2.0, -2.0, -2.0]),
        ...     mask=jnp.array([True, True, True]), segments=jnp.array([0, 0, 1])).tolist()
        [0.0, 0.0, 1.0]

    Reference: Zheng et al. 2025, arXiv:2507.18071, equation 7, whose logarithm this is.
    """
    p, q = masked.keep(logprobs, mask), masked.keep(sampling_logprobs, mask)
    ratios = jax.lax.stop_gradient(log_ratio(p, q))
    if segments is None or not ratios.size:
        mean = masked.mean(ratios, mask, axis=-1)
        return jnp.broadcast_to(mean[..., None], ratios.shape)
    width = ratios.shape[-1]
    rows = (x.reshape(-1, width) for x in (ratios, jnp.asarray(mask), jnp.asarray(segments)))
    return jax.vmap(_segment_means)(*rows).reshape(ratios.shape)


def _segment_means(values: Array, mask: Array, segments: Array) -> Array:
    """The mean of each run of equal segments, at its members."""
    run = jnp.cumsum(jnp.diff(segments, prepend=segments[:1]) != 0)
    sums, counts = (
        jax.ops.segment_sum(x, run, num_segments=len(values), indices_are_sorted=True)
        for x in (values, mask.astype(values.dtype))
    )
    return (sums / jnp.maximum(counts, 1))[run]


@jax.jit
def truncated_importance_weights(
    training_logprobs: Float[AnyArray, "*token"],
    sampling_logprobs: Float[AnyArray, "*token"],
    *,
    mask: Bool[AnyArray, "*token"],
    cap: Threshold,
) -> Float[Array, "*token"]:
    """What corrects a loss for a sampler that is not quite the learner: min(exp(p - q), cap).

    The sampler's arithmetic differs from the learner's, so that tokens come from another policy
    than the one whose log-probabilities the loss starts from. Multiply these into `weights`; the
    cap bounds the variance they bring, at the price of a bias. No gradient flows through them.

    Args:
        training_logprobs: p, the learner's, of the weights the samples were drawn with.
        sampling_logprobs: q, the sampler's.
        mask: which tokens were sampled.
        cap: the largest weight, above 0; 2 is common.

    Returns:
        Weights in [0, cap]; 0 off the mask. Where p = -inf 0, where q = -inf the cap, and where
        both are, they agree: 1, or the cap if that is less.

    Example:
        >>> truncated_importance_weights(
        ...     jnp.log(jnp.array([0.5, 0.8, 0.1])), jnp.log(jnp.array([0.5, 0.1, 0.4])),
        ...     mask=jnp.array([True, True, False]), cap=2.0).tolist()
        [1.0, 2.0, 0.0]

    Reference:
        Espeholt et al. 2018, arXiv:1802.01561, section 4.1 (the truncated weights of V-trace); Yao
        et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (the
        same between a sampler and a learner of language models).
    """
    p, q = masked.keep(training_logprobs, mask), masked.keep(sampling_logprobs, mask)
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio(p, q)))
    return jnp.where(mask, jnp.minimum(ratio, cap), 0)


def log_ratio(p: Float[Array, "*token"], q: Float[Array, "*token"]) -> Float[Array, "*token"]:
    """p - q in nats; 0 where both are -inf, which p - q calls nan.

    Example:
        >>> log_ratio(jnp.array([-1.0, -jnp.inf]), jnp.array([-3.0, -jnp.inf])).tolist()
        [2.0, 0.0]
    """
    impossible = (p == -jnp.inf) & (q == -jnp.inf)
    return jnp.where(impossible, 0, p) - jnp.where(impossible, 0, q)


class ClipBinds(NamedTuple):
    """Where the clipped surrogate is constant because the ratio has left the range."""

    low: Bool[Array, "*token"]
    high: Bool[Array, "*token"]


def clip_binds(
    ratios: Float[Array, "*token"],
    advantages: Float[Array, "*token"],
    *,
    clip_low_threshold: Threshold,
    clip_high_threshold: Threshold,
) -> ClipBinds:
    """Where min(r A, clip(r, low, high) A) takes the clipped side, and the gradient is 0.

    That is where the policy has already moved far enough in the direction the advantage asks for:
    low where r < low and A < 0, high where r > high and A > 0. A ratio on a threshold is inside.

    Args:
        ratios: r.
        advantages: A.
        clip_low_threshold: the smallest ratio itself.
        clip_high_threshold: the largest ratio itself.

    Example:
        >>> clip_binds(jnp.array([2.0, 2.0]), jnp.array([1.0, -1.0]),
        ...     clip_low_threshold=0.8, clip_high_threshold=1.2).high.tolist()
        [True, False]
    """
    return ClipBinds(
        low=(ratios < clip_low_threshold) & (advantages < 0),
        high=(ratios > clip_high_threshold) & (advantages > 0),
    )


def _clipped_surrogate(
    log_ratios: Array, advantage: Array, low: Threshold, high: Threshold
) -> Array:
    """-min(r A, clip(r, low, high) A), without ever differentiating the side not taken."""
    binds = clip_binds(
        jnp.exp(jax.lax.stop_gradient(log_ratios)),
        advantage,
        clip_low_threshold=low,
        clip_high_threshold=high,
    )
    free = jnp.exp(jnp.where(binds.low | binds.high, 0, log_ratios))
    return -jnp.where(binds.low, low, jnp.where(binds.high, high, free)) * advantage


def _weighted(loss: Callable[..., Array], weights: AnyArray, *inputs: AnyArray) -> Array:
    """Applies a loss where the weight is not 0."""
    weights = jnp.asarray(weights)
    trained = weights != 0
    return jnp.where(trained, loss(*(masked.keep(x, trained) for x in inputs)) * weights, 0)


# Which settings each loss takes, and what they are when not given.
LOSS_DEFAULTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "cross_entropy": {},
        "importance_sampling": {},
        "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
        "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
        "dro": {"beta": 0.05},
        "gspo": {},
    }
)
# Tinker does not publish its defaults for these, and ratios of sequences have no customary ones.
_REQUIRED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"gspo": ("clip_low_threshold", "clip_high_threshold")}
)
_POLICY_LOSSES: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "importance_sampling": importance_sampling,
        "ppo": ppo,
        "cispo": cispo,
        "dro": dro,
        "gspo": gspo,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec:
    """A loss by name, with its settings.

    Args:
        name: a key of `LOSS_DEFAULTS`.
        config: settings that differ from `LOSS_DEFAULTS[name]`, or have no default.

    Raises:
        ConfigurationError: an unknown name or setting, a setting without a default that is not
            given, one that is not a finite number, or clip thresholds in the wrong order.

    Example:
        >>> LossSpec(name="ppo", config={"clip_high_threshold": 1.3}).settings
        {'clip_low_threshold': 0.8, 'clip_high_threshold': 1.3}
    """

    name: str = "cross_entropy"
    config: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in LOSS_DEFAULTS:
            raise ConfigurationError(
                f"unknown loss {self.name!r}; known losses: {', '.join(LOSS_DEFAULTS)}"
            )
        required = _REQUIRED.get(self.name, ())
        known = (*LOSS_DEFAULTS[self.name], *required)
        for key, value in self.config.items():
            if key not in known:
                raise ConfigurationError(
                    f"loss {self.name} has no setting {key!r}; "
                    f"it takes: {', '.join(known) or 'none'}"
                )
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not abs(value) < float("inf")
            ):
                raise ConfigurationError(
                    f"setting {key} of loss {self.name} must be a finite number, got {value!r}"
                )
        missing = [key for key in required if key not in self.config]
        if missing:
            raise ConfigurationError(
                f"loss {self.name} needs {' and '.join(missing)} in its config: there is no "
                "customary value for the ratio of a sequence; its paper takes 0.9997 and 1.0004"
            )
        settings = self.settings
        low, high = settings.get("clip_low_threshold", 0), settings.get("clip_high_threshold", 1)
        if low > high:
            raise ConfigurationError(
                f"clip_low_threshold {low} is above clip_high_threshold {high}; "
                "both bound the ratio itself, as in 0.8 and 1.2"
            )

    @property
    def settings(self) -> dict[str, float]:
        """Every setting of the loss, defaults included."""
        return {**LOSS_DEFAULTS[self.name], **self.config}

    @property
    def is_policy_loss(self) -> bool:
        """Whether the loss needs sampling log-probabilities and advantages."""
        return self.name in _POLICY_LOSSES


def token_losses(
    name: str,
    logprobs: Float[AnyArray, "token candidate"],
    *,
    weights: Float[AnyArray, "token candidate"],
    sampling_logprobs: Float[AnyArray, " token"] | None = None,
    advantages: Float[AnyArray, " token"] | None = None,
    settings: Mapping[str, Threshold],
) -> Float[Array, "token candidate"]:
    """The loss of that name, as a record-free function to put under `jit` and `grad`.

    The tokens are those of one sequence, which matters to gspo alone.

    Args:
        name: a key of `LOSS_DEFAULTS`.
        logprobs: p of each candidate target; policy losses have one candidate.
        weights: of each candidate.
        sampling_logprobs: q; needed by policy losses.
        advantages: A; needed by policy losses.
        settings: `LossSpec.settings`; may be traced, so that a change compiles nothing.

    Raises:
        ConfigurationError: a policy loss without its inputs.

    Example:
        >>> p, ones = -jnp.ones((2, 1)), jnp.ones((2, 1))
        >>> token_losses("cross_entropy", p, weights=ones, settings={}).tolist()
        [[1.0], [1.0]]
    """
    losses: Array
    if name == "cross_entropy":
        losses = cross_entropy(logprobs, weights=weights)
        return losses
    if sampling_logprobs is None or advantages is None:
        raise ConfigurationError(f"loss {name} needs sampling_logprobs and advantages, got None")
    losses = _POLICY_LOSSES[name](
        logprobs.T,
        sampling_logprobs=sampling_logprobs[None],
        advantages=advantages[None],
        weights=weights.T,
        **settings,
    )
    return losses.T
