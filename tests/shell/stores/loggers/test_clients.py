"""Each tracker by its real client, offline or local: what was sent is read back, once a step."""

import math
import struct
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from cookbook_fx.errors import ConfigurationError
from shell.stores import MetricsFile
from shell.stores.loggers import LoggerName, setup_logging

# What the clients warn of among themselves is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = {"model": {"name": "tiny", "rank": 4}, "seed": 0}


def log(folder: Path, logger: LoggerName, *, first_step: int, end: int) -> None:
    """A run of some steps, which may be a continued one."""
    folder.mkdir(exist_ok=True)
    with setup_logging(
        folder, loggers=[logger], project="project", name="mine", config=CONFIG
    ) as log:
        log.metrics.keep_before(first_step)
        for step in range(first_step, end):
            row = {"loss": 1 / (step + 1), "env/all/reward": math.nan, "word": "yes", "ok": True}
            log.log_metrics(row, step=step)


def log_and_continue(folder: Path, logger: LoggerName) -> None:
    """Four steps, then six in all from an earlier checkpoint."""
    log(folder, logger, first_step=0, end=4)
    log(folder, logger, first_step=3, end=6)
    file = MetricsFile(path=folder / "metrics.jsonl")
    assert [row["step"] for row in file.rows()] == list(range(6))


def test_tensorboard_files_hold_each_step_once_and_the_configuration(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    log_and_continue(tmp_path / "run", "tensorboard")
    first, second = sorted((tmp_path / "run" / "tensorboard").iterdir())
    scalars: dict[tuple[str, int], float] = {}
    texts = []
    for path in (first, second):
        for event in events(path, Event):
            if event.HasField("session_log"):
                # What a viewer does there: forget the steps from this one on.
                scalars = {key: value for key, value in scalars.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    assert (value.tag, event.step) not in scalars
                    scalars[value.tag, event.step] = value.simple_value
                else:
                    texts.append(value.tensor.string_val[0].decode())
    losses = {step: value for (name, step), value in scalars.items() if name == "loss"}
    assert losses == pytest.approx({step: 1 / (step + 1) for step in range(6)})
    assert {name for name, _ in scalars} == {"loss", "ok"}
    assert '"rank": 4' in texts[0]


def events(path: Path, kind: type):
    """The records of an event file: length, its check sum, the event, its check sum."""
    data = path.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        yield kind.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_wandb_offline_continues_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_and_continue(tmp_path / "run", "wandb")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    # Its writer is another process, which may still be at it.
    deadline = time.monotonic() + 20
    while len((found := told_to_wandb(files)).losses) < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    ((_, project, name),) = found.runs
    assert (project, name) == ("project", "mine")
    assert found.losses == [(step, pytest.approx(1 / (step + 1)), '"yes"') for step in range(6)]
    assert found.settings["seed"] == "0"


class ToldToWandb(NamedTuple):
    runs: set[tuple[str, str, str]]
    losses: list[tuple[int, float, str]]
    settings: dict[str, str]


def told_to_wandb(files: list[Path]) -> ToldToWandb:
    from wandb.proto.wandb_internal_pb2 import Record

    found = ToldToWandb(set(), [], {})
    for path in files:
        for data in wandb_records(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                found.runs.add((record.run.run_id, record.run.project, record.run.display_name))
                found.settings.update(
                    {item.key: item.value_json for item in record.run.config.update}
                )
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {item.nested_key[0] or item.key: item.value_json for item in items}
                found.losses.append((record.history.step.num, float(row["loss"]), row["word"]))
    return found


def wandb_records(data: bytes):
    """What a LevelDB log holds: pieces of records in blocks of 32 KiB, behind a short header."""
    place, held = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        held += data[place + 7 : place + 7 + size]
        place += 7 + size
        # A whole record, or the last piece of one.
        if kind in (1, 4):
            yield held
            held = b""


def test_wandb_without_a_key_is_refused_at_the_start(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    # What it read of the environment before.
    wandb.teardown()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        pytest.raises(ConfigurationError, match="WANDB_API_KEY"),
        setup_logging(tmp_path, loggers=["wandb"]),
    ):
        raise AssertionError("the run began")


@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_mlflow_takes_each_step_once_into_one_run(tmp_path, monkeypatch, store):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    where = f"sqlite:///{tmp_path}/m.db" if store == "sqlite" else f"file://{tmp_path}/m"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    log_and_continue(tmp_path / "run", "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("project")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["model.rank"] == "4"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in sorted(history, key=lambda each: each.step)] == [
        (step, pytest.approx(1 / (step + 1))) for step in range(6)
    ]
    assert set(run.data.metrics) == {"loss", "ok", "step"}


def test_trackio_takes_each_step_once_into_one_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    log_and_continue(tmp_path / "run", "trackio")
    (name,) = SQLiteStorage.get_runs("project")
    assert name.startswith("mine-")
    logs = SQLiteStorage.get_logs("project", name)
    assert [(row["step"], row["loss"]) for row in logs] == [
        (step, pytest.approx(1 / (step + 1))) for step in range(6)
    ]
    assert SQLiteStorage.get_run_config("project", name)["model"]["rank"] == 4
