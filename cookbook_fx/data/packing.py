"""Ragged sequences in, rows of a few sizes out.

A step's work is proportional to its padded size, and every new shape costs a compilation. So
sequences are laid end to end in rows (a segment number keeps them from seeing each other), and
rows come in few widths and few counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from cookbook_fx.data.buckets import power_of_two
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

    Args:
        source: index into the concatenation of *all* sequences of the call; -1 at padding.
        segments: a number per sequence, different within a row; -1 at padding.
        positions: place within its own sequence; 0 at padding.
    """

    source: Int[np.ndarray, "row token"]
    segments: Int[np.ndarray, "row token"]
    positions: Int[np.ndarray, "row token"]

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
        """Writes rows back to where `take` found them; the padding is dropped."""
        flat[self.source[self.real]] = values[self.real]


def pack(lengths: Sequence[int], *, max_tokens: int = MICRO_BATCH_TOKENS) -> tuple[PackedRows, ...]:
    """Distributes sequences over micro-batches of at most `max_tokens` padded tokens.

    Longest first, each in the first row with room (first-fit decreasing). A micro-batch is as wide
    as its longest sequence asks for, rounded up to a power of two, or up to four times that where
    it wastes less. Deterministic, and every token is placed exactly once.

    Args:
        lengths: tokens of each sequence, at least 1.
        max_tokens: rows times width of a micro-batch; exceeded only by a single sequence that is
            longer than that, which gets a row of its own.

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
    remaining = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    while remaining:
        rows, width = _fill(remaining, lengths, max_tokens)
        batches.append(_lay_out(rows, width, lengths, starts))
        placed = {i for row in rows for i in row}
        remaining = [i for i in remaining if i not in placed]
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


def _lay_out(
    rows: list[list[int]], width: int, lengths: Sequence[int], starts: np.ndarray
) -> PackedRows:
    shape = (row_count(len(rows)), width)
    source, segments = np.full(shape, -1, np.int64), np.full(shape, -1, np.int32)
    positions = np.zeros(shape, np.int32)
    for row, members in enumerate(rows):
        at = 0
        for segment, i in enumerate(members):
            here = slice(at, at + lengths[i])
            source[row, here] = np.arange(starts[i], starts[i + 1])
            segments[row, here] = segment
            positions[row, here] = np.arange(lengths[i])
            at += lengths[i]
    return PackedRows(source=source, segments=segments, positions=positions)


def row_count(n: int) -> int:
    """Rounds a number of rows up to one of 1, 2, 3, 4, 6, 8, 12, 16, 24...

    Example:
        >>> [row_count(n) for n in (1, 3, 5, 8, 9, 13)]
        [1, 3, 6, 8, 12, 16]
    """
    power = power_of_two(n)
    return 3 * power // 4 if power >= 4 and n <= 3 * power // 4 else power
