"""A run folder belongs to one run and one process, and keeps what was saved."""

import json
import os
import subprocess
import sys

import pytest

from cookbook_fx.errors import ConfigurationError, DataError, StorageError
from shell.stores import RunCheckpoint, RunCheckpoints, open_run_folder
from shell.stores.run_folder import differences

CONFIG = {"model": {"name": "tiny", "rank": 32}, "cadence": {"save_every": 5}, "seed": 0}


def test_the_configuration_is_written_once_and_the_same_one_opens_it_again(tmp_path):
    path = tmp_path / "runs" / "sft"
    with open_run_folder(path, config=CONFIG):
        pass
    first = (path / "config.json").stat().st_mtime_ns
    assert json.loads((path / "config.json").read_text()) == CONFIG
    changed = CONFIG | {"cadence": {"save_every": 7}}
    with open_run_folder(path, config=changed, may_differ=("cadence",)):
        pass
    assert (path / "config.json").stat().st_mtime_ns == first


def test_another_configuration_is_refused_field_by_field(tmp_path):
    with open_run_folder(tmp_path / "run", config=CONFIG) as folder:
        folder.metrics.append(0, {"loss": 1.0})
    other = {"model": {"name": "tiny", "rank": 8}, "cadence": {"save_every": 5}, "max_steps": 3}
    with (
        pytest.raises(ConfigurationError) as refused,
        open_run_folder(tmp_path / "run", config=other),
    ):
        pass
    message = str(refused.value)
    assert "model.rank: there 32, now 8" in message
    assert 'seed: there 0, now "(absent)"' in message
    assert 'max_steps: there "(absent)", now 3' in message
    assert "name" not in message
    assert "--run-dir" in message


def test_a_folder_with_other_things_in_it_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(ConfigurationError, match=r"thesis\.tex"),
        open_run_folder(tmp_path, config=CONFIG),
    ):
        pass
    assert not (tmp_path / "config.json").exists()


def test_a_folder_left_before_its_configuration_was_written_is_taken(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.123").write_text('{"mo')
    with open_run_folder(tmp_path, config=CONFIG):
        assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with (
        pytest.raises(DataError, match=r"config\.json is damaged"),
        open_run_folder(tmp_path, config=CONFIG),
    ):
        pass


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    program = (
        "import sys, pathlib\n"
        "from shell.stores import open_run_folder\n"
        "with open_run_folder(pathlib.Path(sys.argv[1]), config={}):\n"
        "    print('open', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "open\n"
        with (
            pytest.raises(ConfigurationError, match="another process"),
            open_run_folder(tmp_path / "run", config={}),
        ):
            pass
    finally:
        process.kill()
        process.communicate()
    with open_run_folder(tmp_path / "run", config={}):
        pass


def test_differences_reach_into_sections():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == [("a.c", "2", "3")]


def test_checkpoints_come_back_in_order_and_survive_reopening(tmp_path):
    saved = [
        RunCheckpoint(next_step=5, state_path="tinker://a/weights/5"),
        RunCheckpoint(
            next_step=10, state_path="tinker://a/weights/10", sampler_path="s", final=True
        ),
    ]
    with RunCheckpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() is None
        for checkpoint in saved:
            checkpoints.save(checkpoint)
    with RunCheckpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.all() == tuple(saved)
        checkpoints.keep_before(10)
        assert checkpoints.latest() == saved[0]
        checkpoints.save(saved[1])
        assert checkpoints.latest() == saved[1]


@pytest.mark.parametrize("damage", ["unfinished", "empty", "torn"])
def test_what_a_crash_left_behind_is_ignored(tmp_path, damage):
    whole = RunCheckpoint(next_step=5, state_path="tinker://a/weights/5")
    with RunCheckpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(whole)
        checkpoints.save(RunCheckpoint(next_step=9, state_path="tinker://a/weights/9"))
    record = tmp_path / "c" / "9"
    if damage == "unfinished":
        record.rename(tmp_path / "c" / "9.orbax-checkpoint-tmp-0")
    elif damage == "empty":
        for file in [path for path in record.rglob("*") if path.is_file()]:
            file.unlink()
    else:
        (item,) = [path for path in record.rglob("metadata") if path.is_file()]
        item.write_text('{"next_st')
    with RunCheckpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() == whole
        checkpoints.keep_before(6)
        again = RunCheckpoint(next_step=9, state_path="tinker://b/weights/9")
        checkpoints.save(again)
        assert checkpoints.latest() == again


@pytest.mark.skipif(os.name != "posix", reason="file size limits are a POSIX thing")
def test_a_save_that_does_not_fit_leaves_the_earlier_ones_intact(tmp_path):
    program = (
        "import sys, pathlib, resource, signal\n"
        "from shell.stores import RunCheckpoint, RunCheckpoints\n"
        "from cookbook_fx.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "checkpoints = RunCheckpoints(pathlib.Path(sys.argv[1]))\n"
        "checkpoints.save(RunCheckpoint(next_step=1, state_path='a'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n"
        "    checkpoints.save(RunCheckpoint(next_step=2, state_path='b'))\n"
        "except StorageError as error:\n"
        "    print(checkpoints.latest().next_step, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "c")], capture_output=True, text=True
    )
    assert done.stdout.startswith("1 the checkpoint of step 2 could not be written"), done.stderr
    with RunCheckpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() == RunCheckpoint(next_step=1, state_path="a")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="run folder"),
        open_run_folder(tmp_path / "file" / "run", config={}),
    ):
        pass


def test_a_folder_in_which_nothing_was_done_yet_is_free_for_another_configuration(tmp_path):
    with open_run_folder(tmp_path / "run", config=CONFIG | {"learning_rate": -1}):
        pass
    with open_run_folder(tmp_path / "run", config=CONFIG) as folder:
        assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG
        folder.checkpoints.save(RunCheckpoint(next_step=1, state_path="tinker://a/weights/b"))
    with (
        pytest.raises(ConfigurationError, match="seed"),
        open_run_folder(tmp_path / "run", config=CONFIG | {"seed": 3}),
    ):
        pass
