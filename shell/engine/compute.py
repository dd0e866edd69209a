"""What all clients of an engine share: the base model, the thread that computes, and its queues.

Whose a piece of work is does not matter here; `service` keeps clients apart.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cookbook_fx.lm import LMWeights
from shell.engine.memory import Memory
from shell.engine.sampling import Decode, SampledPrompt, SampleWork, SamplingPool
from shell.engine.worker import ComputeWorker

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How long the engine waits and how much it holds.

    Args:
        long_poll_seconds: how long a request for a result is held open; the SDK allows 45.
        patience_seconds: how long operations wait for a missing earlier one.
        idle_session_seconds: a session without heartbeat or request for this long is freed.
        gather_seconds: how long a sampling request waits for others to share its batch.
        max_queued_samples: of one key; beyond this many unfinished ones new ones are turned away
            (429).
        max_queued_bytes: of one key; beyond this much of unfinished training operations likewise.
        max_body_bytes: of one request; larger ones are refused (413).
        max_sessions: of one key, at a time; beyond it new ones are turned away (429).
        unnamed_samplers: how many unnamed snapshots of one session stay in memory; beyond it the
            one unused for longest goes. What was asked of it before is still answered.
        maintenance_seconds: how often waiting and expired things are looked at.
        memory_bytes: what the engine may use, the base model included; None for what the device
            or this machine has.
    """

    long_poll_seconds: float = 25.0
    patience_seconds: float = 300.0
    idle_session_seconds: float = 300.0
    gather_seconds: float = 0.004
    max_queued_samples: int = 4096
    max_queued_bytes: int = 2**30
    max_body_bytes: int = 2**28
    max_sessions: int = 1024
    unnamed_samplers: int = 16
    maintenance_seconds: float = 5.0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BaseModel:
    """The model an engine serves.

    Args:
        names: what clients may call it; the first is what the engine calls it.
        tokenizer_name: what the SDK finds a tokenizer under where it is given only a model name:
            the model's id on the hub, or a directory.
        directory: with its tokenizer files.
        decode: token ids to text, special tokens included.
        end_tokens: ids that end a text.
    """

    names: tuple[str, ...]
    tokenizer_name: str
    directory: Path
    weights: LMWeights
    decode: Decode
    end_tokens: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.names[0]


class Compute:
    """The compute thread with its queues; made on the event loop that serves."""

    def __init__(self, base: BaseModel, memory: Memory, limits: EngineLimits) -> None:
        self.base = base
        self.memory = memory
        self._gather_seconds = limits.gather_seconds
        self._pool = SamplingPool(
            base.weights, base.decode, self.memory, end_tokens=base.end_tokens
        )
        self._worker = ComputeWorker(self._pool.advance)
        self._loop = asyncio.get_running_loop()
        self._gathered: list[SampleWork] = []

    def between(self) -> object:
        """Draws some samples; for the middle of a long job, on the compute thread."""
        return self._pool.advance()

    def operate(self, job: Callable[[], Answer], then: Callable[["Future[Answer]"], None]) -> None:
        """Queues a job of any kind; `then` runs on the event loop with its result."""
        self._when_done(self._worker.submit(job), then)

    def sample(self, work: SampleWork, then: Callable[["Future[SampledPrompt]"], None]) -> None:
        """Queues a request for samples; `then` runs on the event loop with its result."""
        self._when_done(work.future, then)
        if not self._gathered:
            self._loop.call_later(self._gather_seconds, self._dispatch)
        self._gathered.append(work)

    def cancel(self, work: SampleWork) -> None:
        """Gives up a request for samples, unless it is done."""
        work.future.cancel()
        self._wake()

    def _dispatch(self) -> None:
        works, self._gathered = self._gathered, []
        self._pool.submit(works)
        self._wake()

    def _wake(self) -> None:
        """Lets the compute thread look at its queues, if it has nothing to do."""
        self._worker.submit(lambda: None)

    def _when_done(
        self, future: "Future[Answer]", then: Callable[["Future[Answer]"], None]
    ) -> None:
        def hand_over(done: "Future[Answer]") -> None:
            # The compute thread may outlive the loop by the operation it is in.
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(then, done)

        future.add_done_callback(hand_over)

    async def stop(self) -> None:
        """Ends the compute thread, after the operation it is in; again and again if you like."""
        await asyncio.to_thread(self._worker.close, timeout_seconds=30.0)
