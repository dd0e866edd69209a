"""Drawing the next token of many sequences at once, each by its own rules and its own seed.

Logits are `[vocab, row]`: that is how the product of the head with a few hidden states comes out
fastest, and it lets every pass over the vocabulary run along the rows.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.lm.folding import fold, in_turn


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request wants its tokens drawn.

    Args:
        max_tokens: most tokens to draw, at least 1; the model's context may end a row earlier.
        temperature: logits are divided by it; 0 always takes the likeliest token.
        top_k: draw only from the k likeliest tokens; -1 for all.
        top_p: then draw only from the smallest set of likeliest tokens that together have at
            least this probability (after temperature and top_k); 1 for all.
        seed: any integer. Equal seeds give equal draws, whoever else is in the batch.
        stop_tokens: a row ends after drawing one of these.

    Raises:
        ConfigurationError: a value outside its range.

    Example:
        >>> SamplingParams(max_tokens=8, seed=1, top_p=0.0)
        Traceback (most recent call last):
        cookbook_fx.errors.ConfigurationError: top_p must be in (0, 1], got 0.0
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigurationError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigurationError(
                f"temperature must be 0 or a positive number, got {self.temperature}"
            )
        if self.top_k != -1 and self.top_k < 1:
            raise ConfigurationError(
                f"top_k must be at least 1, or -1 for no limit, got {self.top_k}"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p must be in (0, 1], got {self.top_p}")


class DrawRules(eqx.Module):
    """The sampling parameters of every row as columns."""

    key: UInt32[Array, "row 2"]
    temperature: Float[Array, " row"]
    top_k: Int[Array, " row"]
    top_p: Float[Array, " row"]


class Drawn(NamedTuple):
    """Tokens and their log-probabilities (nats) under the untempered, untruncated model."""

    tokens: Int[Array, " row"]
    logprobs: Float[Array, " row"]


def row_key(seed: int, sample: int) -> UInt32[np.ndarray, " 2"]:
    """The random key of one answer: of a seed of any size and sign, and the answer's number.

    Example:
        >>> keys = [row_key(seed, 0) for seed in (3, -3, 3 + 2**32, 3 + 2**64)] + [row_key(3, 1)]
        >>> len({tuple(key.tolist()) for key in keys})
        5
    """
    # SeedSequence takes no negative numbers; doubling keeps the sign apart.
    entropy = 2 * abs(seed) + (seed < 0)
    return np.random.SeedSequence(entropy, spawn_key=(sample,)).generate_state(2, np.uint32)


def draw_rules(params: list[SamplingParams], samples: list[int]) -> DrawRules:
    """The columns for rows with these parameters; `samples` counts the answers to one request."""
    keys = [row_key(each.seed, sample) for each, sample in zip(params, samples, strict=True)]
    return DrawRules(
        key=jnp.asarray(np.stack(keys)),
        temperature=jnp.asarray([each.temperature for each in params], jnp.float32),
        # More than any vocabulary has is no limit, however large the number.
        top_k=jnp.asarray([min(each.top_k, 2**31 - 1) for each in params], jnp.int32),
        top_p=jnp.asarray([each.top_p for each in params], jnp.float32),
    )


def draw_tokens(
    logits: Float[Array, "vocab row"], rules: DrawRules, index: Int[Array, " row"]
) -> Drawn:
    """Draws one token a row, exactly from its (tempered, truncated) distribution.

    Inverse of the cumulative distribution in two levels: a uniform number picks a block of
    tokens by its probability, a second one a token within it. Unlike a Gumbel maximum this needs
    two random numbers a row, not one for every token of the vocabulary.

    Args:
        logits: of the model, `[vocab, row]`.
        rules: how each row wants to be drawn.
        index: how many tokens each row has drawn before; with the row's key it decides the
            random numbers.

    Example:
        >>> rules = draw_rules([SamplingParams(max_tokens=1, seed=0, temperature=0.0)], [0])
        >>> draw_tokens(jnp.log(jnp.array([[0.3], [0.6], [0.1]])), rules, jnp.array([0])).tokens
        Array([1], dtype=int32)
    """
    logits = logits.astype(jnp.float32)
    highest = logits.max(0)
    greedy = rules.temperature == 0
    sharpness = _sharpness(rules)
    lowest = jnp.where(greedy, highest, truncation(logits, rules))

    def weigh(values: Array, highest: Array, lowest: Array, sharpness: Array) -> Array:
        return jnp.where(values >= lowest, jnp.exp((values - highest) * sharpness), 0)

    # A greedy row keeps the highest logit alone; 0 then picks the first of several equals.
    uniform = jnp.where(greedy[:, None], 0, _uniforms(rules, index))
    blocks = _blocks(logits)
    weights = weigh(blocks, highest, lowest, sharpness)
    block = _inverse_cdf(_block_totals(weights), uniform[:, 0])
    inside = blocks[block, :, jnp.arange(len(block))].T
    place = _inverse_cdf(weigh(inside, highest, lowest, sharpness), uniform[:, 1])
    chosen = jnp.take_along_axis(inside, place[None], 0)[0]
    return Drawn(
        tokens=block * blocks.shape[1] + place,
        logprobs=chosen - highest - jnp.log(_total(jnp.exp(blocks - highest))),
    )


def truncation(logits: Float[Array, "vocab row"], rules: DrawRules) -> Float[Array, " row"]:
    """The lowest logit each row may draw: by top_k, then top_p of what top_k left.

    Tokens whose logits are exactly equal stay or go together. Rows without truncation get -inf,
    and where no row truncates nothing is computed.
    """
    unlimited = jnp.full(logits.shape[1], -jnp.inf)
    limited_k, limited_p = rules.top_k > 0, rules.top_p < 1

    def by_count() -> Array:
        return jnp.where(
            limited_k, _lowest_kept(logits, jnp.ones_like(logits), rules.top_k), unlimited
        )

    def by_mass() -> Array:
        weights = jnp.exp((logits - logits.max(0)) * _sharpness(rules)) * (logits >= kept)
        budget = rules.top_p * _total(_blocks(weights, fill=0.0))
        return jnp.where(limited_p, _lowest_kept(logits, weights, budget), kept)

    kept = jax.lax.cond(limited_k.any(), by_count, lambda: unlimited)
    lowest: Array = jax.lax.cond(limited_p.any(), by_mass, lambda: kept)
    return lowest


def _sharpness(rules: DrawRules) -> Float[Array, " row"]:
    """What tempered logits are multiplied by; kept finite, and 1 in greedy rows."""
    return 1 / jnp.where(rules.temperature == 0, 1, jnp.maximum(rules.temperature, 1e-6))


def _lowest_kept(
    logits: Float[Array, "vocab row"], weights: Float[Array, "vocab row"], budget: Array
) -> Float[Array, " row"]:
    """The smallest logit v with Σ weights[logits > v] < budget, by bisection over all floats.

    A token is kept while the tokens above it leave room in the budget. 32 passes over the
    vocabulary, where a sort would need many times that.
    """

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        below, enough = bounds
        # The mean of two integers without overflow.
        middle = (below & enough) + ((below ^ enough) >> 1)
        above = jnp.where(logits > _float_of(middle), weights, 0)
        fits = _total(_blocks(above, fill=0.0)) < budget
        return jnp.where(fits, below, middle), jnp.where(fits, middle, enough)

    bounds = _rank_of(logits.min(0)) - 1, _rank_of(logits.max(0))
    return _float_of(jax.lax.fori_loop(0, 32, halve, bounds)[1])


def _rank_of(values: Float[Array, " row"]) -> Int[Array, " row"]:
    """Integers in the order of the floats: the bits, with those of negative numbers reversed."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float_of(ranks: Int[Array, " row"]) -> Float[Array, " row"]:
    return jax.lax.bitcast_convert_type(
        jnp.where(ranks < 0, ranks ^ 0x7FFFFFFF, ranks), jnp.float32
    )


