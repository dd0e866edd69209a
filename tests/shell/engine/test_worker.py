import threading

import pytest

from shell.engine.worker import ComputeWorker


def test_jobs_run_in_order_and_between_two_of_them_a_slice_of_background():
    events = []
    gate = threading.Event()

    def background():
        events.append("slice")
        return len(events) < 9

    worker = ComputeWorker(background)
    worker.submit(gate.wait)
    futures = [worker.submit(lambda name=name: events.append(name)) for name in "abc"]
    gate.set()
    for future in futures:
        future.result(timeout=10)
    assert worker.close(timeout_seconds=10)
    assert events[:7] == ["slice", "a", "slice", "b", "slice", "c", "slice"]


def test_an_exception_is_the_callers_and_the_worker_goes_on():
    worker = ComputeWorker(lambda: False)
    failing = worker.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(timeout=10)
    assert worker.submit(lambda: 7).result(timeout=10) == 7
    assert worker.close(timeout_seconds=10)


def test_closing_cancels_what_has_not_begun():
    worker = ComputeWorker(lambda: False)
    begun, gate = threading.Event(), threading.Event()

    def wait():
        begun.set()
        gate.wait()

    running, queued = worker.submit(wait), worker.submit(lambda: 1)
    assert begun.wait(timeout=10)
    closing = threading.Thread(target=worker.close, kwargs={"timeout_seconds": 10})
    closing.start()
    while not queued.cancelled():
        pass
    gate.set()
    closing.join()
    assert running.result(timeout=10) is None
