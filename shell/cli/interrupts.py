"""Ctrl-C and SIGTERM: the first asks for a good end, the second ends at once."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_INTERRUPTED = 130
# A supervisor may signal a process and then its whole group: one wish, told twice.
_SAME_WISH_SECONDS = 1.0


@contextmanager
def stop_on_signal(*, message: str) -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second quits the process.

    Args:
        message: shown when the event is set; says what happens now.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    first: tuple[int, float] | None = None

    def handle(number: int) -> None:
        nonlocal first
        if first is not None:
            if number == first[0] and time.monotonic() - first[1] < _SAME_WISH_SECONDS:
                return
            # Intentional: no clean-up. What is on disk is whole at any instant, and a person who
            # asks twice is not to wait for anything.
            os._exit(_INTERRUPTED)
        first = number, time.monotonic()
        stop.set()
        sys.stderr.write(f"\n{message}\n")

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, handle, number)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
