"""`rollouts.jsonl` and `batches.jsonl`: every episode of a run, and what was made of it.

A group's episodes are written when they are done, and so before they are trained on: a run that is
killed finds them there when it continues.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from cookbook_fx.errors import DataError
from cookbook_fx.rl.records import (
    BatchRecord,
    RecordedGroup,
    RolloutRecord,
    batch_from_json,
    batch_to_json,
    groups_of,
    record_from_json,
    record_to_json,
)
from shell.stores.lines import Line, append_lines, keep_lines, parsed, read_lines


class RolloutHead(NamedTuple):
    """What each line of `rollouts.jsonl` begins with; fields as of `RolloutRecord`."""

    step: int
    group: int
    member: int
    group_size: int
    sampler_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutsFile:
    """The episodes of a run, an episode a line, a group's together.

    Reading holds one group at a time, and passes over other steps without taking them apart. A last
    group that a crash left incomplete is not there.
    """

    path: Path

    def append(self, records: Iterable[RolloutRecord]) -> None:
        """Adds the records of one group, on the disk all together before this returns.

        Args:
            records: as `group_records` makes them. Several threads may add groups at once.

        Raises:
            DataError: a record cannot be written as JSON; nothing is.
            StorageError: the disk is full or the file cannot be written; it is as it was.
        """
        append_lines(self.path, map(record_to_json, records), what="the rollouts")

    def records(
        self, *, step: int | None = None, steps: Container[int] | None = None
    ) -> Iterator[RolloutRecord]:
        """The records in the order of writing, of one step, of some or of all.

        Raises:
            DataError: the file is damaged elsewhere than at its end; says in which line.
        """
        wanted = steps if step is None else (step,)
        for lines in self._groups():
            if wanted is None or _head(lines[0]).step in wanted:
                for line in lines:
                    yield parsed(self.path, line, record_from_json)

    def groups(
        self, *, step: int | None = None, steps: Container[int] | None = None
    ) -> Iterator[RecordedGroup]:
        """The groups in the order of writing, of one step, of some or of all.

        Raises:
            DataError: as `records`.
        """
        return groups_of(self.records(step=step, steps=steps))

    def steps(self) -> tuple[int, ...]:
        """The steps that groups were recorded for, in ascending order.

        Raises:
            DataError: as `records`.
        """
        return tuple(sorted({_head(lines[0]).step for lines in self._groups()}))

    def keep(self, predicate: Callable[[RolloutHead], bool]) -> None:
        """Drops the groups whose head `predicate` refuses and a torn end, atomically.

        Raises:
            DataError: as `records`.
            StorageError: the file cannot be replaced; it is unchanged.
        """

        def kept() -> Iterator[Line]:
            for lines in self._groups():
                if predicate(_head(lines[0])):
                    yield from lines

        keep_lines(self.path, kept, what="the rollouts")

    def _groups(self) -> Iterator[Sequence[Line]]:
        """The lines of each whole group."""
        torn: list[Line] = []
        lines = read_lines(self.path, RolloutHead._fields)
        for _, found in groupby(lines, key=lambda line: line.head[:2]):
            if torn:
                head = _head(torn[0])
                raise DataError(
                    f"{self.path}, line {torn[0].number}: expected {max(1, head.group_size)} "
                    f"lines of group {head.group} of step {head.step}, one for each member from "
                    f"0 on, got {len(torn)}; repair or remove them"
                )
            of_group = list(found)
            if _is_whole(of_group):
                yield of_group
            else:
                torn = of_group


def _head(line: Line) -> RolloutHead:
    return RolloutHead(*line.head)


def _is_whole(lines: Sequence[Line]) -> bool:
    members = [_head(line).member for line in lines]
    return members == list(range(max(1, _head(lines[0]).group_size)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchesFile:
    """What was sent to be learned from, a line a forward and backward pass, in order."""

    path: Path

    def append(self, record: BatchRecord) -> None:
        """Adds a batch, on the disk before this returns.

        Raises:
            DataError: the objective cannot be written as JSON.
            StorageError: the disk is full or the file cannot be written; it is as it was.
        """
        append_lines(self.path, [batch_to_json(record)], what="the batches")

    def batches(self, *, step: int | None = None) -> Iterator[BatchRecord]:
        """The batches in the order of sending, of one step or of all; a torn last line is left out.

        Raises:
            DataError: the file is damaged elsewhere than at its end; says in which line.
        """
        for line in self._lines():
            if step is None or line.head[0] == step:
                yield parsed(self.path, line, batch_from_json)

    def keep_before(self, step: int) -> None:
        """Drops the batches at and after `step` and a torn last line, atomically.

        Raises:
            DataError: as `batches`.
            StorageError: the file cannot be replaced; it is unchanged.
        """
        keep_lines(
            self.path,
            lambda: (line for line in self._lines() if line.head[0] < step),
            what="the batches",
        )

    def _lines(self) -> Iterator[Line]:
        return read_lines(self.path, ("step", "substep", "minibatch"))
