"""A run is told to many, waits for nobody, and loses no step whatever they do."""

import io
import json
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from cookbook_fx.errors import ConfigurationError, DataError
from shell.stores.loggers import LoggedRun, Row, setup, setup_logging


class Told(Console):
    """A console whose text can be read."""

    def __init__(self) -> None:
        super().__init__(record=True, file=io.StringIO(), width=200)

    @property
    def text(self) -> str:
        return self.export_text(clear=False)


class Tracker:
    """A place that keeps runs, and may fail or stand still."""

    def __init__(self) -> None:
        self.runs: dict[str, list[Row]] = {}
        self.opened: list[LoggedRun] = []
        self.fail_sends = 0
        self.fail_opens = 0
        self.fail_begins = 0
        self.gate = threading.Event()
        self.gate.set()

    def open(self, run: LoggedRun) -> "Tracked":
        self.gate.wait()
        if self.fail_opens:
            self.fail_opens -= 1
            raise OSError("unreachable")
        self.opened.append(run)
        run_id = run.run_id or f"run-{len(self.runs)}"
        return Tracked(self, run_id, self.runs.setdefault(run_id, []))


class Tracked:
    where = None

    def __init__(self, tracker: Tracker, run_id: str, rows: list[Row]) -> None:
        self.run_id = run_id
        self.closed = False
        self._tracker = tracker
        self._rows = rows

    def begin(self, *, first_step: int, sent: int) -> int:
        if self._tracker.fail_begins:
            self._tracker.fail_begins -= 1
            raise OSError("not yet")
        return sent

    def send(self, rows) -> None:
        self._tracker.gate.wait()
        if self._tracker.fail_sends:
            self._tracker.fail_sends -= 1
            raise RuntimeError("a bad moment")
        self._rows.extend(rows)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SECONDS_BETWEEN_LOOKS", "_FIRST_PAUSE_SECONDS"):
        monkeypatch.setattr(f"shell.stores.loggers.follower.{name}", 0.01)
    monkeypatch.setattr(setup, "_OPENING_SECONDS", 0.2)
    monkeypatch.setattr(setup, "_ENDING_SECONDS", 2.0)


def log(folder: Path, tracker: Tracker, *, first_step: int, end: int, **more) -> str:
    console = Told()
    with setup_logging(folder, others={"tracker": tracker.open}, console=console, **more) as logger:
        logger.metrics.keep_before(first_step)
        for step in range(first_step, end):
            logger.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
    return console.text


def steps(rows) -> list[int]:
    return [row["step"] for row in rows]


def test_a_continued_run_is_the_same_run_there_and_each_step_arrives_once(tmp_path):
    tracker = Tracker()
    config = {"seed": 1}
    log(tmp_path, tracker, first_step=0, end=5, config=config, project="p")
    assert log(tmp_path, tracker, first_step=3, end=8) == ""
    assert list(map(steps, tracker.runs.values())) == [list(range(8))]
    first, second = tracker.opened
    assert (first.project, first.name, first.config) == ("p", tmp_path.name, config)
    assert (first.run_id, second.run_id) == (None, "run-0")
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert steps(map(json.loads, rows)) == list(range(8))


def test_rows_of_a_process_that_died_are_not_sent_before_they_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 9}\n{"step": 1, "loss": 9}\n')
    tracker = Tracker()
    with setup_logging(tmp_path, others={"tracker": tracker.open}) as logger:
        time.sleep(0.1)
        assert tracker.runs == {"run-0": []}
        logger.metrics.keep_before(1)
        logger.log_metrics({"loss": 2}, step=1)
    assert [row["loss"] for row in tracker.runs["run-0"]] == [9, 2]


