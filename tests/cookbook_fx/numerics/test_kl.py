"""Estimators by hand and against exact enumeration; the penalty's sums, its mask and its −inf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.numerics import kl
from cookbook_fx.numerics.returns import BLOCK

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.sampled_from([(1,), (7,), (3, BLOCK)])
ESTIMATORS = [kl.kl_k1, kl.kl_k2, kl.kl_k3]
BAD = [np.nan, np.inf, -np.inf, 3e38]


def logprobs(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of two policies that are not far apart, and a mask that is True somewhere."""
    generator = np.random.default_rng(seed)
    sampling = -generator.exponential(size=shape)
    other = np.minimum(0, sampling + generator.normal(scale=0.3, size=shape))
    mask = generator.random(shape) < 0.6
    mask.flat[0] = True
    return sampling.astype(np.float32), other.astype(np.float32), mask


def test_estimators_by_hand() -> None:
    sampling, other = jnp.log(jnp.array([0.5, 0.25])), jnp.log(jnp.array([0.25, 0.5]))
    log2 = np.log(2)

    np.testing.assert_allclose(kl.kl_k1(sampling, other), [log2, -log2], rtol=1e-6)
    np.testing.assert_allclose(kl.kl_k2(sampling, other), [log2**2 / 2] * 2, rtol=1e-6)
    np.testing.assert_allclose(kl.kl_k3(sampling, other), [log2 - 0.5, 1 - log2], rtol=1e-6)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_unbiased_estimators_average_to_the_exact_divergence(seed: int) -> None:
    """Over every token of a small vocabulary, each as often as the sampling policy takes it."""
    p, q = (jax.nn.log_softmax(x) for x in np.random.default_rng(seed).normal(size=(2, 6)))
    exact = np.sum(np.exp(np.float64(p)) * (np.float64(p) - np.float64(q)))

    np.testing.assert_allclose(kl.kl_divergence(p, q), exact, rtol=1e-4, atol=1e-6)
    for estimator in (kl.kl_k1, kl.kl_k3):
        average = np.sum(np.exp(p) * np.asarray(estimator(p, q)))
        np.testing.assert_allclose(average, exact, rtol=1e-4, atol=1e-6)


@given(seed=SEEDS, shape=SHAPES)
@settings(max_examples=20)
def test_k2_and_k3_are_never_below_0_and_all_are_0_at_equality(
    seed: int, shape: tuple[int, ...]
) -> None:
    sampling, other, _ = logprobs(seed, shape)

    assert np.all(np.asarray(kl.kl_k2(sampling, other)) >= 0)
    assert np.all(np.asarray(kl.kl_k3(sampling, other)) >= 0)
    for estimator in ESTIMATORS:
        assert not np.any(np.asarray(estimator(sampling, sampling)))


