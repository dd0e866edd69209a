"""What a preference step learns: from completions' log-probabilities to a loss and its gradient."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics import (
    PreferenceMetrics,
    dpo,
    hinge,
    ipo,
    kto,
    orpo,
    preference_metrics,
    robust_dpo,
    sequence_logprobs,
    simpo,
)
from cookbook_fx.numerics.masked import AnyArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreferenceLoss:
    """A loss of pairs by name.

    Args:
        function: (chosen, rejected, reference_chosen=, reference_rejected=, beta=, and settings)
            -> the loss of each pair.
        defaults: its settings and their defaults, `beta` among them.
        needs_reference: whether it compares with a reference model.
        averages: whether it is given means over a completion's tokens instead of sums.
    """

    function: Callable[..., Float[Array, " pair"]]
    defaults: Mapping[str, float]
    needs_reference: bool = True
    averages: bool = False


def kto_pairs(
    chosen: Float[AnyArray, " pair"],
    rejected: Float[AnyArray, " pair"],
    *,
    reference_chosen: Float[AnyArray, " pair"],
    reference_rejected: Float[AnyArray, " pair"],
    beta: float | Float[Array, ""] = 0.1,
) -> Float[Array, " pair"]:
    """KTO of chosen completions as good ones and rejected ones as bad: the mean of the two.

    The reference point of either kind is the batch's mean log-ratio of the other kind, at least 0,
    which costs no further pass over mismatched completions.

    Reference: Ethayarajh et al. 2024, arXiv:2402.01306, section 4; the point is that of the
        authors' first, paired version.
    """
    policy = jnp.stack([jnp.asarray(chosen), jnp.asarray(rejected)])
    reference = jnp.stack([jnp.asarray(reference_chosen), jnp.asarray(reference_rejected)])
    points = jax.nn.relu(jnp.mean(policy - reference, axis=-1))
    losses = [
        kto(
            policy[kind],
            reference_logprobs=reference[kind],
            desirable=jnp.full(policy.shape[1:], kind == 0),
            kl=points[1 - kind],
            beta=beta,
        )
        for kind in (0, 1)
    ]
    mean: Array = (losses[0] + losses[1]) / 2
    return mean


PREFERENCE_LOSSES: Mapping[str, PreferenceLoss] = MappingProxyType(
    {
        "dpo": PreferenceLoss(function=dpo, defaults={"beta": 0.1, "label_smoothing": 0.0}),
        "hinge": PreferenceLoss(function=hinge, defaults={"beta": 0.1}),
        "ipo": PreferenceLoss(function=ipo, defaults={"beta": 0.1}),
        "kto": PreferenceLoss(function=kto_pairs, defaults={"beta": 0.1}),
        "orpo": PreferenceLoss(
            function=orpo, defaults={"beta": 0.1}, needs_reference=False, averages=True
        ),
        "robust_dpo": PreferenceLoss(
            function=robust_dpo, defaults={"beta": 0.1, "label_smoothing": 0.1}
        ),
        "simpo": PreferenceLoss(
            function=simpo,
            defaults={"beta": 2.0, "gamma": 0.5},
            needs_reference=False,
            averages=True,
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceObjective:
    """Which loss, and how it is set.

    Args:
        loss: one of `PREFERENCE_LOSSES`. Conservative DPO is dpo with a label smoothing.
        settings: those of its settings that are not to be its own, by name.

    Raises:
        ConfigurationError: there is no such loss, or it has no such setting.

    Example:
        >>> PreferenceObjective(settings={"beta": 0.5}).all_settings
        {'beta': 0.5, 'label_smoothing': 0.0}
    """

    loss: str = "dpo"
    settings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss not in PREFERENCE_LOSSES:
            raise ConfigurationError(
                f"a preference loss must be one of {', '.join(PREFERENCE_LOSSES)}; "
                f"got {self.loss!r}"
            )
        defaults = PREFERENCE_LOSSES[self.loss].defaults
        unknown = [name for name in self.settings if name not in defaults]
        if unknown:
            raise ConfigurationError(
                f"the loss {self.loss} has the settings {', '.join(defaults)}; "
                f"got {', '.join(unknown)}"
            )
        if not 0 < self.all_settings["beta"] < np.inf:
            raise ConfigurationError(f"`beta` must be above 0, got {self.all_settings['beta']}")
        smoothing = self.all_settings.get("label_smoothing", 0.0)
        if not 0 <= smoothing < 0.5:
            raise ConfigurationError(
                f"`label_smoothing` must be at least 0 and below 0.5, got {smoothing}"
            )

    @property
    def all_settings(self) -> dict[str, float]:
        """The loss's settings, its own where none was given."""
        return {**PREFERENCE_LOSSES[self.loss].defaults, **self.settings}

    @property
    def needs_reference(self) -> bool:
        """Whether the policy is compared with a reference model."""
        return PREFERENCE_LOSSES[self.loss].needs_reference

    @property
    def averages(self) -> bool:
        """Whether a completion counts as the mean of its tokens, not their sum."""
        return PREFERENCE_LOSSES[self.loss].averages


