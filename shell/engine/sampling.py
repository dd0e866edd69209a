"""Samples for many callers, decoded together. Compute thread only, but for `submit`.

Requests wait in one queue and enter in the order they came. All that run on the same weights are
decoded as one batch, which others join and leave between chunks of steps; requests on different
weights take turns, chunk by chunk.
"""

import contextlib
import itertools
import logging
import queue
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np

from cookbook_fx.errors import DataError
from cookbook_fx.lm import (
    DecodeWeights,
    Generation,
    LMWeights,
    LoRA,
    PromptScores,
    RowId,
    RowRequest,
    RowUpdate,
    Sampled,
    SamplingParams,
    admit,
    advance,
    begin,
    decode_weights,
    release,
    score_prompts,
    split_to_fit,
)
from shell.engine.memory import Memory
from shell.engine.requests import SamplePrompt
from shell.engine.sessions import SamplerWeights

log = logging.getLogger(__name__)
Decode = Callable[[Sequence[int]], str]

# Each holds a merged copy of the base model's layers.
_WEIGHTS_AT_ONCE = 2
# Where compute takes over from reading the weights, and more rows only make each one slower.
_ROWS_AT_ONCE = {"cpu": 32}
_ROWS_AT_ONCE_ON_ACCELERATORS = 256


class SampledPrompt(NamedTuple):
    """All continuations of a prompt, and its scores where they were asked for."""

    samples: tuple[Sampled, ...]
    prompt: PromptScores | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleWork:
    """A request with the weights it was made to, and where its result goes."""

    weights: SamplerWeights
    request: SamplePrompt
    seed: int
    future: "Future[SampledPrompt]"


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    """A request under way."""

    work: SampleWork
    # How many tokens a text of it can come to, prompt included.
    reach: int
    prompt: PromptScores | None = None
    finished: dict[int, Sampled] = field(default_factory=dict)
    running: dict[int, Sampled] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class _Batch:
    """What is decoded together: weights with the adapter merged, and the adapter to score with."""

    adapter: LoRA | None
    weights: DecodeWeights
    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiting:
    """The part of a request that no row has been found for yet."""

    job: _Job
    rows: RowRequest