def _uniforms(rules: DrawRules, index: Int[Array, " row"]) -> Float[Array, "row 2"]:
    def of_row(key: Array, index: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key), index), (2,))

    return jax.vmap(of_row)(rules.key, index)


_BLOCK = 256
# XLA treats arrays smaller than some thousand entries differently, and how small they are depends
# on the number of rows.
_FEWEST_BLOCKS = 16


def _blocks(
    values: Float[Array, "vocab row"], *, fill: float = -math.inf
) -> Float[Array, "block token row"]:
    padding = max(-len(values) % _BLOCK, _FEWEST_BLOCKS * _BLOCK - len(values))
    padded = jnp.pad(values, ((0, padding), (0, 0)), constant_values=fill)
    return padded.reshape(-1, _BLOCK, values.shape[1])


def _total(blocks: Float[Array, "block token row"]) -> Float[Array, " row"]:
    """The sum over all tokens, its order the same for any number of rows."""
    return fold(jnp.add, _block_totals(blocks).T)[:, 0]


def _block_totals(blocks: Float[Array, "block token row"]) -> Float[Array, "block row"]:
    parts = blocks.reshape(len(blocks), 16, _BLOCK // 16, -1)
    return in_turn(jnp.add, in_turn(jnp.add, parts, axis=1), axis=1)


def _inverse_cdf(
    weights: Float[Array, "item row"], uniform: Float[Array, " row"]
) -> Int[Array, " row"]:
    """The first item, among those with weight, whose cumulative share exceeds `uniform`."""
    cumulative = jnp.cumsum(weights, 0)
    # Rounding may leave a cumulative sum uneven over items of weight 0.
    possible: Bool[Array, "item row"] = (cumulative > uniform * cumulative[-1]) & (weights > 0)
    return jnp.where(possible.any(0), possible.argmax(0), weights.argmax(0)).astype(jnp.int32)
