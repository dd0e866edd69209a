"""The model against an independent float64 one, gradients against finite differences."""

import collections
import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx import lm
from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.lm import training

LLAMA = lm.LMConfig(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    qk_norm=False,
    rope_scaling=lm.Llama3RopeScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
)
QWEN = dataclasses.replace(LLAMA, tie_word_embeddings=False, qk_norm=True, rope_scaling=None)
CROSS_ENTROPY = lm.LossSpec(name="cross_entropy")
GSPO = lm.LossSpec(name="gspo", config={"clip_low_threshold": 0.05, "clip_high_threshold": 20.0})


def model(config: lm.LMConfig, dtype: str = "float32") -> lm.LMWeights:
    return lm.weights_from_tensors(config, lm.random_tensors(config).__getitem__, dtype=dtype)


def adapter(config: lm.LMConfig, **options: bool) -> lm.LoRA:
    """One that changes something: B is random too."""
    fresh = lm.init_lora(config, lm.LoRAConfig(rank=3, **options))
    keys = iter(jax.random.split(jax.random.key(1), 32))
    return jax.tree.map(lambda x: 0.1 * jax.random.normal(next(keys), x.shape, x.dtype), fresh)


def datums(lengths: Sequence[int], *, seed: int = 0, candidates: int = 0) -> list[Datum]:
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        shape = (length, candidates) if candidates else (length,)
        weights = rng.uniform(0.5, 1.5, shape) * (rng.random(shape) < 0.7)
        made.append(
            Datum(
                tokens=rng.integers(0, 61, length).astype(np.int32),
                target_tokens=rng.integers(0, 61, shape).astype(np.int32),
                weights=weights.astype(np.float32),
                logprobs=rng.normal(-4, 0.3, length).astype(np.float32),
                advantages=rng.normal(0, 1, length).astype(np.float32),
            )
        )
    return made


def rotated(x: np.ndarray, config: lm.LMConfig) -> np.ndarray:
    """One head's rows, turned by their positions."""
    half = config.head_dim // 2
    out = np.empty_like(x)
    for position in range(len(x)):
        for i in range(half):
            angle = position * frequency(i, config)
            c, d = math.cos(angle), math.sin(angle)
            first, second = x[position, i], x[position, i + half]
            out[position, i] = first * c - second * d
            out[position, i + half] = second * c + first * d
    return out


