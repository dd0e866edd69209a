import asyncio

import pytest

from shell.rollouts import CancelledWithin, TimeLimitExceeded
from shell.rollouts.attempts import Failure, attempted, concurrently, within


async def fail(error):
    raise error


async def forever():
    await asyncio.Event().wait()


def test_what_fails_is_a_value_with_a_note_of_where():
    failure = asyncio.run(attempted(fail(OSError("gone")), doing="playing"))
    assert isinstance(failure, Failure)
    assert failure.error.__notes__ == ["while playing"]
    assert (failure.record.error_type, failure.record.error_message) == ("OSError", "gone")


def test_what_works_is_its_result():
    assert asyncio.run(attempted(asyncio.sleep(0, "done"), doing="")) == "done"


def test_being_told_to_end_is_no_value():
    async def cancelled() -> None:
        task = asyncio.create_task(attempted(forever(), doing=""))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


def test_an_owner_that_survived_a_task_group_still_tells_failures_from_being_told_to_end():
    async def survivor() -> None:
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail(OSError()))
        assert isinstance(await attempted(fail(ValueError()), doing=""), Failure)
        inner = await attempted(fail(asyncio.CancelledError()), doing="")
        assert isinstance(inner.error, CancelledWithin)

    asyncio.run(survivor())


def test_a_limit_of_time_tells_its_own_from_others():
    with pytest.raises(TimeLimitExceeded, match=r"a nap took longer than 0.01 seconds.*`nap`"):
        asyncio.run(within(0.01, forever(), what="a nap", limit="nap"))
    with pytest.raises(TimeoutError, match="mine") as raised:
        asyncio.run(within(10, fail(TimeoutError("mine")), what="a nap", limit="nap"))
    assert type(raised.value) is TimeoutError
    assert asyncio.run(within(None, asyncio.sleep(0, 3), what="", limit="")) == 3


def test_all_at_once_in_order():
    async def doubled(number):
        await asyncio.sleep(0.03 / number)
        return 2 * number

    assert asyncio.run(concurrently(doubled, [1, 2, 3])) == [2, 4, 6]
    assert asyncio.run(concurrently(doubled, [])) == []


def test_the_first_error_is_raised_as_it_is_once_all_have_ended():
    ended = []

    async def work(number):
        try:
            await asyncio.sleep(0 if number == 1 else 60)
            raise KeyError(number)
        finally:
            ended.append(number)

    with pytest.raises(KeyError) as raised:
        asyncio.run(concurrently(work, [0, 1, 2]))
    assert raised.value.args == (1,)
    assert raised.value.__context__ is None
    assert sorted(ended) == [0, 1, 2]
