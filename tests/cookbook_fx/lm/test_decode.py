import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx.lm import (
    Llama3RopeScaling,
    LMConfig,
    LoRAConfig,
    Tokens,
    hidden_states,
    init_lora,
    random_tensors,
    weights_from_tensors,
)
from cookbook_fx.lm.decode import (
    Cache,
    Prefix,
    decode_weights,
    empty_cache,
    placed,
    prefill,
    rearranged,
)
from cookbook_fx.lm.decode import decode_step as decode_step_untraced

decode_step = jax.jit(decode_step_untraced)

LLAMA = LMConfig(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    qk_norm=False,
)
QWEN = dataclasses.replace(LLAMA, qk_norm=True, tie_word_embeddings=False, head_dim=8)
STRETCHED = dataclasses.replace(
    LLAMA,
    rope_scaling=Llama3RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
)


def random_adapter(config: LMConfig):
    """An adapter that changes the model: B is not zero."""
    lora = init_lora(config, LoRAConfig(rank=2, seed=1))
    leaves, structure = jax.tree.flatten(lora)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return structure.unflatten(
        [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def logits_without_cache(weights, adapter, ids: np.ndarray) -> np.ndarray:
    """`[token, vocab]`."""
    tokens = Tokens(
        ids=jnp.asarray(ids)[None],
        positions=jnp.arange(len(ids))[None],
        segments=jnp.zeros((1, len(ids)), jnp.int32),
    )
    hidden = hidden_states(weights, adapter, tokens)[0]
    logits = hidden @ weights.head.T
    if adapter is not None and adapter.unembed is not None:
        logits = logits + adapter.scale * (hidden @ adapter.unembed.a) @ adapter.unembed.b
    return np.asarray(logits)


@pytest.mark.parametrize("config", [LLAMA, QWEN, STRETCHED], ids=["llama", "qwen3", "llama3-rope"])
@pytest.mark.parametrize("adapted", [False, True])
def test_decoding_with_a_cache_gives_the_logits_of_the_whole_sequence(config, adapted):
    weights = weights_from_tensors(config, random_tensors(config).__getitem__)
    adapter = random_adapter(config) if adapted else None
    model = decode_weights(weights, adapter)
    first, second = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    # Prompts of 5 and 3 tokens, with anything behind.
    prefix = prefill(model, jnp.asarray([first[:8], second[:8]], jnp.int32))
    cache = placed(
        empty_cache(model, slots=2, length=16),
        prefix,
        source=jnp.array([1, 0]),
        count=jnp.array([3, 5]),
    )
    wanted = [logits_without_cache(weights, adapter, ids) for ids in (second, first)]
    for step in range(7):
        at = jnp.array([3 + step, 5 + step])
        tokens = jnp.array([second[3 + step], first[5 + step]], jnp.int32)
        cache, logits = decode_step(model, cache, tokens, at)
        np.testing.assert_allclose(logits[:, 0], wanted[0][3 + step], atol=2e-5)
        np.testing.assert_allclose(logits[:, 1], wanted[1][5 + step], atol=2e-5)


def test_one_slot_decodes_like_several():
    weights = weights_from_tensors(LLAMA, random_tensors(LLAMA).__getitem__)
    model = decode_weights(weights, None)
    one, four = (empty_cache(model, slots=slots, length=8) for slots in (1, 4))
    for position, token in enumerate([3, 9, 27]):
        one, lone = decode_step(model, one, jnp.array([token, 0]), jnp.array([position, 0]))
        four, among = decode_step(
            model, four, jnp.array([5, token, 7, 1]), jnp.array([0, position, 0, 0])
        )
        np.testing.assert_array_equal(lone[:, 0], among[:, 1])


def test_the_base_is_left_alone_by_merging():
    weights = weights_from_tensors(LLAMA, random_tensors(LLAMA).__getitem__)
    before = np.asarray(weights.layers.qkv).copy()
    model = decode_weights(weights, random_adapter(LLAMA))
    assert not np.allclose(model.layers[1].qkv, before[1])
    assert not np.allclose(model.head, weights.embedding)
    np.testing.assert_array_equal(weights.layers.qkv, before)
    np.testing.assert_array_equal(model.embedding, weights.embedding)


def tiny_cache() -> Cache:
    """2 slots, 1 head of 1 dimension, 3 positions; slot 0 holds 1 2 3, slot 1 holds 4 5 6."""
    content = jnp.arange(1.0, 7.0).reshape(2, 3)
    return Cache(
        keys=(content[:, None, None, None, :],), values=(10 * content[:, None, None, :, None],)
    )


def test_rearranging_moves_slots_and_changes_the_length():
    longer = rearranged(tiny_cache(), jnp.array([1, 0, 1, 0]), length=4)
    assert (longer.slots, longer.length) == (4, 4)
    assert longer.keys[0][:2, 0, 0, 0].tolist() == [[4, 5, 6, 0], [1, 2, 3, 0]]
    assert longer.values[0][:2, 0, 0, :, 0].tolist() == [[40, 50, 60, 0], [10, 20, 30, 0]]
    shorter = rearranged(tiny_cache(), jnp.array([1]), length=2)
    assert shorter.keys[0].tolist() == [[[[[4, 5]]]]]
    assert shorter.values[0].tolist() == [[[[[40], [50]]]]]


def test_placing_fills_the_named_slots_only():
    prompts = jnp.array([[7.0, 8.0], [9.0, 5.0]])[:, :, None, None]
    prefix = Prefix(keys=(prompts,), values=(10 * prompts,))
    filled = placed(tiny_cache(), prefix, source=jnp.array([0, 1]), count=jnp.array([0, 2]))
    assert filled.keys[0][:, 0, 0, 0].tolist() == [[1, 2, 3], [9, 5, 6]]
    assert filled.values[0][:, 0, 0, :, 0].tolist() == [[10, 20, 30], [90, 50, 60]]


def test_a_long_cache_is_counted_block_by_block():
    model = decode_weights(weights_from_tensors(LLAMA, random_tensors(LLAMA).__getitem__), None)
    short = empty_cache(model, slots=2, length=8192)
    long = rearranged(short, jnp.array([0, 1]), length=32768)
    assert (short.keys[0].shape, short.length) == ((2, 2, 1, 4, 8192), 8192)
    assert (long.keys[0].shape, long.length) == ((2, 2, 4, 4, 8192), 32768)
    at = jnp.array([8190, 0])
    for _ in range(3):
        short, wanted = decode_step(model, short, jnp.array([5, 6]), jnp.minimum(at, 8191))
        long, logits = decode_step(model, long, jnp.array([5, 6]), at)
        if at[0] < 8192:
            np.testing.assert_array_equal(logits, wanted)
        at = at + 1
    assert long.keys[0][0, :, 1, :, 0].any()
    assert rearranged(long, jnp.array([1]), length=16).values[0].shape == (1, 2, 1, 16, 4)
