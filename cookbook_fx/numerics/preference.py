"""Losses that learn from which of two completions was preferred, and what is logged of them.

Throughout, a completion has one log-probability (nats) under the policy, `sequence_logprobs` of its
tokens, and one under the reference model; a log-ratio is the first minus the second, beta times it
is the completion's implicit reward, and m is the log-ratio of the chosen completion minus that of
the rejected one. Losses are per pair, are minimised and average over pairs.

Large margins neither overflow nor turn the gradient into nan. An infinite one, from a -inf token
that counts, gives the limit: to `dpo`, a chosen completion that is impossible costs inf and still
has its gradient, a rejected one costs nothing. The difference of two infinities is nan.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer, Real

from cookbook_fx.errors import DataError
from cookbook_fx.numerics import masked
from cookbook_fx.numerics.masked import AnyArray

Scalar = float | Real[Array, ""]


@partial(jax.jit, static_argnames="average")
def sequence_logprobs(
    logprobs: Float[AnyArray, "*sequence token"],
    weights: Float[AnyArray, "*sequence token"],
    *,
    average: bool = False,
) -> Float[Array, "*sequence"]:
    """Σₜ wₜ·log pₜ of each sequence: with weights of 1, the log-probability of the completion.

    Args:
        logprobs: of each token, nats; anything where the weight is 0.
        weights: 1 at the completion's tokens, 0 at the prompt and padding; fractions are allowed.
        average: divide by Σₜ wₜ, for the losses that compare tokens rather than completions.

    Returns:
        0 for a sequence without tokens that count, averaged or not. At least float32.

    Example:
        >>> logprobs, weights = jnp.array([[-jnp.inf, -1, -3]]), jnp.array([[0.0, 1, 1]])
        >>> sequence_logprobs(logprobs, weights).tolist()
        [-4.0]
        >>> sequence_logprobs(logprobs, weights, average=True).tolist()
        [-2.0]
    """
    counted = jnp.asarray(weights) != 0
    weights = masked.keep(weights, counted)
    sums = jnp.sum(masked.keep(logprobs, counted) * weights, axis=-1)
    if not average:
        return sums
    total = jnp.sum(weights, axis=-1)
    return jnp.where(total == 0, 0, sums / jnp.where(total == 0, 1, total))


@jax.jit
def dpo(
    chosen: Float[AnyArray, "*pair"],
    rejected: Float[AnyArray, "*pair"],
    *,
    reference_chosen: Float[AnyArray, "*pair"],
    reference_rejected: Float[AnyArray, "*pair"],
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 0.0,
) -> Float[Array, "*pair"]:
    """Direct preference optimisation: -(1 - ε)·log σ(βm) - ε·log σ(-βm).

    Args:
        chosen: log-probability of each chosen completion, summed over its tokens.
        rejected: of each rejected one.
        reference_chosen: the same under the reference model.
        reference_rejected: the same under the reference model.
        beta: how strongly the policy is held to the reference model.
        label_smoothing: ε, the share of pairs believed to be labelled the wrong way round; above 0
            this is conservative DPO, which stops at the margin logit(1 - ε) instead of growing it
            for ever.

    Returns:
        log 2 where policy and reference agree, and in a pair of two equal completions.

    Example:
        >>> zeros = jnp.zeros(2)
        >>> dpo(jnp.array([-1.0, 3.0]), jnp.array([-1.0, -7.0]),
        ...     reference_chosen=zeros, reference_rejected=zeros)
        Array([0.6931472, 0.3132617], dtype=float32)

    Reference: Rafailov et al. 2023, arXiv:2305.18290, equation 7; Mitchell 2023, A note on DPO with
        noisy preferences (cDPO), equation 3.
    """
    reward_margin = beta * _margin(chosen, rejected, reference_chosen, reference_rejected)
    return _logistic(reward_margin, tilt=label_smoothing)


@jax.jit
def robust_dpo(
    chosen: Float[AnyArray, "*pair"],
    rejected: Float[AnyArray, "*pair"],
    *,
    reference_chosen: Float[AnyArray, "*pair"],
    reference_rejected: Float[AnyArray, "*pair"],
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 0.1,
) -> Float[Array, "*pair"]:
    """DPO without the bias of flipped labels: -((1 - ε)·log σ(βm) - ε·log σ(-βm)) / (1 - 2ε).

    Over labels flipped with probability ε its mean is the DPO loss of the true labels. It has no
    lower bound: single pairs may be negative.

    Args:
        chosen: as for `dpo`.
        rejected: as for `dpo`.
        reference_chosen: as for `dpo`.
        reference_rejected: as for `dpo`.
        beta: as for `dpo`.
        label_smoothing: ε, from 0, which is `dpo`, to below 0.5, where labels say nothing and the
            loss is infinite or nan.

    Example:
        >>> zero = jnp.zeros(1)
        >>> robust_dpo(jnp.array([-10.0]), zero, reference_chosen=zero, reference_rejected=zero,
        ...     label_smoothing=0.25)
        Array([1.8132617], dtype=float32)

    Reference: Chowdhury et al. 2024, arXiv:2403.00409, section 3.
    """
    reward_margin = beta * _margin(chosen, rejected, reference_chosen, reference_rejected)
    return _logistic(reward_margin, tilt=-label_smoothing / (1 - 2 * label_smoothing))


@jax.jit
def ipo(
    chosen: Float[AnyArray, "*pair"],
    rejected: Float[AnyArray, "*pair"],
    *,
    reference_chosen: Float[AnyArray, "*pair"],
    reference_rejected: Float[AnyArray, "*pair"],
    beta: Scalar = 0.1,
) -> Float[Array, "*pair"]:
    """Identity preference optimisation: (m - 1/(2β))², which asks for a margin and no more.

    Args:
        chosen: as for `dpo`: the paper's log-probabilities are of whole completions, so sums. TRL
            takes means instead, which makes β independent of the length; for that, give means
            (`sequence_logprobs(..., average=True)`) here and for the reference.
        rejected: as `chosen`.
        reference_chosen: as `chosen`.
        reference_rejected: as `chosen`.
        beta: τ in the paper.

    Returns:
        0 at a margin of 1/(2β); inf for infinite margins.

    Example:
        >>> zeros = jnp.zeros(2)
        >>> ipo(jnp.array([5.0, 0.0]), zeros, reference_chosen=zeros, reference_rejected=zeros)
        Array([ 0., 25.], dtype=float32)

    Reference: Azar et al. 2023, arXiv:2310.12036, equation 17.
    """
    margin = _margin(chosen, rejected, reference_chosen, reference_rejected)
    return (margin - 0.5 / beta) ** 2


@jax.jit
def hinge(
    chosen: Float[AnyArray, "*pair"],
    rejected: Float[AnyArray, "*pair"],
    *,
    reference_chosen: Float[AnyArray, "*pair"],
    reference_rejected: Float[AnyArray, "*pair"],
    beta: Scalar = 0.1,
) -> Float[Array, "*pair"]:
    """The hinge loss of RSO: max(0, 1 - βm), with no gradient once the margin is 1/β.

    SLiC-HF's calibration loss, max(0, δ - log p(chosen) + log p(rejected)), is δ times this with
    references of 0 and β = 1/δ; its regularisation towards the reference is not included.

    Args:
        chosen: as for `dpo`.
        rejected: as for `dpo`.
        reference_chosen: as for `dpo`.
        reference_rejected: as for `dpo`.
        beta: the reciprocal of the margin asked for; γ in RSO.

    Example:
        >>> zeros = jnp.zeros(2)
        >>> hinge(jnp.array([20.0, 5.0]), zeros, reference_chosen=zeros, reference_rejected=zeros)
        Array([0. , 0.5], dtype=float32)

    Reference: Liu et al. 2023, arXiv:2309.06657, hinge-norm; Zhao et al. 2023, arXiv:2305.10425.
    """
    # relu and not maximum, which at the margin itself has half a gradient.
    return jax.nn.relu(1 - beta * _margin(chosen, rejected, reference_chosen, reference_rejected))


@jax.jit
def simpo(
    chosen: Float[AnyArray, "*pair"],
    rejected: Float[AnyArray, "*pair"],
    *,
    beta: Scalar = 2.0,
    gamma: Scalar = 0.5,
) -> Float[Array, "*pair"]:
    """Simple preference optimisation, without a reference: -log σ(β·(chosen - rejected) - γ).

    Args:
        chosen: log-probability of each chosen completion, averaged over its tokens
            (`sequence_logprobs(..., average=True)`).
        rejected: of each rejected one.
        beta: scale of the rewards.
        gamma: reward by which the chosen completion should win; not multiplied by beta. The
            authors' code names γ/β instead.

    Example:
        >>> simpo(jnp.array([-1.0]), jnp.array([-1.25]))
        Array([0.6931472], dtype=float32)

    Reference: Meng et al. 2024, arXiv:2405.14734, equation 6.
    """
    return _logistic(beta * (_wide(chosen) - _wide(rejected)) - gamma)


@jax.jit
def orpo(
    chosen: Float[AnyArray, "*pair"],
    rejected: Float[AnyArray, "*pair"],
    *,
    beta: Scalar = 0.1,
) -> Float[Array, "*pair"]:
    """Odds-ratio preference optimisation: -log P(chosen) - β·log σ(log odds ratio).

    With odds = P / (1 - P), the odds ratio is that of chosen over rejected. Needs no reference and
    no fine-tuning before it: the first term is that fine-tuning.

    Args:
        chosen: log P of each chosen completion, averaged over its tokens
            (`sequence_logprobs(..., average=True)`).
        rejected: of each rejected one.
        beta: weight of the odds ratio; λ in the paper.

    Returns:
        P is taken to be at most 1 - the dtype's epsilon in the odds, so a completion that is
        certain has a large and finite loss and gradient. TRL's first term counts the prompt too.

    Example:
        >>> orpo(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.5])), beta=1.0)
        Array([1.3862944], dtype=float32)

    Reference: Hong et al. 2024, arXiv:2403.07691, equations 6 and 7.
    """
    chosen, rejected = _wide(chosen), _wide(rejected)
    return -chosen + beta * _logistic(_log_odds(chosen) - _log_odds(rejected))


@jax.jit
def kto(
    logprobs: Float[AnyArray, "*completion"],
    *,
    reference_logprobs: Float[AnyArray, "*completion"],
    desirable: Bool[AnyArray, "*completion"],
    kl: Scalar,
    beta: Scalar = 0.1,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Float[Array, "*completion"]:
    """Kahneman-Tversky optimisation, from single completions found good or bad.

    With r = log p - log p of the reference and z₀ the reference point:

        desirable      λ_D·(1 - σ(β(r - z₀)))
        undesirable    λ_U·(1 - σ(β(z₀ - r)))

    Args:
        logprobs: log-probability of each completion, summed over its tokens.
        reference_logprobs: the same under the reference model.
        desirable: whether the completion was found good; needs no partner found bad.
        kl: z₀, from `kto_reference_point`; nothing is differentiated through it.
        beta: how strongly the policy is held to the reference model.
        desirable_weight: λ_D; with unequal numbers of good and bad completions, choose the weights
            so that λ_D times the one is about λ_U times the other.
        undesirable_weight: λ_U.

    Returns:
        Half the weight where r = z₀; never above the weight, so that hopeless completions stop
        mattering.

    Example:
        >>> kto(jnp.zeros(2), reference_logprobs=jnp.zeros(2), kl=0.0,
        ...     desirable=jnp.array([True, False]), undesirable_weight=2.0)
        Array([0.5, 1. ], dtype=float32)

    Reference: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.
    """
    gain = beta * (_wide(logprobs) - _wide(reference_logprobs) - jax.lax.stop_gradient(kl))
    # 1 - σ(x) = σ(-x), which keeps its digits where the left side rounds to 0.
    return jnp.where(
        desirable,
        desirable_weight * jax.nn.sigmoid(-gain),
        undesirable_weight * jax.nn.sigmoid(gain),
    )


@jax.jit
def kto_reference_point(
    logprobs: Float[AnyArray, "*completion"],
    reference_logprobs: Float[AnyArray, "*completion"],
    *,
    mask: Bool[AnyArray, "*completion"] | None = None,
) -> Float[Array, ""]:
    """z₀ of `kto`: max(0, mean of log p - log p of the reference), over mismatched completions.

    A cheap, biased estimate of KL(policy || reference). The completions are the batch's own, each
    scored after another's prompt: prompt i with completion i + 1, and the last with the first.

    Args:
        logprobs: log-probability of each completion after the wrong prompt, summed over its tokens.
        reference_logprobs: the same under the reference model.
        mask: False at padding; None counts every completion.

    Returns:
        0 for no completions. At least float32.

    Example:
        >>> kto_reference_point(jnp.array([-1.0, -2.0]), jnp.array([-2.0, -2.0]))
        Array(0.5, dtype=float32)

    Reference: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.
    """
    ratios = _wide(logprobs) - _wide(reference_logprobs)
    mask = jnp.ones(ratios.shape, bool) if mask is None else mask
    return jax.nn.relu(masked.mean(ratios, mask))


class PreferenceMetrics(NamedTuple):
    """What is logged of a batch of pairs: means over its pairs, 0 where there are none.

    Args:
        loss: mean loss.
        accuracy: share of pairs whose chosen completion has the strictly higher reward.
        margin: mean reward of chosen minus rejected.
        chosen_reward: mean of beta times the chosen completion's log-ratio.
        rejected_reward: the same of the rejected completion.
        num_pairs: pairs counted.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    margin: Float[Array, ""]
    chosen_reward: Float[Array, ""]
    rejected_reward: Float[Array, ""]
    num_pairs: Integer[Array, ""]


