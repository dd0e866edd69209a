"""Many sequences decoded together, coming and going: continuous batching as pure functions.

A `Generation` holds up to `max_rows` sequences. `admit` adds requests, `advance` draws the next
few tokens of all of them and drops the finished, `release` drops rows by name. Each returns a new
`Generation` and leaves the one it was given as it was. Sizes of the arrays come from a few
buckets, so that a varied run compiles a handful of programs.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cookbook_fx.data.buckets import power_of_two
from cookbook_fx.errors import ConfigurationError, ModelError
from cookbook_fx.lm.decode import (
    FEWEST_ROWS,
    Cache,
    DecodeWeights,
    decode_step,
    empty_cache,
    placed,
    prefill,
    rearranged,
)
from cookbook_fx.lm.sampling import DrawRules, SamplingParams, draw_rules, draw_tokens

StopReason = Literal["stop", "length"]

# Steps between two looks at the rows. A row that ends or arrives waits for at most this many.
CHUNK = 16


class RowId(NamedTuple):
    """Which answer to which request."""

    request: Hashable
    sample: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowRequest:
    """A prompt to be continued, once or several times.

    Args:
        id: the caller's name for it.
        prompt: token ids, at least one.
        params: how to draw.
        num_samples: how many independent answers.
        first_sample: number of the first of them; answer i depends on the seed and i alone, so a
            request may be admitted in parts.
    """

    id: Hashable
    prompt: Int[np.ndarray, " token"]
    params: SamplingParams
    num_samples: int = 1
    first_sample: int = 0

    def __post_init__(self) -> None:
        if self.prompt.ndim != 1 or self.prompt.size == 0:
            raise ConfigurationError(
                f"request {self.id!r}: a prompt needs at least one token in one dimension, "
                f"got shape {self.prompt.shape}"
            )
        if self.num_samples < 1:
            raise ConfigurationError(
                f"request {self.id!r}: num_samples must be at least 1, got {self.num_samples}"
            )


class RowUpdate(NamedTuple):
    """What `advance` did for one row; `stop_reason` is None while the row goes on."""

    row: RowId
    tokens: Int[np.ndarray, " token"]
    logprobs: Float[np.ndarray, " token"]
    stop_reason: StopReason | None


class Sampled(NamedTuple):
    """One finished answer; a stop token is its last token."""

    tokens: Int[np.ndarray, " token"]
    logprobs: Float[np.ndarray, " token"]
    stop_reason: StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A running sequence: `token`, at `position`, is the newest and not yet in the cache."""

    id: RowId
    prompt: bytes
    params: SamplingParams
    token: int
    position: int
    drawn: int
    limit: int

    @property
    def reach(self) -> int:
        """Positions in use after the next chunk."""
        return self.position + min(CHUNK, self.limit - self.drawn)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """Sequences being decoded: one slot of the cache each, None for free slots."""

    max_rows: int
    cache: Cache
    rows: tuple[_Row | None, ...]

    @property
    def row_ids(self) -> tuple[RowId, ...]:
        """The rows still running."""
        return tuple(row.id for row in self.rows if row is not None)

    @property
    def free_rows(self) -> int:
        """How many more may be admitted."""
        return self.max_rows - len(self.row_ids)


def begin(model: DecodeWeights, *, max_rows: int = 32) -> Generation:
    """An empty generation that decodes at most `max_rows` sequences at once.

    The longest row decides the length of the cache, which takes 8 bytes for each row, position,
    layer, key head and dimension of a head; while a chunk is computed it exists twice. For
    SmolLM2-135M, 32 rows of 1024 tokens are 1.5 GB.
    """
    if max_rows < 1:
        raise ConfigurationError(f"max_rows must be at least 1, got {max_rows}")
    cache = empty_cache(model, slots=1, length=_length_for(1, 1))
    return Generation(max_rows=max_rows, cache=cache, rows=(None,))


def admit(
    model: DecodeWeights, generation: Generation, requests: Sequence[RowRequest]
) -> Generation:
    """Adds rows; a prompt is read once for all rows that share it.

    The token limit of a row is its `max_tokens` or what the context leaves, whichever is less.

    Raises:
        ConfigurationError: not enough free rows, a row that is already there, a prompt with
            token ids outside the vocabulary or that fills the whole context.
    """
    if not requests:
        return generation
    new = [row for request in requests for row in _new_rows(model, request)]
    ids = [*generation.row_ids, *(row.id for row in new)]
    if len(ids) > generation.max_rows:
        raise ConfigurationError(
            f"{len(new)} rows do not fit into the {generation.free_rows} free ones of "
            f"{generation.max_rows}; admit fewer, and the rest after some have finished"
        )
    twice = {row for row in ids if ids.count(row) > 1}
    if twice:
        raise ConfigurationError(
            f"each request id and sample number may run once at a time, but twice there: {twice}"
        )
    known = {row.prompt for row in generation.rows if row is not None}
    generation = _with_rows(generation, new)
    unread = [
        (slot, row.prompt)
        for slot, row in enumerate(generation.rows)
        if row is not None and row.drawn == 0 and row.prompt not in known
    ]
    return replace(generation, cache=_with_prompts(model, generation.cache, unread))


