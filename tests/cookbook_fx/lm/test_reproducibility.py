"""A row's bits depend on the row alone: on widths of a real model, with one layer to compile."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx.lm import (
    DecodeWeights,
    LMConfig,
    LoRAConfig,
    RowId,
    RowRequest,
    SamplingParams,
    admit,
    advance,
    begin,
    decode_weights,
    generate,
    init_lora,
    random_tensors,
    release,
    score_prompts,
    split_to_fit,
    weights_from_tensors,
)
from cookbook_fx.lm.decode import FEWEST_ROWS, Cache, decode_step, prefill

SMOLLM = LMConfig(
    vocab_size=5003,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=1,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rope_theta=1e5,
    rms_norm_eps=1e-5,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    qk_norm=False,
)
QWEN = dataclasses.replace(
    SMOLLM,
    hidden_size=1024,
    intermediate_size=1000,
    num_heads=4,
    num_kv_heads=2,
    head_dim=128,
    qk_norm=True,
    tie_word_embeddings=False,
)
TINY = dataclasses.replace(
    SMOLLM,
    vocab_size=97,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)
CONFIGS = pytest.mark.parametrize("config", [SMOLLM, QWEN, TINY], ids=["smollm", "qwen3", "tiny"])


def base_weights(config: LMConfig):
    return weights_from_tensors(config, random_tensors(config).__getitem__)


def model_of(config: LMConfig) -> DecodeWeights:
    return decode_weights(base_weights(config), None)


def bits(array) -> bytes:
    return np.asarray(array).tobytes()


@CONFIGS
def test_a_step_is_the_same_for_any_number_of_rows_and_length_of_the_cache(config):
    model, rng = model_of(config), np.random.default_rng(0)
    slots, length = 32, 2048
    kv = config.num_kv_heads
    positions, tokens = rng.integers(3, 120, slots), rng.integers(0, config.vocab_size, slots)
    keys, values = rng.normal(size=(2, slots, kv, length, config.head_dim)).astype(np.float32)
    step = jax.jit(decode_step)

    def logits(rows: np.ndarray, length: int) -> np.ndarray:
        place = min(length, 2**15 // config.head_dim)
        shape = (len(rows), kv, length // place, place, config.head_dim)
        cache = Cache(
            keys=(jnp.asarray(keys[rows, :, :length].reshape(shape).swapaxes(3, 4)),)
            * config.num_layers,
            values=(jnp.asarray(values[rows, :, :length].reshape(shape)),) * config.num_layers,
        )
        read, at = np.zeros((2, max(FEWEST_ROWS, len(rows))), np.int32)
        read[: len(rows)], at[: len(rows)] = tokens[rows], positions[rows]
        return np.asarray(step(model, cache, jnp.asarray(read), jnp.asarray(at))[1]).T

    wanted = logits(np.arange(slots), 128)
    for count, length in [
        (1, 256),
        (1, 2048),
        (4, 256),
        (4, 1024),
        (8, 128),
        (16, 512),
        (32, 1024),
    ]:
        rows = rng.permutation(slots)[:count]
        for row, got in zip(rows, logits(rows, length), strict=False):
            assert bits(got) == bits(wanted[row]), (count, length)


@CONFIGS
def test_a_prompt_is_read_the_same_beside_others(config):
    model, rng = model_of(config), np.random.default_rng(1)
    for width in (64, 128, 512):
        prompts = rng.integers(0, config.vocab_size, (512 // width, width), np.int32)
        together = prefill(model, jnp.asarray(prompts))
        for count in (1, 2, 4):
            some = prefill(model, jnp.asarray(prompts[:count]))
            for one, other in zip(jax.tree.leaves(some), jax.tree.leaves(together), strict=True):
                assert bits(one) == bits(other[:count]), (width, count)


def plan_of(config: LMConfig, rng: np.random.Generator) -> list[RowRequest]:
    shared = rng.integers(0, config.vocab_size, 100, np.int32)
    return [
        RowRequest(
            id=number,
            prompt=shared
            if number % 4 == 1
            else rng.integers(0, config.vocab_size, rng.choice([1, 2, 40, 65, 400]), np.int32),
            params=SamplingParams(
                max_tokens=int(rng.integers(1, 50)),
                seed=number,
                temperature=float(rng.choice([0.0, 0.7, 1.0, 1.0])),
                top_k=int(rng.choice([-1, -1, 20])),
                top_p=float(rng.choice([1.0, 1.0, 0.9])),
            ),
            num_samples=int(rng.choice([1, 1, 2, 9])),
        )
        for number in range(12)
    ]


Answers = dict[RowId, tuple[list[int], bytes]]


def run(model, requests, *, rng, max_rows: int) -> tuple[Answers, set[RowId]]:
    """Admits them in random order, at random moments, in random parts; some are given up."""
    lost: set[RowId] = set()
    waiting = [requests[i] for i in rng.permutation(len(requests))]
    state, tokens, logprobs = begin(model, max_rows=max_rows), {}, {}
    while waiting or state.row_ids:
        coming = min(int(rng.integers(0, 4)), len(waiting))
        now, later = split_to_fit(waiting[:coming], int(rng.integers(0, state.free_rows + 1)))
        state = admit(model, state, now)
        waiting = [*later, *waiting[coming:]]
        if rng.random() < 0.1 and state.row_ids:
            given_up = state.row_ids[0]
            state = release(state, [given_up])
            tokens.pop(given_up, None)
            logprobs.pop(given_up, None)
            lost.add(given_up)
        state, updates = advance(model, state)
        for update in updates:
            tokens.setdefault(update.row, []).extend(update.tokens.tolist())
            logprobs[update.row] = logprobs.get(update.row, b"") + update.logprobs.tobytes()
    return {row: (tokens[row], logprobs[row]) for row in tokens}, lost


def test_answers_are_the_same_in_any_company_at_any_time():
    model, rng = model_of(SMOLLM), np.random.default_rng(2)
    requests = plan_of(SMOLLM, rng)
    alone = {
        RowId(request.id, sample): (answer.tokens.tolist(), answer.logprobs.tobytes())
        for request in requests
        for sample, answer in enumerate(generate(model, [request])[0])
    }
    for max_rows in (4, 32, 32):
        answers, lost = run(model, requests, rng=rng, max_rows=max_rows)
        assert {row: alone[row] for row in answers} == answers
        assert answers.keys() | lost == alone.keys()


@CONFIGS
def test_a_prompt_is_scored_the_same_beside_others(config):
    weights, rng = base_weights(config), np.random.default_rng(3)
    adapter = jax.tree.map(lambda x: x + 0.01, init_lora(config, LoRAConfig(rank=8)))
    lengths = (3, 30, 64, 65, 90, 200, 300, 12, 40, 5)
    prompts = [rng.integers(0, config.vocab_size, length, np.int32) for length in lengths]
    together = score_prompts(weights, adapter, prompts)
    for chosen in ([0], [3], [6], [9, 7, 1], [8, 2, 3]):
        some = score_prompts(weights, adapter, [prompts[i] for i in chosen])
        for i, scores in zip(chosen, some, strict=True):
            assert bits(scores.logprobs) == bits(together[i].logprobs), (i, chosen)
