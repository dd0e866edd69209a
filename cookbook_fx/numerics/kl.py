"""How far two policies are apart, estimated from the tokens that one of them sampled.

Log-probabilities are in nats, and those of the policy that sampled come first. A token to which
that policy itself gives probability 0 (-inf) adds 0, as 0·log 0 does to the exact divergence; one
that only the other policy rules out makes the divergence inf, which it is. Where a mask is False
nothing is looked at and the answer is 0, whatever stands there.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from cookbook_fx.numerics import masked
from cookbook_fx.numerics.masked import AnyArray
from cookbook_fx.numerics.returns import BLOCK, discounted_sums


@jax.jit
def kl_k1(
    sampling_logprobs: Float[AnyArray, "*shape"],
    other_logprobs: Float[AnyArray, "*shape"],
    *,
    mask: Bool[AnyArray, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """KL(sampling ‖ other) estimated at each token without bias, with the highest variance.

    k1 = -log r, with log r = other - sampling. Half of its values are below 0 between policies
    that are close.

    Args:
        sampling_logprobs: of each token, under the policy that sampled it.
        other_logprobs: of the same tokens, under the other policy.
        mask: the tokens that count; None for all.

    Returns:
        The estimate at each token, at least float32; 0 off the mask. Average it over tokens.

    Example:
        >>> kl_k1(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.0])).tolist()
        [0.5, -1.0]

    Reference:
        Schulman (2020), Approximating KL divergence, joschu.net/blog/kl-approx.html.
    """
    return _difference(sampling_logprobs, other_logprobs, mask)


@jax.jit
def kl_k2(
    sampling_logprobs: Float[AnyArray, "*shape"],
    other_logprobs: Float[AnyArray, "*shape"],
    *,
    mask: Bool[AnyArray, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """KL(sampling ‖ other) estimated at each token with little variance, biased.

    k2 = ½(log r)², with log r = other - sampling; never below 0. Its gradient with respect to the
    policy that sampled is, on average, that of the divergence.

    Args and Returns: as of `kl_k1`.

    Example:
        >>> kl_k2(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -1.0])).tolist()
        [0.125, 0.5]

    Reference:
        Schulman (2020), Approximating KL divergence, joschu.net/blog/kl-approx.html.
    """
    return jnp.square(_difference(sampling_logprobs, other_logprobs, mask)) / 2


@jax.jit
def kl_k3(
    sampling_logprobs: Float[AnyArray, "*shape"],
    other_logprobs: Float[AnyArray, "*shape"],
    *,
    mask: Bool[AnyArray, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """KL(sampling ‖ other) estimated at each token without bias and never below 0.

    k3 = r - 1 - log r, with log r = other - sampling; accurate for r close to 1 too. GRPO's
    penalty against a reference policy.

    Args and Returns: as of `kl_k1`. inf where r exceeds what the float type holds.

    Example:
        >>> kl_k3(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25])))
        Array([0.19314718], dtype=float32)

    Reference:
        Schulman (2020), Approximating KL divergence, joschu.net/blog/kl-approx.html; Shao et al.
        (2024), DeepSeekMath, arXiv:2402.03300, equation 4.
    """
    return _excess(-_difference(sampling_logprobs, other_logprobs, mask))


@jax.jit
def kl_divergence(
    logprobs_p: Float[AnyArray, "*token vocab"], logprobs_q: Float[AnyArray, "*token vocab"]
) -> Float[Array, "*token"]:
    """The exact divergence of two distributions over the vocabulary, in nats.

    KL(p ‖ q) = Σᵥ pᵥ·(log pᵥ - log qᵥ)

    Args:
        logprobs_p: normalised over the last axis; -inf where p is 0.
        logprobs_q: likewise.

    Returns:
        Of each token, at least float32: inf where q rules out what p does not, 0 without a
        vocabulary.

    Example:
        >>> p, q = jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.log(jnp.array([0.5, 0.25, 0.25]))
        >>> float(kl_divergence(p, q) / jnp.log(2.0))
        0.5

    Reference:
        Kullback and Leibler (1951), On information and sufficiency, section 2.
    """
    difference = _difference(logprobs_p, logprobs_q, None)
    probabilities = jnp.exp(jnp.asarray(logprobs_p).astype(difference.dtype))
    return jnp.sum(probabilities * difference, axis=-1)


class SampleTrainKL(NamedTuple):
    """How far the learner stands from what sampled its data, in nats a token.

    Args:
        kl_v1: mean of k1, the sampling minus the training log-probabilities.
        kl_v2: mean of k2.
        kl_v3: mean of k3.
        entropy: of the sampling policy: minus the mean of its log-probabilities.
    """

    kl_v1: Float[Array, ""]
    kl_v2: Float[Array, ""]
    kl_v3: Float[Array, ""]
    entropy: Float[Array, ""]


@jax.jit
def sample_train_kl(
    sampling_logprobs: Float[AnyArray, "*shape"],
    training_logprobs: Float[AnyArray, "*shape"],
    mask: Bool[AnyArray, "*shape"],
) -> SampleTrainKL:
    """Divergence of the learner from the policy that sampled, and that policy's entropy.

    Estimates of KL(sampling ‖ training); the same serves for the policy after an update.

    Args:
        sampling_logprobs: of each token, recorded when it was sampled.
        training_logprobs: of the same tokens, under the learner.
        mask: the sampled tokens.

    Returns:
        Means over the mask, at least float32; all 0 where nothing is unmasked.

    Example:
        >>> sampling, training = jnp.array([-1.0, -2.0, 0.0]), jnp.array([-1.5, -2.0, 0.0])
        >>> kl = sample_train_kl(sampling, training, jnp.array([True, True, False]))
        >>> float(kl.kl_v1), float(kl.kl_v2), float(kl.entropy)
        (0.25, 0.0625, 1.5)

    Reference:
        Schulman (2020), Approximating KL divergence, joschu.net/blog/kl-approx.html.
    """
    difference = _difference(sampling_logprobs, training_logprobs, mask)
    sampling = jnp.asarray(sampling_logprobs)
    return SampleTrainKL(
        kl_v1=_batch_mean(difference, mask),
        kl_v2=_batch_mean(jnp.square(difference) / 2, mask),
        kl_v3=_batch_mean(_excess(-difference), mask),
        entropy=_batch_mean(masked.keep(-sampling, mask & (sampling > -jnp.inf)), mask),
    )


class KLPenalty(NamedTuple):
    """What staying close to a base policy adds to the advantages.

    Args:
        advantages: of each token, to be added to those of the task.
        mean_kl: mean of k1 over the mask, in nats a token: how far the policies are apart.
    """

    advantages: Float[Array, "*shape"]
    mean_kl: Float[Array, ""]


@partial(jax.jit, static_argnames="centered")
def kl_penalty(
    sampling_logprobs: Float[AnyArray, "*shape"],
    base_logprobs: Float[AnyArray, "*shape"],
    mask: Bool[AnyArray, "*shape"],
    *,
    coef: float | Real[AnyArray, ""],
    gamma: float | Real[AnyArray, ""] = 0.0,
    centered: bool = True,
    starts: Bool[AnyArray, "..."] | None = None,
) -> KLPenalty:
    """A penalty on leaving a base policy, or on differing from a teacher, as advantages.

    With δ = sampling - base at the tokens of the mask and δ̄ its mean over all of them,
    A = coef·(δ̄ - δ), or -coef·δ when not centered; with γ > 0 each token is also charged for what
    follows in its sequence: Aₜ + γ·Aₜ₊₁ + γ²·Aₜ₊₂ + …

    Args:
        sampling_logprobs: of each token, under the policy that sampled it.
        base_logprobs: of the same tokens, under the policy to stay close to.
        mask: the sampled tokens. Others neither give nor receive, though time passes there.
        coef: weight of the penalty.
        gamma: γ in [0, 1]; 0 charges each token for itself alone.
        centered: whether the mean is taken out, so that the penalty favours no length. On-policy
            distillation does not: its reward is the reverse KL to the teacher.
        starts: where sequences begin, as in `discounted_sums`; matters for γ > 0 only.

    Returns:
        Advantages, exactly 0 off the mask, and the mean: all 0 where nothing is unmasked, at
        least float32. A base that rules out a sampled token makes the mean inf and no advantage
        of its sequence finite, or of the whole batch when centered: clip `base_logprobs` from
        below where that can happen.

    Raises:
        ConfigurationError: as `discounted_sums`.

    Example:
        >>> sampling, base = jnp.array([0.0, -1.0, -1.0]), jnp.array([0.0, -3.0, -1.0])
        >>> penalty = kl_penalty(sampling, base, jnp.array([False, True, True]), coef=0.5)
        >>> penalty.advantages.tolist(), float(penalty.mean_kl)
        ([0.0, -0.5, 0.5], 1.0)

    Reference:
        Ziegler et al. (2019), Fine-tuning language models from human preferences,
        arXiv:1909.08593, equation 2; Agarwal et al. (2024), On-policy distillation of language
        models, arXiv:2306.13649, for the reverse KL to a teacher.
    """
    difference = _difference(sampling_logprobs, base_logprobs, mask)
    mean_kl = _batch_mean(difference, mask)
    penalties = coef * ((mean_kl if centered else 0) - difference)
    return KLPenalty(
        advantages=discounted_sums(penalties, gamma, mask=mask, starts=starts), mean_kl=mean_kl
    )


def _difference(
    sampling_logprobs: AnyArray, other_logprobs: AnyArray, mask: AnyArray | None
) -> Array:
    """k1, and 0 where it does not count."""
    counts = jnp.asarray(sampling_logprobs) > -jnp.inf
    if mask is not None:
        counts &= mask
    return masked.keep(sampling_logprobs, counts) - masked.keep(other_logprobs, counts)


def _batch_mean(values: Array, mask: AnyArray) -> Array:
    """The mean over the mask of values that are 0 elsewhere; 0 where nothing is unmasked.

    A block at a time and then over blocks: the digits stay over millions of tokens, and on CPU
    this is several times as fast as one reduction over everything.
    """
    blocks = _in_blocks(values)
    ones = jnp.ones(BLOCK, values.dtype)
    totals = jnp.matmul(blocks, ones, precision=lax.Precision.HIGHEST)
    # A block's count fits into 8 bits, which are added up fastest.
    counts = jnp.sum(_in_blocks(jnp.asarray(mask)).astype(jnp.int8), axis=-1, dtype=jnp.int8)
    return jnp.sum(totals) / jnp.maximum(jnp.sum(counts.astype(jnp.int32)), 1)


def _in_blocks(array: Array) -> Array:
    return jnp.pad(array.reshape(-1), (0, -array.size % BLOCK)).reshape(-1, BLOCK)


def _excess(exponent: Array) -> Array:
    """exp x - 1 - x, which a subtraction would round to noise for small x."""
    is_small = jnp.abs(exponent) < 0.5
    small = jnp.where(is_small, exponent, 0)
    series = jnp.ones_like(small)
    for term in range(16, 2, -1):
        series = 1 + small / term * series
    return jnp.where(is_small, small**2 / 2 * series, jnp.expm1(exponent) - exponent)
