"""What a run notes of the code it was started with, by real git."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cookbook_fx.errors import DataError
from shell.stores import code_state
from shell.stores.code_state import CODE, CodeFile

ME = ("-c", "user.name=me", "-c", "user.email=me@example.com")


def git(repository: Path, *arguments: str, given: bytes = b"") -> str:
    done = subprocess.run(
        ["git", *ME, *arguments], cwd=repository, input=given, capture_output=True, check=True
    )
    return done.stdout.decode()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of one commit."""
    path = tmp_path / "mine"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch", "work")
    (path / "train.py").write_text("one\n")
    (path / "kept.bin").write_bytes(bytes(range(256)))
    git(path, "add", ".")
    git(path, "commit", "--quiet", "--message", "first")
    return path


@pytest.fixture
def code(tmp_path: Path) -> CodeFile:
    (tmp_path / "run").mkdir()
    return CodeFile(path=tmp_path / "run" / CODE)


def test_a_clean_repository_is_its_commit(repository, code):
    code.record(repository)
    (start,) = code.starts()
    assert start.code.commit == git(repository, "rev-parse", "HEAD").strip()
    assert start.code.branch == "work"
    assert (start.code.changes, start.code.diff, start.code.left_out) == ((), None, "")
    assert code.diff(start) == b""
    assert start.command == tuple(sys.argv)
    assert start.packages["numpy"]


def test_the_diff_makes_the_commit_into_what_was_there(repository, code, tmp_path):
    (repository / "train.py").write_text("two\n")
    (repository / "kept.bin").write_bytes(bytes(range(255, -1, -1)))
    (repository / "staged.py").write_text("staged")
    git(repository, "add", "staged.py")
    (repository / "new folder").mkdir()
    (repository / "new folder" / "näme *.py").write_bytes(b"\xff untracked")
    before = (git(repository, "status", "--porcelain"), sorted(repository.glob(".git/objects/*")))
    inside = repository / "new folder"
    code.record(inside)
    (start,) = code.starts()
    assert start.code.changes == (
        " M kept.bin", "A  staged.py", " M train.py", "?? new folder/näme *.py",
    )  # fmt: skip
    assert start.code.diff == "code.diff"
    # Looking has left the repository as it was.
    after = (git(repository, "status", "--porcelain"), sorted(repository.glob(".git/objects/*")))
    assert after == before

    git(tmp_path, "clone", "--quiet", str(repository), "again")
    git(tmp_path / "again", "apply", "-", given=code.diff(start))
    for name in ("train.py", "kept.bin", "staged.py", "new folder/näme *.py"):
        assert (tmp_path / "again" / name).read_bytes() == (repository / name).read_bytes()


def test_settings_of_the_user_do_not_change_the_diff(repository, code):
    (repository / "train.py").write_text("two\n")
    for setting in ("diff.noprefix=true", "color.ui=always", "diff.external=/bin/false"):
        git(repository, "config", *setting.split("="))
    code.record(repository)
    assert code.diff(code.starts()[0]).startswith(b"diff --git a/train.py b/train.py\n")


def test_a_repository_without_a_commit_is_all_new(tmp_path, code):
    path = tmp_path / "young"
    path.mkdir()
    git(path, "init", "--quiet")
    (path / "a.py").write_text("a\n")
    code.record(path)
    (start,) = code.starts()
    assert start.code.commit is None
    assert b"+++ b/a.py\n@@ -0,0 +1 @@\n+a\n" in code.diff(start)


def test_large_files_secrets_and_runs_are_left_out(repository, code):
    (repository / "big.jsonl").write_bytes(b"x" * (code_state._MOST_FILE_BYTES + 1))
    (repository / ".env").write_text("KEY=hidden")
    other = repository / "runs" / "one"
    other.mkdir(parents=True)
    for name in ("config.json", ".lock", "metrics.jsonl"):
        (other / name).write_text("{}")
    code.record(repository)
    (start,) = code.starts()
    assert start.code.changes == ("?? .env", "?? big.jsonl")
    assert start.code.left_out == (
        "the content of 1 untracked files, too large; "
        "the content of 1 untracked files, which may hold secrets"
    )
    assert code.diff(start) == b""


def test_a_start_as_the_last_one_is_not_noted_again(repository, code):
    (repository / "train.py").write_text("two\n")
    code.record(repository)
    code.record(repository)
    assert len(code.starts()) == 1
    (repository / "train.py").write_text("three\n")
    code.record(repository)
    first, second = code.starts()
    assert (first.code.diff, second.code.diff) == ("code.diff", "code.2.diff")
    assert b"+two\n" in code.diff(first)
    assert b"+three\n" in code.diff(second)


def test_no_repository_and_no_git_are_noted(tmp_path, code, monkeypatch):
    code.record(tmp_path)
    assert code.starts()[0].code.unknown.startswith("not a git repository")
    monkeypatch.setenv("PATH", str(tmp_path))
    code.record(tmp_path)
    assert code.starts()[1].code.unknown == "there is no git on this machine"


def test_a_git_that_hangs_is_given_up(tmp_path, code, monkeypatch):
    (tmp_path / "git").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(code_state, "_SECONDS", 0.3)
    code.record(tmp_path)
    assert "did not answer" in code.starts()[0].code.unknown


def test_a_diff_beyond_the_bound_is_cut_and_says_so(repository, code, monkeypatch):
    monkeypatch.setattr(code_state, "_MOST_DIFF_BYTES", 30)
    (repository / "train.py").write_text("two\n")
    code.record(repository)
    (start,) = code.starts()
    assert len(code.diff(start)) == 30
    assert "beyond" in start.code.left_out


@pytest.mark.parametrize("text", ["", "{", "[]", '{"starts": 3}', '{"starts": [{}]}'])
def test_a_damaged_file_is_refused(code, text):
    code.path.write_text(text)
    with pytest.raises(DataError, match=r"code\.json cannot be read"):
        code.starts()


def test_a_diff_is_a_name_in_the_folder_and_no_path(repository, code, tmp_path):
    (repository / "train.py").write_text("two\n")
    code.record(repository)
    (tmp_path / "secret").write_text("secret")
    value = json.loads(code.path.read_text())
    value["starts"][0]["code"]["diff"] = "../secret"
    code.path.write_text(json.dumps(value))
    assert code.diff(code.starts()[0]) == b""
