"""Spans of time in a run, on tracks that follow its tasks: `trace.json`, for Perfetto.

A span stands on the track of the task it is opened in, within the spans that are open there. A task
that opens its first span is given a track of that span's name which no other task is using, so that
there are as many as things went on at once. Without a trace, a span is two looks at the clock.

Open the file at ui.perfetto.dev or in chrome://tracing; neither sends it anywhere.
"""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from cookbook_fx.errors import StorageError
from cookbook_fx.reports.trace_events import (
    Attribute,
    begin_event,
    end_event,
    process_name_event,
    track_name_event,
)
from shell.stores.files import storing

TRACE = "trace.json"

_SECONDS_BETWEEN_WRITES = 0.5


class Span:
    """A span of time, from `with` on; `span` makes them.

    Attributes:
        began: on the clock of `time.perf_counter`.
        seconds: how long it took, once it is over.
    """

    __slots__ = ("_attributes", "_before", "_name", "_place", "began", "seconds")

    def __init__(self, name: str, attributes: dict[str, Attribute]) -> None:
        self._name = name
        self._attributes = attributes
        self._place: _Place | None = None
        self._before: _Place | None = None
        self.began = 0.0
        self.seconds = 0.0

    def __enter__(self) -> "Span":
        self.began = time.perf_counter()
        place = _here.get()
        if place is not None:
            self._place = self._before = place
            owner = _owner()
            if place.owner != owner:
                track = place.trace.take_track(self._name, now=self.began)
                self._place = _Place(place.trace, owner, track)
                _here.set(self._place)
            place.trace.begin(self._place.track, self._name, self.began, self._attributes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended = time.perf_counter()
        self.seconds = ended - self.began
        place = self._place
        if place is not None:
            place.trace.end(place.track, ended)
            if place is not self._before:
                place.trace.give_back(place.track, now=ended)
                _here.set(self._before)
            self._place = None


def span(name: str, **attributes: Attribute) -> Span:
    """What is done under `with`, as a span of the trace, if there is one.

    Args:
        name: of what is done; few different ones.
        attributes: which one it is, such as `step=3`.

    Example:
        >>> with span("sampling", step=3) as sampling:
        ...     pass
        >>> sampling.seconds < 1
        True
    """
    return Span(name, attributes)


def interval(name: str, *, began: float, ended: float, **attributes: Attribute) -> None:
    """What went on between two times on the clock of `time.perf_counter`, told afterwards.

    For what begins in one place and ends in another, and overlaps with its like.
    """
    place = _here.get()
    if place is not None:
        trace = place.trace
        track = trace.take_track(name, now=began)
        trace.begin(track, name, began, attributes)
        trace.end(track, ended)
        trace.give_back(track, now=ended)


@contextmanager
def tracing(path: Path, *, title: str, say: Callable[[str], None]) -> Iterator[None]:
    """Writes the spans of the block, and of all tasks and threads it starts, into a file.

    A file that is there goes on: the block's tracks come beside the earlier ones. It can be read
    while it grows and after a process was killed. What the disk does not take is left out, and said
    once at the end: a trace is no reason to stop a run.

    Args:
        path: the file, commonly `trace.json` in a run's folder.
        title: what the tracks stand under.
        say: told where it could not be written.

    Raises:
        StorageError: the file cannot be opened.
    """
    with storing(path, what="the trace"), _opened(path) as (file, process):
        trace = _Trace(file, process=process, title=title)
        token = _here.set(_Place(trace, None, 0))
        trace.start()
        try:
            yield
        finally:
            _here.reset(token)
            failure = trace.close()
            if failure is not None:
                say(f"The trace is not whole: {path} could not be written ({failure}).")


class _Place(NamedTuple):
    """Where a span stands: the task or thread that opened it, and its track."""

    trace: "_Trace"
    owner: Any
    track: int


_here: ContextVar[_Place | None] = ContextVar("trace", default=None)


def _owner() -> Any:
    """The task that is running, or the thread where there is none."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


class _Track:
    """A track, and from when on it is free; None while it is taken."""

    __slots__ = ("free_from", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.free_from: float | None = None


class _Trace:
    """Collects events, and has a thread write them."""

    def __init__(self, file: BinaryIO, *, process: int, title: str) -> None:
        self._file = file
        self._process = process
        # Times of all processes that wrote into a file lie on one axis.
        self._epoch = time.time() - time.perf_counter()
        self._events: deque[tuple[str, dict[str, Any]]] = deque()
        self._tracks: list[_Track] = []
        self._by_name: dict[str, list[_Track]] = {}
        self._naming = threading.Lock()
        self._ending = threading.Event()
        self._failure: OSError | None = None
        self._writer = threading.Thread(target=self._write, name="trace")
        self._separator = b",\n" if file.tell() else b"[\n"
        self._add(process_name_event, name=title)

    def start(self) -> None:
        self._writer.start()

    def close(self) -> OSError | None:
        """Writes what is left; what kept it from being written, if anything did."""
        self._ending.set()
        self._writer.join()
        return self._failure

    def begin(self, track: int, name: str, at: float, attributes: dict[str, Attribute]) -> None:
        self._add(begin_event, name=name, at=at, track=track, attributes=attributes)

    def end(self, track: int, at: float) -> None:
        self._add(end_event, at=at, track=track)

    def take_track(self, name: str, *, now: float) -> int:
        """A track of this name on which nothing happens from now on."""
        with self._naming:
            of_name = self._by_name.setdefault(name, [])
            for track in of_name:
                if track.free_from is not None and track.free_from <= now:
                    track.free_from = None
                    return track.number
            track = _Track(len(self._tracks) + 1)
            self._tracks.append(track)
            of_name.append(track)
            label = name if len(of_name) == 1 else f"{name} {len(of_name)}"
            self._add(track_name_event, name=label, track=track.number)
            return track.number

    def give_back(self, track: int, *, now: float) -> None:
        self._tracks[track - 1].free_from = now

    def _add(self, make: Callable[..., str], **event: Any) -> None:
        self._events.append((make, event))

    def _write(self) -> None:
        while not self._ending.wait(_SECONDS_BETWEEN_WRITES):
            self._write_events()
        self._write_events()
        self._try(b"\n]\n")

    def _write_events(self) -> None:
        data = b""
        while self._events:
            make, event = self._events.popleft()
            if "at" in event:
                event["at"] += self._epoch
            data += self._separator + make(process=self._process, **event).encode()
            self._separator = b",\n"
        self._try(data)

    def _try(self, data: bytes) -> None:
        left = memoryview(data)
        while left and self._failure is None:
            try:
                left = left[self._file.write(left) :]
            except OSError as error:
                self._failure = error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file, cut behind its last whole event, and a number that no process in it has yet."""
    end, process = _last_event(path) if path.exists() else (0, 1)
    with path.open("r+b" if path.exists() else "xb", buffering=0) as file:
        file.truncate(end)
        file.seek(end)
        yield file, process


def _last_event(path: Path) -> tuple[int, int]:
    """Where the last whole event of a file ends, and how many processes have written, and one."""
    begin, end, process = 0, 0, 1
    with path.open("rb") as file:
        for line in file:
            event = line.strip().removesuffix(b",")
            if begin == 0 and event != b"[":
                raise StorageError(
                    f"{path} is no trace that could go on; remove it or give it another name"
                )
            if begin > 0:
                if not _is_event(event):
                    break
                end = begin + len(line.rstrip().removesuffix(b","))
                process += b'"process_name"' in event
            begin += len(line)
    return end, process


def _is_event(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