def test_k3_keeps_its_digits_between_policies_that_nearly_agree() -> None:
    log_ratio = np.geomspace(1e-6, 20, 200).astype(np.float32)
    log_ratio = np.concatenate([-log_ratio, log_ratio])
    exact = np.expm1(np.float64(log_ratio)) - np.float64(log_ratio)
    # Of the small ones float64 itself loses the digits; there the series' first terms are exact.
    small, x = np.abs(log_ratio) < 1e-3, np.float64(log_ratio)
    exact[small] = (x**2 / 2 + x**3 / 6 + x**4 / 24)[small]

    np.testing.assert_allclose(kl.kl_k3(np.zeros_like(log_ratio), log_ratio), exact, rtol=2e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_infinite_logprobs(estimator: object) -> None:
    """What the sampler itself rules out adds 0; what only the other rules out is infinite."""
    inf = jnp.inf
    sampling, other = jnp.array([-inf, -inf, -1.0]), jnp.array([-1.0, -inf, -inf])

    assert estimator(sampling, other).tolist() == [0, 0, inf]
    assert kl.kl_divergence(jnp.array([0.0, -inf]), jnp.array([0.0, -inf])) == 0
    assert kl.kl_divergence(jnp.array([0.0, -inf]), jnp.array([-1.0, -0.5])) == 1
    assert kl.kl_divergence(jnp.array([-1.0, -0.5]), jnp.array([0.0, -inf])) == inf


def test_gradients_are_their_closed_forms() -> None:
    """With respect to log q: -1, log r and r - 1."""
    sampling, other, _ = logprobs(0, (50,))
    other[:2] = [sampling[0], sampling[1] + 1e-4]
    log_ratio = np.float64(other) - np.float64(sampling)

    for estimator, wanted in zip(
        ESTIMATORS, [-np.ones(50), log_ratio, np.expm1(log_ratio)], strict=True
    ):
        slope = jax.grad(lambda q, estimator=estimator: jnp.sum(estimator(sampling, q)))(
            jnp.asarray(other)
        )
        np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_the_exact_divergence_survives_zeros() -> None:
    p, q = jnp.array([0.0, -jnp.inf]), jnp.array([-1.0, -jnp.inf])

    by_p, by_q = jax.grad(lambda p, q: kl.kl_divergence(p, q).sum(), (0, 1))(p, q)

    assert by_p.tolist() == [2, 0]
    assert by_q.tolist() == [-1, 0]


@pytest.mark.parametrize("bad", BAD)
def test_masked_content_never_matters(bad: float) -> None:
    sampling, other, mask = logprobs(1, (3, BLOCK))

    def everything(sampling: jax.Array, other: jax.Array) -> jax.Array:
        estimates = sum(jnp.sum(f(sampling, other, mask=mask)) for f in ESTIMATORS)
        metrics = kl.sample_train_kl(sampling, other, mask)
        penalty = kl.kl_penalty(sampling, other, mask, coef=0.1, gamma=0.9)
        return estimates + sum(metrics) + jnp.sum(penalty.advantages**2) + penalty.mean_kl

    slopes = jax.value_and_grad(everything, (0, 1))
    clean = slopes(jnp.where(mask, sampling, 0), jnp.where(mask, other, 0))
    dirty = slopes(jnp.where(mask, sampling, bad), jnp.where(mask, other, bad))

    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert np.isfinite(dirty[0])
    assert all(not np.any(np.asarray(slope)[~mask]) for slope in dirty[1])


@given(seed=SEEDS, shape=SHAPES)
@settings(max_examples=20)
def test_metrics_are_the_means_of_their_definitions(seed: int, shape: tuple[int, ...]) -> None:
    sampling, training, mask = logprobs(seed, shape)
    difference = (np.float64(sampling) - np.float64(training))[mask]

    metrics = kl.sample_train_kl(sampling, training, mask)

    wanted = (
        difference.mean(),
        (difference**2).mean() / 2,
        np.mean(np.expm1(-difference) + difference),
        -np.float64(sampling)[mask].mean(),
    )
    np.testing.assert_allclose(metrics, wanted, rtol=1e-5, atol=1e-7)


def test_means_keep_their_digits_over_many_tokens() -> None:
    """Adding 20 million times 0.1 to one float32 would stop far too early."""
    sampling = np.full(20_000_001, -0.1, np.float32)

    metrics = kl.sample_train_kl(sampling, 2 * sampling, np.ones(sampling.shape, bool))

    np.testing.assert_allclose(metrics.kl_v1, 0.1, rtol=1e-6)
    np.testing.assert_allclose(metrics.entropy, 0.1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (0,), (2, 0)])
def test_nothing_unmasked_is_0_throughout(shape: tuple[int, ...]) -> None:
    sampling, mask = np.full(shape, -np.inf, np.float32), np.zeros(shape, bool)

    assert kl.sample_train_kl(sampling, sampling, mask) == (0, 0, 0, 0)
    for gamma in (0.0, 0.9):
        penalty = kl.kl_penalty(sampling, sampling, mask, coef=1.0, gamma=gamma)
        assert penalty.mean_kl == 0
        assert penalty.advantages.shape == shape
        assert not np.any(np.asarray(penalty.advantages))


def test_penalties_by_hand() -> None:
    """A prompt token, three sampled ones and a hole between them that time passes through."""
    sampling = jnp.array([-9.0, -1.0, -1.0, -5.0, -1.0])
    base = jnp.array([-1.0, -2.0, -1.0, -1.0, -3.0])
    mask = jnp.array([False, True, True, False, True])

    plain = kl.kl_penalty(sampling, base, mask, coef=0.5)
    discounted = kl.kl_penalty(sampling, base, mask, coef=0.5, gamma=0.5)
    reverse = kl.kl_penalty(sampling, base, mask, coef=0.5, centered=False)

    assert plain.mean_kl == reverse.mean_kl == 1
    assert plain.advantages.tolist() == [0, 0, 0.5, 0, -0.5]
    assert discounted.advantages.tolist() == [0, 0.1875, 0.375, 0, -0.5]
    assert reverse.advantages.tolist() == [0, -0.5, 0, 0, -1.0]


