"""Results that are not there yet, under the id the client asks for them by.

Used from the event loop only. A result can be fetched more than once (a reply can get lost) by
several waiters at a time, and is kept for a while after its first delivery.
"""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal


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


@dataclass(slots=True, eq=False)
class _Entry:
    ready: asyncio.Event = field(default_factory=asyncio.Event)
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
        self._closing = asyncio.Event()

    def open(self, request_id: str) -> None:
        """Promises a result."""
        self._entries[request_id] = _Entry()

    def settle(self, request_id: str, outcome: Outcome) -> None:
        """Keeps the promise; wakes whoever waits."""
        entry = self._entries[request_id]
        entry.outcome = outcome
        entry.kept_since = time.monotonic()
        entry.ready.set()

    def known(self, request_id: str) -> bool:
        """Whether this id was ever promised a result."""
        return request_id in self._entries or request_id in self._expired

    def expired(self, request_id: str) -> bool:
        """Whether the result was there once and is no longer kept."""
        return request_id in self._expired

    async def wait(self, request_id: str, *, seconds: float) -> Outcome | None:
        """The outcome, or None if it is still pending after `seconds` or the engine stops."""
        entry = self._entries[request_id]
        if entry.outcome is None and not self._closing.is_set():
            waits = [asyncio.ensure_future(event.wait()) for event in (entry.ready, self._closing)]
            try:
                await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        if entry.outcome is not None and not entry.delivered:
            entry.delivered = True
            entry.kept_since = time.monotonic()
        return entry.outcome

    def sweep(self, now: float) -> None:
        """Forgets results that have been kept long enough."""
        for request_id, entry in list(self._entries.items()):
            keep = self._keep_seconds if entry.delivered else self._keep_undelivered_seconds
            if entry.outcome is not None and now - entry.kept_since > keep:
                del self._entries[request_id]
                self._expired[request_id] = None
        while len(self._expired) > self._remember:
            self._expired.popitem(last=False)

    def close(self) -> None:
        """Wakes every waiter; from now on nobody waits."""
        self._closing.set()
