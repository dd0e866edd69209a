import asyncio
import time

import pytest

from shell.training.background import background, carried_out


class Broken(Exception):
    pass


async def broken() -> None:
    raise Broken


async def forever(ended: list[str], name: str) -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        ended.append(name)


def test_what_is_under_way_ends_with_the_block():
    ended: list[str] = []

    async def run() -> str:
        async with background() as spawn:
            spawn(forever(ended, "task"))
            await asyncio.sleep(0)
            return "left"

    assert asyncio.run(run()) == "left"
    assert ended == ["task"]


def test_a_task_that_fails_ends_the_others_and_the_block_and_is_raised_as_it_is():
    ended: list[str] = []

    async def run() -> None:
        async with background() as spawn:
            spawn(forever(ended, "task"))
            await asyncio.sleep(0)
            spawn(broken())
            await forever(ended, "block")

    with pytest.raises(Broken) as caught:
        asyncio.run(run())
    assert sorted(ended) == ["block", "task"]
    assert caught.value.__context__ is None


def test_a_failure_within_groups_within_groups_is_raised_as_it_is():
    async def grouped() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(broken())

    async def run() -> None:
        async with background() as spawn:
            await spawn(grouped())

    with pytest.raises(Broken):
        asyncio.run(run())


def test_a_failure_of_the_block_ends_the_tasks():
    ended: list[str] = []

    async def run() -> None:
        async with background() as spawn:
            spawn(forever(ended, "task"))
            await asyncio.sleep(0)
            raise Broken

    with pytest.raises(Broken):
        asyncio.run(run())
    assert ended == ["task"]


def test_being_cancelled_ends_the_tasks_and_stays_a_cancellation():
    ended: list[str] = []

    async def inner() -> None:
        async with background() as spawn:
            spawn(forever(ended, "task"))
            await forever(ended, "block")

    async def run() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await inner()

    asyncio.run(run())
    assert sorted(ended) == ["block", "task"]


def test_work_in_a_thread_has_ended_when_whoever_waits_for_it_was_cancelled():
    written: list[str] = []

    def write() -> None:
        time.sleep(0.1)
        written.append("line")

    async def run() -> None:
        async with background() as spawn:
            spawn(carried_out(write))
            await asyncio.sleep(0.02)
        assert written == ["line"]

    asyncio.run(run())


def test_what_work_in_a_thread_raises_is_raised():
    def fails() -> None:
        raise Broken

    with pytest.raises(Broken):
        asyncio.run(carried_out(fails))