def frequency(i: int, config: lm.LMConfig) -> float:
    """As transformers' documentation of the llama3 scaling words it, in wavelengths."""
    plain = config.rope_theta ** (-2 * i / config.head_dim)
    s = config.rope_scaling
    if s is None:
        return plain
    context, wavelength = s.original_max_position_embeddings, 2 * math.pi / plain
    if wavelength > context / s.low_freq_factor:
        return plain / s.factor
    if wavelength < context / s.high_freq_factor:
        return plain
    smooth = (context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    return (1 - smooth) * plain / s.factor + smooth * plain


def reference_logprobs(
    config: lm.LMConfig, tensors: dict[str, np.ndarray], tokens: np.ndarray
) -> np.ndarray:
    """All log-probabilities of one sequence, plainly, in float64."""

    def weight(name: str) -> np.ndarray:
        return tensors[f"{name}.weight"].astype(np.float64)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight(name)

    def heads(x: np.ndarray, count: int) -> list[np.ndarray]:
        return np.split(x, count, axis=-1)

    x = weight("model.embed_tokens")[tokens]
    for layer in range(config.num_layers):
        name = f"model.layers.{layer}."
        inner = norm(x, name + "input_layernorm")
        q, k, v = (inner @ weight(f"{name}self_attn.{p}_proj").T for p in "qkv")
        outs = []
        for h, query in enumerate(heads(q, config.num_heads)):
            group = h // (config.num_heads // config.num_kv_heads)
            key = heads(k, config.num_kv_heads)[group]
            value = heads(v, config.num_kv_heads)[group]
            if config.qk_norm:
                query = norm(query, name + "self_attn.q_norm")
                key = norm(key, name + "self_attn.k_norm")
            scores = rotated(query, config) @ rotated(key, config).T / math.sqrt(config.head_dim)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            outs.append(shares / shares.sum(-1, keepdims=True) @ value)
        x = x + np.concatenate(outs, -1) @ weight(name + "self_attn.o_proj").T
        inner = norm(x, name + "post_attention_layernorm")
        gate = inner @ weight(name + "mlp.gate_proj").T
        up = inner @ weight(name + "mlp.up_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weight(name + "mlp.down_proj").T
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    logits = norm(x, "model.norm") @ weight(head).T
    largest = logits.max(-1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))


@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama3-tied", "qwen3-untied"])
def test_packed_logprobs_are_those_of_a_plain_float64_model(config: lm.LMConfig) -> None:
    batch = datums([5, 150, 40, 1])
    got = lm.forward(model(config), None, batch, loss=CROSS_ENTROPY)
    total = 0.0
    for datum, logprobs in zip(batch, got.logprobs, strict=True):
        all_ = reference_logprobs(config, lm.random_tensors(config), datum.tokens)
        expected = np.take_along_axis(all_, datum.target_tokens[:, None], 1)[:, 0]
        np.testing.assert_allclose(logprobs, expected, atol=2e-5)
        total -= (expected * datum.weights).sum()

    assert got.loss_sum == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "candidates"),
    [
        (CROSS_ENTROPY, 0),
        (CROSS_ENTROPY, 3),
        (lm.LossSpec(name="importance_sampling"), 0),
        (lm.LossSpec(name="ppo", config={"clip_low_threshold": 0.5}), 0),
        (lm.LossSpec(name="cispo"), 0),
        (lm.LossSpec(name="dro", config={"beta": 0.3}), 0),
        (GSPO, 0),
    ],
)
def test_gradients_are_finite_differences(loss: lm.LossSpec, candidates: int) -> None:
    with jax.enable_x64(True):
        weights, low_rank = model(QWEN, "float64"), adapter(QWEN)
        batch = datums([9, 140, 4], candidates=candidates)
        if loss is GSPO:
            # Only where all tokens of a sequence count the same does its value's slope not depend
            # on the ratio being held fixed.
            batch = [same_for_all_tokens(datum) for datum in batch]
        gradients, output = lm.forward_backward(weights, low_rank, None, batch, loss=loss)
        same = lm.forward(weights, low_rank, batch, loss=loss)
        assert output.loss_sum == pytest.approx(same.loss_sum, rel=1e-12)
        for field in ("query", "key", "value", "output", "gate", "up", "down", "unembed"):
            for part in ("a", "b"):
                slope = _slope(weights, low_rank, gradients, batch, loss, (field, part))
                # cispo's own value holds its ratio fixed, so only its closed form can be checked.
                if loss.name != "cispo":
                    assert slope[0] == pytest.approx(slope[1], rel=2e-5, abs=1e-7), (field, part)


def same_for_all_tokens(datum: Datum) -> Datum:
    return dataclasses.replace(
        datum,
        weights=(datum.weights != 0).astype(np.float32),
        advantages=np.full(datum.length, datum.advantages[0]),
    )


def _slope(
    weights: lm.LMWeights,
    low_rank: lm.LoRA,
    gradients: lm.LoRA,
    batch: list[Datum],
    loss: lm.LossSpec,
    place: tuple[str, str],
) -> tuple[float, float]:
    """Change of the loss along a random direction of one matrix: by gradient, by difference."""
    here = getattr(getattr(low_rank, place[0]), place[1])
    direction = jax.random.normal(jax.random.key(7), here.shape)
    step = 1e-5

    def moved(sign: float) -> float:
        field = dataclasses.replace(
            getattr(low_rank, place[0]), **{place[1]: here + sign * step * direction}
        )
        changed = dataclasses.replace(low_rank, **{place[0]: field})
        return lm.forward(weights, changed, batch, loss=loss).loss_sum

    gradient = getattr(getattr(gradients, place[0]), place[1])
    return float((gradient * direction).sum()), (moved(1) - moved(-1)) / (2 * step)


