"""The figures of a step by hand, against float64, and on nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cookbook_fx import numerics
from cookbook_fx.numerics import PolicyDiagnostics, policy_diagnostics

SHAPE = (2, 5)
LOGPROBS = arrays(np.float32, SHAPE, elements=st.floats(-5, 0, width=32))
ADVANTAGES = arrays(np.float32, SHAPE, elements=st.sampled_from([-2.0, 0.0, 0.5]))
Array = np.ndarray


def diagnosed(
    p: Array, q: Array, mask: Array, advantages: Array | None = None
) -> PolicyDiagnostics:
    return policy_diagnostics(
        np.asarray(p, np.float32),
        sampling_logprobs=np.asarray(q, np.float32),
        mask=np.asarray(mask),
        advantages=None if advantages is None else np.asarray(advantages, np.float32),
    )


def reference(p: Array, q: Array, mask: Array, advantages: Array | None) -> PolicyDiagnostics:
    """Of the tokens that count, picked out, in float64."""
    if not mask.any():
        return PolicyDiagnostics(*[0.0] * len(PolicyDiagnostics._fields))
    x, q = (p.astype(np.float64) - q)[mask], q.astype(np.float64)[mask]
    r = np.exp(x)
    low, high = r < 0.8, r > 1.2
    if advantages is not None:
        low, high = low & (advantages[mask] < 0), high & (advantages[mask] > 0)
    return PolicyDiagnostics(
        ratio_mean=r.mean(),
        ratio_min=r.min(),
        ratio_max=r.max(),
        clip_fraction_low=low.mean(),
        clip_fraction_high=high.mean(),
        effective_sample_size=r.sum() ** 2 / (len(r) * (r**2).sum()),
        kl_v1=-x.mean(),
        kl_v2=(x**2 / 2).mean(),
        kl_v3=(r - 1 - x).mean(),
        entropy=-q.mean(),
    )


def assert_same(ours: PolicyDiagnostics, expected: PolicyDiagnostics) -> None:
    for name, value, wanted in zip(ours._fields, ours, expected, strict=True):
        assert value.shape == ()
        np.testing.assert_allclose(value, wanted, rtol=2e-5, atol=1e-6, err_msg=name)


def test_figures_by_hand() -> None:
    p, q = np.log([2.0, 0.5, 0.5, 1.0]), np.zeros(4)
    report = diagnosed(p, q, np.ones(4, bool), np.array([1.0, 1.0, -1.0, 1.0]))
    log2 = math.log(2)

    assert report.ratio_mean == 1.0
    assert (report.ratio_min, report.ratio_max) == pytest.approx((0.5, 2.0))
    # One token of each kind: the other 0.5 belongs to an advantage that wants it back up.
    assert (report.clip_fraction_low, report.clip_fraction_high) == (0.25, 0.25)
    assert report.effective_sample_size == pytest.approx(16 / (4 * 5.5))
    assert (report.kl_v1, report.kl_v2) == pytest.approx((log2 / 4, 3 * log2**2 / 8))
    assert report.kl_v3 == pytest.approx(log2 / 4)
    assert report.entropy == 0


def test_without_advantages_every_ratio_outside_counts() -> None:
    report = diagnosed(np.log([2.0, 0.5, 0.5, 1.0]), np.zeros(4), np.ones(4, bool))

    assert (report.clip_fraction_low, report.clip_fraction_high) == (0.5, 0.25)


@given(p=LOGPROBS, q=LOGPROBS, mask=arrays(bool, SHAPE), advantages=st.none() | ADVANTAGES)
def test_figures_are_those_of_the_tokens_that_count(
    p: Array, q: Array, mask: Array, advantages: Array | None
) -> None:
    ratios = np.exp(p.astype(np.float64) - q)
    # Rounding decides on which side of a threshold a ratio on it stands.
    near = np.isclose(ratios, 0.8, rtol=1e-5) | np.isclose(ratios, 1.2, rtol=1e-5)
    p = np.where(near, q, p)
    dirty = (np.where(mask, x, np.float32(np.nan)) for x in (p, q))
    hidden = None if advantages is None else np.where(mask, advantages, np.inf)

    assert_same(diagnosed(*dirty, mask, hidden), reference(p, q, mask, advantages))


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 0), (2, 2)])
def test_on_nothing_every_figure_is_zero(shape: tuple[int, ...]) -> None:
    report = diagnosed(np.full(shape, -np.inf), np.full(shape, np.nan), np.zeros(shape, bool))

    assert [float(figure) for figure in report] == [0.0] * len(report)


@given(q=LOGPROBS)
def test_a_policy_that_has_not_moved(q: Array) -> None:
    report = diagnosed(q, q, np.ones(SHAPE, bool), np.ones(SHAPE))

    assert report[:5] == (1, 1, 1, 0, 0)
    assert report.effective_sample_size == pytest.approx(1)
    assert (report.kl_v1, report.kl_v2, report.kl_v3) == (0, 0, 0)


def test_the_clip_fraction_is_the_share_of_tokens_that_ppo_does_not_move() -> None:
    rng = np.random.default_rng(0)
    p, q, advantages = rng.normal(-1, 0.4, (3, 200)).astype(np.float32)
    report = diagnosed(p, q, np.ones(200, bool), advantages)
    slopes = jax.grad(
        lambda p: numerics.ppo(
            p, sampling_logprobs=q, advantages=advantages, weights=np.ones(200, np.float32)
        ).sum()
    )(p)

    assert 0 < report.clip_fraction_low < 1
    fraction = report.clip_fraction_low + report.clip_fraction_high
    assert fraction == pytest.approx((slopes == 0).mean())


def test_one_enormous_ratio_leaves_one_effective_sample() -> None:
    report = diagnosed(np.array([0.0, 80.0, 0.0, 0.0]), np.zeros(4), np.ones(4, bool))

    assert report.effective_sample_size == pytest.approx(0.25)


def test_infinities_that_count_show_where_they_matter() -> None:
    inf = np.inf
    learner = diagnosed(np.array([-inf, -1.0]), np.array([-1.0, -1.0]), np.ones(2, bool))
    assert (learner.ratio_min, learner.ratio_mean) == (0, 0.5)
    assert learner.effective_sample_size == pytest.approx(0.5)
    assert (learner.kl_v1, learner.kl_v3) == (inf, inf)
    sampler = diagnosed(np.array([-1.0, -1.0]), np.array([-inf, -1.0]), np.ones(2, bool))
    assert (sampler.ratio_max, sampler.ratio_mean) == (inf, inf)
    assert np.isnan(sampler.effective_sample_size)
    both = diagnosed(np.array([-inf, -1.0]), np.array([-inf, -1.0]), np.ones(2, bool))
    assert both[:6] == (1, 1, 1, 0, 0, 1)


def test_figures_under_vmap_and_in_float64() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.normal(-1, 0.3, (2, 3, 40)).astype(np.float32)
    mask = rng.random((3, 40)) < 0.5
    batched = jax.vmap(lambda p, q, m: policy_diagnostics(p, sampling_logprobs=q, mask=m))(
        p, q, mask
    )
    for row in range(3):
        assert_same(
            PolicyDiagnostics(*(figure[row] for figure in batched)),
            reference(p[row], q[row], mask[row], None),
        )
    with jax.enable_x64(True):
        double = policy_diagnostics(
            p.astype(np.float64), sampling_logprobs=q.astype(np.float64), mask=mask
        )
    assert {figure.dtype for figure in double} == {jnp.dtype("float64")}
    np.testing.assert_allclose(
        np.array(double), np.array(reference(p, q, mask, None)), rtol=1e-12, atol=1e-14
    )


def test_other_thresholds_compile_nothing() -> None:
    p, q, mask = np.zeros(17, np.float32), np.zeros(17, np.float32), np.ones(17, bool)
    before = policy_diagnostics._cache_size()
    for high in (1.1, 1.2, 5.0):
        policy_diagnostics(p, sampling_logprobs=q, mask=mask, clip_high_threshold=high)

    assert policy_diagnostics._cache_size() - before == 1
