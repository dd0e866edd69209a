"""Every episode comes back as it was, and only whole ones, whatever killed the run."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError, DataError, StorageError
from cookbook_fx.rl import TrajectoryGroup, group_records
from shell.stores import BatchesFile, RolloutsFile, open_run_folder
from tests.rl_records import batch_record, odd_groups, same_group
from tests.rl_strategies import episode, group_of

few = settings(max_examples=25)


def small_group(index: int, *, members: int = 2) -> TrajectoryGroup:
    return group_of(*(episode(([index, member], [5, 6])) for member in range(members)))


def append(file: RolloutsFile, group: TrajectoryGroup, *, step: int, index: int, sampler: int = 0):
    file.append(group_records(group, step=step, group_index=index, sampler_step=sampler))


@pytest.fixture
def file(tmp_path: Path) -> RolloutsFile:
    """Steps 0 to 2 of two groups of two episodes."""
    file = RolloutsFile(path=tmp_path / "rollouts.jsonl")
    for step in range(3):
        for index in range(2):
            append(file, small_group(index), step=step, index=index, sampler=max(0, step - 1))
    return file


def places(file: RolloutsFile, **which) -> list[tuple[int, int]]:
    return [(one.step, one.index) for one in file.groups(**which)]


@few
@given(groups=st.lists(odd_groups(), max_size=4))
def test_any_groups_come_back_from_the_disk(tmp_path_factory, groups):
    file = RolloutsFile(path=tmp_path_factory.mktemp("r") / "rollouts.jsonl")
    for index, group in enumerate(groups):
        append(file, group, step=index // 2, index=index % 2)
    found = list(file.groups())
    assert [(one.step, one.index) for one in found] == [(i // 2, i % 2) for i in range(len(groups))]
    assert all(map(same_group, (one.group for one in found), groups))


def test_one_step_is_found_among_others_without_taking_them_apart(file):
    lines = file.path.read_text().splitlines(keepends=True)
    # Behind its head, a line of another step may be anything.
    lines[0] = lines[0][:80] + "?????}\n"
    file.path.write_text("".join(lines))
    assert places(file, step=1) == [(1, 0), (1, 1)]
    assert places(file, step=7) == []
    with pytest.raises(DataError, match=r"rollouts\.jsonl, line 1: "):
        list(file.groups())


def test_nothing_written_is_nothing_found(tmp_path):
    file = RolloutsFile(path=tmp_path / "rollouts.jsonl")
    assert list(file.groups()) == []
    file.keep(lambda head: False)
    assert not file.path.exists()


@pytest.mark.parametrize("by", [1, 2, 30, 0.5])
def test_a_group_that_a_crash_tore_is_not_there_and_makes_room(file, by):
    whole = file.path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    # By some bytes, and by more than a line, so that whole lines of the group are left.
    file.path.write_bytes(whole[: -(by if isinstance(by, int) else int(len(last) * (1 + by)))])
    assert places(file) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    file.keep(lambda head: True)
    append(file, small_group(1), step=2, index=1)
    assert len(places(file)) == 6


def test_keep_drops_groups_by_their_head(file):
    file.keep(lambda head: head.step < 1 or head.sampler_step <= 0)
    assert places(file) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [entry.name for entry in file.path.parent.iterdir()] == ["rollouts.jsonl"]


def test_keeping_everything_does_not_write(file):
    before = file.path.stat()
    file.keep(lambda head: True)
    after = file.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [*lines[:2], "{\n", *lines[2:]], "line 3: expected a JSON object"),
        (lambda lines: [*lines[:2], lines[2][:40] + "\n", *lines[3:]], "line 3: expected a JSON"),
        (lambda lines: [*lines[:2], "\n", *lines[2:]], "line 3: expected a JSON object"),
        (lambda lines: [*lines[:2], "[]\n", *lines[2:]], "line 3: expected a JSON object"),
        (lambda lines: [lines[0], *lines[2:]], "line 1: expected 2 lines of group 0 of step 0"),
        (lambda lines: [*lines[:4], *lines[:4]], None),
    ],
    ids=["torn", "cut", "empty", "no object", "missing", "twice apart"],
)
def test_damage_is_named_with_its_line(file, damage, message):
    lines = file.path.read_text().splitlines(keepends=True)
    file.path.write_text("".join(damage(lines)))
    if message is None:
        assert len(places(file)) == 4
        return
    for use in (lambda: list(file.groups()), lambda: file.keep(lambda head: True)):
        with pytest.raises(DataError, match=message):
            use()


def test_a_record_that_is_none_is_named_with_its_line(file):
    lines = file.path.read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace('"transitions":[{', '"transitions":[{"x":0},{')
    file.path.write_text("".join(lines))
    with pytest.raises(DataError, match=r"line 4: an episode's record needs 'ob_known'"):
        list(file.groups())


def test_lines_that_other_programs_wrote_are_read(file):
    values = [json.loads(line) for line in file.path.read_text().splitlines()]
    file.path.write_text("".join(json.dumps(value, sort_keys=True) + "\n" for value in values))
    assert len(places(file)) == 6


def test_a_refused_record_leaves_no_line(file):
    before = file.path.read_bytes()
    bad = TrajectoryGroup(
        trajectories_G=[episode(([1], [2]))], final_rewards_G=[0], metrics_G=[{"m": "much"}]
    )
    with pytest.raises(DataError, match="'m'"):
        append(file, bad, step=3, index=0)
    assert file.path.read_bytes() == before


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    with pytest.raises(StorageError, match=r"the rollouts could not be written.*free some space"):
        append(RolloutsFile(path=Path("/dev/full")), small_group(0), step=0, index=0)
    program = (
        "import sys, pathlib, resource, signal\n"
        "from cookbook_fx.errors import StorageError\n"
        "from shell.stores import BatchesFile\n"
        "from tests.rl_records import batch_record\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = BatchesFile(path=pathlib.Path(sys.argv[1]))\n"
        "file.append(batch_record())\n"
        "size = file.path.stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))\n"
        "try:\n"
        "    file.append(batch_record(step=1))\n"
        "except StorageError as error:\n"
        "    print(file.path.stat().st_size == size, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "b")], capture_output=True, text=True
    )
    assert done.stdout.startswith("True the batches could not be written"), done.stderr


def test_groups_of_many_threads_do_not_mix(tmp_path):
    file = RolloutsFile(path=tmp_path / "rollouts.jsonl")

    def write(step: int) -> None:
        for index in range(8):
            append(file, small_group(index, members=5), step=step, index=index)

    threads = [threading.Thread(target=write, args=(step,)) for step in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(places(file)) == [(step, index) for step in range(4) for index in range(8)]


def test_batches_come_back_by_step_and_are_cut_by_step(tmp_path):
    file = BatchesFile(path=tmp_path / "batches.jsonl")
    row = np.array([-1.5, np.nan, -np.inf, -1e-7], np.float32)
    for step in range(3):
        for minibatch in range(2):
            file.append(batch_record(step=step, minibatch=minibatch, training_logprobs=(row,)))
    (_, second) = file.batches(step=1)
    assert (second.step, second.minibatch, second.groups) == (1, 1, (0, 2))
    np.testing.assert_array_equal(second.training_logprobs[0], row)
    with file.path.open("a") as torn:
        torn.write('{"step":3,"sub')
    file.keep_before(2)
    assert [record.step for record in file.batches()] == [0, 0, 1, 1]
    file.append(batch_record(step=2))
    assert [record.step for record in file.batches()] == [0, 0, 1, 1, 2]


def test_a_damaged_batch_is_named(tmp_path):
    file = BatchesFile(path=tmp_path / "batches.jsonl")
    file.append(batch_record())
    file.append(batch_record(step=1))
    file.path.write_text(file.path.read_text().replace('"digest"', '"digist"', 1))
    with pytest.raises(DataError, match=r"batches\.jsonl, line 1: .*needs 'digest'"):
        list(file.batches())


def test_a_run_folder_has_both_and_one_writer(tmp_path):
    with open_run_folder(tmp_path / "run", config={}) as folder:
        append(folder.rollouts, small_group(0), step=0, index=0)
        folder.batches.append(batch_record())
        with (
            pytest.raises(ConfigurationError, match="another process"),
            open_run_folder(tmp_path / "run", config={}),
        ):
            pass
    with open_run_folder(tmp_path / "run", config={}) as folder:
        assert places(folder.rollouts) == [(0, 0)]
        assert len(list(folder.batches.batches())) == 1
    assert (tmp_path / "run" / "rollouts.jsonl").exists()


def test_a_run_with_rollouts_has_begun(tmp_path):
    with open_run_folder(tmp_path / "run", config={"seed": 0}) as folder:
        append(folder.rollouts, small_group(0), step=0, index=0)
    with (
        pytest.raises(ConfigurationError, match="seed"),
        open_run_folder(tmp_path / "run", config={"seed": 1}),
    ):
        pass