@given(seed=SEEDS, shape=SHAPES)
@settings(max_examples=20)
def test_a_centered_penalty_sums_to_0_and_leaves_prompts_alone(
    seed: int, shape: tuple[int, ...]
) -> None:
    sampling, base, mask = logprobs(seed, shape)

    plain = kl.kl_penalty(sampling, base, mask, coef=0.7)
    discounted = kl.kl_penalty(sampling, base, mask, coef=0.7, gamma=0.9)

    np.testing.assert_allclose(plain.advantages.sum(), 0, atol=1e-5)
    assert not np.any(np.asarray(plain.advantages)[~mask])
    assert not np.any(np.asarray(discounted.advantages)[~mask])


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_penalties_meet_the_definition_in_every_layout(gamma: float, centered: bool) -> None:
    sampling, base, mask = logprobs(3, (4, 3 * BLOCK))
    difference = np.where(mask, np.float64(sampling) - np.float64(base), 0)
    mean = difference.sum() / mask.sum()
    own = 0.3 * mask * ((mean if centered else 0) - difference)
    wanted, following = np.zeros(own.shape), np.zeros(4)
    for t in reversed(range(own.shape[1])):
        following = own[:, t] + float(np.float32(gamma)) * following
        wanted[:, t] = following * mask[:, t]
    starts = np.zeros(mask.shape, bool)
    starts[:, 0] = True
    layouts = [
        (mask.shape, None),
        ((-1,), starts.reshape(-1)),
        ((-1, BLOCK), starts.reshape(-1, BLOCK)[:, 0]),
    ]

    for shape, layout_starts in layouts:
        penalty = kl.kl_penalty(
            *(x.reshape(shape) for x in (sampling, base, mask)),
            coef=0.3, gamma=gamma, centered=centered, starts=layout_starts,
        )  # fmt: skip
        np.testing.assert_allclose(penalty.mean_kl, mean, rtol=1e-5)
        np.testing.assert_allclose(
            penalty.advantages.reshape(mask.shape), wanted, atol=1e-5 * np.abs(wanted).max()
        )


def test_a_token_the_base_rules_out_shows_in_the_mean_and_stays_in_its_sequence() -> None:
    sampling, base = -jnp.ones((3, 4)), -jnp.ones((3, 4)).at[1, 2].set(jnp.inf)
    mask = jnp.ones((3, 4), bool).at[:, 0].set(False)

    penalty = kl.kl_penalty(sampling, base, mask, coef=1.0, gamma=0.5, centered=False)
    centered = kl.kl_penalty(sampling, base, mask, coef=1.0)

    assert penalty.mean_kl == centered.mean_kl == jnp.inf
    assert np.all(np.isfinite(np.asarray(penalty.advantages)[[0, 2]]))
    assert not np.any(np.asarray(centered.advantages)[~np.asarray(mask)])


def test_a_token_the_sampler_rules_out_is_no_evidence() -> None:
    sampling, base = jnp.array([-jnp.inf, -1.0]), jnp.array([-1.0, -2.0])
    mask = jnp.ones(2, bool)

    assert kl.sample_train_kl(sampling, base, mask)[:2] == (0.5, 0.25)
    assert kl.sample_train_kl(sampling, base, mask).entropy == 0.5
    assert kl.kl_penalty(sampling, base, mask, coef=1.0).advantages.tolist() == [0.5, -0.5]


def test_other_settings_compile_nothing_and_types_are_kept() -> None:
    sampling, base, mask = logprobs(4, (7,))
    kl.kl_penalty(sampling, base, mask, coef=0.1, gamma=0.9)
    compiled = kl.kl_penalty._cache_size()

    kl.kl_penalty(sampling, base, mask, coef=0.2, gamma=0.5)

    assert kl.kl_penalty._cache_size() == compiled
    half = kl.kl_penalty(sampling.astype(np.float16), base, mask, coef=0.1)
    assert half.advantages.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = kl.kl_penalty(np.float64(sampling), np.float64(base), mask, coef=0.1, gamma=0.9)
        assert wide.advantages.dtype == wide.mean_kl.dtype == jnp.float64


def test_vmap_takes_each_batch_by_itself() -> None:
    sampling, base, mask = logprobs(5, (3, BLOCK))

    together = jax.vmap(lambda s, b, m: kl.kl_penalty(s, b, m, coef=0.5, gamma=0.9))(
        sampling, base, mask
    )

    for row in range(3):
        alone = kl.kl_penalty(sampling[row], base[row], mask[row], coef=0.5, gamma=0.9)
        np.testing.assert_allclose(together.advantages[row], alone.advantages, atol=1e-6)
        np.testing.assert_allclose(together.mean_kl[row], alone.mean_kl, rtol=1e-5)