class PairInputs(NamedTuple):
    """What a loss is told of a batch of pairs besides the policy's log-probabilities.

    Fields:
        reference: each completion's log-probability under the reference model, chosen and
            rejected; zeros for losses without a reference.
        is_tie: pairs of which neither completion was preferred.
        settings: of the loss, `beta` among them.
    """

    reference: Float[AnyArray, "pair 2"]
    is_tie: Bool[AnyArray, " pair"]
    settings: Mapping[str, float]


class PreferenceStepMetrics(NamedTuple):
    """What is logged of a batch.

    Fields:
        labeled: loss, accuracy, margin and rewards over the pairs that are no ties.
        loss: mean over all pairs, ties included; what is minimised.
        num_ties: pairs that are ties.
    """

    labeled: PreferenceMetrics
    loss: Float[Array, ""]
    num_ties: Integer[Array, ""]


@partial(jax.jit, static_argnames="loss")
def preference_loss(
    completions: Float[AnyArray, "pair 2"], inputs: PairInputs, *, loss: str
) -> tuple[Float[Array, ""], PreferenceStepMetrics]:
    """The mean loss over a batch of pairs and what is logged of it.

    A tie costs ½·(loss of the pair as it is + loss with its completions exchanged), which in DPO is
    a label of ½: no margin is best.

    Args:
        completions: each completion's log-probability (nats) under the policy, chosen and
            rejected, as from `completion_logprobs`.
        inputs: the rest.
        loss: one of `PREFERENCE_LOSSES`.

    Returns:
        0 for no pairs.

    Example:
        >>> tied = jnp.array([False, True])
        >>> inputs = PairInputs(jnp.zeros((2, 2)), tied, {"beta": 1.0})
        >>> value, metrics = preference_loss(
        ...     jnp.array([[-1.0, -3.0], [-2.0, -2.0]]), inputs, loss="dpo")
        >>> round(float(value), 4), float(metrics.labeled.accuracy)
        (0.41, 1.0)
    """
    kind = PREFERENCE_LOSSES[loss]
    completions = jnp.asarray(completions)
    reference = jnp.asarray(inputs.reference, completions.dtype)

    def losses(chosen: int, rejected: int) -> Array:
        compared = {}
        if kind.needs_reference:
            compared = {
                "reference_chosen": reference[:, chosen],
                "reference_rejected": reference[:, rejected],
            }
        return kind.function(
            completions[:, chosen], completions[:, rejected], **compared, **inputs.settings
        )

    is_tie = jnp.asarray(inputs.is_tie)
    preferred = losses(0, 1)
    each = jnp.where(is_tie, (preferred + losses(1, 0)) / 2, preferred)
    labeled = preference_metrics(
        each,
        completions[:, 0],
        completions[:, 1],
        reference_chosen=reference[:, 0],
        reference_rejected=reference[:, 1],
        beta=inputs.settings["beta"],
        mask=~is_tie,
    )
    mean = jnp.sum(each) / max(len(each), 1)
    return mean, PreferenceStepMetrics(labeled, mean, jnp.sum(is_tie))


