"""Functions that other people wrote (graders, tools, steps of an environment), called so that
they hold up nobody but who waits for them.

A plain function runs in a thread. It is not one of asyncio's threads: they are few, everything else
that blocks needs them, and a program cannot end while one of them is busy, so that a function
which never returns would stop everything for good. Here it costs one thread, and only the one
who called it waits, for as long as the caller's own time limit says.
"""

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

# As many as asyncio itself starts: more that compute at once would keep the event loop waiting
# for its turn.
_MOST_AT_ONCE = min(32, (os.cpu_count() or 1) + 4)
# A semaphore belongs to one event loop.
_FREE: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


class _Threads:
    """As many threads as are needed; what has done its work waits for more."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def run(self, work: Callable[[], None]) -> None:
        self._work.put(work)
        if not self._idle.acquire(blocking=False):
            # A daemon does not keep the program from ending.
            threading.Thread(target=self._serve, name="shell.rollouts", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._work.get()()
            self._idle.release()


_THREADS = _Threads()


async def called(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """What a function returns or raises, be it `async` or not.

    An `async` function runs on the event loop and is expected to await; any other runs in a thread,
    as many at once as there are cores and a few more. Whoever gives up waiting, through
    `asyncio.timeout` or by being cancelled, frees the place for the next; the thread itself cannot
    be stopped and ends when the function does, or with the program.

    Example:
        >>> asyncio.run(called(max, 1, 2))
        2
    """
    if inspect.iscoroutinefunction(function):
        return await function(*arguments, **keywords)
    free = _FREE.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_MOST_AT_ONCE))
    async with free:
        result = await _in_thread(partial(function, *arguments, **keywords))
    # What is called may be an object or a partial that hides an `async` function.
    return await result if inspect.isawaitable(result) else result


class _Outcome(NamedTuple):
    result: Any
    error: BaseException | None


async def _in_thread(call: Callable[[], Any]) -> Any:
    promise: Future[_Outcome] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        if not promise.set_running_or_notify_cancel():
            return
        try:
            outcome = _Outcome(context.run(call), None)
        # Raised again where it is awaited. As a result and not as the promise's exception, because
        # asyncio waits for ever for a promise that raises StopIteration.
        except BaseException as error:
            outcome = _Outcome(None, error)
        promise.set_result(outcome)

    _THREADS.run(work)
    outcome = await asyncio.wrap_future(promise)
    if outcome.error is not None:
        raise outcome.error
    return outcome.result