def test_cispo_has_the_gradient_of_cross_entropy_weighted_by_its_ratios() -> None:
    weights, low_rank, batch = model(LLAMA), adapter(LLAMA), datums([30])
    loss = lm.LossSpec(name="cispo", config={"clip_high_threshold": 1.1})
    gradients, output = lm.forward_backward(weights, low_rank, None, batch, loss=loss)
    ratio = np.clip(np.exp(output.logprobs[0] - batch[0].logprobs), 0, 1.1)
    same = dataclasses.replace(
        batch[0], weights=(ratio * batch[0].advantages * batch[0].weights).astype(np.float32)
    )
    expected, _ = lm.forward_backward(weights, low_rank, None, [same], loss=CROSS_ENTROPY)

    _assert_close(gradients, expected, 1e-4)


def sequence_ratio(datum: Datum, logprobs: np.ndarray, mask: np.ndarray) -> float:
    return float(np.exp((logprobs.astype(np.float64) - datum.logprobs)[mask].mean()))


@pytest.mark.parametrize("masked", [False, True])
def test_gspo_weighs_every_token_by_the_ratio_of_its_sequence(*, masked: bool) -> None:
    """Cross-entropy weighted by s A w has its gradient; the sequences are packed in both."""
    weights, low_rank = model(LLAMA), adapter(LLAMA)
    batch = datums([33, 7, 200, 64])
    rng = np.random.default_rng(1)
    masks = [rng.random(datum.length) < 0.5 for datum in batch]
    if masked:
        batch = [
            dataclasses.replace(datum, sequence_ratio_mask=mask)
            for datum, mask in zip(batch, masks, strict=True)
        ]
    else:
        masks = [datum.weights != 0 for datum in batch]
    gradients, output = lm.forward_backward(weights, low_rank, None, batch, loss=GSPO)
    ratios = [
        sequence_ratio(datum, logprobs, mask)
        for datum, logprobs, mask in zip(batch, output.logprobs, masks, strict=True)
    ]
    same = [
        dataclasses.replace(
            datum, weights=(ratio * datum.advantages * datum.weights).astype(np.float32)
        )
        for datum, ratio in zip(batch, ratios, strict=True)
    ]
    expected, _ = lm.forward_backward(weights, low_rank, None, same, loss=CROSS_ENTROPY)

    assert len({round(ratio, 3) for ratio in ratios}) == 4
    assert output.loss_sum == pytest.approx(-sum(datum.weights.sum() for datum in same), rel=1e-4)
    assert lm.forward(weights, low_rank, batch, loss=GSPO).loss_sum == pytest.approx(
        output.loss_sum, rel=1e-6
    )
    _assert_close(gradients, expected, 1e-4)


def test_gspo_clips_whole_sequences() -> None:
    weights, low_rank = model(LLAMA), adapter(LLAMA)
    batch = [
        dataclasses.replace(datum, advantages=np.full(datum.length, sign, np.float32))
        for datum, sign in zip(datums([40, 40, 25]), (1.0, -1.0, 1.0), strict=True)
    ]
    output = lm.forward(weights, low_rank, batch, loss=GSPO)
    low, high = (output.logprobs[i] + shift for i, shift in ((0, -1.0), (1, 1.0)))
    batch[0] = dataclasses.replace(batch[0], logprobs=low)
    batch[1] = dataclasses.replace(batch[1], logprobs=high)
    batch[2] = dataclasses.replace(batch[2], logprobs=output.logprobs[2])
    loss = lm.LossSpec(name="gspo", config={"clip_low_threshold": 0.9, "clip_high_threshold": 1.1})
    gradients, clipped = lm.forward_backward(weights, low_rank, None, batch, loss=loss)
    expected, _ = lm.forward_backward(weights, low_rank, None, batch[2:], loss=loss)

    # The first two have left the range in the direction their advantage asks for.
    sums = [datum.weights.sum() for datum in batch]
    assert clipped.loss_sum == pytest.approx(-1.1 * sums[0] + 0.9 * sums[1] - sums[2], rel=1e-4)
    _assert_close(gradients, expected, 1e-4)


def _assert_close(left: lm.LoRA, right: lm.LoRA, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()), rtol=0)