def split_to_fit(
    requests: Sequence[RowRequest], rows: int
) -> tuple[tuple[RowRequest, ...], tuple[RowRequest, ...]]:
    """Parts a queue into what `rows` free rows can take now, in order, and what has to wait.

    Example:
        >>> params = SamplingParams(max_tokens=5, seed=0)
        >>> group = RowRequest(id="a", prompt=np.array([1]), params=params, num_samples=6)
        >>> (now,), (later,) = split_to_fit([group], 4)
        >>> (now.num_samples, later.first_sample, later.num_samples)
        (4, 4, 2)
    """
    now: list[RowRequest] = []
    for index, request in enumerate(requests):
        if request.num_samples > rows:
            if not rows:
                return tuple(now), tuple(requests[index:])
            rest = replace(
                request,
                num_samples=request.num_samples - rows,
                first_sample=request.first_sample + rows,
            )
            return (*now, replace(request, num_samples=rows)), (rest, *requests[index + 1 :])
        now.append(request)
        rows -= request.num_samples
    return tuple(now), ()


def release(generation: Generation, row_ids: Collection[RowId]) -> Generation:
    """Drops rows, finished or not; unknown ones are ignored, as they may have just finished."""
    kept = tuple(None if row is None or row.id in row_ids else row for row in generation.rows)
    return replace(generation, rows=kept)


def advance(
    model: DecodeWeights, generation: Generation
) -> tuple[Generation, tuple[RowUpdate, ...]]:
    """Draws up to `CHUNK` tokens for every row; rows that end are gone from the result.

    Raises:
        ModelError: the model's log-probabilities are not finite.
    """
    if not generation.row_ids:
        return generation, ()
    generation = _with_rows(generation, ())
    chunk = _decode_chunk(model, generation.cache, _columns(generation.rows))
    tokens, logprobs = np.asarray(chunk.tokens).T, np.asarray(chunk.logprobs).T
    counts, stopped = chunk.counts.tolist(), chunk.stopped.tolist()
    rows: list[_Row | None] = [None] * len(generation.rows)
    updates = []
    for slot, row in enumerate(generation.rows):
        if row is not None:
            rows[slot], update = _after_chunk(
                row,
                tokens[slot, : counts[slot]],
                logprobs[slot, : counts[slot]],
                stopped=stopped[slot],
            )
            updates.append(update)
    return replace(generation, cache=chunk.cache, rows=tuple(rows)), tuple(updates)


def generate(
    model: DecodeWeights, requests: Sequence[RowRequest], *, max_rows: int = 32
) -> list[tuple[Sampled, ...]]:
    """Runs requests to their ends; one tuple of answers a request, in their order.

    Example:
        >>> from cookbook_fx.lm.config import LMConfig
        >>> from cookbook_fx.lm.decode import decode_weights
        >>> from cookbook_fx.lm.weights import random_tensors, weights_from_tensors
        >>> tiny = LMConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=1,
        ...     num_heads=2, num_kv_heads=1, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5,
        ...     max_position_embeddings=64, tie_word_embeddings=True, qk_norm=False)
        >>> weights = weights_from_tensors(tiny, random_tensors(tiny).__getitem__)
        >>> request = RowRequest(id="a", prompt=np.array([1, 2, 3]),
        ...     params=SamplingParams(max_tokens=5, seed=0), num_samples=2)
        >>> [answers] = generate(decode_weights(weights, None), [request])
        >>> [(len(answer.tokens), answer.stop_reason) for answer in answers]
        [(5, 'length'), (5, 'length')]
    """
    generation = begin(model, max_rows=max_rows)
    waiting = tuple(replace(request, id=index) for index, request in enumerate(requests))
    parts: dict[RowId, list[RowUpdate]] = {}
    while waiting or generation.row_ids:
        now, waiting = split_to_fit(waiting, generation.free_rows)
        generation = admit(model, generation, now)
        generation, updates = advance(model, generation)
        for update in updates:
            parts.setdefault(update.row, []).append(update)
    return [
        tuple(
            _joined(parts[RowId(index, request.first_sample + sample)])
            for sample in range(request.num_samples)
        )
        for index, request in enumerate(requests)
    ]


def _joined(updates: Sequence[RowUpdate]) -> Sampled:
    return Sampled(
        tokens=np.concatenate([update.tokens for update in updates]),
        logprobs=np.concatenate([update.logprobs for update in updates]),
        stop_reason=updates[-1].stop_reason or "length",
    )


