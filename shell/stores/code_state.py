"""`code.json` and `code.diff`: the code and the versions a run was started with."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from cookbook_fx.errors import DataError
from cookbook_fx.runs import CodeState, RunStart, start_from_json, start_to_json
from shell.stores.files import replacing, write_atomically

CODE = "code.json"

_SECONDS = 10.0
_MOST_DIFF_BYTES = 4 << 20
_MOST_FILE_BYTES = 256 << 10
_MOST_UNTRACKED_BYTES = 1 << 20
_MOST_CHANGES = 500
# Names that speak of what is nobody else's business; a diff is shown to others.
_SECRET = (
    ".env",
    ".pem",
    ".key",
    "id_rsa",
    "id_ed25519",
    ".netrc",
    "credential",
    "secret",
    "token",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeFile:
    """The starts of a run, an entry for each that differs from the one before it."""

    path: Path

    def starts(self) -> tuple[RunStart, ...]:
        """The starts in order; none where there is no file.

        Raises:
            DataError: the file is damaged.
        """
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))["starts"]
            return tuple(map(start_from_json, values))
        except FileNotFoundError:
            return ()
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} cannot be read ({error}); remove it, and the run's next start writes "
                "it anew"
            ) from error

    def record(self, directory: Path) -> None:
        """Adds a start that is happening now.

        Without git, or where it does not answer, that is what is noted.

        Args:
            directory: whose repository is described.

        Raises:
            DataError: the file is damaged.
            StorageError: the run folder cannot be written.
        """
        earlier = self.starts()
        found = _repository(directory)
        name = "code.diff" if not earlier else f"code.{len(earlier) + 1}.diff"
        code = replace(found.state, diff=name) if found.diff else found.state
        now = RunStart(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            command=tuple(sys.argv),
            directory=str(directory.absolute()),
            python=platform.python_version(),
            platform=f"{platform.platform()}, {os.cpu_count()} processors",
            packages=_packages(),
            code=code,
        )
        if earlier and self._is_as_before(earlier[-1], now, found.diff):
            return
        if found.diff:
            with replacing(self.path.with_name(name), what="the code's changes") as file:
                file.write(found.diff)
        values = [start_to_json(start) for start in (*earlier, now)]
        write_atomically(
            self.path, json.dumps({"starts": values}, indent=1) + "\n", what="the code's state"
        )

    def diff(self, start: RunStart) -> bytes:
        """What a start's code differed from its commit in; nothing where the file is gone."""
        if start.code.diff is None:
            return b""
        try:
            # A name and no path, whatever the file says.
            return self.path.with_name(Path(start.code.diff).name).read_bytes()
        except (OSError, ValueError):
            return b""

    def _is_as_before(self, before: RunStart, now: RunStart, diff: bytes) -> bool:
        same = replace(now, at=before.at, code=replace(now.code, diff=before.code.diff))
        return same == before and self.diff(before) == diff


class _Repository(NamedTuple):
    """What git says of a directory."""

    state: CodeState
    diff: bytes = b""


def _packages() -> dict[str, str]:
    """The version of each installed package, by name."""
    found = {
        name: each.version
        for each in metadata.distributions()
        # One that was removed by halves has no name.
        if (name := each.metadata["Name"])
    }
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


class _Git:
    """Git in one directory, which has so long for all its answers together."""

    def __init__(self, program: str, directory: Path) -> None:
        self._program = program
        self.directory = directory
        self._deadline = time.monotonic() + _SECONDS

    def __call__(self, *arguments: str, given: bytes = b"", **environment: str) -> bytes:
        """What git answers.

        Raises:
            subprocess.SubprocessError: it failed or took too long.
        """
        command = [self._program, "-c", "core.fsmonitor=false", *arguments]
        done = subprocess.run(
            command,
            cwd=self.directory,
            input=given,
            capture_output=True,
            timeout=max(0.1, self._deadline - time.monotonic()),
            check=True,
            # Looking changes nothing: not the index, and nobody is asked for anything.
            env=os.environ
            | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
            | environment,
        )
        return done.stdout


def _repository(directory: Path) -> _Repository:
    """The state of the repository that `directory` is in."""
    program = shutil.which("git")
    if program is None:
        return _Repository(CodeState(unknown="there is no git on this machine"))
    try:
        top = os.fsdecode(_Git(program, directory)("rev-parse", "--show-toplevel")).rstrip("\n")
        return _described(_Git(program, Path(top)), Path(top))
    except subprocess.TimeoutExpired:
        why = f"git did not answer within {_SECONDS:.0f} seconds"
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["git failed"]
        why = why[0].removeprefix("fatal: ")
    except OSError as error:
        why = f"git could not be run: {error}"
    return _Repository(CodeState(unknown=why))


