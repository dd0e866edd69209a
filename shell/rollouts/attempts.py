"""What other people's code does, as a value: its result, or how it failed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

from cookbook_fx.errors import CookbookError
from cookbook_fx.rl import RolloutError

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
    try:
        return await work
    except asyncio.CancelledError as cancelled:
        if is_cancelled():
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
        if is_cancelled():
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


def is_cancelled() -> bool:
    """Whether the current task was told to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@asynccontextmanager
async def owned_tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first task's error as it is, the others cancelled and ended."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
        return
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        if is_cancelled():
            # A task failed first and the others took their time to end; being told to end counts.
            raise asyncio.CancelledError from first
    # Outside of the handler, so that the group does not show as its context.
    raise first