@pytest.mark.parametrize(
    ("train_unembed", "loss"), [(True, CROSS_ENTROPY), (False, CROSS_ENTROPY), (True, GSPO)]
)
def test_packing_changes_neither_logprobs_nor_gradients(
    *, train_unembed: bool, loss: lm.LossSpec
) -> None:
    weights, low_rank = model(LLAMA), adapter(LLAMA, train_unembed=train_unembed)
    batch = datums([33, 7, 200, 64])
    together, output = lm.forward_backward(weights, low_rank, None, batch, loss=loss)
    alone, logprobs, loss_sum = None, [], 0.0
    for datum in batch:
        alone, one = lm.forward_backward(weights, low_rank, alone, [datum], loss=loss)
        logprobs += one.logprobs
        loss_sum += one.loss_sum

    assert output.loss_sum == pytest.approx(loss_sum, rel=1e-5)
    _assert_close(together, alone, 1e-4)
    for a, b in zip(output.logprobs, logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_same_datums_give_the_same_bits() -> None:
    weights, low_rank, batch = model(LLAMA), adapter(LLAMA), datums([300, 5, 90] * 2)
    first, second = (
        lm.forward_backward(weights, low_rank, None, batch, loss=CROSS_ENTROPY)[0] for _ in range(2)
    )

    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def test_weight_zero_hides_infinities_but_not_logprobs() -> None:
    batch = datums([12])
    hidden = batch[0].weights == 0
    poisoned = dataclasses.replace(
        batch[0],
        logprobs=np.where(hidden, -np.inf, batch[0].logprobs).astype(np.float32),
        advantages=np.where(hidden, np.nan, batch[0].advantages).astype(np.float32),
    )
    loss = lm.LossSpec(name="ppo")
    weights, low_rank = model(LLAMA), adapter(LLAMA)
    gradients, output = lm.forward_backward(weights, low_rank, None, [poisoned], loss=loss)
    expected, clean = lm.forward_backward(weights, low_rank, None, batch, loss=loss)

    assert output.loss_sum == clean.loss_sum
    assert np.array_equal(output.logprobs[0], clean.logprobs[0])
    assert np.isfinite(output.logprobs[0]).all()
    assert all(map(np.array_equal, jax.tree.leaves(gradients), jax.tree.leaves(expected)))


def test_missing_weights_are_ones() -> None:
    batch = datums([8])
    plain = dataclasses.replace(batch[0], weights=None)
    got = lm.forward(model(LLAMA), None, [plain], loss=CROSS_ENTROPY)

    assert got.loss_sum == pytest.approx(-got.logprobs[0].sum(), rel=1e-5)


def shapes_of(batch: list[Datum], loss: lm.LossSpec) -> tuple[object, ...]:
    """What tells the programs of a batch's micro-batches apart, besides the model's own shapes."""
    return tuple(
        (jax.tree.structure(arrays), *((x.shape, x.dtype.name) for x in jax.tree.leaves(arrays)))
        for _, arrays in training._batches(batch, loss, None)
    )


def test_a_varied_run_compiles_a_handful_of_programs() -> None:
    rng = np.random.default_rng(3)
    losses = [
        lm.LossSpec(name="ppo", config={"clip_high_threshold": 1.2 + step / 100})
        for step in range(20)
    ]
    run = [
        datums(rng.integers(20, 120, rng.integers(12, 20)).tolist(), seed=step)
        for step in range(20)
    ]
    shapes = list(map(shapes_of, run, losses))
    assert len({shape for of_step in shapes for shape in of_step}) <= 6

    # Each shape is one program, whatever else changes: seen at the steps of the commonest.
    commonest, times = collections.Counter(shapes).most_common(1)[0]
    assert times >= 2
    weights, state = model(LLAMA), lm.init_train_state(adapter(LLAMA))
    programs = training._forward_backward._cache_size(), training._optim_step._cache_size()
    for step, of_step in enumerate(shapes):
        if of_step == commonest:
            gradients, _ = lm.forward_backward(
                weights, state.adapter, None, run[step], loss=losses[step]
            )
            adam = lm.AdamParams(learning_rate=1e-4 / (step + 1), grad_clip_norm=float(step % 2))
            state, report = lm.optim_step(state, gradients, adam)

    assert report.step == times
    assert training._forward_backward._cache_size() - programs[0] <= len(set(commonest))
    assert training._optim_step._cache_size() - programs[1] <= 1


def test_steps_are_those_of_adamw_by_hand() -> None:
    start = adapter(LLAMA)
    rng = np.random.default_rng(0)
    adam = lm.AdamParams(learning_rate=0.1, beta1=0.8, beta2=0.9, weight_decay=0.3, eps=1e-6)
    state, p = lm.init_train_state(start), np.asarray(start.query.a, np.float64)
    mean, square = np.zeros_like(p), np.zeros_like(p)
    for step in range(1, 4):
        gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), start)
        state, _ = lm.optim_step(state, gradients, adam)
        g = np.asarray(gradients.query.a, np.float64)
        mean, square = 0.8 * mean + 0.2 * g, 0.9 * square + 0.1 * g * g
        p = p * (1 - 0.1 * 0.3)
        root = np.sqrt(square / (1 - 0.9**step)) + 1e-6
        p = p - 0.1 * mean / (1 - 0.8**step) / root

    np.testing.assert_allclose(state.adapter.query.a, p, rtol=1e-5, atol=1e-6)


