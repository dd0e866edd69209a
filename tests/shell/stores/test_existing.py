"""What becomes of a run found in the folder: continued, deleted or refused, and nothing else."""

import pytest

from cookbook_fx.errors import ConfigurationError
from shell.stores import RunCheckpoint, open_run_folder
from shell.stores.run_folder import holds_run


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    with open_run_folder(path, config={"seed": 1}) as folder:
        folder.metrics.append(0, {"loss": 1.0})
        folder.checkpoints.save(RunCheckpoint(next_step=1, state_path="tinker://a/weights/1"))
    for name in ("samples.jsonl", "rollouts.jsonl", "report.html", "trace.json", "logtree.html"):
        (path / name).touch()
    (path / "tensorboard").mkdir()
    (path / "tensorboard" / "events").touch()
    return path


def test_a_deleted_run_makes_way_for_any_other(run):
    with open_run_folder(run, config={"seed": 2}, existing="delete") as folder:
        assert folder.metrics.rows() == ()
        assert folder.checkpoints.latest() is None
        left = {entry.name for entry in run.iterdir() if entry.name[0] != "."}
        assert left == {"config.json", "code.json", "checkpoints"} | {
            entry.name for entry in run.glob("code*.diff")
        }
    assert not holds_run(run)


@pytest.mark.parametrize("stranger", ["thesis.tex", ".git"])
def test_what_no_run_leaves_is_never_deleted(run, stranger):
    (run / stranger).mkdir()
    before = sorted(run.rglob("*"))
    with (
        pytest.raises(ConfigurationError, match=stranger),
        open_run_folder(run, config={"seed": 2}, existing="delete"),
    ):
        pass
    assert sorted(run.rglob("*")) == before


def test_a_link_is_not_followed_into_what_is_elsewhere(run, tmp_path):
    (tmp_path / "precious").mkdir()
    (run / "traces").symlink_to(tmp_path / "precious")
    with (
        pytest.raises(ConfigurationError, match="traces"),
        open_run_folder(run, config={"seed": 1}, existing="delete"),
    ):
        pass
    assert (tmp_path / "precious").exists()


def test_a_run_may_be_refused_and_an_empty_folder_is_not_one(run, tmp_path):
    with (
        pytest.raises(ConfigurationError, match="holds a run already"),
        open_run_folder(run, config={"seed": 1}, existing="raise"),
    ):
        pass
    with open_run_folder(tmp_path / "new", config={"seed": 1}, existing="raise"):
        pass
    with open_run_folder(run, config={"seed": 1}, existing="resume") as folder:
        assert len(folder.metrics.rows()) == 1


def test_a_run_under_way_is_not_deleted(run):
    with (
        open_run_folder(run, config={"seed": 1}),
        pytest.raises(ConfigurationError, match="another process"),
        open_run_folder(run, config={"seed": 1}, existing="delete"),
    ):
        pass
    assert holds_run(run)