@jax.jit
def preference_metrics(
    losses: Float[AnyArray, "*pair"],
    chosen: Float[AnyArray, "*pair"],
    rejected: Float[AnyArray, "*pair"],
    *,
    reference_chosen: Float[AnyArray, "*pair"] | Scalar = 0.0,
    reference_rejected: Float[AnyArray, "*pair"] | Scalar = 0.0,
    beta: Scalar = 0.1,
    mask: Bool[AnyArray, "*pair"] | None = None,
) -> PreferenceMetrics:
    """Loss, accuracy and implicit rewards of a batch.

    Args:
        losses: of each pair, from any loss of this file.
        chosen: what the loss was given.
        rejected: what the loss was given.
        reference_chosen: what the loss was given; 0 for the losses without a reference.
        reference_rejected: what the loss was given.
        beta: what the loss was given.
        mask: False at padding, which may hold anything; None counts every pair.

    Returns:
        Zeros for no pairs. A tie is not accurate.

    Example:
        >>> chosen, rejected = jnp.array([-1.0, -2.0]), jnp.array([-3.0, -2.0])
        >>> metrics = preference_metrics(simpo(chosen, rejected), chosen, rejected, beta=2.0)
        >>> float(metrics.accuracy), float(metrics.margin), int(metrics.num_pairs)
        (0.5, 2.0, 2)

    Reference: Rafailov et al. 2023, arXiv:2305.18290, section 4, for the implicit rewards.
    """
    chosen_ratio = _wide(chosen) - _wide(reference_chosen)
    rejected_ratio = _wide(rejected) - _wide(reference_rejected)
    mask = jnp.ones(chosen_ratio.shape, bool) if mask is None else jnp.asarray(mask)
    return PreferenceMetrics(
        loss=masked.mean(losses, mask),
        accuracy=masked.mean(chosen_ratio > rejected_ratio, mask),
        margin=masked.mean(beta * (chosen_ratio - rejected_ratio), mask),
        chosen_reward=masked.mean(beta * chosen_ratio, mask),
        rejected_reward=masked.mean(beta * rejected_ratio, mask),
        num_pairs=jnp.sum(mask),
    )