def _new_rows(model: DecodeWeights, request: RowRequest) -> list[_Row]:
    config, length = model.config, len(request.prompt)
    if length >= config.max_position_embeddings:
        raise ConfigurationError(
            f"request {request.id!r}: a prompt of {length} tokens leaves no room in the model's "
            f"context of {config.max_position_embeddings}; shorten it"
        )
    if request.prompt.min() < 0 or request.prompt.max() >= config.vocab_size:
        raise ConfigurationError(
            f"request {request.id!r}: token ids must be from 0 to {config.vocab_size - 1}, "
            f"got {request.prompt.min()} to {request.prompt.max()}"
        )
    return [
        _Row(
            id=RowId(request.id, request.first_sample + sample),
            prompt=np.asarray(request.prompt, np.int32).tobytes(),
            params=request.params,
            token=int(request.prompt[-1]),
            position=length - 1,
            drawn=0,
            limit=min(request.params.max_tokens, config.max_position_embeddings - length),
        )
        for sample in range(request.num_samples)
    ]


# --- Buckets -------------------------------------------------------------------------------------

_NARROWEST_PROMPT = 64
# Prompts of one width are read together up to this many tokens; more would gain no speed.
_TOKENS_AT_ONCE = 512


def _slots_for(rows: int) -> int:
    # Two rows take as long as four: either way the time goes into reading the weights.
    return 1 if rows <= 1 else max(4, power_of_two(rows))


def _length_for(reach: int, slots: int) -> int:
    # Reading a short cache is nothing beside reading the weights for few rows, and every length
    # is a program to compile.
    return max(256 if slots <= 4 else 128, power_of_two(reach))


def _with_rows(generation: Generation, new: Sequence[_Row]) -> Generation:
    """Makes room for new rows, and for a chunk of tokens in every row.

    A new row with the prompt of a running one gets a copy of that one's cache, which begins with
    the prompt. The cache grows as soon as it must, and shrinks when three quarters of it are
    unused, so that a lone long row is not decoded at the width of the group it came with.
    """
    cache, old = generation.cache, generation.rows
    running = [row for row in old if row is not None]
    slots = _bucket(cache.slots, _slots_for(len(running) + len(new)))
    reach = max(row.reach for row in [*running, *new])
    length = _bucket(cache.length, _length_for(reach, slots))
    kept = old if slots == cache.slots else (*running, *[None] * (slots - len(running)))
    entering = iter(new)
    rows = tuple(row or next(entering, None) for row in kept)

    slot_of_row = {row.id: slot for slot, row in enumerate(old) if row is not None}
    slot_of_prompt = {row.prompt: slot for slot, row in enumerate(old) if row is not None}
    source = [min(slot, cache.slots - 1) for slot in range(slots)]
    for slot, row in enumerate(rows):
        if row is not None:
            same_prompt = slot_of_prompt.get(row.prompt, source[slot])
            source[slot] = slot_of_row.get(row.id, same_prompt)
    if length != cache.length or source != list(range(cache.slots)):
        cache = rearranged(cache, jnp.asarray(source), length=length)
    return replace(generation, cache=cache, rows=rows)


def _bucket(current: int, wanted: int) -> int:
    return current if current // 4 < wanted <= current else wanted


# --- Prompts -------------------------------------------------------------------------------------


def _with_prompts(model: DecodeWeights, cache: Cache, unread: Sequence[tuple[int, bytes]]) -> Cache:
    """Reads all but the last token of the prompts into these slots; `advance` reads the last."""
    takers: dict[bytes, list[int]] = {}
    for slot, prompt in unread:
        takers.setdefault(prompt, []).append(slot)
    for width, prompts in _batches(takers):
        tokens = np.zeros((power_of_two(len(prompts)), width), np.int32)
        source, count = np.zeros((2, cache.slots), np.int32)
        for number, prompt in enumerate(prompts):
            body = np.frombuffer(prompt, np.int32)[:-1]
            tokens[number, : len(body)] = body
            source[takers[prompt]], count[takers[prompt]] = number, len(body)
        prefix = prefill(model, jnp.asarray(tokens))
        cache = placed(cache, prefix, source=jnp.asarray(source), count=jnp.asarray(count))
    return cache


