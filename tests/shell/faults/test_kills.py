"""SIGKILL at random instants, then the same command again: nothing is lost.

`FAULT_SEED=... pytest -m slow tests/shell/faults/test_kills.py` repeats the instants of a failure
as nearly as a machine that does other things as well can.
"""

import os
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.shell.cli.test_commands import rows
from tests.shell.faults.processes import (
    EngineProcess,
    final_weights,
    load_everything_listed,
    run_process,
)

KILLS = 20
# A client that lost its engine's memory must say so, not hang.
_NOTICES_SECONDS = 90


@pytest.fixture
def reference(request, commands, home, tmp_path) -> Path:
    """A run that nothing happened to."""
    run = tmp_path / "whole"
    with run_process(commands[request.getfixturevalue("kind")], run=run, url=None) as process:
        out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    return run


class Instant(NamedTuple):
    """When to kill: so long after so many rows of measurements are written."""

    rows: int
    seconds: float


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["client", "engine", "both"])
@pytest.mark.parametrize("kind", ["sft", "rl", "dpo"])
def test_killed_at_random_instants_a_run_ends_in_the_same_weights(
    kind, victim, reference, commands, home, tiny_model_directory, tmp_path
):
    seed = int(os.environ.get("FAULT_SEED", random.randrange(10**6)))
    tell(f"FAULT_SEED={seed}")
    chance = random.Random(seed)
    engine = EngineProcess(model=tiny_model_directory, folder=tmp_path)
    if victim != "both":
        engine.start()
    total = len(rows(reference))
    loaded: set[str] = set()
    killed, number = 0, 0
    try:
        while killed < KILLS:
            number += 1
            run = tmp_path / f"run{number}"
            finished = False
            while not finished:
                instant = None
                if killed < KILLS:
                    # Half of the kills hit a start, a save, or the end of a run.
                    written = chance.randint(measured(run), total)
                    instant = Instant(written, chance.choice((0.2, 2)) * chance.random())
                is_killed, finished = attempt(
                    commands[kind], run=run, engine=engine, victim=victim, instant=instant
                )
                killed += is_killed
                if is_killed:
                    load_everything_listed(home, tiny_model_directory, known=loaded)
                    tell(f"kill {killed} at {instant}, with {measured(run)} rows")
            assert rows(run) == rows(reference)
            ours, theirs = (
                final_weights(folder, home, tiny_model_directory) for folder in (run, reference)
            )
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, other)
        tell(
            f"{kind}: {killed} kills of {victim} in {number} runs, {len(loaded)} checkpoints "
            "loaded, nothing lost"
        )
    finally:
        if victim != "both":
            engine.kill()


def attempt(
    arguments: list[str], *, run: Path, engine: EngineProcess, victim: str, instant: Instant | None
) -> tuple[bool, bool]:
    """Runs the command once, killing what is to die after a while; was it killed, is it done?"""
    is_killed = False
    url = None if victim == "both" else engine.url
    with run_process(arguments, run=run, url=url) as process:
        if instant is not None:
            while process.poll() is None and not has_come(instant, run):
                time.sleep(0.001)
            ends = time.monotonic() + instant.seconds
            while process.poll() is None and time.monotonic() < ends:
                time.sleep(0.001)
            is_killed = process.poll() is None
        if is_killed and victim == "engine":
            engine.kill()
            engine.start()
        elif is_killed:
            process.kill()
        out = process.communicate(timeout=_NOTICES_SECONDS)[0]
    if victim == "engine" and is_killed:
        # Either it needed the engine no more, or it says what it lacked.
        assert process.returncode == 0 or (process.returncode == 1 and "error: " in out), out
    elif not is_killed:
        assert process.returncode == 0, out
    return is_killed, process.returncode == 0


def has_come(instant: Instant, run: Path) -> bool:
    return (run / "config.json").exists() and measured(run) >= instant.rows


def measured(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def tell(what: str) -> None:
    """Shown by `-s`, and by any run where the test fails."""
    sys.stdout.write(f"{what}\n")
