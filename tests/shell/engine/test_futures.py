import asyncio
import time

from shell.engine.futures import Done, Failed, FutureTable

DONE = Done(body=b"x", media_type="application/json")


def test_several_waiters_get_a_result_when_it_comes():
    async def scenario():
        table = FutureTable()
        table.open("a")
        waiters = [asyncio.create_task(table.wait("a", seconds=5)) for _ in range(3)]
        abandoned = asyncio.create_task(table.wait("a", seconds=5))
        await asyncio.sleep(0)
        abandoned.cancel()
        table.settle("a", DONE)
        return await asyncio.gather(*waiters), await table.wait("a", seconds=0)

    outcomes, again = asyncio.run(scenario())
    assert outcomes == [DONE] * 3
    assert again is DONE


def test_a_pending_result_is_none_when_the_wait_is_over_or_the_engine_stops():
    async def scenario():
        table = FutureTable()
        table.open("a")
        early = await table.wait("a", seconds=0.01)
        waiter = asyncio.create_task(table.wait("a", seconds=60))
        await asyncio.sleep(0)
        table.close()
        return early, await waiter, await table.wait("a", seconds=60)

    begun = time.monotonic()
    assert asyncio.run(scenario()) == (None, None, None)
    assert time.monotonic() - begun < 50


def test_results_expire_after_delivery_and_pending_ones_never_do():
    async def scenario():
        table = FutureTable(keep_seconds=10, keep_undelivered_seconds=100, remember=1)
        for name in ("delivered", "unseen", "pending"):
            table.open(name)
        table.settle("delivered", DONE)
        table.settle("unseen", Failed(message="no", category="user"))
        await table.wait("delivered", seconds=0)
        now = time.monotonic()
        table.sweep(now + 50)
        first = [table.expired(name) for name in ("delivered", "unseen", "pending")]
        table.sweep(now + 500)
        return first, [table.known(name) for name in ("delivered", "unseen", "pending")]

    first, known = asyncio.run(scenario())
    assert first == [True, False, False]
    # Only one expired id is remembered, the latest.
    assert known == [False, True, True]
