"""Who is compared with whom, and what that makes of each."""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.errors import ConfigurationError, DataError


class TournamentPattern(StrEnum):
    """Which of the pairs in a chunk are compared.

    Fields:
        ALL_PAIRS_BOTH_WAYS: each pair twice, either member first once.
        ALL_PAIRS_ONE_WAY: each pair once, the earlier member first.
    """

    ALL_PAIRS_BOTH_WAYS = "all_pairs_both_ways"
    ALL_PAIRS_ONE_WAY = "all_pairs_one_way"


class Match(NamedTuple):
    """Two players, A and B of a comparison."""

    first: int
    second: int


def matchups(
    num_players: int,
    pattern: TournamentPattern = TournamentPattern.ALL_PAIRS_BOTH_WAYS,
    *,
    chunk_size: int = 4,
) -> tuple[Match, ...]:
    """The matches of a tournament: everyone against everyone of a chunk.

    Chunks keep the number of matches in proportion to that of players. A player left over joins the
    chunk before, so that everyone has a match where there are two players at all.

    Args:
        num_players: any number.
        pattern: which pairs meet.
        chunk_size: players of a chunk, at least 2.

    Raises:
        ConfigurationError: a chunk of fewer than two has no match.

    Example:
        >>> once = TournamentPattern.ALL_PAIRS_ONE_WAY
        >>> [tuple(match) for match in matchups(5, once, chunk_size=2)]
        [(0, 1), (2, 3), (2, 4), (3, 4)]
    """
    if chunk_size < 2:
        raise ConfigurationError(f"`chunk_size` must be at least 2 players, got {chunk_size}")
    # At least one chunk, and none that would begin with the last player.
    begins = [0, *range(chunk_size, num_players - 1, chunk_size)]
    chunks = [range(*ends) for ends in zip(begins, [*begins[1:], num_players], strict=True)]
    both_ways = TournamentPattern(pattern) == TournamentPattern.ALL_PAIRS_BOTH_WAYS
    return tuple(
        Match(first, second)
        for chunk in chunks
        for first in chunk
        for second in chunk
        if first < second or (both_ways and first > second)
    )


def win_minus_loss(
    num_players: int, matches: Sequence[Match], scores: Sequence[float | int]
) -> Float[np.ndarray, " player"]:
    """What each player won less what it lost, on average over its matches: from -1 to 1.

    Args:
        num_players: of the tournament.
        matches: as from `matchups`.
        scores: for each match -1 where the first is better, 1 where the second is, or in between.

    Returns:
        A value a player; 0 without a match.

    Raises:
        DataError: there is not one score for each match, or one is not between -1 and 1.

    Example:
        >>> win_minus_loss(3, [Match(0, 1), Match(1, 2)], [-1, 0.5]).tolist()
        [1.0, -0.75, 0.5]
    """
    given = np.asarray(scores, np.float64)
    if given.shape != (len(matches),):
        raise DataError(f"each of {len(matches)} matches needs a score, got shape {given.shape}")
    wrong = ~(np.abs(given) <= 1)
    if wrong.any():
        raise DataError(
            "a comparison's score must be from -1, where A is better, to 1, where B is; got "
            f"{given[wrong][0]}"
        )
    players: Int[np.ndarray, "match 2"] = np.array(matches, np.int64).reshape(-1, 2)
    total = np.bincount(players[:, 1], weights=given, minlength=num_players)
    total -= np.bincount(players[:, 0], weights=given, minlength=num_players)
    counts = np.bincount(players.ravel(), minlength=num_players)
    averages: np.ndarray = total / np.maximum(counts, 1)
    return averages
