"""Losses a policy is trained with, per token and by the names Tinker gives them.

Throughout, p are the log-probabilities (nats) of the targets under the current weights, q those
recorded when the targets were sampled, A the advantages and r = exp(p - q). A loss is minimised,
is summed over tokens (never averaged), and is multiplied by `weights`. Where a weight is 0 the
loss and its gradient are exactly 0, whatever the other inputs hold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cookbook_fx.errors import ConfigurationError


def cross_entropy(
    logprobs: Float[Array, "*token"], *, weights: Float[Array, "*token"]
) -> Float[Array, "*token"]:
    """Weighted negative log-likelihood: -w p.

    Args:
        logprobs: p.
        weights: w, any sign; 0 where nothing is learnt.

    Example:
        >>> cross_entropy(jnp.array([-1.0, -jnp.inf]), weights=jnp.array([0.5, 0.0])).tolist()
        [0.5, 0.0]
    """
    return _weighted(lambda p: -p, weights, logprobs)


def importance_sampling(
    logprobs: Float[Array, "*token"],
    *,
    sampling_logprobs: Float[Array, "*token"],
    advantages: Float[Array, "*token"],
    weights: Float[Array, "*token"],
) -> Float[Array, "*token"]:
    """Policy gradient with the sampling distribution divided out: -r A.

    Example:
        >>> importance_sampling(
        ...     jnp.array([-1.0]), sampling_logprobs=jnp.array([-1.0]),
        ...     advantages=jnp.array([2.0]), weights=jnp.ones(1)).tolist()
        [-2.0]
    """
    return _weighted(
        lambda p, q, advantage: -jnp.exp(p - q) * advantage,
        weights,
        logprobs,
        sampling_logprobs,
        advantages,
    )


def ppo(
    logprobs: Float[Array, "*token"],
    *,
    sampling_logprobs: Float[Array, "*token"],
    advantages: Float[Array, "*token"],
    weights: Float[Array, "*token"],
    clip_low_threshold: Float[Array, ""] | float = 0.8,
    clip_high_threshold: Float[Array, ""] | float = 1.2,
) -> Float[Array, "*token"]:
    """The clipped surrogate: -min(r A, clip(r, low, high) A).

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

    def loss(p: Array, q: Array, advantage: Array) -> Array:
        ratio = jnp.exp(p - q)
        clipped = jnp.clip(ratio, clip_low_threshold, clip_high_threshold)
        return -jnp.minimum(ratio * advantage, clipped * advantage)

    return _weighted(loss, weights, logprobs, sampling_logprobs, advantages)


def cispo(
    logprobs: Float[Array, "*token"],
    *,
    sampling_logprobs: Float[Array, "*token"],
    advantages: Float[Array, "*token"],
    weights: Float[Array, "*token"],
    clip_low_threshold: Float[Array, ""] | float = 0.0,
    clip_high_threshold: Float[Array, ""] | float = 4.0,
) -> Float[Array, "*token"]:
    """Policy gradient with a clipped, undifferentiated ratio: -sg(clip(r, low, high)) p A.

    Example:
        >>> cispo(jnp.array([-0.5]), sampling_logprobs=jnp.array([-0.5]),
        ...     advantages=jnp.array([2.0]), weights=jnp.ones(1)).tolist()
        [1.0]

    Reference: MiniMax 2025, arXiv:2506.13585, section 3.1.
    """

    def loss(p: Array, q: Array, advantage: Array) -> Array:
        ratio = jnp.clip(jnp.exp(p - q), clip_low_threshold, clip_high_threshold)
        return -jax.lax.stop_gradient(ratio) * p * advantage

    return _weighted(loss, weights, logprobs, sampling_logprobs, advantages)


def dro(
    logprobs: Float[Array, "*token"],
    *,
    sampling_logprobs: Float[Array, "*token"],
    advantages: Float[Array, "*token"],
    weights: Float[Array, "*token"],
    beta: Float[Array, ""] | float = 0.05,
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
        lambda p, q, advantage: -(p * advantage - 0.5 * beta * (p - q) ** 2),
        weights,
        logprobs,
        sampling_logprobs,
        advantages,
    )


def _weighted(loss: Callable[..., Array], weights: Array, *inputs: Array) -> Array:
    """Applies a loss where the weight is not 0.

    The inputs are replaced too, not only the result: an infinity that is merely selected away
    still makes the gradient nan.
    """
    trained = weights != 0
    safe = (jnp.where(trained, x, 0) for x in inputs)
    return jnp.where(trained, loss(*safe) * weights, 0)


# Which settings each loss takes, and what they are when not given.
LOSS_DEFAULTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "cross_entropy": {},
        "importance_sampling": {},
        "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
        "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
        "dro": {"beta": 0.05},
    }
)
_POLICY_LOSSES: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {"importance_sampling": importance_sampling, "ppo": ppo, "cispo": cispo, "dro": dro}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec:
    """A loss by name, with its settings.

    Args:
        name: a key of `LOSS_DEFAULTS`.
        config: settings that differ from `LOSS_DEFAULTS[name]`.

    Raises:
        ConfigurationError: an unknown name or setting, a setting that is not a finite number, or
            clip thresholds in the wrong order.

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
        known = LOSS_DEFAULTS[self.name]
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
    logprobs: Float[Array, "token candidate"],
    *,
    weights: Float[Array, "token candidate"],
    sampling_logprobs: Float[Array, " token"] | None = None,
    advantages: Float[Array, " token"] | None = None,
    settings: Mapping[str, Float[Array, ""] | float],
) -> Float[Array, "token candidate"]:
    """The loss of that name, as a record-free function to put under `jit` and `grad`.

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
    if name == "cross_entropy":
        return cross_entropy(logprobs, weights=weights)
    if sampling_logprobs is None or advantages is None:
        raise ConfigurationError(f"loss {name} needs sampling_logprobs and advantages, got None")
    return _POLICY_LOSSES[name](
        logprobs,
        sampling_logprobs=sampling_logprobs[:, None],
        advantages=advantages[:, None],
        weights=weights,
        **settings,
    )