def test_clipping_scales_the_gradients_to_the_norm() -> None:
    start = adapter(LLAMA)
    ones = jax.tree.map(jnp.ones_like, start)
    norm = math.sqrt(sum(x.size for x in jax.tree.leaves(ones)))
    clipped, report = lm.optim_step(
        lm.init_train_state(start), ones, lm.AdamParams(grad_clip_norm=2.0)
    )
    untouched, _ = lm.optim_step(
        lm.init_train_state(start), ones, lm.AdamParams(grad_clip_norm=norm * 2)
    )

    assert report.grad_norm == pytest.approx(norm, rel=1e-5)
    np.testing.assert_allclose(clipped.optimizer.mu.up.b, 0.1 * 2 / norm, rtol=1e-5)
    np.testing.assert_allclose(untouched.optimizer.mu.up.b, 0.1, rtol=1e-5)


def test_a_step_without_gradients_only_decays() -> None:
    start = lm.init_train_state(adapter(LLAMA))
    after, report = lm.optim_step(start, None, lm.AdamParams(learning_rate=0.5, weight_decay=0.1))

    assert report.grad_norm == 0
    np.testing.assert_allclose(after.adapter.down.a, start.adapter.down.a * 0.95, rtol=1e-6)


def test_infinite_gradients_are_refused() -> None:
    start = lm.init_train_state(adapter(LLAMA))
    bad = jax.tree.map(lambda x: x * np.inf, start.adapter)

    with pytest.raises(DataError, match="the step was not taken"):
        lm.optim_step(start, bad, lm.AdamParams())


def test_a_step_too_large_to_be_a_number_is_refused() -> None:
    start = lm.init_train_state(adapter(LLAMA))
    with pytest.raises(DataError, match="the step was not taken"):
        lm.optim_step(start, start.adapter, lm.AdamParams(learning_rate=1e38))


@pytest.mark.parametrize("top_k", [0, 3])
def test_prompts_are_scored_as_targets_are(top_k: int) -> None:
    weights, low_rank = model(QWEN), adapter(QWEN)
    prompts = [datum.tokens for datum in datums([70, 1, 20])]
    scores = lm.score_prompts(weights, low_rank, prompts, top_k=top_k)
    for prompt, score in zip(prompts, scores, strict=True):
        assert len(score.logprobs) == len(prompt)
        assert np.isnan(score.logprobs[0])
        if len(prompt) > 1:
            datum = Datum(tokens=prompt[:-1], target_tokens=prompt[1:])
            (expected,) = lm.forward(weights, low_rank, [datum], loss=CROSS_ENTROPY).logprobs
            np.testing.assert_allclose(score.logprobs[1:], expected, atol=1e-5)
        if top_k:
            likeliest = score.topk_logprobs[1:]
            assert (np.diff(likeliest, axis=1) <= 0).all()
            assert (likeliest[:, 0] >= score.logprobs[1:] - 1e-6).all()
            hit = score.topk_ids[1:] == prompt[1:, None]
            same = np.broadcast_to(score.logprobs[1:, None], hit.shape)
            np.testing.assert_allclose(likeliest[hit], same[hit], atol=1e-6)
        else:
            assert score.topk_ids is None


