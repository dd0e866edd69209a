import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.lm.sampling import (
    DrawRules,
    SamplingParams,
    draw_rules,
    row_key,
)
from cookbook_fx.lm.sampling import draw_tokens as draw_tokens_untraced
from cookbook_fx.lm.sampling import truncation as truncation_untraced

draw_tokens, truncation = jax.jit(draw_tokens_untraced), jax.jit(truncation_untraced)
PARAMS = SamplingParams(max_tokens=1, seed=0)


def rules_for(rows: int, **changes) -> DrawRules:
    """The same parameters in every row, each row another sample of one request."""
    return draw_rules([dataclasses.replace(PARAMS, **changes)] * rows, list(range(rows)))


def kept_by_sorting(
    logits: np.ndarray, *, temperature: float, top_k: int, top_p: float
) -> set[int]:
    """top_k, then top_p, as transformers' warpers define them: sort, add up, cut."""
    order = np.argsort(-logits, kind="stable")
    order = order if top_k == -1 else order[:top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / temperature)
    above = np.cumsum(weights / weights.sum()) - weights / weights.sum()
    return set(order[above < top_p].tolist()) if top_p < 1 else set(order.tolist())


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.1, 1.0, 8.0, 50.0]),
    top_k=st.sampled_from([-1, 1, 2, 7, 400, 5000, 2**40]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
)
def test_truncation_keeps_exactly_what_sorting_keeps(seed, spread, top_k, top_p, temperature):
    logits = (np.random.default_rng(seed).permutation(700) / 700 - 0.3).astype(np.float32) * spread
    rules = rules_for(1, top_k=top_k, top_p=top_p, temperature=temperature)
    lowest = np.asarray(truncation(jnp.asarray(logits)[:, None], rules))[0]
    kept = set(np.flatnonzero(logits >= lowest).tolist())
    wanted = kept_by_sorting(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    # Where the sum meets top_p within rounding, one token more or less is right.
    assert len(kept ^ wanted) <= (1 if top_p < 1 else 0)
    assert kept <= wanted or wanted <= kept


def test_truncation_by_hand():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]] * 4)).T
    rules = draw_rules(
        [
            dataclasses.replace(PARAMS, top_k=2),
            dataclasses.replace(PARAMS, top_p=0.75),
            # Of the two that top_k leaves, the likelier has 4/7 > 0.5.
            dataclasses.replace(PARAMS, top_k=2, top_p=0.5),
            PARAMS,
        ],
        [0, 0, 0, 0],
    )
    kept = np.asarray(logits >= truncation(logits, rules)).T.astype(int)
    assert kept.tolist() == [[0, 1, 0, 1], [0, 1, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]]


def test_draws_follow_the_tempered_distribution():
    rows, vocab = 30_000, 300
    logits = jnp.asarray(np.random.default_rng(1).normal(0, 2, vocab), jnp.float32)
    rules = rules_for(rows, temperature=1.5)
    every = jnp.broadcast_to(logits[:, None], (vocab, rows))
    drawn = draw_tokens(every, rules, jnp.zeros(rows, jnp.int32))
    counts = np.bincount(drawn.tokens, minlength=vocab)
    wanted = np.exp(np.asarray(logits, np.float64) / 1.5)
    wanted *= rows / wanted.sum()
    # Pearson's statistic has mean vocab - 1 and variance twice that.
    chi_square = ((counts - wanted) ** 2 / wanted).sum()
    assert abs(chi_square - (vocab - 1)) < 5 * np.sqrt(2 * (vocab - 1))


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (-1, 0.5), (20, 0.3)])
def test_draws_never_leave_the_kept_tokens_and_reach_all_of_them(top_k, top_p):
    logits = np.random.default_rng(2).normal(0, 1.5, 300).astype(np.float32)
    rules = rules_for(4000, top_k=top_k, top_p=top_p)
    drawn = draw_tokens(jnp.asarray(logits)[:, None] + jnp.zeros(4000), rules, jnp.arange(4000))
    wanted = kept_by_sorting(logits, temperature=1.0, top_k=top_k, top_p=top_p)
    assert set(np.asarray(drawn.tokens).tolist()) == wanted


def test_greedy_takes_the_first_of_the_highest():
    logits = jnp.zeros((1000, 2)).at[(500, 300), (0, 1)].set(3.0).at[700, 0].set(3.0)
    drawn = draw_tokens(logits, rules_for(2, temperature=0.0), jnp.arange(2))
    assert drawn.tokens.tolist() == [500, 300]


def test_logprobs_are_those_of_the_untempered_untruncated_model():
    logits = np.random.default_rng(3).normal(0, 2, (300, 8)).astype(np.float32)
    rules = rules_for(8, temperature=0.5, top_k=5, top_p=0.9)
    drawn = draw_tokens(jnp.asarray(logits), rules, jnp.zeros(8, jnp.int32))
    tokens = np.asarray(drawn.tokens)
    wide = logits.astype(np.float64)
    wanted = wide[tokens, np.arange(8)] - np.log(np.exp(wide).sum(0))
    np.testing.assert_allclose(drawn.logprobs, wanted, atol=1e-5)


def test_tokens_without_probability_are_never_drawn():
    logits = jnp.full((513, 64), -jnp.inf).at[512].set(0.0).at[3].set(-1.0)
    drawn = draw_tokens(logits, rules_for(64), jnp.zeros(64, jnp.int32))
    assert set(drawn.tokens.tolist()) == {3, 512}


def test_almost_zero_temperature_is_greedy_and_finite():
    logits = jnp.asarray(np.random.default_rng(4).normal(0, 2, (50, 3)), jnp.float32)
    drawn = draw_tokens(logits, rules_for(3, temperature=1e-30), jnp.zeros(3, jnp.int32))
    assert drawn.tokens.tolist() == logits.argmax(0).tolist()
    assert np.isfinite(drawn.logprobs).all()


@given(st.integers(), st.integers())
def test_different_integers_of_any_size_give_different_seeds(first, second):
    assert (first == second) == (row_key(first, 0).tolist() == row_key(second, 0).tolist())


def test_a_draw_depends_on_seed_sample_and_index_but_not_on_the_row():
    logits = jnp.zeros((5000, 3))
    one = [dataclasses.replace(PARAMS, seed=seed) for seed in (7, 8, 7)]
    tokens = draw_tokens(logits, draw_rules(one, [0, 0, 1]), jnp.array([4, 4, 4])).tokens
    moved = draw_tokens(
        logits, draw_rules([one[2], one[0], one[1]], [1, 0, 0]), jnp.array([4, 4, 4])
    ).tokens
    later = draw_tokens(logits, draw_rules(one, [0, 0, 1]), jnp.array([5, 5, 5])).tokens
    assert moved.tolist() == [tokens[2], tokens[0], tokens[1]]
    assert len({*tokens.tolist(), *later.tolist()}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be 0 or a positive number, got -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k must be at least 1, or -1 for no limit, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_impossible_parameters_are_refused(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(PARAMS, **changes)
