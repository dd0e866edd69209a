"""A proxy between clients and an engine that loses, repeats, delays and refuses requests.

Plain HTTP/1.1 over asyncio streams, since a web framework would not let an answer be cut in half.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

Fault = Literal[
    "status before",  # answered with an error and never forwarded
    "status after",  # done by the engine, answered with an error
    "drop before",  # connection closed, never forwarded
    "drop after",  # done by the engine, connection closed instead of an answer
    "cut",  # done by the engine, connection closed in the middle of the answer
    "duplicate",  # sent to the engine twice at once
    "late duplicate",  # sent to the engine again some time after it was answered
    "slow",  # forwarded late, so that others overtake it
    "slow answer",  # answered late
]
_ERRORS = {
    408: "Request Timeout",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
# The first request a client sends only asks whether anybody is there, and may well be told no.
_SPARED = ("/api/v1/healthz",)


class Message(NamedTuple):
    """A request or an answer: the first line, the headers, and everything after them."""

    head: bytes
    body: bytes

    @property
    def path(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    @property
    def raw(self) -> bytes:
        return self.head + self.body


class Answer(NamedTuple):
    """What a client gets."""

    data: bytes
    then_hang_up: bool = False


@dataclass(kw_only=True)
class Proxy:
    """Where to talk to, and what to do to how much of the talk.

    Args:
        upstream: the engine's address.
        faults: kinds, one of which is drawn for each request that suffers.
        rate: share of requests that suffer.
        statuses: of the errors that are made up.
        seconds: longest delay.
        seed: of the draws; requests come in another order every time, so that it is no more than
            a beginning.
        client_config: what clients are told instead of the engine's own `client/config`.
    """

    upstream: str
    faults: tuple[Fault, ...] = ()
    rate: float = 0.0
    statuses: tuple[int, ...] = (500, 503, 408, 429)
    seconds: float = 0.2
    seed: int = 0
    client_config: bytes | None = None
    injected: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    port: int = 0
    _late: set[asyncio.Task] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator["Proxy"]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
        thread.start()
        opening = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        server = asyncio.run_coroutine_threadsafe(opening, loop).result()
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(_end(server), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _message(reader)) is not None:
                answer = await self._answer(request)
                writer.write(answer.data)
                await writer.drain()
                if answer.then_hang_up:
                    break
        except (OSError, asyncio.IncompleteReadError):
            # Either end may hang up whenever it likes.
            pass
        finally:
            # Not in good order: a client must see a connection that broke.
            writer.transport.abort()

    async def _answer(self, request: Message) -> Answer:
        self.requests += 1
        if self.client_config is not None and request.path.endswith("/client/config"):
            return Answer(_reply(200, "OK", self.client_config))
        suffers = self._chance.random() < self.rate and request.path not in _SPARED
        fault = self._chance.choice(self.faults) if suffers and self.faults else None
        if fault is not None:
            self.injected[fault] += 1
        match fault:
            case "status before":
                return Answer(self._error())
            case "drop before":
                return Answer(b"", then_hang_up=True)
            case "slow":
                await asyncio.sleep(self._chance.uniform(0, self.seconds))
            case "duplicate":
                copies = await asyncio.gather(self._forward(request), self._forward(request))
                return Answer(self._chance.choice(copies).raw)
            case "late duplicate":
                self._late.add(asyncio.ensure_future(self._again(request)))
        return await self._damaged((await self._forward(request)).raw, fault)

    async def _damaged(self, raw: bytes, fault: Fault | None) -> Answer:
        """What becomes of the engine's answer on its way back."""
        match fault:
            case "status after":
                return Answer(self._error())
            case "drop after":
                return Answer(b"", then_hang_up=True)
            case "cut":
                return Answer(raw[: self._chance.randrange(1, len(raw))], then_hang_up=True)
            case "slow answer":
                await asyncio.sleep(self._chance.uniform(0, self.seconds))
        return Answer(raw)

    def _error(self) -> bytes:
        status = self._chance.choice(self.statuses)
        self.injected[f"HTTP {status}"] += 1
        return _reply(status, _ERRORS[status], b'{"detail": "made up by the proxy"}')

    async def _again(self, request: Message) -> None:
        await asyncio.sleep(self._chance.uniform(0, self.seconds))
        await self._forward(request)

    async def _forward(self, request: Message) -> Message:
        address = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(request.raw)
            await writer.drain()
            answer = await _message(reader)
        finally:
            writer.transport.abort()
        if answer is None:
            raise ConnectionResetError("the engine hung up")
        return answer


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _message(reader: asyncio.StreamReader) -> Message | None:
    """The next message on a connection; None where there are no more."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lengths = _headers(head)
    return Message(head, await reader.readexactly(int(lengths.get("content-length", "0"))))


def _headers(head: bytes) -> Mapping[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip().lower(): value.strip() for name, value in pairs}


def _reply(status: int, reason: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