class SamplingPool:
    """All sampling of an engine.

    Args:
        base: the base model.
        decode: token ids to text, special tokens included.
        memory: what there is room for.
        end_tokens: ids that end a text where a request does not say otherwise.
    """

    def __init__(
        self, base: LMWeights, decode: Decode, memory: Memory, *, end_tokens: tuple[int, ...]
    ) -> None:
        self._base = base
        self._decode = decode
        self._memory = memory
        self._end_tokens = end_tokens
        self._inbox: queue.SimpleQueue[Sequence[SampleWork]] = queue.SimpleQueue()
        self._waiting: deque[_Waiting] = deque()
        self._jobs: dict[Hashable, _Job] = {}
        self._batches: OrderedDict[str, _Batch] = OrderedDict()
        self._ids = itertools.count()

    def submit(self, works: Sequence[SampleWork]) -> None:
        """Hands in requests, from any thread; they enter the queue with the next `advance`."""
        self._inbox.put(works)

    def admit(self, works: Sequence[SampleWork]) -> None:
        """Puts requests into the queue; what is wrong with one fails that one alone."""
        for work in works:
            try:
                rows = self._rows(work)
            except Exception as error:
                _deliver(work.future, error)
            else:
                reach = len(rows.prompt) + rows.params.max_tokens
                job = _Job(work=work, reach=min(reach, self._base.config.max_position_embeddings))
                self._jobs[rows.id] = job
                self._waiting.append(_Waiting(job=job, rows=rows))

    def advance(self) -> bool:
        """Decodes one chunk of one batch; whether there is more to do."""
        while not self._inbox.empty():
            self.admit(self._inbox.get())
        self._drop_cancelled()
        try:
            self._fill()
            for key, batch in self._batches.items():
                if batch.generation.row_ids:
                    self._batches.move_to_end(key)
                    self._advance(batch)
                    break
        # What gets here is a bug of ours. It must not end the compute thread: training goes on,
        # and whoever waits for a sample must hear of it.
        except Exception as error:
            log.exception("sampling failed unexpectedly; all that was under way is given up")
            self._batches.clear()
            for job_id in list(self._jobs):
                self._fail(job_id, error)
        return bool(self._jobs)

    def _drop_cancelled(self) -> None:
        """Forgets what nobody waits for any more; rows that are running are freed by `_take`."""
        given_up = {id for id, job in self._jobs.items() if job.work.future.cancelled()}
        if given_up:
            self._jobs = {id: job for id, job in self._jobs.items() if id not in given_up}
            self._waiting = deque(each for each in self._waiting if each.rows.id not in given_up)

    def _rows(self, work: SampleWork) -> RowRequest:
        request, config = work.request, self._base.config
        prompt, context = request.prompt, config.max_position_embeddings
        room = context - len(prompt)
        # The SDK asks for scores together with one token, which a full context has no room for.
        if room < 0 or (room == 0 and not _wants_scores(request)):
            raise DataError(
                f"a prompt of {len(prompt)} tokens leaves no room to sample in the model's context "
                f"of {context}; shorten it"
            )
        if prompt.min() < 0 or prompt.max() >= config.vocab_size:
            raise DataError(
                f"prompt tokens must be from 0 to {config.vocab_size - 1}, "
                f"got {prompt.min()} to {prompt.max()}"
            )
        if not 0 <= request.topk_prompt_logprobs <= config.vocab_size:
            raise DataError(
                f"topk_prompt_logprobs must be from 0 to {config.vocab_size}, "
                f"got {request.topk_prompt_logprobs}"
            )
        if request.prompt_logprobs_last_n is not None and request.prompt_logprobs_last_n < 1:
            raise DataError(
                f"prompt_logprobs_last_n must be at least 1, got {request.prompt_logprobs_last_n}"
            )
        most = room if request.max_tokens is None else request.max_tokens
        self._memory.require_text(len(prompt) + min(most, room))
        stop = self._end_tokens if request.stop_tokens is None else request.stop_tokens
        return RowRequest(
            id=next(self._ids),
            prompt=prompt.astype(np.int32),
            params=SamplingParams(
                max_tokens=max(1, most) if room == 0 else most,
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                seed=work.seed,
                stop_tokens=tuple(token for token in stop if 0 <= token < config.vocab_size),
            ),
            num_samples=request.num_samples,
        )

    # --- the queue --------------------------------------------------------------------------

    def _fill(self) -> None:
        """Lets in from the front of the queue what there is room for."""
        while self._waiting:
            weights = self._waiting[0].job.work.weights
            try:
                batch = self._batch(weights)
            # Merging needs as much memory as the model; those who asked for it hear if it fails.
            except Exception as error:
                for waiting in _leading(self._waiting, weights.key):
                    self._fail(waiting.rows.id, error)
                continue
            if batch is None or not batch.generation.free_rows:
                return
            same = _leading(self._waiting, weights.key)
            same, room = self._together(batch, same)
            if not room:
                return
            now, later = split_to_fit([each.rows for each in same], room)
            for _ in same:
                self._waiting.popleft()
            self._waiting.extendleft(
                _Waiting(job=self._jobs[rows.id], rows=rows) for rows in reversed(later)
            )
            self._enter(batch, now)

    def _together(
        self, batch: _Batch, waiting: Sequence[_Waiting]
    ) -> tuple[Sequence[_Waiting], int]:
        """Those at the front that go together, and the rows that memory leaves for them.

        All rows of a cache are as long as the longest of them can become: one that would leave
        fewer rows than those before it fill begins when they have gone.
        """
        running = batch.generation.row_ids
        besides = sum(self._cache_bytes(other) for other in self._batches.values()) - (
            self._cache_bytes(batch)
        )
        longest = self._longest(batch)
        taken, room = len(running), 0
        for count, each in enumerate(waiting):
            longest = max(longest, each.job.reach)
            allowed = self._memory.rows(longest, besides_bytes=besides)
            if count and allowed < taken:
                return waiting[:count], room
            room = min(batch.generation.free_rows, max(0, allowed - len(running)))
            # What has begun elsewhere may leave no room by this estimate; a lone row was checked.
            if not running and not count:
                room = max(1, room)
            taken += each.rows.num_samples
        return waiting, room

    def _longest(self, batch: _Batch) -> int:
        jobs = (self._jobs.get(row.request) for row in batch.generation.row_ids)
        return max((job.reach for job in jobs if job is not None), default=0)

    def _cache_bytes(self, batch: _Batch) -> int:
        rows = len(batch.generation.row_ids)
        return self._memory.cache_bytes(rows=rows, tokens=self._longest(batch))

    def _batch(self, weights: SamplerWeights) -> _Batch | None:
        """The batch for these weights; None while others hold all the room for weights."""
        if weights.key not in self._batches:
            if len(self._batches) >= _WEIGHTS_AT_ONCE:
                idle = (k for k, batch in self._batches.items() if not batch.generation.row_ids)
                oldest = next(idle, None)
                if oldest is None:
                    return None
                del self._batches[oldest]
            adapter = weights.load()
            merged = decode_weights(self._base, adapter)
            rows = _ROWS_AT_ONCE.get(jax.default_backend(), _ROWS_AT_ONCE_ON_ACCELERATORS)
            self._batches[weights.key] = _Batch(
                adapter=adapter, weights=merged, generation=begin(merged, max_rows=rows)
            )
        return self._batches[weights.key]

    def _enter(self, batch: _Batch, requests: Sequence[RowRequest]) -> None:
        try:
            self._score(requests, batch.adapter)
            context = self._base.config.max_position_embeddings
            full = [rows for rows in requests if len(rows.prompt) == context]
            for rows in full:
                self._finish_empty(rows)
            batch.generation = admit(
                batch.weights, batch.generation, [rows for rows in requests if rows not in full]
            )
        # Whatever it is belongs to those who wait for these requests.
        except Exception as error:
            for rows in requests:
                self._fail(rows.id, error)

    def _score(self, requests: Sequence[RowRequest], adapter: LoRA | None) -> None:
        """Scores the prompts of requests that want it, those of equal kind together."""
        by_kind: dict[int, list[RowRequest]] = {}
        for rows in requests:
            asked = self._jobs[rows.id].work.request
            if rows.first_sample == 0 and _wants_scores(asked):
                by_kind.setdefault(asked.topk_prompt_logprobs, []).append(rows)
        for top_k, group in by_kind.items():
            scores = score_prompts(
                self._base, adapter, [rows.prompt for rows in group], top_k=top_k
            )
            for rows, score in zip(group, scores, strict=True):
                job = self._jobs[rows.id]
                job.prompt = _last(score, job.work.request.prompt_logprobs_last_n)

    # --- rows -------------------------------------------------------------------------------

    def _advance(self, batch: _Batch) -> None:
        running = batch.generation.row_ids
        try:
            batch.generation, updates = advance(batch.weights, batch.generation)
            done = [update.row for update in updates if self._take(update)]
        except Exception as error:
            batch.generation = release(batch.generation, running)
            for row in running:
                self._fail(row.request, error)
            return
        batch.generation = release(batch.generation, done)

    def _take(self, update: RowUpdate) -> bool:
        """Adds new tokens to a sample; whether its row is not needed any more."""
        job = self._jobs.get(update.row.request)
        if job is None:
            return True
        before = job.running.pop(update.row.sample, None)
        sample = Sampled(update.tokens, update.logprobs, update.stop_reason or "length")
        if before is not None:
            sample = Sampled(
                np.concatenate([before.tokens, update.tokens]),
                np.concatenate([before.logprobs, update.logprobs]),
                sample.stop_reason,
            )
        strings = job.work.request.stop_strings
        checked = 0 if before is None else len(before.tokens)
        end = stop_string_end(sample.tokens.tolist(), strings, self._decode, checked=checked)
        if end is not None:
            sample = Sampled(sample.tokens[:end], sample.logprobs[:end], "stop")
        elif update.stop_reason is None:
            job.running[update.row.sample] = sample
            return False
        self._finish(update.row, job, sample)
        return True

    def _finish_empty(self, rows: RowRequest) -> None:
        """Of a prompt that fills the context nothing but the scores is wanted."""
        nothing = Sampled(np.empty(0, np.int32), np.empty(0, np.float32), "length")
        job = self._jobs[rows.id]
        for sample in range(rows.first_sample, rows.first_sample + rows.num_samples):
            self._finish(RowId(rows.id, sample), job, nothing)

    def _finish(self, row: RowId, job: _Job, sample: Sampled) -> None:
        job.finished[row.sample] = sample
        wanted = job.work.request.num_samples
        if len(job.finished) == wanted:
            del self._jobs[row.request]
            samples = tuple(job.finished[index] for index in range(wanted))
            _deliver(job.work.future, SampledPrompt(samples, job.prompt))

    def _fail(self, job_id: Hashable, error: Exception) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._waiting = deque(each for each in self._waiting if each.job is not job)
            _deliver(job.work.future, error)