def _batches(prompts: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Prompts to be read together, and the width of their rows."""
    by_width: dict[int, list[bytes]] = {}
    for prompt in prompts:
        length = len(prompt) // 4 - 1
        if length > 0:
            by_width.setdefault(_width(length), []).append(prompt)
    for width, those in sorted(by_width.items()):
        at_once = max(1, _TOKENS_AT_ONCE // width)
        for start in range(0, len(those), at_once):
            yield width, those[start : start + at_once]


def _width(length: int) -> int:
    """Of the row a prompt is read in; of nothing but its length, as the result's last bits are.

    Powers of two, and between the larger ones also three quarters: each is a program.
    """
    power = power_of_two(max(length, _NARROWEST_PROMPT))
    return power * 3 // 4 if power >= _TOKENS_AT_ONCE and length <= power * 3 // 4 else power


# --- A chunk of steps ----------------------------------------------------------------------------


class _Columns(eqx.Module):
    """The rows as arrays, at least `FEWEST_ROWS`; those of free slots have a limit of 0."""

    token: Int[Array, " row"]
    position: Int[Array, " row"]
    drawn: Int[Array, " row"]
    limit: Int[Array, " row"]
    stop_tokens: Int[Array, "row stop"]
    rules: DrawRules


_FREE = _Row(
    id=RowId(None, 0),
    prompt=b"",
    params=SamplingParams(max_tokens=1, seed=0, temperature=0.0),
    token=0,
    position=0,
    drawn=0,
    limit=0,
)


def _columns(slots: Sequence[_Row | None]) -> _Columns:
    rows = [row or _FREE for row in slots] + [_FREE] * (FEWEST_ROWS - len(slots))
    stops = np.full(
        (len(rows), power_of_two(max(8, *(len(r.params.stop_tokens) for r in rows)))), -1
    )
    for stop, row in zip(stops, rows, strict=True):
        stop[: len(row.params.stop_tokens)] = row.params.stop_tokens
    return _Columns(
        token=jnp.asarray([row.token for row in rows], jnp.int32),
        position=jnp.asarray([row.position for row in rows], jnp.int32),
        drawn=jnp.asarray([row.drawn for row in rows], jnp.int32),
        limit=jnp.asarray([row.limit for row in rows], jnp.int32),
        stop_tokens=jnp.asarray(stops, jnp.int32),
        rules=draw_rules([row.params for row in rows], [row.id.sample for row in rows]),
    )


class _Progress(NamedTuple):
    """What a chunk's steps hand on; `counts` are the tokens drawn in this chunk."""

    step: Int[Array, ""]
    cache: Cache
    token: Int[Array, " row"]
    counts: Int[Array, " row"]
    stopped: Bool[Array, " row"]
    tokens: Int[Array, "step row"]
    logprobs: Float[Array, "step row"]


@jax.jit
def _decode_chunk(model: DecodeWeights, cache: Cache, columns: _Columns) -> _Progress:
    """Up to `CHUNK` steps, fewer if every row has ended before."""

    def running(progress: _Progress) -> Array:
        return ~progress.stopped & (columns.drawn + progress.counts < columns.limit)

    def more(progress: _Progress) -> Array:
        return (progress.step < CHUNK) & running(progress).any()

    def step(progress: _Progress) -> _Progress:
        # An ended row is computed with the others, but stays where it is; the cache may end there.
        live = running(progress)
        position = jnp.minimum(columns.position + progress.counts, cache.length - 1)
        next_cache, logits = decode_step(model, progress.cache, progress.token, position)
        drawn = draw_tokens(logits, columns.rules, columns.drawn + progress.counts)
        stops = (drawn.tokens[:, None] == columns.stop_tokens).any(1)
        return _Progress(
            step=progress.step + 1,
            cache=next_cache,
            token=jnp.where(live, drawn.tokens, progress.token),
            counts=progress.counts + live,
            stopped=progress.stopped | (live & stops),
            tokens=progress.tokens.at[progress.step].set(drawn.tokens),
            logprobs=progress.logprobs.at[progress.step].set(drawn.logprobs),
        )

    rows = len(columns.token)
    start = _Progress(
        step=jnp.asarray(0),
        cache=cache,
        token=columns.token,
        counts=jnp.zeros(rows, jnp.int32),
        stopped=jnp.zeros(rows, bool),
        tokens=jnp.zeros((CHUNK, rows), jnp.int32),
        logprobs=jnp.zeros((CHUNK, rows), jnp.float32),
    )
    return jax.lax.while_loop(more, step, start)


def _after_chunk(
    row: _Row, tokens: np.ndarray, logprobs: np.ndarray, *, stopped: bool
) -> tuple[_Row | None, RowUpdate]:
    if not np.isfinite(logprobs).all():
        raise ModelError(
            f"row {row.id}: the model's log-probabilities are not finite; its weights or the "
            "adapter have diverged"
        )
    after = replace(
        row,
        token=int(tokens[-1]),
        position=row.position + len(tokens),
        drawn=row.drawn + len(tokens),
    )
    reason: StopReason | None = (
        "stop" if stopped else "length" if after.drawn == after.limit else None
    )
    return (
        None if reason else after,
        RowUpdate(row=row.id, tokens=tokens, logprobs=logprobs, stop_reason=reason),
    )
