"""Calls with a time limit that holds, whatever is called: in processes that can be killed."""

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import NamedTuple, TypeVar

from cookbook_fx.errors import ConfigurationError, CookbookError

# For the imports that a function needs; they happen once a process.
_LOADING_SECONDS = 60.0
_STANDARD_ERROR = 2

Result = TypeVar("Result")


class CallFailed(CookbookError, RuntimeError):
    """A call in a worker that has no result."""


class TimeLimitExceeded(CallFailed):
    """It took too long, and was ended with its process."""


class WorkerDied(CallFailed):
    """Its process ended in the middle of it: out of memory, or by a crash."""


class _Worker(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: Connection

    def discard(self) -> None:
        """Ends it and waits until it is gone."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


class Workers:
    """Processes that call functions, started when first needed and used again.

    A call that overruns is killed with its process, which the next call replaces; nothing that the
    function does can prevent it. None outlives this process either: an idle one sees its pipe
    close, and in a busy one the kernel's own alarm ends the call. Use it as a context manager, or
    call `close`.

    Args:
        size: calls at once; more wait their turn, which does not count against their limit.

    Raises:
        ConfigurationError: `size` is below 1.
    """

    def __init__(self, *, size: int = 2) -> None:
        if size < 1:
            raise ConfigurationError(f"`size` must be at least 1, got {size}")
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="workers")
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []
        self._is_closed = False

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def call(
        self, function: Callable[..., Result], *arguments: object, limit_seconds: float
    ) -> Result:
        """Calls a function in a worker, while the event loop goes on.

        Args:
            function: found by its name in another process; not from `__main__`, and no lambda.
            arguments: what can be pickled.
            limit_seconds: wall-clock time it may take.

        Raises:
            TimeLimitExceeded: it took longer.
            WorkerDied: its process ended.
            CallFailed: the function raised; with what it said.
            ConfigurationError: the function or an argument cannot be sent to another process.
        """
        task = _pickled(function, arguments, limit_seconds)
        if self._is_closed:
            raise CallFailed("the workers were closed; open new ones to go on")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._call, task, limit_seconds)

    def close(self) -> None:
        """Ends all workers; calls under way fail."""
        with self._lock:
            self._is_closed = True
            workers = [*self._idle, *self._busy]
            self._idle.clear()
        for worker in workers:
            worker.process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            worker.discard()

    def _call(self, task: bytes, limit_seconds: float) -> Result:
        worker = self._take()
        try:
            kind, *answer = _ask(worker, task, limit_seconds=limit_seconds)
        except CallFailed:
            self._give_back(worker, is_usable=False)
            raise
        self._give_back(worker, is_usable=True)
        if kind == "raised":
            raise CallFailed(f"{answer[0]}: {answer[1]}")
        return answer[0]

    def _take(self) -> _Worker:
        with self._lock:
            if self._is_closed:
                raise WorkerDied("the workers were closed during a call")
            worker = self._idle.pop() if self._idle else _start()
            if worker.process.poll() is not None:
                worker.discard()
                worker = _start()
            self._busy.append(worker)
            return worker

    def _give_back(self, worker: _Worker, *, is_usable: bool) -> None:
        with self._lock:
            self._busy.remove(worker)
            if is_usable and not self._is_closed:
                self._idle.append(worker)
                return
        worker.discard()


def _start() -> _Worker:
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "shell.recipes.rl.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            stdin=subprocess.DEVNULL,
            # Standard output belongs to this process's results.
            stdout=_STANDARD_ERROR,
        )
    return _Worker(process=process, connection=ours)


def _ask(worker: _Worker, task: bytes, *, limit_seconds: float) -> tuple:
    """Waits for a worker's answer to a task.

    Raises:
        TimeLimitExceeded: it takes too long.
        WorkerDied: there will be none.
    """
    try:
        worker.connection.send_bytes(task)
        if not worker.connection.poll(_LOADING_SECONDS):
            raise TimeLimitExceeded(f"the function was not loaded within {_LOADING_SECONDS:g} s")
        said = worker.connection.recv()
        if said == ("began",):
            if not worker.connection.poll(limit_seconds):
                raise TimeLimitExceeded(f"the call took more than {limit_seconds:g} s")
            said = worker.connection.recv()
    except (EOFError, OSError) as error:
        worker.process.kill()
        status = worker.process.wait()
        raise WorkerDied(f"the worker process ended with status {status} during a call") from error
    return said


def _pickled(function: Callable[..., object], arguments: tuple, limit_seconds: float) -> bytes:
    if getattr(function, "__module__", None) == "__main__":
        raise ConfigurationError(
            f"{function!r} is in the program's main file, where another process cannot find it; "
            "move it to a module of its own"
        )
    try:
        called = pickle.dumps((function, arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"{function!r} and its arguments cannot be sent to another process: {error}"
        ) from error
    return pickle.dumps((called, _LOADING_SECONDS, limit_seconds))
