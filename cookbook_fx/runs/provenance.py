"""What a run was started with: the code of whoever started it, and the versions it ran on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cookbook_fx.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeState:
    """The repository that a run was started in.

    Args:
        commit: checked out; None where there is none yet.
        branch: checked out; None where a commit is.
        changes: the paths that differ from the commit, each behind git's two letters.
        diff: the file, in the run folder, with what they differ in; None where nothing does.
        left_out: why some of it is not in that file, in words; "" where all is.
        unknown: why nothing is known, in words; "" where it is.
    """

    commit: str | None = None
    branch: str | None = None
    changes: tuple[str, ...] = ()
    diff: str | None = None
    left_out: str = ""
    unknown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """A start of a run, which is its first or continues it.

    Args:
        at: when, as ISO 8601 writes it.
        command: what was called, word by word.
        directory: in which.
        python: the version.
        platform: the operating system and the processor, in words.
        packages: the version of each installed package.
        code: the repository there.
    """

    at: str
    command: tuple[str, ...] = ()
    directory: str = ""
    python: str = ""
    platform: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    code: CodeState = field(default_factory=CodeState)


def start_to_json(start: RunStart) -> dict[str, Any]:
    """A start as values that JSON has."""
    return asdict(start)


def start_from_json(value: Any) -> RunStart:
    """The start that `start_to_json` wrote.

    Raises:
        DataError: the value is no such record; says what it lacks.

    Example:
        >>> start = RunStart(at="2026-01-01T12:00:00+00:00", code=CodeState(changes=(" M a.py",)))
        >>> start_from_json(start_to_json(start)) == start
        True
    """
    try:
        code = value["code"]
        return RunStart(
            at=str(value["at"]),
            command=tuple(map(str, value["command"])),
            directory=str(value["directory"]),
            python=str(value["python"]),
            platform=str(value["platform"]),
            packages={str(name): str(version) for name, version in value["packages"].items()},
            code=CodeState(
                commit=_text_or_none(code["commit"]),
                branch=_text_or_none(code["branch"]),
                changes=tuple(map(str, code["changes"])),
                diff=_text_or_none(code["diff"]),
                left_out=str(code["left_out"]),
                unknown=str(code["unknown"]),
            ),
        )
    except KeyError as error:
        raise DataError(f"a record of a run's start needs {error}") from error
    except (TypeError, AttributeError) as error:
        raise DataError(f"a record of a run's start cannot be read: {error}") from error


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)
