"""Calls that take too long, die or raise: the answer comes in time and no process is left."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from cookbook_fx.errors import ConfigurationError
from shell.recipes.rl.workers import CallFailed, TimeLimitExceeded, WorkerDied, Workers
from tests.shell.recipes.rl import slow_graders


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(process_id: int, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while is_alive(process_id) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(process_id)


def call(function, *arguments, limit_seconds: float = 10.0):
    with Workers(size=1) as workers:
        return asyncio.run(workers.call(function, *arguments, limit_seconds=limit_seconds))


@pytest.mark.parametrize(
    ("grader", "arguments"),
    [
        (slow_graders.sleeping, (30.0,)),
        (slow_graders.counting_for_ever, ()),
        (slow_graders.backtracking, ()),
    ],
)
def test_the_limit_holds_and_the_loop_goes_on_meanwhile(grader, arguments):
    ticks = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def run() -> None:
        ticking = asyncio.create_task(tick())
        with Workers(size=1) as workers:
            first = await workers.call(slow_graders.process_id, limit_seconds=5)
            began = time.monotonic()
            with pytest.raises(TimeLimitExceeded, match=r"0\.5 s"):
                await workers.call(grader, *arguments, limit_seconds=0.5)
            assert time.monotonic() - began < 2
            assert not is_alive(first)
            assert await workers.call(slow_graders.process_id, limit_seconds=5) != first
        ticking.cancel()

    asyncio.run(run())
    assert len(ticks) > 30
    assert max(after - before for before, after in pairwise(ticks)) < 0.3


def test_a_worker_is_started_when_needed_and_used_again():
    async def run() -> set[int]:
        with Workers(size=1) as workers:
            assert children() == before
            return {await workers.call(slow_graders.process_id, limit_seconds=5) for _ in range(3)}

    before = children()
    (process_id,) = asyncio.run(run())
    assert not is_alive(process_id)


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_more_calls_than_workers_wait_their_turn_without_losing_time():
    async def run() -> list[bool]:
        with Workers(size=2) as workers:
            async with asyncio.TaskGroup() as group:
                calls = [
                    group.create_task(workers.call(slow_graders.sleeping, 0.3, limit_seconds=0.5))
                    for _ in range(6)
                ]
        return [call.result() for call in calls]

    assert asyncio.run(run()) == [True] * 6


def test_what_a_function_raises_is_told():
    with pytest.raises(CallFailed, match="ValueError: no such answer"):
        call(slow_graders.raising)
    with pytest.raises(CallFailed, match="SystemExit: 4"):
        call(slow_graders.exiting)


def test_a_worker_that_dies_is_told_and_replaced():
    async def run() -> int:
        with Workers(size=1) as workers:
            with pytest.raises(WorkerDied, match="status 3"):
                await workers.call(slow_graders.dying, limit_seconds=5)
            return await workers.call(slow_graders.length, "abc", limit_seconds=5)

    assert asyncio.run(run()) == 3


def test_a_worker_killed_while_idle_is_replaced():
    async def run() -> int:
        with Workers(size=1) as workers:
            idle = await workers.call(slow_graders.process_id, limit_seconds=5)
            os.kill(idle, signal.SIGKILL)
            await asyncio.sleep(0.05)
            return await workers.call(slow_graders.length, "abc", limit_seconds=5)

    assert asyncio.run(run()) == 3


def test_long_arguments_and_answers_that_cannot_be_sent():
    assert call(slow_graders.length, "x" * 5_000_000) == 5_000_000
    with pytest.raises(CallFailed, match=r"lambda|pickle"):
        call(slow_graders.unsendable)


@pytest.mark.parametrize("function", [lambda: 1, open(os.devnull).read])
def test_functions_that_cannot_be_sent_are_refused_in_words(function):
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        call(function)


def test_a_grader_may_print_without_disturbing_the_results(capfd):
    assert call(slow_graders.printing) == "said"
    out, err = capfd.readouterr()
    assert (out, err) == ("", "a word from a grader\n")


def test_a_cancelled_call_leaves_nothing_behind():
    async def run() -> int:
        with Workers(size=1) as workers:
            worker = await workers.call(slow_graders.process_id, limit_seconds=5)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await workers.call(slow_graders.sleeping, 30.0, limit_seconds=60)
            assert is_alive(worker)
            return worker

    began = time.monotonic()
    assert not is_alive(asyncio.run(run()))
    assert time.monotonic() - began < 5


def test_closed_workers_say_so():
    workers = Workers()
    workers.close()
    workers.close()
    with pytest.raises(CallFailed, match="closed"):
        asyncio.run(workers.call(slow_graders.length, "", limit_seconds=1))


PROGRAM = """
import asyncio, sys
from shell.recipes.rl.workers import Workers
from tests.shell.recipes.rl import slow_graders

async def main():
    workers = Workers(size=1)
    print(await workers.call(slow_graders.process_id, limit_seconds=5), flush=True)
    await workers.call(getattr(slow_graders, sys.argv[1]), limit_seconds=1.0)

asyncio.run(main())
"""


@pytest.mark.parametrize("doing", ["counting_for_ever", "process_id"])
def test_no_worker_outlives_a_killed_program(doing):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM + "\nimport time; time.sleep(60)", doing],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4],
    ) as program:  # fmt: skip
        worker = int(program.stdout.readline())
        time.sleep(0.1)
        program.kill()
    wait_until_gone(worker, seconds=5)


def test_a_size_below_one_is_refused():
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        Workers(size=0)
