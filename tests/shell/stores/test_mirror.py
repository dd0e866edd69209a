"""A run folder at a URL: all of it arrives, and a crash at any moment leaves it usable."""

import json
import random
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cookbook_fx.errors import ConfigurationError, StorageError
from shell.stores import RunCheckpoint, RunCheckpoints, open_run_folder
from shell.stores import mirror as mirror_module
from shell.stores.mirror import fetched, is_url, mirrored


class Flaky(MemoryFileSystem):
    """Memory that fails now and then, and notes what was written in which order."""

    protocol = "flaky"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    chance = random.Random(0)
    rate = 0.0
    written: list[str] = []  # noqa: RUF012

    def _open(self, path, mode="rb", **more):
        self.stumble()
        if mode == "wb":
            self.written.append(path)
        return super()._open(path, mode=mode, **more)

    def cat_file(self, path, **more):
        self.stumble()
        return super().cat_file(path, **more)

    def rm_file(self, path):
        self.stumble()
        super().rm_file(path)

    def stumble(self) -> None:
        if self.chance.random() < self.rate:
            raise RuntimeError("a bad moment")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "_SECONDS_BETWEEN_ROUNDS", 0.01)
    monkeypatch.setattr(mirror_module, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(mirror_module, "_REST", 0.0)
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "rate", 0.0)
    for kind in (Flaky, MemoryFileSystem):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    Flaky.written.clear()


def names(url: str) -> set[str]:
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    prefix = root.rstrip("/") + "/"
    return {path.removeprefix(prefix) for path in fs.find(root)}


def content(url: str, name: str) -> str:
    fs, root = fsspec.core.url_to_fs(url)
    rate, Flaky.rate = Flaky.rate, 0.0
    try:
        return fs.cat_file(f"{root.rstrip('/')}/{name}").decode()
    finally:
        Flaky.rate = rate


def work(url: str, copies: Path, *, first_step: int, end: int, say=print) -> Path:
    """Steps of a run, with a checkpoint after every second; gives the copy it worked in."""
    with (
        mirrored(url, copies=copies, say=say) as path,
        open_run_folder(path, config={"seed": 1}) as folder,
    ):
        folder.metrics.keep_before(first_step)
        folder.checkpoints.keep_before(first_step + 1)
        for step in range(first_step, end):
            folder.metrics.append(step, {"loss": 1.0})
            if step % 2:
                folder.checkpoints.save(RunCheckpoint(next_step=step + 1, state_path=f"t{step}"))
    return path


def latest(url: str, copies: Path) -> int:
    with (
        mirrored(url, copies=copies, say=print) as path,
        RunCheckpoints(path / "checkpoints") as found,
    ):
        return found.latest().next_step


@pytest.fixture(params=["memory", "file", "flaky"])
def url(request, tmp_path) -> str:
    root = tmp_path / "store" if request.param == "file" else "/bucket"
    return f"{request.param}://{root}/runs/mine"


def test_all_of_a_run_arrives_and_continues_on_another_machine(url, tmp_path, monkeypatch):
    # Of some forty requests, each in the background is repeated, and those at the ends five times.
    monkeypatch.setattr(Flaky, "rate", 0.02)
    monkeypatch.setattr(mirror_module, "_ATTEMPTS", 20)
    here = work(url, tmp_path / "here", first_step=0, end=5)
    assert content(url, "metrics.jsonl") == (here / "metrics.jsonl").read_text()
    assert {"config.json", "code.json", "mirror.json"} < names(url)
    assert not any(".lock" in name for name in names(url))
    assert latest(url, tmp_path / "there") == 4
    there = work(url, tmp_path / "there", first_step=4, end=8)
    steps = [json.loads(line)["step"] for line in content(url, "metrics.jsonl").splitlines()]
    assert steps == list(range(8))
    assert (there / "code.json").exists()
    # The first machine goes on with what the second did, and puts its own aside.
    told = []
    again = work(url, tmp_path / "here", first_step=8, end=10, say=told.append)
    assert again == here
    assert any("written from elsewhere" in line for line in told)
    assert latest(url, tmp_path / "third") == 10


def test_what_a_killed_process_did_not_bring_is_brought_by_the_next(tmp_path):
    url = "memory://bucket/run"
    work(url, tmp_path, first_step=0, end=4)
    (copy,) = tmp_path.glob("run-*/run")
    # As if killed between writing and uploading.
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1.0}\n')
    (copy / "samples.jsonl").write_text("{}\n")
    fs = MemoryFileSystem()
    fs.pipe_file("/bucket/run/rollouts.jsonl", b"deleted here since\n")
    with mirrored(url, copies=tmp_path, say=print) as path:
        assert (path / "metrics.jsonl").read_text().count("\n") == 5
    assert content(url, "metrics.jsonl").count("\n") == 5
    assert "samples.jsonl" in names(url)
    assert "rollouts.jsonl" not in names(url)