def test_what_fails_is_said_once_and_sent_later(tmp_path):
    tracker = Tracker()
    # The first before the run begins, the others perhaps after it has ended.
    tracker.fail_opens, tracker.fail_sends = 1, 2
    told = log(tmp_path, tracker, first_step=0, end=4)
    assert told.count("tracker failed; the run goes on. OSError: unreachable") == 1
    assert "bad moment" not in told
    assert steps(tracker.runs["run-0"]) == [0, 1, 2, 3]


def test_a_place_that_fails_to_begin_is_begun_again_while_the_run_goes_on(tmp_path):
    tracker = Tracker()
    tracker.fail_begins = 1
    with setup_logging(tmp_path, others={"tracker": tracker.open}) as logger:
        logger.metrics.keep_before(0)
        logger.log_metrics({"loss": 1.0}, step=0)
        deadline = time.monotonic() + 10
        while not tracker.runs["run-0"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert steps(tracker.runs["run-0"]) == [0]


def test_what_never_arrives_is_counted_and_arrives_with_the_next_start(tmp_path):
    tracker = Tracker()
    tracker.fail_sends = 10_000
    told = log(tmp_path, tracker, first_step=0, end=4)
    assert "tracker: 4 rows were not sent; the same command sends what is missing." in told
    tracker.fail_sends = 0
    with setup_logging(tmp_path, others={"tracker": tracker.open}):
        "as a run that was finished before"
    assert steps(tracker.runs["run-0"]) == [0, 1, 2, 3]


def test_a_place_that_stands_still_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "_ENDING_SECONDS", 0.2)
    tracker = Tracker()
    tracker.gate.clear()
    began = time.monotonic()
    told = log(tmp_path, tracker, first_step=0, end=50)
    assert time.monotonic() - began < 5
    assert "tracker has not answered yet; the run does not wait for it." in told
    assert "tracker: 50 rows were not sent" in told
    tracker.gate.set()


def test_wrong_credentials_end_the_run_before_it_begins(tmp_path):
    def refuse(run: LoggedRun):
        raise ConfigurationError("no such key")

    with (
        pytest.raises(ConfigurationError, match="no such key"),
        setup_logging(tmp_path, others={"tracker": refuse}),
    ):
        raise AssertionError("the run began")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(ConfigurationError, match=r'pip install "cookbook-fx\[mlflow\]"'),
        setup_logging(tmp_path, loggers=["mlflow"]),
    ):
        pass


def test_an_unknown_logger_is_refused_with_those_there_are(tmp_path):
    with (
        pytest.raises(ConfigurationError, match="console, tensorboard, wandb, trackio, mlflow"),
        setup_logging(tmp_path, loggers=["neptune"]),
    ):
        pass


def test_a_damaged_record_of_what_was_sent_is_named(tmp_path):
    (tmp_path / "loggers.json").write_text('{"wandb": 3')
    with pytest.raises(DataError, match=r"loggers\.json"), setup_logging(tmp_path):
        pass


def test_scalars_of_every_library_are_written_and_printed(tmp_path):
    console = Told()
    row = {"np": np.float32(0.5), "jax": jnp.asarray(3), "bf": jnp.bfloat16(1.5), "nan": jnp.nan}
    with setup_logging(tmp_path, loggers=["console"], console=console) as logger:
        logger.metrics.keep_before(0)
        logger.log_metrics(row | {"many": jnp.asarray(float("inf"))}, step=7)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 7, "np": 0.5, "jax": 3, "bf": 1.5, "nan": None, "many": None
    }  # fmt: skip
    assert "Step 7" in console.text
    assert "nan" not in console.text
    with pytest.raises(DataError, match="'vector'"):
        logger.log_metrics({"vector": jnp.zeros(2)}, step=8)


def test_a_follower_is_a_thread_that_no_exit_waits_for(tmp_path):
    tracker = Tracker()
    with setup_logging(tmp_path, others={"tracker": tracker.open}):
        (thread,) = [each for each in threading.enumerate() if each.name == "logger tracker"]
        assert thread.daemon
    assert not thread.is_alive()
