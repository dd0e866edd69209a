"""What other people's code does, as a value: its result, or how it failed."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, TypeVar

from cookbook_fx.errors import CookbookError
from cookbook_fx.rl import RolloutError

Item = TypeVar("Item")
Result = TypeVar("Result")


class TimeLimitExceeded(CookbookError, TimeoutError):
    """Something took longer than a limit allows and left nothing to keep."""


class CancelledWithin(CookbookError, RuntimeError):
    """An environment, grader or policy was cancelled though nobody had asked for it to end."""


class Failure(NamedTuple):
    """An error that was caught; who gets it decides."""

    error: Exception

    @property
    def record(self) -> RolloutError:
        """The error as an episode's result."""
        return RolloutError(error_type=type(self.error).__name__, error_message=str(self.error))


async def attempted(work: Awaitable[Result], *, doing: str) -> Result | Failure:
    """Waits for `work`; whatever it raises comes back as a value.

    Only being told to end is raised, also where `work` made another error of it.

    Args:
        work: what may fail.
        doing: the action as a phrase, noted on the error.
    """
    before = times_cancelled()
    try:
        return await work
    except asyncio.CancelledError as cancelled:
        if times_cancelled() > before:
            raise
        # An awaited task or connection was cancelled by someone else. Passed on, it would end this
        # task without a trace.
        error: Exception = CancelledWithin(
            f"{doing} was cancelled from within; see what the code awaits, such as a connection "
            "that was closed"
        )
        error.__cause__ = cancelled
    # What environments, graders and policies raise is theirs to choose.
    except Exception as raised:
        if times_cancelled() > before:
            raise asyncio.CancelledError from raised
        error = raised
    error.add_note(f"while {doing}")
    return Failure(error)


async def within(
    seconds: float | None, work: Awaitable[Result], *, what: str, limit: str
) -> Result:
    """Waits for `work`, but no longer than `seconds`; None is no bound.

    Args:
        seconds: the bound.
        work: what may take too long.
        what: the work as a noun, for the error.
        limit: the name of the bound, for the error.

    Raises:
        TimeLimitExceeded: it took longer.
    """
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            return await work
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise TimeLimitExceeded(
            f"{what} took longer than {seconds:g} seconds; find out what hangs, or raise `{limit}`"
        ) from error


def times_cancelled() -> int:
    """How often the current task was told to end; more often than before means now.

    Before, as Python 3.11 counts a TaskGroup's own way of ending its owner and never takes it back.
    """
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def concurrently(
    work: Callable[[Item], Awaitable[Result]], items: Iterable[Item]
) -> list[Result]:
    """Does `work` for all items at once; results in their order.

    Raises:
        Exception: the first error, as it is; the other tasks are cancelled and have ended.
    """
    failed: list[Exception] = []
    tasks: list[asyncio.Task[Result | None]] = []

    async def one(item: Item) -> Result | None:
        try:
            return await work(item)
        # Raised below: a TaskGroup would make an ExceptionGroup of it.
        except Exception as error:
            failed.append(error)
            for task in tasks:
                task.cancel()
            return None

    async with asyncio.TaskGroup() as owner:
        tasks += [owner.create_task(one(item)) for item in items]
    if failed:
        raise failed[0]
    return [task.result() for task in tasks]
