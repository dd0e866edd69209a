"""A disk that fills up under an engine, and a clock that jumps under everybody."""

import contextlib
import gc
import itertools
import logging
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.errors import ServiceError
from shell.engine.serve import EngineConfig, embedded_engine
from tests.shell.faults.processes import load_everything_listed
from tests.shell.faults.test_http_faults import runners as runners
from tests.shell.training.conftest import saved_weights

# Where it cannot write, Orbax leaves coroutines behind, and its storage calls a loop that is gone.
pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def quiet_failures(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Keeps no records of Orbax's errors, which hold those coroutines until another test."""
    with caplog.at_level(logging.CRITICAL + 1, logger="absl"):
        yield
        gc.collect()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; only the administrator may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_costs_nothing_that_was_saved(
    runners, small_disk, weights, tiny_model_directory, tmp_path
):
    calm = runners["sft"](tmp_path / "calm").checkpoint
    ballast = small_disk / "ballast"
    config = EngineConfig(model=str(tiny_model_directory), state_dir=small_disk / "state")
    with embedded_engine(config) as endpoint:
        run = replace(runners["sft"], endpoint=endpoint)
        free = 3 * 2**20

        def fill(event: object) -> None:
            # As soon as the first state is saved.
            if type(event).__name__ == "Saved":
                with pytest.raises(OSError, match="No space"):
                    ballast.write_bytes(bytes(free))

        with pytest.raises(ServiceError, match=r"could not be written.*disk full"):
            run(tmp_path / "run", observe=fill)
        load_everything_listed(small_disk / "state", tiny_model_directory, known=set())
        ballast.unlink()
        finished = run(tmp_path / "run").checkpoint
    ours = saved_weights(
        finished.state_path, model=tiny_model_directory, state_dir=small_disk / "state"
    )
    for one, other in zip(ours, weights(calm.state_path), strict=True):
        np.testing.assert_array_equal(one, other)


def jumping(monkeypatch: pytest.MonkeyPatch, *jumps: float) -> None:
    """Lets every look at the wall clock find it set differently."""
    true_time, offsets = time.time, itertools.cycle(jumps)
    monkeypatch.setattr(time, "time", lambda: true_time() + next(offsets))


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_a_clock_that_jumps_changes_nothing(runners, weights, tmp_path, monkeypatch, kind):
    calm = runners[kind](tmp_path / "calm").checkpoint
    with monkeypatch.context() as patch:
        jumping(patch, 0.0, 60.0, -60.0, -1.0)
        among = runners[kind](tmp_path / "jumping").checkpoint
    for one, other in zip(weights(among.state_path), weights(calm.state_path), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_a_clock_that_jumps_by_a_year_ends_a_run_at_most(
    runners, weights, tmp_path, monkeypatch, kind
):
    """The SDK gives up after two hours without an answer, Orbax after ten minutes' saving."""
    calm = runners[kind](tmp_path / "calm").checkpoint
    with monkeypatch.context() as patch:
        jumping(patch, 0.0, 3e7, -3e7)
        with contextlib.suppress(ServiceError):
            runners[kind](tmp_path / "jumping")
    continued = runners[kind](tmp_path / "jumping").checkpoint
    for one, other in zip(weights(continued.state_path), weights(calm.state_path), strict=True):
        np.testing.assert_array_equal(one, other)
