"""Tournaments: everyone has a match, and what is won is lost by another."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.preference import TournamentPattern, matchups, win_minus_loss

PATTERNS = st.sampled_from(list(TournamentPattern))


@given(st.integers(0, 30), PATTERNS, st.integers(2, 9))
def test_everyone_meets_all_of_a_chunk_and_nobody_is_left_over(players, pattern, size):
    matches = matchups(players, pattern, chunk_size=size)
    both_ways = pattern == TournamentPattern.ALL_PAIRS_BOTH_WAYS
    assert len(set(matches)) == len(matches)
    met = Counter(player for match in matches for player in match)
    if players >= 2:
        assert set(met) == set(range(players))
    else:
        assert not matches
    for match in matches:
        assert match.first != match.second
        assert both_ways == (tuple(reversed(match)) in matches)
        assert both_ways or match.first < match.second
        # One chunk, or the last chunk and the one player that joined it.
        same_chunk = match.first // size == match.second // size
        assert same_chunk or max(match) == players - 1 == max(match) // size * size
    opponents = [count // (2 if both_ways else 1) for count in met.values()]
    assert all(1 <= count <= size for count in opponents)


def test_a_lone_tail_member_is_compared():
    matches = matchups(5, TournamentPattern.ALL_PAIRS_ONE_WAY, chunk_size=4)
    assert [match for match in matches if 4 in match] == [(0, 4), (1, 4), (2, 4), (3, 4)]


@given(st.integers(2, 20), PATTERNS, st.integers(2, 6), st.randoms(use_true_random=False))
def test_what_one_wins_another_loses(players, pattern, size, random):
    matches = matchups(players, pattern, chunk_size=size)
    scores = [random.uniform(-1, 1) for _ in matches]
    found = win_minus_loss(players, matches, scores)
    counts = Counter(player for match in matches for player in match)
    assert np.abs(found).max() <= 1
    assert sum(found[player] * counts[player] for player in range(players)) == pytest.approx(0)
    expected = [
        sum(score * ((match.second == player) - (match.first == player))
            for match, score in zip(matches, scores, strict=True)) / counts[player]
        for player in range(players)
    ]  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_wrong_scores_and_sizes_are_refused():
    matches = matchups(2, TournamentPattern.ALL_PAIRS_ONE_WAY)
    with pytest.raises(DataError, match="1 matches needs a score"):
        win_minus_loss(2, matches, [0.0, 1.0])
    for wrong in (float("nan"), 1.5):
        with pytest.raises(DataError, match="from -1"):
            win_minus_loss(2, matches, [wrong])
    with pytest.raises(ConfigurationError, match="at least 2"):
        matchups(3, chunk_size=1)