def test_a_checkpoint_arrives_behind_the_rows_that_it_counts_on(tmp_path):
    work("flaky://bucket/run", tmp_path, first_step=0, end=4)
    written = [path.partition("bucket/run/")[2] for path in Flaky.written]
    first = next(i for i, path in enumerate(written) if path.startswith("checkpoints/"))
    assert "metrics.jsonl" in written[:first]
    assert written.index("config.json") < written.index("metrics.jsonl")


def test_changes_are_brought_while_the_run_goes_on_and_after_a_crash(tmp_path):
    url = "memory://bucket/run"

    def crash() -> None:
        with mirrored(url, copies=tmp_path, say=print) as path:
            (path / "config.json").write_text("{}")
            deadline = time.monotonic() + 10
            while "config.json" not in names(url) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert "config.json" in names(url)
            (path / "metrics.jsonl").write_text("{}")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert "metrics.jsonl" in names(url)


def test_a_deleted_run_is_gone_there_too(tmp_path):
    url = "memory://bucket/run"
    work(url, tmp_path, first_step=0, end=4)
    with (
        mirrored(url, copies=tmp_path, say=print) as path,
        open_run_folder(path, config={"seed": 2}, existing="delete"),
    ):
        pass
    assert "metrics.jsonl" not in names(url)
    assert not any(name.startswith("checkpoints/") for name in names(url))
    assert json.loads(content(url, "config.json")) == {"seed": 2}


def test_a_store_that_never_answers_is_an_error_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(Flaky, "rate", 1.0)
    with (
        pytest.raises(StorageError, match="could not be fetched from flaky://"),
        mirrored("flaky://bucket/run", copies=tmp_path, say=print),
    ):
        pass


def test_a_store_that_fails_to_the_end_is_an_error_that_says_where_the_run_is(
    tmp_path, monkeypatch
):
    told = []

    def run() -> None:
        with mirrored("flaky://bucket/run", copies=tmp_path, say=told.append) as path:
            monkeypatch.setattr(Flaky, "rate", 1.0)
            (path / "metrics.jsonl").write_text("{}")
            time.sleep(0.1)

    with pytest.raises(StorageError, match=r"could not be written to flaky://.*is in .*run-"):
        run()
    assert len(told) == 1
    assert "cannot be written to at the moment" in told[0]


def test_two_at_once_are_refused_on_one_machine_and_noticed_on_two(tmp_path):
    url = "memory://bucket/run"
    with mirrored(url, copies=tmp_path / "here", say=print):
        with (
            pytest.raises(ConfigurationError, match="another process"),
            mirrored(url, copies=tmp_path / "here", say=print),
        ):
            pass
    with (
        pytest.raises(ConfigurationError, match="another process works on"),
        mirrored(url, copies=tmp_path / "here", say=print),
        mirrored(url, copies=tmp_path / "there", say=print),
    ):
        pass


@pytest.mark.parametrize("url", ["nonsense://bucket/run", "s3://bucket/run"])
def test_a_url_that_nobody_knows_or_has_the_package_for_is_refused(tmp_path, url, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with (
        pytest.raises(ConfigurationError, match=url),
        mirrored(url, copies=tmp_path, say=print),
    ):
        pass


def test_a_path_is_itself():
    with mirrored("runs/mine", copies=Path("nowhere"), say=print) as path:
        assert path == Path("runs/mine")
    assert not is_url("runs/mine")
    assert is_url("s3://bucket/run")


def test_a_run_elsewhere_is_read_from_a_copy_that_goes_away(url, tmp_path):
    work(url, tmp_path / "here", first_step=0, end=3)
    with fetched(url) as folder:
        assert folder.name == "mine"
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
        (folder / "report.html").write_text("not for there")
    assert not folder.exists()
    assert "report.html" not in names(url)


def test_where_there_is_no_run_it_is_said(tmp_path):
    location = f"file://{tmp_path}/nothing"
    with pytest.raises(ConfigurationError, match="there is no run at file:"), fetched(location):
        pass
    with fetched("runs/mine") as folder:
        assert folder == Path("runs/mine")


def test_a_run_that_cannot_be_fetched_is_told_as_such(url, tmp_path, monkeypatch):
    work(url, tmp_path / "here", first_step=0, end=1)

    def refuse(*_: object) -> None:
        raise RuntimeError("a bad moment")

    monkeypatch.setattr(type(fsspec.core.url_to_fs(url)[0]), "find", refuse)
    told = "could not be fetched: RuntimeError: a bad moment"
    with pytest.raises(StorageError, match=told), fetched(url):
        pass
