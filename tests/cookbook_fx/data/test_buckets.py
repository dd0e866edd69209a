"""Sizes are few, never too small, and waste little."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.data import bucket, power_of_two

COUNTS = st.integers(0, 10**8)


@given(COUNTS)
def test_a_size_holds_what_is_asked_for_and_is_its_own_size(count: int) -> None:
    for size in (bucket, power_of_two):
        assert size(count) >= count
        assert size(size(count)) == size(count)


@given(COUNTS, COUNTS)
def test_more_is_never_put_in_less(one: int, other: int) -> None:
    for size in (bucket, power_of_two):
        assert (size(one) <= size(other)) or one > other


@given(st.integers(16, 10**8))
def test_a_bucket_is_at_most_a_quarter_too_large(count: int) -> None:
    assert bucket(count) < 1.25 * count + 1


def test_counts_of_ten_to_one_meet_twelve_sizes_with_an_eighth_to_spare() -> None:
    counts = np.geomspace(500, 5000, 2000).astype(int)
    sizes = [bucket(count) for count in counts]

    assert len(set(sizes)) <= 12
    assert np.mean(sizes / counts) < 1.14


def test_counts_may_be_numpy_s() -> None:
    assert [size(np.int64(17)) for size in (bucket, power_of_two)] == [20, 32]
