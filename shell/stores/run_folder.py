"""The folder a run leaves behind, and the rule that it belongs to one run only."""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import filelock

from cookbook_fx.errors import ConfigurationError, DataError
from shell.stores.checkpoints import RunCheckpoints
from shell.stores.code_state import CODE, CodeFile
from shell.stores.files import storing, write_atomically
from shell.stores.metrics import MetricsFile
from shell.stores.rollouts import BatchesFile, RolloutsFile
from shell.stores.samples import SAMPLES, SamplesFile

JSON = bool | int | float | str | None | list["JSON"] | dict[str, "JSON"]
_ABSENT = "(absent)"

ROLLOUTS = "rollouts.jsonl"
BATCHES = "batches.jsonl"
CHECKPOINTS = "checkpoints"

Existing = Literal["resume", "delete", "raise"]

# All that a run of ours may have left, in the order of deletion: what is left when that is
# interrupted is a run still, and without checkpoints one that begins anew.
_LEFT_BY_RUNS = (
    *(CHECKPOINTS, "*.jsonl", "code*.diff", CODE, "loggers.json", "mirror.json"),
    *("report*.html", "logtree*", "trace*", "timing*", "tensorboard", "wandb", "config.json"),
    # Of a file that was being written when its process was killed.
    ".*.json*",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """What a run writes: `config.json`, `code.json`, `metrics.jsonl`, `checkpoints/` and, in
    reinforcement learning, `rollouts.jsonl` and `batches.jsonl`.

    Args:
        path: the folder.
        metrics: `metrics.jsonl`, each step once.
        checkpoints: the places the run can be continued from.
        rollouts: `rollouts.jsonl`, each episode once.
        batches: `batches.jsonl`, what was made of them.
        samples: `samples.jsonl`, texts to look at.
    """

    path: Path
    metrics: MetricsFile
    checkpoints: RunCheckpoints
    rollouts: RolloutsFile
    batches: BatchesFile
    samples: SamplesFile

    def logtree(self, name: str) -> Path:
        """Where a logtree of this name is to be written; its folder is made if need be.

        Raises:
            StorageError: it cannot be made.
        """
        folder = self.path / "logtree"
        with storing(folder, what="the logtree"):
            folder.mkdir(exist_ok=True)
        return folder / f"{name}.html"


@contextmanager
def open_run_folder(
    path: Path,
    *,
    config: Mapping[str, JSON],
    may_differ: tuple[str, ...] = (),
    reasons: Mapping[str, str] | None = None,
    existing: Existing = "resume",
) -> Iterator[RunFolder]:
    """Opens the folder of the run that `config` describes, for this process alone.

    A new folder gets `config.json`, written once. An existing one must hold the same
    configuration, but for the sections that change nothing about the result. A folder in which
    no step was done yet belongs to no run: what was started by mistake can be started anew.
    Unless the run is finished, `code.json` notes the repository of the working directory.

    Args:
        path: the folder; made if need be.
        config: everything that decides the result of the run.
        may_differ: fields or sections of `config`, by dotted name, that do not.
        reasons: why a field may not differ, by dotted name, where that is not plain.
        existing: what becomes of a run found there: it is continued, deleted, or refused.

    Raises:
        ConfigurationError: the folder belongs to another run or is no run folder, or another
            process is using it, or a run is there and not to be.
        DataError: its `config.json` or `code.json` is damaged.
        StorageError: it cannot be written.
    """
    with storing(path, what="the run folder"):
        # Prompts and answers are in it.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = filelock.FileLock(path / ".lock")
    with storing(path, what="the run folder's lock"):
        try:
            # Someone may be looking whether the run is under way.
            lock.acquire(timeout=0.2)
        except filelock.Timeout as error:
            raise ConfigurationError(
                f"another process is running in {path}; wait for it, stop it, or choose another "
                "--run-dir"
            ) from error
    try:
        if holds_run(path):
            if existing == "raise":
                raise ConfigurationError(
                    f"{path} holds a run already; choose another --run-dir, or --existing resume "
                    "or delete"
                )
            if existing == "delete":
                _delete_run(path)
        _claim(path, config, may_differ=may_differ, reasons=reasons or {})
        with RunCheckpoints(path / CHECKPOINTS) as checkpoints:
            latest = checkpoints.latest()
            if latest is None or not latest.final:
                CodeFile(path=path / CODE).record(Path.cwd())
            yield RunFolder(
                path=path,
                metrics=MetricsFile(path=path / "metrics.jsonl"),
                checkpoints=checkpoints,
                rollouts=RolloutsFile(path=path / ROLLOUTS),
                batches=BatchesFile(path=path / BATCHES),
                samples=SamplesFile(path=path / SAMPLES),
            )
    finally:
        lock.release()


def is_running(path: Path) -> bool:
    """Whether a process has the run folder open."""
    try:
        with (path / ".lock").open("rb") as lock:
            # Given back as the file is closed.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def holds_run(path: Path) -> bool:
    """Whether there is a run in a folder that has done or saved anything."""
    return (path / "config.json").exists() and _has_begun(path)


def _delete_run(path: Path) -> None:
    """Empties the folder of a run.

    Raises:
        ConfigurationError: something in it is not of a run; nothing was deleted.
        StorageError: it cannot be deleted.
    """
    entries = list(path.iterdir())
    strangers = sorted(
        entry.name
        for entry in entries
        if entry.is_symlink() or not any(fnmatch(entry.name, name) for name in _LEFT_BY_RUNS)
        if entry.name != ".lock"
    )
    if strangers:
        raise ConfigurationError(
            f"{path} is not deleted, as it holds what no run leaves: {', '.join(strangers[:5])}; "
            "move that away, or choose another --run-dir"
        )
    with storing(path, what="the deletion of the run"):
        for name in _LEFT_BY_RUNS:
            for entry in entries:
                if fnmatch(entry.name, name) and entry.exists():
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _claim(
    path: Path,
    config: Mapping[str, JSON],
    *,
    may_differ: tuple[str, ...],
    reasons: Mapping[str, str],
) -> None:
    """Writes `config.json`, or checks that the one there describes the same run."""
    file = path / "config.json"
    wanted = json.loads(json.dumps(config))
    if not file.exists():
        strangers = sorted(entry.name for entry in path.iterdir() if entry.name[0] != ".")
        if strangers:
            raise ConfigurationError(
                f"{path} is no run folder: it has no config.json, but holds "
                f"{', '.join(strangers[:5])}; choose a new or empty --run-dir"
            )
        write_atomically(file, json.dumps(wanted, indent=2) + "\n", what="the configuration")
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} is damaged ({error}); restore it or choose another --run-dir"
        ) from error
    lines = [
        f"  {name}: there {there}, now {now}" + (f" ({reasons[name]})" if name in reasons else "")
        for name, there, now in differences(found, wanted)
        if not any(name == free or name.startswith(f"{free}.") for free in may_differ)
    ]
    if lines and not _has_begun(path):
        write_atomically(file, json.dumps(wanted, indent=2) + "\n", what="the configuration")
        return
    if lines:
        raise ConfigurationError(
            f"{path} belongs to a run with another configuration:\n"
            + "\n".join(lines)
            + "\nRun it with the configuration it was started with to continue it, or choose "
            "another --run-dir."
        )


def _has_begun(path: Path) -> bool:
    """Whether anything was rolled out, measured or saved in a run folder."""
    checkpoints = path / CHECKPOINTS
    return any((path / name).exists() for name in ("metrics.jsonl", ROLLOUTS)) or (
        checkpoints.is_dir() and any(checkpoints.iterdir())
    )


def differences(first: JSON, second: JSON, *, name: str = "") -> list[tuple[str, str, str]]:
    """The fields in which two configurations differ: dotted name, value in each as JSON."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first, *(key for key in second if key not in first)]
        return [
            line
            for key in keys
            for line in differences(
                first.get(key, _ABSENT),
                second.get(key, _ABSENT),
                name=f"{name}.{key}" if name else key,
            )
        ]
    return [] if first == second else [(name, json.dumps(first), json.dumps(second))]
