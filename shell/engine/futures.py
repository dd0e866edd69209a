"""Results that are not there yet, under the id the client asks for them by.

Used from the event loop only. A result can be fetched more than once (a reply can get lost) by
several waiters at a time, and is kept for a while after its first delivery.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The bytes of a successful reply."""

    body: bytes
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why there is no result; `user` where the request was at fault, `server` where we were."""

    message: str
    category: Literal["user", "server"]


Outcome = Done | Failed


class Completion(NamedTuple):
    """That a result is there; by `cursor`, which counts them, a reader says how far it read."""

    cursor: int
    request_id: str
    outcome: Outcome


class CompletionQueue:
    """Tells one reader which of many results have come, so that it need not ask for each."""

    def __init__(self) -> None:
        self._told: list[Completion] = []
        self._count = 0
        self._new = asyncio.Event()

    def put(self, request_id: str, outcome: Outcome) -> None:
        self._count += 1
        self._told.append(Completion(self._count, request_id, outcome))
        self._new.set()

    async def after(self, cursor: int, *, seconds: float, stop: asyncio.Event) -> list[Completion]:
        """What has come after `cursor`; what came before it is forgotten.

        Args:
            cursor: of the last completion the reader has seen, 0 for none.
            seconds: how long to wait if nothing has come.
            stop: ends the wait.
        """
        self._told = [each for each in self._told if each.cursor > cursor]
        if not self._told:
            self._new.clear()
            await _first(self._new, stop, seconds=seconds)
        return list(self._told)


@dataclass(slots=True, eq=False)
class _Entry:
    # None once it is: there are many results, and an event is larger than most.
    ready: asyncio.Event | None = field(default_factory=asyncio.Event)
    outcome: Outcome | None = None
    # When the result was first handed out, or, until then, when it was ready.
    kept_since: float = 0.0
    delivered: bool = False


class FutureTable:
    """All results of one engine, pending and done.

    Args:
        keep_seconds: how long a result stays after its first delivery.
        keep_undelivered_seconds: how long one stays that nobody fetched.
        remember: how many expired ids are told apart from ones that never were.
    """

    def __init__(
        self,
        *,
        keep_seconds: float = 300.0,
        keep_undelivered_seconds: float = 3600.0,
        remember: int = 100_000,
    ) -> None:
        self._keep_seconds = keep_seconds
        self._keep_undelivered_seconds = keep_undelivered_seconds
        self._remember = remember
        self._entries: dict[str, _Entry] = {}
        self._expired: OrderedDict[str, None] = OrderedDict()
        self.closing = asyncio.Event()

    def open(self, request_id: str) -> None:
        """Promises a result."""
        self._entries[request_id] = _Entry()

    def settle(self, request_id: str, outcome: Outcome) -> None:
        """Keeps the promise; wakes whoever waits."""
        entry = self._entries[request_id]
        entry.outcome = outcome
        entry.kept_since = time.monotonic()
        if entry.ready is not None:
            entry.ready.set()
            entry.ready = None

    def known(self, request_id: str) -> bool:
        """Whether this id was ever promised a result."""
        return request_id in self._entries or request_id in self._expired

    def expired(self, request_id: str) -> bool:
        """Whether the result was there once and is no longer kept."""
        return request_id in self._expired

    async def wait(self, request_id: str, *, seconds: float) -> Outcome | None:
        """The outcome, or None if it is still pending after `seconds` or the engine stops."""
        entry = self._entries[request_id]
        if entry.ready is not None:
            await _first(entry.ready, self.closing, seconds=seconds)
        if entry.outcome is not None and not entry.delivered:
            entry.delivered = True
            entry.kept_since = time.monotonic()
        return entry.outcome

    def outcome(self, request_id: str) -> Outcome | None:
        """The result, if it is there; this is no delivery."""
        entry = self._entries.get(request_id)
        return None if entry is None else entry.outcome

    def settled(self, prefix: str) -> Iterator[tuple[str, Outcome]]:
        """The results that are there of all ids that begin so."""
        for request_id, entry in self._entries.items():
            if entry.outcome is not None and request_id.startswith(prefix):
                yield request_id, entry.outcome

    def acknowledge(self, request_id: str) -> None:
        """Forgets a result that its client has received."""
        entry = self._entries.get(request_id)
        if entry is not None and entry.outcome is not None:
            self._expire(request_id)

    def _expire(self, request_id: str) -> None:
        del self._entries[request_id]
        self._expired[request_id] = None

    def sweep(self, now: float) -> None:
        """Forgets results that have been kept long enough."""
        for request_id, entry in list(self._entries.items()):
            keep = self._keep_seconds if entry.delivered else self._keep_undelivered_seconds
            if entry.outcome is not None and now - entry.kept_since > keep:
                self._expire(request_id)
        while len(self._expired) > self._remember:
            self._expired.popitem(last=False)

    def close(self) -> None:
        """Wakes every waiter; from now on nobody waits."""
        self.closing.set()


async def _first(*events: asyncio.Event, seconds: float) -> None:
    """Waits for the first of several events, and no longer than that."""
    if any(event.is_set() for event in events):
        return
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
