"""Every token is placed once, no row overflows, and shapes stay few."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.data import pack, row_count
from cookbook_fx.errors import DataError

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=60)


@given(LENGTHS)
def test_every_token_stands_exactly_once(lengths: list[int]) -> None:
    source = np.concatenate([rows.source[rows.real] for rows in pack(lengths)])

    assert np.array_equal(np.sort(source), np.arange(sum(lengths)))


@given(LENGTHS)
def test_sequences_stay_whole_and_in_order(lengths: list[int]) -> None:
    starts = np.cumsum([0, *lengths])
    for rows in pack(lengths):
        for source, segments, positions in zip(
            rows.source, rows.segments, rows.positions, strict=True
        ):
            for segment in np.unique(segments[segments >= 0]):
                here = np.flatnonzero(segments == segment)
                sequence = np.searchsorted(starts, source[here[0]], side="right") - 1
                assert np.array_equal(here, np.arange(here[0], here[0] + lengths[sequence]))
                assert np.array_equal(positions[here], np.arange(lengths[sequence]))
                assert np.array_equal(source[here], starts[sequence] + positions[here])


@given(LENGTHS)
def test_a_micro_batch_holds_no_more_than_asked_for(lengths: list[int]) -> None:
    for rows in pack(lengths, max_tokens=1024):
        assert rows.source.size <= 1024 or rows.source.shape[0] == 1
        assert rows.real.any()


@given(LENGTHS)
def test_what_is_taken_is_put_back(lengths: list[int]) -> None:
    column = np.arange(sum(lengths) * 2, dtype=np.float32).reshape(-1, 2)
    back = np.zeros_like(column)
    for rows in pack(lengths):
        taken = rows.take(column, fill=-1.0)
        assert (taken[~rows.real] == -1).all()
        rows.put(back, taken)

    assert np.array_equal(back, column)


def test_a_varied_run_has_few_shapes() -> None:
    rng = np.random.default_rng(0)
    shapes = {
        rows.source.shape
        for _ in range(200)
        for rows in pack(rng.integers(20, 400, rng.integers(8, 32)).tolist())
    }

    assert len(shapes) <= 24


def test_short_conversations_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(40, 200, 64)
    batches = pack(lengths.tolist())

    assert lengths.sum() / sum(rows.source.size for rows in batches) > 0.85


def test_equal_lengths_of_a_bucket_are_not_padded_at_all() -> None:
    assert [rows.source.shape for rows in pack([128] * 8)] == [(8, 128)]


@given(st.integers(1, 10_000))
def test_row_counts_waste_at_most_a_third(rows: int) -> None:
    assert rows <= row_count(rows) <= max(rows * 3 / 2, 1)


def test_an_empty_sequence_is_refused_by_its_number() -> None:
    with pytest.raises(DataError, match="sequence 1 has none"):
        pack([3, 0])
