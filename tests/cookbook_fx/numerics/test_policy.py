"""Losses by hand, their gradients by their closed forms, and what a weight of 0 hides."""

import math
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cookbook_fx import numerics
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics import policy
from cookbook_fx.numerics.policy import LOSS_DEFAULTS, LossSpec, token_losses

SIZE = 6
LOSSES = list(LOSS_DEFAULTS)
POLICY_LOSSES = [name for name in LOSSES if name != "cross_entropy"]
CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
SETTINGS = {
    name: LossSpec(name=name, config=CLIP if name == "gspo" else {}).settings for name in LOSSES
}

LOGPROBS = arrays(np.float32, SIZE, elements=st.floats(-6, 0, width=32))
ADVANTAGES = arrays(np.float32, SIZE, elements=st.floats(-5, 5, width=32))
WEIGHTS = arrays(np.float32, SIZE, elements=st.sampled_from([0.0, 0.0, 1.0, 0.5, -2.0]))
Array = np.ndarray


@cache
def _compiled(name: str) -> Callable:
    def total(p, q, advantages, weights, settings):
        losses = token_losses(
            name,
            p[:, None],
            weights=weights[:, None],
            sampling_logprobs=q,
            advantages=advantages,
            settings=settings,
        )[:, 0]
        return losses.sum(), losses

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))


def losses_and_slopes(
    name: str,
    p: Array,
    q: Array,
    advantages: Array,
    weights: Array | None = None,
    **settings: float,
) -> tuple[Array, Array, Array, Array]:
    """Per token: the loss, and its slopes in p, in q and in A."""
    weights = np.ones(len(p), np.float32) if weights is None else weights
    inputs = (np.asarray(x, np.float32) for x in (p, q, advantages, weights))
    slopes, losses = _compiled(name)(*inputs, SETTINGS[name] | settings)
    return np.asarray(losses), *(np.asarray(slope) for slope in slopes)


def reference(name: str, p: Array, q: Array, a: Array, w: Array) -> tuple[Array, Array]:
    """Losses and closed-form slopes in p, in float64 and token by token."""
    p, q, a, w = (x.astype(np.float64) for x in (p, q, a, w))
    counts = w != 0
    mean = (p - q)[counts].mean() if counts.any() else 0.0
    losses, slopes = np.zeros(len(p)), np.zeros(len(p))
    for i in np.flatnonzero(counts):
        r = math.exp(mean if name == "gspo" else p[i] - q[i])
        low, high = (
            SETTINGS[name].get(f"clip_{end}_threshold", math.nan) for end in ("low", "high")
        )
        if name == "cross_entropy":
            loss, slope = -p[i], -1.0
        elif name == "importance_sampling":
            loss, slope = -r * a[i], -r * a[i]
        elif name == "cispo":
            loss, slope = (-min(max(r, low), high) * a[i] * x for x in (p[i], 1.0))
        elif name == "dro":
            loss = -(p[i] * a[i] - 0.025 * (p[i] - q[i]) ** 2)
            slope = -(a[i] - 0.05 * (p[i] - q[i]))
        else:
            free, clipped = r * a[i], min(max(r, low), high) * a[i]
            loss, slope = -min(free, clipped), -free if free <= clipped else 0.0
        losses[i], slopes[i] = loss * w[i], slope * w[i]
    return losses, slopes


