"""The one thread that computes.

Jobs run one at a time in the order submitted. Between two jobs runs one slice of whatever goes on
in the background (decoding), so that a long queue of either kind never starves the other. A long
job may run such slices itself.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class ComputeWorker:
    """Owns the compute thread; `close` ends it after the jobs already submitted.

    Args:
        background: does one slice of work and says whether there is more.
    """

    def __init__(self, background: Callable[[], bool]) -> None:
        self._background = background
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Queues a job; its result or exception arrives in the future."""
        future: Future[Result] = Future()
        self._jobs.put((future, job))
        return future

    def close(self, *, timeout_seconds: float) -> bool:
        """Lets queued jobs that have not begun be cancelled; True when the thread has ended."""
        while True:
            try:
                entry = self._jobs.get_nowait()
            except queue.Empty:
                break
            if entry is not None:
                entry[0].cancel()
        self._jobs.put(None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        more = False
        while True:
            try:
                entry = self._jobs.get(block=not more)
            except queue.Empty:
                pass
            else:
                if entry is None:
                    return
                _perform(*entry)
            more = self._background()


def _perform(future: Future[Any], job: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job()
    except BaseException as error:
        # The exception belongs to whoever waits for the future, as in any executor.
        future.set_exception(error)
    else:
        future.set_result(result)