class PreferenceStep(NamedTuple):
    """What one look at a batch gives.

    Fields:
        loss: mean over pairs.
        metrics: of the batch.
        gradients: of the loss by each completion's log-probability. Minus these, times the tokens'
            own weights, are the weights of a cross-entropy with the same gradient.
    """

    loss: Float[Array, ""]
    metrics: PreferenceStepMetrics
    gradients: Float[Array, "pair 2"]


@partial(jax.jit, static_argnames="loss")
def preference_step(
    completions: Float[AnyArray, "pair 2"], inputs: PairInputs, *, loss: str
) -> PreferenceStep:
    """`preference_loss` and its gradient.

    Example:
        >>> inputs = PairInputs(jnp.zeros((1, 2)), jnp.array([False]), {"beta": 0.5})
        >>> preference_step(jnp.zeros((1, 2)), inputs, loss="dpo").gradients.tolist()
        [[-0.25, 0.25]]
    """
    value_and_gradient = jax.value_and_grad(partial(preference_loss, loss=loss), has_aux=True)
    (value, metrics), gradients = value_and_gradient(jnp.asarray(completions), inputs)
    return PreferenceStep(value, metrics, gradients)


def completion_logprobs(
    logprobs: Float[AnyArray, "completion token"],
    weights: Float[AnyArray, "completion token"],
    *,
    loss: str,
) -> Float[Array, "pair 2"]:
    """Each completion's log-probability as a loss wants it, of rows chosen, rejected, chosen...

    Args:
        logprobs: of each target, nats.
        weights: of each target; 0 at prompt and padding.
        loss: one of `PREFERENCE_LOSSES`.
    """
    values: Array = sequence_logprobs(logprobs, weights, average=PREFERENCE_LOSSES[loss].averages)
    return values.reshape(-1, 2)


def token_preference_loss(
    logprobs: Float[AnyArray, "completion token"],
    weights: Float[AnyArray, "completion token"],
    inputs: PairInputs,
    *,
    loss: str,
) -> tuple[Float[Array, ""], PreferenceStepMetrics]:
    """`preference_loss` of tokens, of rows chosen, rejected, chosen and so on.

    Args:
        logprobs: of each target under the policy, nats.
        weights: of each target; 0 at prompt and padding.
        inputs: the rest.
        loss: one of `PREFERENCE_LOSSES`.
    """
    value, metrics = preference_loss(
        completion_logprobs(logprobs, weights, loss=loss), inputs, loss=loss
    )
    return value, metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceReport:
    """The measurements of a set of pairs, as numbers.

    Args:
        loss_name: which loss.
        loss: mean over all pairs.
        accuracy: share of the pairs with a preference in which chosen has the strictly higher
            reward; None where all are ties, as the next three.
        margin: mean reward of chosen minus rejected.
        chosen_reward: mean reward of chosen, beta times the log-ratio.
        rejected_reward: mean reward of rejected.
        num_pairs: pairs.
        num_ties: those of them without a preference.
        num_tokens: tokens the model read.
    """

    loss_name: str
    loss: float
    accuracy: float | None
    margin: float | None
    chosen_reward: float | None
    rejected_reward: float | None
    num_pairs: int
    num_ties: int
    num_tokens: int


def preference_report(
    metrics: PreferenceStepMetrics, *, loss: str, num_tokens: int
) -> PreferenceReport:
    """The metrics of a batch or a whole held-out set as numbers."""
    # In one transfer: the numbers may still be on a device.
    metrics = jax.device_get(metrics)
    labeled = metrics.labeled
    count = int(labeled.num_pairs)

    def known(value: Float[AnyArray, ""]) -> float | None:
        return float(value) if count else None

    return PreferenceReport(
        loss_name=loss,
        loss=float(metrics.loss),
        accuracy=known(labeled.accuracy),
        margin=known(labeled.margin),
        chosen_reward=known(labeled.chosen_reward),
        rejected_reward=known(labeled.rejected_reward),
        num_pairs=count + int(metrics.num_ties),
        num_ties=int(metrics.num_ties),
        num_tokens=num_tokens,
    )