def test_changed_gspo_thresholds_compile_nothing() -> None:
    weights, low_rank, batch = model(LLAMA), adapter(LLAMA), datums([30, 20])
    programs = training._forward_backward._cache_size()
    for high in (1.1, 1.2):
        loss = lm.LossSpec(
            name="gspo", config={"clip_low_threshold": 0.9, "clip_high_threshold": high}
        )
        lm.forward_backward(weights, low_rank, None, batch, loss=loss)

    assert training._forward_backward._cache_size() - programs <= 1


def test_what_a_loss_lacks_is_named() -> None:
    weights, low_rank, (datum,) = model(LLAMA), adapter(LLAMA), datums([6])
    bare = dataclasses.replace(datum, logprobs=None)
    with pytest.raises(DataError, match="datum 1 has no logprobs"):
        lm.forward_backward(weights, low_rank, None, [datum, bare], loss=lm.LossSpec(name="ppo"))
    (several,) = datums([6], candidates=2)
    with pytest.raises(DataError, match="only cross_entropy takes several"):
        lm.forward(weights, low_rank, [several], loss=lm.LossSpec(name="dro"))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([3, 61], "tokens of datum 0 holds the id 61, the vocabulary ends at 60"),
        ([-1, 3], "holds the id -1"),
        ([3] * 513, "datum 0 has 513 tokens, the model's context holds 512"),
    ],
)
def test_tokens_the_model_cannot_read_are_refused(tokens: list[int], message: str) -> None:
    ids = np.array(tokens, np.int32)
    with pytest.raises(DataError, match=message):
        lm.forward(model(LLAMA), None, [Datum(tokens=ids, target_tokens=ids)], loss=CROSS_ENTROPY)


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(DataError, match="at least one datum"):
        lm.forward(model(LLAMA), None, [], loss=CROSS_ENTROPY)
    with pytest.raises(ConfigurationError, match="top_k must be from 0 to 61, got 62"):
        lm.score_prompts(model(LLAMA), None, [np.array([1])], top_k=62)
    with pytest.raises(ConfigurationError, match="beta1 must be at least 0 and below 1, got 1"):
        lm.AdamParams(beta1=1.0)


def group(*, prompt: int = 20, answers: int = 5, seed: int = 0) -> list[Datum]:
    """Answers of different lengths to one prompt, and a stranger among them."""
    rng = np.random.default_rng(seed)
    question = rng.integers(0, 61, prompt + 1)
    made = datums([30])
    for length in range(3, 3 + answers):
        ids = np.concatenate([question, rng.integers(0, 61, length)]).astype(np.int32)
        mask = (np.arange(len(ids) - 1) >= prompt).astype(np.float32)
        made.append(
            Datum(
                tokens=ids[:-1],
                target_tokens=ids[1:],
                weights=mask,
                logprobs=(mask * rng.normal(-4, 0.3, len(mask))).astype(np.float32),
                advantages=(mask * rng.normal()).astype(np.float32),
            )
        )
    return made


@pytest.mark.parametrize(
    ("config", "loss"), [(LLAMA, "cross_entropy"), (LLAMA, "dro"), (LLAMA, "gspo"), (QWEN, "ppo")]
)
def test_a_shared_prompt_changes_nothing(config: lm.LMConfig, loss: str) -> None:
    spec = GSPO if loss == "gspo" else lm.LossSpec(name=loss)
    weights, lora, data = model(config), adapter(config), group()
    together, output = lm.forward_backward(weights, lora, None, data, loss=spec)
    apart, losses, logprobs = None, [], []
    for datum in data:
        apart, alone = lm.forward_backward(weights, lora, apart, [datum], loss=spec)
        losses.append(alone.loss_sum)
        logprobs.append(alone.logprobs[0])

    ((rows, _),) = training._batches(data, spec, mesh=None)
    assert rows.real.sum() < sum(datum.length for datum in data)
    np.testing.assert_allclose(output.loss_sum, sum(losses), rtol=1e-5)
    for one, other in zip(output.logprobs, logprobs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
    assert lm.forward(weights, lora, data, loss=spec).loss_sum == pytest.approx(output.loss_sum)


def test_a_prompt_that_is_trained_on_is_not_shared() -> None:
    data = [dataclasses.replace(datum, weights=None) for datum in group()]
    ((rows, _),) = training._batches(data, CROSS_ENTROPY, mesh=None)

    assert rows.real.sum() == sum(datum.length for datum in data)