def _described(git: _Git, top: Path) -> _Repository:
    answer = git("status", "--porcelain=v2", "--branch", "--untracked-files=all", "-z")
    status = _status(os.fsdecode(answer).split("\0"))
    runs = {
        folder: _is_run(top / folder) for path in status.untracked for folder in Path(path).parents
    }
    untracked = [
        path for path in status.untracked if not any(runs[folder] for folder in Path(path).parents)
    ]
    chosen, left_out = _chosen(top, untracked)
    diff = _diff(git, chosen, commit=status.commit)
    if len(diff) > _MOST_DIFF_BYTES:
        left_out.append(f"what of the diff is beyond {_MOST_DIFF_BYTES >> 20} MiB")
        diff = diff[:_MOST_DIFF_BYTES]
    changes = [*status.tracked, *(f"?? {path}" for path in untracked)]
    if len(changes) > _MOST_CHANGES:
        changes[_MOST_CHANGES:] = [f"... and {len(changes) - _MOST_CHANGES} more"]
    return _Repository(
        CodeState(
            commit=status.commit,
            branch=status.branch,
            # Names that are no UTF-8 have no JSON.
            changes=tuple(os.fsencode(line).decode(errors="replace") for line in changes),
            left_out="; ".join(left_out),
        ),
        diff,
    )


def _is_run(folder: Path) -> bool:
    """Whether a folder is what a run left: no code, and each would hold all earlier ones."""
    return (folder / "config.json").exists() and (folder / ".lock").exists()


class _Status(NamedTuple):
    commit: str | None
    branch: str | None
    tracked: list[str]
    untracked: list[str]


def _status(entries: list[str]) -> _Status:
    """What `git status --porcelain=v2 --branch -z` says."""
    commit = branch = None
    tracked, untracked = [], []
    rest = iter(entries)
    for entry in rest:
        match entry.split(" ", 2):
            case ["#", "branch.oid", oid] if oid != "(initial)":
                commit = oid
            case ["#", "branch.head", head] if head != "(detached)":
                branch = head
            case ["1", letters, more]:
                tracked.append(f"{letters.replace('.', ' ')} {more.split(' ', 6)[-1]}")
            case ["2", letters, more]:
                # The name it had follows on its own.
                tracked.append(f"{letters} {more.split(' ', 7)[-1]} (was {next(rest, '')})")
            case ["u", letters, more]:
                tracked.append(f"{letters} {more.split(' ', 8)[-1]}")
            case ["?", *name]:
                untracked.append(" ".join(name))
    return _Status(commit, branch, tracked, untracked)


def _chosen(top: Path, untracked: list[str]) -> tuple[list[str], list[str]]:
    """The untracked files whose content is recorded, and why that of others is not."""
    chosen: list[str] = []
    too_large, secret = 0, 0
    total = 0
    for path in untracked:
        file = top / path
        if path.endswith("/"):
            # A repository of its own.
            continue
        if any(part in file.name.lower() for part in _SECRET):
            secret += 1
            continue
        try:
            size = file.lstat().st_size
        except OSError:
            continue
        if size > _MOST_FILE_BYTES or total + size > _MOST_UNTRACKED_BYTES:
            too_large += 1
            continue
        total += size
        chosen.append(path)
    reasons = []
    if too_large:
        reasons.append(f"the content of {too_large} untracked files, too large")
    if secret:
        reasons.append(f"the content of {secret} untracked files, which may hold secrets")
    return chosen, reasons


def _diff(git: _Git, untracked: list[str], *, commit: str | None) -> bytes:
    """What the files differ from the commit in, those untracked as new ones; for `git apply`."""
    base = commit or os.fsdecode(git("hash-object", "-t", "tree", "--stdin")).strip()
    form = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames",
            "--src-prefix=a/", "--dst-prefix=b/")  # fmt: skip
    if not untracked:
        return git("diff", base, *form)
    # Files are made known in a copy of the index, and what git stores for it goes there too.
    with tempfile.TemporaryDirectory(prefix="cookbook-fx-") as scratch:
        where = os.fsdecode(git("rev-parse", "--absolute-git-dir", "--git-path", "objects"))
        folder, objects = where.splitlines()[:2]
        index = Path(folder) / "index"
        aside = {
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
            "GIT_OBJECT_DIRECTORY": str(Path(scratch) / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(Path(git.directory, objects)),
        }
        Path(scratch, "objects").mkdir()
        if index.exists():
            shutil.copy(index, aside["GIT_INDEX_FILE"])
        names = b"\0".join(map(os.fsencode, untracked))
        git("add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul",
            given=names, GIT_LITERAL_PATHSPECS="1", **aside)  # fmt: skip
        return git("diff", base, *form, **aside)
