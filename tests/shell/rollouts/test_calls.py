import asyncio
import contextvars
import functools
import threading
import time

import pytest

from shell.rollouts.calls import called


def test_async_and_plain_functions_give_their_result():
    async def awaited(x, *, y):
        return (x, y, threading.current_thread() is threading.main_thread())

    def plain(x, *, y):
        return (x, y, threading.current_thread() is threading.main_thread())

    class Hidden:
        async def __call__(self, x, *, y):
            return (x, y, threading.current_thread() is threading.main_thread())

    async def main():
        functions = (awaited, plain, Hidden(), functools.partial(Hidden()))
        return [await called(function, 1, y=2) for function in functions]

    assert asyncio.run(main()) == [(1, 2, True), (1, 2, False), (1, 2, True), (1, 2, True)]


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration(3), SystemExit(2)])
def test_what_a_function_raises_is_raised_where_it_is_awaited(error):
    def failing():
        raise error

    async def main():
        async with asyncio.timeout(5):
            await called(failing)

    # A coroutine cannot raise StopIteration; Python says so in its stead.
    wanted = RuntimeError if isinstance(error, StopIteration) else type(error)
    with pytest.raises(wanted):
        asyncio.run(main())


def test_context_is_the_callers():
    variable = contextvars.ContextVar("variable")

    async def main():
        variable.set("here")
        return await called(variable.get)

    assert asyncio.run(main()) == "here"


def test_functions_that_never_return_hold_up_neither_others_nor_the_end():
    release = threading.Event()
    try:

        async def one():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await called(release.wait)

        async def main():
            async with asyncio.TaskGroup() as group:
                for _ in range(40):
                    group.create_task(one())
            return await called(lambda: "answered"), await asyncio.to_thread(lambda: "rendered")

        begun = time.monotonic()
        assert asyncio.run(main()) == ("answered", "rendered")
        assert time.monotonic() - begun < 15
    finally:
        release.set()


def test_a_few_run_at_once_and_the_rest_after_them():
    running, most, lock = 0, 0, threading.Lock()

    def work():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    async def main():
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(called(work))

    asyncio.run(main())
    assert 1 < most <= 32


def test_threads_are_used_again():
    async def main():
        for _ in range(50):
            await called(threading.get_ident)
        return threading.active_count()

    before = threading.active_count()
    # A thread may still be putting its last call away when the next one comes.
    assert asyncio.run(main()) <= before + 5