class PreferenceGradients(NamedTuple):
    """What one pass over a batch of pairs gives.

    Args:
        metrics: of the batch.
        gradients: of the mean loss by each token's log-probability.
    """

    metrics: PreferenceMetrics
    gradients: Float[Array, "*pair 2 token"]


@partial(jax.jit, static_argnames="loss")
def preference_gradients(
    logprobs: Float[AnyArray, "*pair completion token"],
    *,
    weights: Float[AnyArray, "*pair completion token"],
    reference_logprobs: Float[AnyArray, "*pair completion"] | None = None,
    loss: Callable[..., Float[Array, "*pair"]] = dpo,
    beta: Scalar,
    mask: Bool[AnyArray, "*pair"] | None = None,
    **settings: Scalar,
) -> PreferenceGradients:
    """The mean loss over pairs, its metrics and its gradient by every token's log-probability.

    An engine that only knows cross-entropy, -Σ w·log p, trains with any of these losses: give it
    the negative gradients as weights. Rows that come as chosen, rejected, chosen, rejected, ... are
    `rows.reshape(-1, 2, token)`.

    Args:
        logprobs: of the chosen (0) and the rejected (1) completion's tokens, nats; anything where
            the weight is 0.
        weights: of each token, as in `sequence_logprobs`. `simpo` and `orpo` are given averages
            over them, any other function sums; weights that add up to 1 in each row turn those into
            averages.
        reference_logprobs: `sequence_logprobs` of the reference model, for the losses that have
            one.
        loss: `dpo`, `robust_dpo`, `ipo`, `hinge`, `simpo`, `orpo`, or a function with their
            arguments; a new one compiles a new program.
        beta: of the loss and of the rewards reported.
        mask: False at pairs that are padding, which may hold anything; None counts every pair.
        settings: the loss's other settings, such as `label_smoothing`; may change between calls
            without compiling anew.

    Returns:
        Gradients of 0 where the weight is 0 and in masked pairs; no pairs give metrics of 0.

    Raises:
        DataError: the axis before the last is not the pair's two completions.
        TypeError: a reference or setting that the loss does not take, or lacks.

    Example:
        >>> logprobs = jnp.array([[-1.0, -1.0], [-1.0, -9.0], [-2.0, -2.0], [-1.0, -1.0]])
        >>> weights = jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        >>> metrics, gradients = preference_gradients(
        ...     logprobs.reshape(2, 2, 2), weights=weights.reshape(2, 2, 2),
        ...     reference_logprobs=jnp.array([[-2.0, -1.0], [-4.0, -2.0]]), beta=0.1)
        >>> round(float(metrics.loss), 4), float(metrics.accuracy)
        (0.6931, 0.0)
        >>> gradients.reshape(4, 2)
        Array([[-0.025, -0.025],
               [ 0.025,  0.   ],
               [-0.025, -0.025],
               [ 0.025,  0.025]], dtype=float32)
    """
    # An index beyond an axis would silently be taken for its end.
    if logprobs.shape[-2] != 2:
        raise DataError(
            "logprobs must have shape [*pair, 2, token], chosen and rejected, got "
            f"{logprobs.shape}; rows that come in turn are rows.reshape(-1, 2, token)"
        )
    logprobs = _wide(logprobs)
    mask = jnp.ones(logprobs.shape[:-2], bool) if mask is None else jnp.asarray(mask)
    # Without weights a masked pair's tokens get no gradient, whatever its loss turns out to be.
    weights = jnp.where(mask[..., None, None], weights, 0)
    references = {}
    if reference_logprobs is not None:
        chosen, rejected = _pair(jnp.asarray(reference_logprobs))
        references = {"reference_chosen": chosen, "reference_rejected": rejected}

    def objective(logprobs: Array) -> tuple[Array, PreferenceMetrics]:
        chosen, rejected = _pair(
            sequence_logprobs(logprobs, weights, average=loss in _LOSSES_OF_AVERAGES)
        )
        losses = loss(chosen, rejected, beta=beta, **references, **settings)
        metrics = preference_metrics(losses, chosen, rejected, beta=beta, mask=mask, **references)
        return metrics.loss, metrics

    gradients, metrics = jax.grad(objective, has_aux=True)(logprobs)
    return PreferenceGradients(metrics, gradients)