def _deliver(future: "Future[SampledPrompt]", result: SampledPrompt | Exception) -> None:
    # It may be cancelled, by another thread, at any instant before this.
    with contextlib.suppress(InvalidStateError):
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _wants_scores(request: SamplePrompt) -> bool:
    return request.prompt_logprobs or request.topk_prompt_logprobs > 0


def _leading(waiting: Iterable[_Waiting], key: str) -> list[_Waiting]:
    """The first of a queue that run on the same weights."""
    return list(itertools.takewhile(lambda each: each.job.work.weights.key == key, waiting))


def stop_string_end(
    tokens: Sequence[int], strings: Sequence[str], decode: Decode, *, checked: int
) -> int | None:
    """How many tokens it takes until the text contains one of the strings; None if it does not.

    Args:
        tokens: of one sample.
        strings: to look for in the decoded text, across token boundaries.
        decode: token ids to text.
        checked: that many tokens are known to contain none.

    Example:
        >>> stop_string_end([72, 105, 33, 10], ["!"], lambda ids: bytes(ids).decode(), checked=0)
        3
    """
    if not strings:
        return None
    # A token is at least a byte of text, so a match that ends after `checked` begins after this.
    start = max(0, checked - max(len(string.encode()) for string in strings))

    def stopped(end: int) -> bool:
        text = decode(tokens[start:end])
        return any(string in text for string in strings)

    if not stopped(len(tokens)):
        return None
    return next(end for end in range(checked + 1, len(tokens) + 1) if stopped(end))


def _last(scores: PromptScores, count: int | None) -> PromptScores:
    """The scores with all but the last `count` tokens' made unknown."""
    if count is None or count >= len(scores.logprobs):
        return scores
    cut = len(scores.logprobs) - count
    logprobs = np.where(np.arange(len(scores.logprobs)) < cut, np.nan, scores.logprobs)
    if scores.topk_logprobs is None:
        return scores._replace(logprobs=logprobs)
    unknown = (np.arange(len(logprobs)) < cut)[:, None]
    return scores._replace(
        logprobs=logprobs, topk_logprobs=np.where(unknown, np.nan, scores.topk_logprobs)
    )
