"""A trace keeps the published rules of the format, whatever tasks and threads do."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.errors import StorageError
from shell.stores.tracing import TRACE, interval, span, tracing


def events_of(path: Path) -> list[dict]:
    events = json.loads(path.read_text())
    check_rules(events)
    return events


def check_rules(events: list[dict]) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """The rules of the Trace Event Format; what stood on each track, by name and depth."""
    open_on: dict[tuple[int, int], list[str]] = defaultdict(list)
    found: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    latest: dict[tuple[int, int], float] = {}
    named: set[tuple[str, int, int]] = set()
    for event in events:
        assert event["ph"] in ("B", "E", "M")
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        track = (event["pid"], event["tid"])
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            assert (event["name"], *track) not in named
            named.add((event["name"], *track))
            continue
        assert event["ts"] >= latest.get(track, 0.0)
        latest[track] = event["ts"]
        if event["ph"] == "B":
            assert isinstance(event["name"], str)
            found[track].append((event["name"], len(open_on[track])))
            open_on[track].append(event["name"])
        else:
            open_on[track].pop()
    assert {("thread_name", *track) for track in found} <= named
    assert {("process_name", process, 0) for process, _ in found} <= named
    return found


def refuse(text: str) -> None:
    raise AssertionError(text)


def test_spans_stand_within_those_of_their_task(tmp_path: Path) -> None:
    async def episode(member: int) -> None:
        with span("episode", member=member):
            for turn in range(2):
                with span("sampling", turn=turn):
                    await asyncio.sleep(0.001 * (member + 1))

    async def run() -> None:
        with span("step", step=0):
            async with asyncio.TaskGroup() as tasks:
                for member in range(3):
                    tasks.create_task(episode(member))
            await asyncio.to_thread(threaded)

    def threaded() -> None:
        with span("writing"), span("compressing"):
            pass

    with tracing(tmp_path / TRACE, title="run", say=refuse):
        asyncio.run(run())
        asyncio.run(run())
    found = check_rules(events_of(tmp_path / TRACE))
    step = [("step", 0)]
    played = [("episode", 0), ("sampling", 1), ("sampling", 1)]
    written = [("writing", 0), ("compressing", 1)]
    # What is over gives its track to the next of its name.
    assert sorted(found.values()) == sorted([2 * step, *3 * [2 * played], 2 * written])


def test_intervals_that_overlap_have_tracks_of_their_own(tmp_path: Path) -> None:
    with tracing(tmp_path / TRACE, title="run", say=refuse):
        for step in range(4):
            interval("step", began=1.0 + step, ended=2.5 + step, step=step)
    found = check_rules(events_of(tmp_path / TRACE))
    assert list(found.values()) == [2 * [("step", 0)], 2 * [("step", 0)]]
    steps = [each for each in events_of(tmp_path / TRACE) if each.get("name") == "step"]
    assert [each["args"]["step"] for each in steps] == [0, 1, 2, 3]


def test_a_span_ends_where_an_error_leaves_it(tmp_path: Path) -> None:
    def fail() -> None:
        with span("outer"), span("inner"):
            raise ValueError("no")

    with tracing(tmp_path / TRACE, title="run", say=refuse):
        with pytest.raises(ValueError, match="no"):
            fail()
        with span("after"):
            pass
    found = check_rules(events_of(tmp_path / TRACE))
    assert list(found.values()) == [[("outer", 0), ("inner", 1)], [("after", 0)]]


def test_a_trace_goes_on_beside_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / TRACE
    for title in ("first", "second", "third"):
        with tracing(path, title=title, say=refuse), span("work"):
            pass
    named = [
        each
        for each in events_of(path)
        if each["name" if "name" in each else "ph"] == "process_name"
    ]
    assert [(each["pid"], each["args"]["name"]) for each in named] == [
        (1, "first"),
        (2, "second"),
        (3, "third"),
    ]


def test_a_killed_process_leaves_a_trace_that_can_be_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / TRACE
    program = (
        "import pathlib, sys, time\n"
        "from shell.stores.tracing import span, tracing\n"
        "with tracing(pathlib.Path(sys.argv[1]), title='run', say=print), span('step'):\n"
        "    for _ in range(1000):\n"
        "        with span('sampling'): time.sleep(0.001)\n"
        "    time.sleep(1)\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdout=subprocess.PIPE, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    text = path.read_text()
    # The format leaves the last bracket to be added by who reads it.
    check_rules(json.loads(text + "]"))
    path.write_text(text + ',\n{"ph":"B","name":"torn')
    with tracing(path, title="again", say=refuse), span("step"):
        pass
    names = [each["name"] for each in events_of(path) if each["ph"] == "B"]
    assert names == ["step", *1000 * ["sampling"], "step"]


def test_what_has_no_json_is_shown_as_text(tmp_path: Path) -> None:
    with (
        tracing(tmp_path / TRACE, title="a\ud800b\n]", say=refuse),
        span(
            "odd",
            nan=float("nan"),
            size=np.float32("inf"),
            count=np.int64(3),
            path=tmp_path,
            half="\ud800",
        ),
    ):
        pass
    (odd,) = [each["args"] for each in events_of(tmp_path / TRACE) if each.get("name") == "odd"]
    assert odd["nan"] == "nan"
    assert odd["count"] == "3"
    assert odd["half"] == "\ud800"


def test_another_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / TRACE
    path.write_text('{"traceEvents": []}')
    with (
        pytest.raises(StorageError, match="no trace that could go on"),
        tracing(path, title="run", say=refuse),
    ):
        pass
    assert path.read_text() == '{"traceEvents": []}'


def test_a_disk_that_takes_no_more_is_told_of_and_stops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tracing(tmp_path / TRACE, title="run", say=said.append):
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        try:
            for step in range(20):
                with span("work", step=step):
                    pass
            time.sleep(1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (told,) = said
    assert "File too large" in told
    with tracing(tmp_path / TRACE, title="again", say=refuse), span("work"):
        pass
    check_rules(events_of(tmp_path / TRACE)[-4:])


def test_a_span_without_a_trace_still_tells_its_time() -> None:
    with span("work") as work:
        threading.Event().wait(0.01)
    assert 0.01 <= work.seconds < 5