_LOSSES_OF_AVERAGES = frozenset({simpo, orpo})


def _pair(values: Array) -> tuple[Array, Array]:
    return values[..., 0], values[..., 1]


def _margin(
    chosen: AnyArray, rejected: AnyArray, reference_chosen: AnyArray, reference_rejected: AnyArray
) -> Array:
    """m, as a difference of log-ratios: smaller numbers than a difference of completions."""
    chosen_ratio = _wide(chosen) - _wide(reference_chosen)
    return chosen_ratio - (_wide(rejected) - _wide(reference_rejected))


def _logistic(reward_margin: Array, *, tilt: Scalar = 0.0) -> Array:
    """-(1 - t)·log σ(x) - t·log σ(-x), which is tilted by t·x from -log σ(x)."""
    # Each side by itself has the limits of infinite margins; 0·inf, without a tilt, is nan.
    against = jnp.where(tilt == 0, 0, tilt * jax.nn.softplus(reward_margin))
    return (1 - tilt) * jax.nn.softplus(-reward_margin) + against


def _log_odds(logprobs: Array) -> Array:
    """log P - log(1 - P)."""
    # The odds of what is certain are infinite: the value is held back, its gradient is not.
    largest = -np.finfo(logprobs.dtype).eps
    held = largest + (logprobs - jax.lax.stop_gradient(logprobs))
    logprobs = jnp.where(logprobs > largest, held, logprobs)
    return logprobs - jnp.log(-jnp.expm1(logprobs))


def _wide(values: AnyArray | float) -> Array:
    """At least float32: half precision cannot hold a sequence's log-probability."""
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
