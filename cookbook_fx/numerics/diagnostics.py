"""How far a policy has moved from the one that sampled, in the figures people log."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cookbook_fx.numerics import masked
from cookbook_fx.numerics.kl import sample_train_kl
from cookbook_fx.numerics.masked import AnyArray
from cookbook_fx.numerics.policy import Threshold, clip_binds, log_ratio


class PolicyDiagnostics(NamedTuple):
    """Of all tokens on a mask; r = exp(p - q) is a token's ratio.

    Args:
        ratio_mean: of r; 1 in expectation, whatever the distance of the policies.
        ratio_min: the smallest r.
        ratio_max: the largest r.
        clip_fraction_low: share of tokens without gradient because r is below the range.
        clip_fraction_high: share of tokens without gradient because r is above the range.
        effective_sample_size: (Σr)² / (n Σr²), as a share of the n tokens: 1 where all weigh the
            same, 1/n where one outweighs the rest.
        kl_v1: mean of k1, q - p; this and the following in nats a token, as of `sample_train_kl`.
        kl_v2: mean of k2, (q - p)² / 2.
        kl_v3: mean of k3, r - 1 - (p - q).
        entropy: mean of -q: of the policy that sampled.
    """

    ratio_mean: Float[Array, ""]
    ratio_min: Float[Array, ""]
    ratio_max: Float[Array, ""]
    clip_fraction_low: Float[Array, ""]
    clip_fraction_high: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    kl_v1: Float[Array, ""]
    kl_v2: Float[Array, ""]
    kl_v3: Float[Array, ""]
    entropy: Float[Array, ""]


@jax.jit
def policy_diagnostics(
    logprobs: Float[AnyArray, "*token"],
    *,
    sampling_logprobs: Float[AnyArray, "*token"],
    mask: Bool[AnyArray, "*token"],
    advantages: Float[AnyArray, "*token"] | None = None,
    clip_low_threshold: Threshold = 0.8,
    clip_high_threshold: Threshold = 1.2,
) -> PolicyDiagnostics:
    """Ratios, clipping, effective sample size, KL and entropy of a batch, in one call.

    Args:
        logprobs: p, under the current weights.
        sampling_logprobs: q, recorded when the tokens were sampled.
        mask: which tokens count.
        advantages: A. A ratio outside the range stops the gradient only where the advantage would
            drive it further out: below where A < 0, above where A > 0. None counts every ratio
            outside, which is the most the clip could stop.
        clip_low_threshold: the smallest ratio itself, as for `ppo`.
        clip_high_threshold: the largest ratio itself.

    Returns:
        Scalars, each 0 where nothing is on the mask. An unmasked -inf counts by the rules of
        `numerics.policy`, and of `sample_train_kl`, and shows in the figures it makes infinite; the
        effective sample size beside an infinite ratio is nan.

    Example:
        >>> report = policy_diagnostics(
        ...     jnp.log(jnp.array([0.5, 0.9])), sampling_logprobs=jnp.log(jnp.array([0.5, 0.3])),
        ...     advantages=jnp.array([1.0, 1.0]), mask=jnp.array([True, True]))
        >>> print(f"{report.ratio_max:.1f} {report.clip_fraction_high:.1f}")
        3.0 0.5
        >>> print(f"{report.effective_sample_size:.1f} {report.kl_v3:.2f}")
        0.8 0.45

    Reference:
        Kong 1992, "A note on importance sampling using standardized weights", for the effective
        sample size; Schulman et al. 2017, arXiv:1707.06347, equation 7, for the clip.
    """
    p, q = masked.keep(logprobs, mask), masked.keep(sampling_logprobs, mask)
    log_ratios = log_ratio(p, q)
    ratios = jnp.exp(log_ratios)
    if advantages is None:
        low, high = ratios < clip_low_threshold, ratios > clip_high_threshold
    else:
        low, high = clip_binds(
            ratios,
            masked.keep(advantages, mask),
            clip_low_threshold=clip_low_threshold,
            clip_high_threshold=clip_high_threshold,
        )
    largest = jnp.max(jnp.where(mask, log_ratios, -jnp.inf), initial=-jnp.inf)
    # Shares of the largest, whose squares cannot overflow.
    shares = jnp.exp(log_ratios - largest)
    squares = masked.total(shares**2, mask)
    some = jnp.any(mask)
    return PolicyDiagnostics(
        ratio_mean=masked.mean(ratios, mask),
        ratio_min=jnp.where(some, jnp.min(ratios, where=mask, initial=jnp.inf), 0),
        ratio_max=jnp.where(some, jnp.exp(largest), 0),
        clip_fraction_low=masked.mean(low.astype(ratios.dtype), mask),
        clip_fraction_high=masked.mean(high.astype(ratios.dtype), mask),
        effective_sample_size=jnp.where(
            some, masked.mean(shares, mask) * masked.total(shares, mask) / squares, 0
        ),
        **sample_train_kl(sampling_logprobs, logprobs, mask)._asdict(),
    )
