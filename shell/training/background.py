"""Tasks that a run has under way beside its main line, all of them under one owner."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

Answer = TypeVar("Answer")
Spawn = Callable[[Coroutine[Any, Any, Any]], asyncio.Task]


@asynccontextmanager
async def background() -> AsyncIterator[Spawn]:
    """Gives a function that starts a task, and lets no task outlive the block.

    The first failure, of a task or of the block itself, cancels everything else and is raised as
    it is, not in a group. What is still under way when the block ends is cancelled.

    Example:
        >>> async def run():
        ...     async with background() as spawn:
        ...         spawn(asyncio.sleep(3600))
        ...         return await spawn(asyncio.sleep(0, "done"))
        >>> asyncio.run(run())
        'done'
    """
    under_way: set[asyncio.Task] = set()
    try:
        async with asyncio.TaskGroup() as tasks:

            def spawn(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task:
                task = tasks.create_task(coroutine)
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                return task

            yield spawn
            for task in tuple(under_way):
                task.cancel()
        return
    except BaseExceptionGroup as errors:
        failure = _first(errors)
    context = failure.__context__
    try:
        raise failure
    finally:
        # Raising it has made the block's cancellation its context.
        failure.__context__ = context


async def carried_out(work: Callable[..., Answer], *arguments: Any) -> Answer:
    """What `work` returns, called in a thread that has ended when this has, cancelled or not.

    A thread cannot be cancelled. One that is left behind still writes to a run's files after the
    run has ended, and perhaps after the next has read them.

    Example:
        >>> asyncio.run(carried_out(max, 1, 2))
        2
    """
    doing = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(doing)
    finally:
        if not doing.done():
            await asyncio.wait({doing})
            # What ended this task is raised; that the work failed as well is only looked at.
            doing.exception()


def _first(errors: BaseExceptionGroup) -> BaseException:
    """The first that failed, of groups within groups."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
