"""Ragged sequences in, rows of a few sizes out.

A step's work is proportional to its padded size, and every new shape costs a compilation. So
sequences are laid end to end in rows (a segment number keeps them from seeing each other), and
rows come in few widths and few counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from cookbook_fx.data.buckets import power_of_two
from cookbook_fx.data.families import Family
from cookbook_fx.errors import DataError

MIN_WIDTH = 64
# Past this many tokens a training step gains no speed and only needs more memory.
MICRO_BATCH_TOKENS = 2048
# Attention grows with the width of a row: at this width it costs about as much as a third of the
# rest of a small model, which is what a wider, fuller row is weighed against.
_WIDTH_OF_DOUBLE_COST = 6144


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRows:
    """One micro-batch: which token stands where.

    A beginning that several sequences share stands there once, as a segment of its own before
    theirs; `source` knows it as that of the first of them.

    Args:
        source: index into the concatenation of *all* sequences of the call; -1 at padding.
        segments: a number per sequence, different within a row; -1 at padding.
        beginnings: the segment that a token's sequence begins with; its own where nothing is
            shared.
        positions: place within its own sequence; 0 at padding.
        copies: the indices of shared beginnings in the other sequences, and in the first.
    """

    source: Int[np.ndarray, "row token"]
    segments: Int[np.ndarray, "row token"]
    beginnings: Int[np.ndarray, "row token"]
    positions: Int[np.ndarray, "row token"]
    copies: tuple[Int[np.ndarray, " copy"], Int[np.ndarray, " copy"]]

    @property
    def real(self) -> np.ndarray:
        """True where a token stands."""
        return self.source >= 0

    def take(self, flat: Shaped[np.ndarray, "flat ..."], *, fill: float) -> np.ndarray:
        """Lays a concatenated column out in rows, `fill` at the padding."""
        values: np.ndarray = flat[self.source]
        values[~self.real] = fill
        return values

    def put(self, flat: Shaped[np.ndarray, "flat ..."], values: np.ndarray) -> None:
        """Writes rows back to every sequence they stand for; the padding is dropped."""
        flat[self.source[self.real]] = values[self.real]
        others, first = self.copies
        flat[others] = flat[first]


def pack(
    lengths: Sequence[int],
    *,
    families: Sequence[Family] | None = None,
    max_tokens: int = MICRO_BATCH_TOKENS,
    divisible_by: int = 1,
) -> tuple[PackedRows, ...]:
    """Distributes sequences over micro-batches of at most `max_tokens` padded tokens.

    Longest first, each in the first row with room (first-fit decreasing). A micro-batch is as wide
    as its longest sequence asks for, rounded up to a power of two, or up to four times that where
    it wastes less. Deterministic, and every token is placed exactly once.

    Args:
        lengths: tokens of each sequence, at least 1.
        families: those that share a beginning, each sequence in one; placed like one sequence.
            None is each alone.
        max_tokens: rows times width of a micro-batch; exceeded only by a single sequence that is
            longer than that, which gets a row of its own.
        divisible_by: of the number of rows; empty ones fill up.

    Raises:
        DataError: a sequence has no token.

    Example:
        >>> [rows.source.shape for rows in pack([60, 100, 30, 20])]
        [(2, 128)]
    """
    if len(lengths) and min(lengths) < 1:
        raise DataError(
            f"every sequence needs at least one token, sequence {int(np.argmin(lengths))} has none"
        )
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if families is None:
        families = [Family((i,), 0) for i in range(len(lengths))]
    sizes = [family.size(lengths) for family in families]
    remaining = sorted(range(len(families)), key=lambda i: -sizes[i])
    batches = []
    while remaining:
        rows, width = _fill(remaining, sizes, max_tokens)
        members = [[families[i] for i in row] for row in rows]
        batches.append(_lay_out(_filled_up(members, divisible_by), width, starts))
        placed = {i for row in rows for i in row}
        remaining = [i for i in remaining if i not in placed]
    return tuple(batches)


def each_alone(
    lengths: Sequence[int],
    *,
    min_tokens: int = 1,
    max_tokens: int = MICRO_BATCH_TOKENS,
    divisible_by: int = 1,
) -> tuple[PackedRows, ...]:
    """Micro-batches in which every sequence has a row of its own, as wide as its own length asks.

    For results whose last bits are to depend on nothing but the sequence: `pack` puts it where the
    others leave room.

    Args:
        lengths: tokens of each sequence, at least 1.
        min_tokens: smaller micro-batches are filled up with empty rows.
        max_tokens: as for `pack`.
        divisible_by: as for `pack`.

    Example:
        >>> [rows.source.shape for rows in each_alone([60, 100, 30, 20])]
        [(3, 64), (1, 128)]
    """
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    by_width: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        by_width.setdefault(max(MIN_WIDTH, power_of_two(length)), []).append(i)
    batches = []
    for width, members in sorted(by_width.items()):
        at_once = max(1, max_tokens // width)
        for first in range(0, len(members), at_once):
            rows = [[Family((i,), 0)] for i in members[first : first + at_once]]
            empty: list[list[Family]] = [[]] * (-(-min_tokens // width) - len(rows))
            batches.append(_lay_out(_filled_up(rows + empty, divisible_by), width, starts))
    return tuple(batches)


def _fill(order: list[int], lengths: Sequence[int], max_tokens: int) -> tuple[list[list[int]], int]:
    """The cheapest way to fill one micro-batch from the front of `order`, per token placed."""
    narrowest = max(MIN_WIDTH, power_of_two(lengths[order[0]]))
    candidates = []
    for width in (narrowest, 2 * narrowest, 4 * narrowest):
        if width > max(narrowest, max_tokens):
            break
        rows = _first_fit(order, lengths, width=width, max_rows=max(1, max_tokens // width))
        placed = sum(lengths[i] for row in rows for i in row)
        padded = row_count(len(rows)) * width
        candidates.append((padded * (1 + width / _WIDTH_OF_DOUBLE_COST) / placed, width, rows))
    _, width, rows = min(candidates, key=lambda candidate: candidate[:2])
    return rows, width


def _first_fit(
    order: list[int], lengths: Sequence[int], *, width: int, max_rows: int
) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        row = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if row is None:
            if len(rows) == max_rows:
                continue
            row = len(rows)
            rows.append([])
            room.append(width)
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def _filled_up(rows: list[list[Family]], divisible_by: int) -> list[list[Family]]:
    count = row_count(len(rows))
    return rows + [[]] * (-(-count // divisible_by) * divisible_by - len(rows))


def _lay_out(rows: list[list[Family]], width: int, starts: np.ndarray) -> PackedRows:
    shape = (len(rows), width)
    source, segments = np.full(shape, -1, np.int64), np.full(shape, -1, np.int32)
    beginnings, positions = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    others, first = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for row, families in enumerate(rows):
        at = segment = 0
        for family in families:
            beginning = segment
            for start, end, skip in _parts(family, starts):
                here = slice(at, at + end - start - skip)
                source[row, here] = np.arange(start + skip, end)
                positions[row, here] = np.arange(skip, end - start)
                segments[row, here], beginnings[row, here] = segment, beginning
                at, segment = here.stop, segment + 1
            for member in family.members[1:]:
                others.append(starts[member] + np.arange(family.shared))
                first.append(starts[family.members[0]] + np.arange(family.shared))
    copies = np.concatenate(others), np.concatenate(first)
    return PackedRows(
        source=source,
        segments=segments,
        beginnings=beginnings,
        positions=positions,
        copies=copies,
    )


def _parts(family: Family, starts: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Where each segment begins and ends, and how many of its first tokens stand elsewhere."""
    if family.shared:
        first = int(starts[family.members[0]])
        yield first, first + family.shared, 0
    for member in family.members:
        yield int(starts[member]), int(starts[member + 1]), family.shared


def row_count(n: int) -> int:
    """Rounds a number of rows up to one of 1, 2, 3, 4, 6, 8, 12, 16, 24...

    Example:
        >>> [row_count(n) for n in (1, 3, 5, 8, 9, 13)]
        [1, 3, 6, 8, 12, 16]
    """
    power = power_of_two(n)
    return 3 * power // 4 if power >= 4 and n <= 3 * power // 4 else power