@pytest.mark.parametrize(
    ("name", "ratio", "advantage", "loss", "slope"),
    [
        ("importance_sampling", 2.0, 3.0, -6.0, -6.0),
        ("ppo", 1.1, 3.0, -3.3, -3.3),
        ("ppo", 2.0, 3.0, -3.6, 0.0),
        ("ppo", 2.0, -3.0, 6.0, 6.0),
        ("ppo", 0.5, 3.0, -1.5, -1.5),
        ("ppo", 0.5, -3.0, 2.4, 0.0),
        ("cispo", 2.0, 3.0, -2 * 3 * (math.log(2) - 1), -6.0),
        ("cispo", 8.0, 3.0, -4 * 3 * (math.log(8) - 1), -12.0),
        (
            "dro",
            2.0,
            3.0,
            -(3 * (math.log(2) - 1) - 0.025 * math.log(2) ** 2),
            -(3 - 0.05 * math.log(2)),
        ),
        ("gspo", 1.1, 3.0, -3.3, -3.3),
        ("gspo", 2.0, 3.0, -3.6, 0.0),
        ("gspo", 0.5, -3.0, 2.4, 0.0),
        ("gspo", 2.0, -3.0, 6.0, 6.0),
    ],
)
def test_losses_and_slopes_by_hand(
    name: str, ratio: float, advantage: float, loss: float, slope: float
) -> None:
    ones = np.ones(SIZE)
    got = losses_and_slopes(name, (math.log(ratio) - 1) * ones, -ones, advantage * ones)

    np.testing.assert_allclose(got[0], loss, rtol=1e-5)
    np.testing.assert_allclose(got[1], slope, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@given(p=LOGPROBS, q=LOGPROBS, advantages=ADVANTAGES, weights=WEIGHTS)
def test_losses_and_slopes_are_the_closed_forms(
    name: str, p: Array, q: Array, advantages: Array, weights: Array
) -> None:
    got = losses_and_slopes(name, p, q, advantages, weights)
    losses, slopes = reference(name, p, q, advantages, weights)

    np.testing.assert_allclose(got[0], losses, rtol=1e-4, atol=1e-5)
    differs = np.abs(got[1] - slopes) > 1e-5 + 1e-4 * np.abs(slopes)
    # Rounding decides on which side of a threshold a ratio on it stands.
    assert (
        np.isclose(losses, -CLIP["clip_high_threshold"] * advantages * weights, rtol=1e-5)
        | np.isclose(losses, -CLIP["clip_low_threshold"] * advantages * weights, rtol=1e-5)
    )[differs].all()


@pytest.mark.parametrize("name", ["cross_entropy", "importance_sampling", "ppo", "dro", "gspo"])
def test_slopes_are_finite_differences(name: str) -> None:
    """cispo's own value holds its ratio fixed, so only its closed form can be checked."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        p, q = jnp.asarray(rng.normal(-2, 0.3, (2, SIZE)))
        # Only with equal advantages does the value of gspo not depend on what it holds fixed.
        advantages = jnp.full(SIZE, 0.7) if name == "gspo" else jnp.asarray(rng.normal(size=SIZE))

        def total(p: jax.Array) -> jax.Array:
            return token_losses(
                name,
                p[:, None],
                weights=jnp.ones((SIZE, 1)),
                sampling_logprobs=q,
                advantages=advantages,
                settings=SETTINGS[name],
            ).sum()

        slopes = jax.grad(total)(p)
        steps = 1e-6 * jnp.eye(SIZE)
        differences = jax.vmap(lambda step: (total(p + step) - total(p - step)) / 2e-6)(steps)

    assert slopes.dtype == jnp.float64
    assert np.abs(slopes).max() > 0.1
    np.testing.assert_allclose(slopes, differences, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", POLICY_LOSSES)
@given(p=LOGPROBS, advantages=ADVANTAGES)
def test_on_policy_every_slope_is_minus_the_advantage(
    name: str, p: Array, advantages: Array
) -> None:
    slopes = losses_and_slopes(name, p, p, advantages)[1]

    np.testing.assert_allclose(slopes, -advantages, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ppo", "gspo"])
def test_a_ratio_on_a_threshold_is_inside_and_learns(name: str) -> None:
    zeros, advantages = np.zeros(2, np.float32), np.array([1.0, -1.0], np.float32)
    ends = {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0}

    assert losses_and_slopes(name, zeros, zeros, advantages, **ends)[1].tolist() == [-1, 1]


@given(p=LOGPROBS, q=LOGPROBS, advantages=ADVANTAGES)
def test_ppo_is_never_below_importance_sampling(p: Array, q: Array, advantages: Array) -> None:
    plain = losses_and_slopes("importance_sampling", p, q, advantages)[0]

    assert (losses_and_slopes("ppo", p, q, advantages)[0] >= plain - 1e-6 * np.abs(plain)).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@given(p=LOGPROBS, q=LOGPROBS, advantages=ADVANTAGES, weights=WEIGHTS)
def test_a_weight_of_zero_hides_everything(
    name: str, bad: float, p: Array, q: Array, advantages: Array, weights: Array
) -> None:
    hidden = weights == 0
    dirty = (np.where(hidden, bad, x) for x in (p, q, advantages))
    clean = losses_and_slopes(name, p, q, advantages, weights)
    for ours, expected in zip(losses_and_slopes(name, *dirty, weights), clean, strict=True):
        np.testing.assert_array_equal(ours, expected)
        assert (ours[hidden] == 0).all()


@pytest.mark.parametrize(
    ("name", "p", "q", "advantage", "loss", "slope"),
    [
        # Both rule the token out: they agree.
        ("importance_sampling", -math.inf, -math.inf, 2.0, -2.0, 0.0),
        ("ppo", -math.inf, -math.inf, 2.0, -2.0, 0.0),
        # Only the learner does.
        ("importance_sampling", -math.inf, -1.0, 2.0, 0.0, 0.0),
        ("ppo", -math.inf, -1.0, -2.0, 1.6, 0.0),
        ("gspo", -math.inf, -1.0, -2.0, 1.6, 0.0),
        # Only the record of the sampler does.
        ("importance_sampling", -1.0, -math.inf, 2.0, -math.inf, -math.inf),
        ("ppo", -1.0, -math.inf, 2.0, -2.4, 0.0),
        ("gspo", -1.0, -math.inf, 2.0, -2.4, 0.0),
        ("cispo", -1.0, -math.inf, 2.0, 8.0, -8.0),
    ],
)
def test_what_infinities_give_where_they_count(
    name: str, p: float, q: float, advantage: float, loss: float, slope: float
) -> None:
    ones = np.ones(SIZE)
    got = losses_and_slopes(name, p * ones, q * ones, advantage * ones)

    np.testing.assert_allclose(got[0], loss, rtol=1e-6)
    np.testing.assert_allclose(got[1], slope, rtol=1e-6)


def test_cross_entropy_is_weighted_and_keeps_its_shape() -> None:
    losses = policy.cross_entropy(-jnp.ones((2, 3)), weights=jnp.arange(6.0).reshape(2, 3))

    assert losses.tolist() == [[0, 1, 2], [3, 4, 5]]


def gspo(p: Array, q: Array, advantages: Array, weights: Array, **options: Array) -> jax.Array:
    return numerics.gspo(
        p, sampling_logprobs=q, advantages=advantages, weights=weights, **CLIP, **options
    )


def columns(*shape: int, seed: int = 0) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    p, q, advantages = rng.normal(0, 0.2, (3, *shape)).astype(np.float32)
    return p - 2, q - 2, advantages, (rng.random(shape) < 0.7).astype(np.float32)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    ids=st.permutations([0, 3, 7, 2**31 - 1]),
    seed=st.integers(0, 9),
)
def test_sequences_packed_in_a_row_are_those_alone(
    lengths: list[int], ids: list[int], seed: int
) -> None:
    width = 32
    segments = np.full(width, -1, np.int32)
    segments[: sum(lengths)] = np.repeat(ids[: len(lengths)], lengths)
    inputs = columns(width, seed=seed)
    inputs[3][segments < 0] = 0
    together = np.asarray(gspo(*inputs, segments=segments))
    for id_ in ids[: len(lengths)]:
        # Alone means: the only one with weights. A row that is one sequence needs no segments.
        alone = np.where(segments == id_, inputs[3], 0)
        np.testing.assert_allclose(
            together[segments == id_], gspo(*inputs[:3], alone)[segments == id_], rtol=2e-6
        )
    assert (together[segments < 0] == 0).all()


def test_rows_are_sequences_and_segments_are_of_one_row() -> None:
    inputs = columns(3, 8)
    rows = gspo(*inputs)
    for row in range(3):
        np.testing.assert_allclose(rows[row], gspo(*(x[row] for x in inputs)), rtol=2e-6)
    same = gspo(*inputs, segments=np.zeros((3, 8), np.int32))
    np.testing.assert_allclose(same, rows, rtol=2e-6)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_packed_rows_of_nothing_have_no_losses(shape: tuple[int, ...]) -> None:
    nothing = np.zeros(shape, np.float32)

    losses = gspo(*[nothing] * 4, segments=nothing.astype(np.int32))

    assert losses.shape == shape


def test_a_mask_of_its_own_makes_up_the_ratio() -> None:
    p, q = np.log(np.array([2.0, 8.0, 3.0, 5.0], np.float32)), np.zeros(4, np.float32)
    ones = np.ones(4, np.float32)
    wide = {"clip_low_threshold": 0.0, "clip_high_threshold": 100.0}
    losses = numerics.gspo(
        p,
        sampling_logprobs=q,
        advantages=ones,
        weights=np.array([0, 1, 1, 1], np.float32),
        sequence_ratio_mask=np.array([True, True, False, False]),
        **wide,
    )
    np.testing.assert_allclose(losses, [0, -4, -4, -4], rtol=1e-6)
    nothing = numerics.gspo(
        p, sampling_logprobs=q, advantages=ones, weights=ones,
        sequence_ratio_mask=np.zeros(4, bool), **wide,
    )  # fmt: skip
    np.testing.assert_allclose(nothing, -1, rtol=1e-6)


def test_the_ratio_of_a_sequence_has_no_gradient() -> None:
    p, q, *_ = columns(8)
    slopes = jax.grad(
        lambda p, q: numerics.sequence_log_ratios(
            p, sampling_logprobs=q, mask=np.ones(8, bool), segments=np.repeat([0, 1], 4)
        ).sum(),
        argnums=(0, 1),
    )(p, q)

    assert not np.any(slopes)


def test_importance_weights_by_hand() -> None:
    p = np.log(np.array([0.5, 0.9, 0.1, 0.4], np.float32))
    q = np.log(np.array([0.5, 0.3, 0.4, 0.1], np.float32))
    mask = np.array([True, True, True, False])
    weights = numerics.truncated_importance_weights(p, q, mask=mask, cap=2.0)

    np.testing.assert_allclose(weights, [1, 2, 0.25, 0], rtol=1e-6)


def test_importance_weights_where_probabilities_are_zero() -> None:
    inf = np.float32(np.inf)
    p, q = np.array([-1, -inf, -inf, -1], np.float32), np.array([-inf, -1, -inf, -1], np.float32)
    everywhere, nowhere = np.ones(4, bool), np.zeros(4, bool)

    def weights(mask: Array, cap: float) -> list[float]:
        return numerics.truncated_importance_weights(p, q, mask=mask, cap=cap).tolist()

    assert weights(everywhere, 2.0) == [2, 0, 1, 1]
    assert weights(everywhere, 0.5) == [0.5, 0, 0.5, 0.5]
    assert weights(nowhere, 2.0) == [0, 0, 0, 0]


@given(p=LOGPROBS, q=LOGPROBS, mask=arrays(bool, SIZE), cap=st.sampled_from([0.5, 1.0, 2.0]))
def test_importance_weights_are_capped_ratios_of_what_counts(
    p: Array, q: Array, mask: Array, cap: float
) -> None:
    p, q = np.where(mask, p, np.nan), np.where(mask, q, np.nan)
    weights = np.asarray(numerics.truncated_importance_weights(p, q, mask=mask, cap=cap))
    ratios = np.exp(np.float64(p) - np.float64(q))

    np.testing.assert_allclose(weights, np.where(mask, np.minimum(ratios, cap), 0), rtol=1e-5)


def test_importance_weights_carry_no_gradient() -> None:
    p, q, _, weights = columns(SIZE)
    slope = jax.grad(
        lambda p: numerics.truncated_importance_weights(p, q, mask=weights != 0, cap=2.0).sum()
    )(p)

    assert slope.tolist() == [0] * SIZE


@pytest.mark.parametrize("name", LOSSES)
def test_losses_work_under_vmap_on_numpy_and_in_every_precision(name: str) -> None:
    function = getattr(numerics, name)
    settings = SETTINGS[name]

    def losses(p: Array, q: Array, advantages: Array, weights: Array) -> jax.Array:
        policy_inputs = {"sampling_logprobs": q, "advantages": advantages}
        return function(
            p, weights=weights, **settings, **({} if name == "cross_entropy" else policy_inputs)
        )

    inputs = columns(3, SIZE)
    single = losses(*inputs)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(jax.vmap(losses)(*inputs), single, rtol=1e-5)
    coarse = losses(*(jnp.asarray(x, jnp.bfloat16) for x in inputs))
    assert coarse.dtype == jnp.float32
    np.testing.assert_allclose(coarse, single, atol=0.05)
    with jax.enable_x64(True):
        double = losses(*(x.astype(np.float64) for x in inputs))
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, single, rtol=1e-5)


@pytest.mark.parametrize("name", ["ppo", "gspo"])
def test_other_thresholds_compile_nothing(name: str) -> None:
    function, (p, q, advantages, weights) = getattr(numerics, name), columns(13)
    before = function._cache_size()
    for high in (1.1, 1.2, 3.0):
        function(
            p,
            sampling_logprobs=q,
            advantages=advantages,
            weights=weights,
            clip_low_threshold=0.5,
            clip_high_threshold=high,
        )

    assert function._cache_size() - before == 1


def test_a_loss_of_millions_of_tokens_keeps_no_copies_of_them() -> None:
    size = 2**16
    column = jax.ShapeDtypeStruct((size,), jnp.float32)
    for function in (numerics.importance_sampling, numerics.ppo, numerics.cispo, numerics.dro):
        compiled = function.lower(
            column, sampling_logprobs=column, advantages=column, weights=column
        ).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < size


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("nll", {}, "unknown loss 'nll'; known losses: cross_entropy"),
        ("ppo", {"beta": 1.0}, "has no setting 'beta'; it takes: clip_low_threshold"),
        ("cross_entropy", {"beta": 1.0}, "it takes: none"),
        ("dro", {"beta": math.inf}, "must be a finite number"),
        ("ppo", {"clip_low_threshold": 2.0}, "is above clip_high_threshold"),
        ("gspo", {}, "gspo needs clip_low_threshold and clip_high_threshold in its config"),
        ("gspo", {"clip_low_threshold": 0.9}, "gspo needs clip_high_threshold in its config"),
        ("gspo", {"beta": 1.0}, "it takes: clip_low_threshold, clip_high_threshold"),
        ("gspo", {"clip_low_threshold": 2.0, "clip_high_threshold": 1.0}, "is above"),
    ],
)
def test_a_loss_that_cannot_be_meant_is_refused(name: str, config: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LossSpec(name=name, config=config)


def test_a_policy_loss_without_its_inputs_is_refused() -> None:
    ones = jnp.ones((2, 1))
    with pytest.raises(ConfigurationError, match="ppo needs sampling_logprobs and advantages"):
        token_losses("ppo", ones, weights=ones, settings={})
