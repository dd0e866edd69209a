"""What the comparisons share: the process's settings, the clocks and the turns.

Both sides of a comparison run in one process with the same settings and take turns, so that a
machine that is slow for a while is slow for both.
"""

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

# Read by the C library when a process starts; a page fault per 4 KiB costs both sides about 10 %.
_PROCESS_SETTINGS = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_PLATFORMS": "cpu"}

Answer = TypeVar("Answer")


class Timing(NamedTuple):
    """Seconds by the clock on the wall and by the processor's."""

    wall: float
    processor: float


class Ratio(NamedTuple):
    """How many times longer one side took: medians over the turns, and best against best."""

    median: float
    best: float
    processor: float


def settle(cores: int) -> None:
    """Restarts the process with the settings all comparisons use, on this many cores."""
    if any(os.environ.get(key) != value for key, value in _PROCESS_SETTINGS.items()):
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, **_PROCESS_SETTINGS},
        )
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def timed(run: Callable[..., Answer], *arguments: object) -> tuple[Timing, Answer]:
    """What the call took, and what it returned.

    Garbage is collected before, so that no call pays for another's; the collector stays on.
    """
    gc.collect()
    wall, processor = time.perf_counter(), time.process_time()
    answer = run(*arguments)
    return Timing(time.perf_counter() - wall, time.process_time() - processor), answer


def in_turns(runs: Sequence[Callable[[], object]], *, repeats: int) -> list[list[Timing]]:
    """Times each run `repeats` times, all of them in every turn."""
    timings: list[list[Timing]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, its_timings in zip(runs, timings, strict=True):
            its_timings.append(timed(run)[0])
    return timings


def ratio(longer: Sequence[Timing], shorter: Sequence[Timing]) -> Ratio:
    """Of turns taken one by one."""
    pairs = list(zip(longer, shorter, strict=True))
    return Ratio(
        median=statistics.median(a.wall / b.wall for a, b in pairs),
        best=shortest(longer) / shortest(shorter),
        processor=statistics.median(a.processor / b.processor for a, b in pairs),
    )


def median(timings: Sequence[Timing]) -> float:
    """Of the seconds on the wall."""
    return statistics.median(each.wall for each in timings)


def shortest(timings: Sequence[Timing]) -> float:
    """Of the seconds on the wall."""
    return min(each.wall for each in timings)


def matmul_speed(multiply: Callable[[], object]) -> float:
    """Operations per second of a product of two 2048 x 2048 matrices, the best of eight."""
    (timings,) = in_turns([multiply], repeats=8)
    return 2 * 2048**3 / shortest(timings)
