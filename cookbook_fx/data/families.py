"""Sequences that begin alike, so that what they share is computed once.

The answers of a group of rollouts begin with one prompt, and so do a chosen and a rejected answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# Below this, what is saved is less than what the narrower choice of rows costs.
_LEAST_SHARED = 8
# A family is laid in one row, and attention grows with the width of a row.
_FAMILY_TOKENS = 1024


class Family(NamedTuple):
    """Sequences that are laid out together.

    Fields:
        members: their numbers.
        shared: so many tokens at the beginning of each are the same and laid out once; 0 for a
            sequence alone.
    """

    members: tuple[int, ...]
    shared: int

    def size(self, lengths: Sequence[int]) -> int:
        """Tokens that it takes, of sequences of these lengths."""
        return self.shared + sum(lengths[i] - self.shared for i in self.members)


def find_families(
    beginnings: Sequence[Int[np.ndarray, "_ _"]], lengths: Sequence[int], *, max_tokens: int
) -> tuple[Family, ...]:
    """Divides sequences into families, each sequence in one.

    They are looked at in alphabetical order, where those with the longest common beginning are
    neighbours; one joins the family before it if that saves more tokens than it gives up.

    Args:
        beginnings: of each sequence the part that may be shared, a row for each token; all rows
            that are equal are the same token for every purpose.
        lengths: tokens of each whole sequence.
        max_tokens: upper limit of a family's size.

    Example:
        >>> a, b = np.arange(10)[:, None], np.arange(12)[:, None]
        >>> find_families([a, b, b + 1], [13, 13, 13], max_tokens=64)
        (Family(members=(0, 1), shared=10), Family(members=(2,), shared=0))
    """
    keys = [np.ascontiguousarray(part, ">i4").tobytes() for part in beginnings]
    found: list[list[int]] = []
    shared: list[int] = []
    for i in sorted(range(len(keys)), key=keys.__getitem__):
        common = _common(beginnings[found[-1][0]], beginnings[i], shared[-1]) if found else 0
        if found and _joins([*found[-1], i], common, shared[-1], lengths, max_tokens=max_tokens):
            found[-1].append(i)
            shared[-1] = common
        else:
            found.append([i])
            shared.append(len(beginnings[i]))
    return tuple(
        Family(tuple(members), count if len(members) > 1 else 0)
        for members, count in zip(found, shared, strict=True)
    )


def _joins(
    members: list[int], common: int, shared: int, lengths: Sequence[int], *, max_tokens: int
) -> bool:
    """Whether the last of `members` makes their family better."""
    saved, saved_before = (len(members) - 1) * common, (len(members) - 2) * shared
    cap = _FAMILY_TOKENS if 2 * common <= _FAMILY_TOKENS else max_tokens
    size = Family(tuple(members), common).size(lengths)
    return common >= _LEAST_SHARED and saved > saved_before and size <= min(cap, max_tokens)


def _common(first: np.ndarray, second: np.ndarray, limit: int) -> int:
    """How many rows at the beginning are equal, at most `limit`."""
    count = min(len(first), len(second), limit)
    differs = (first[:count] != second[:count]).any(axis=1)
    return int(differs.argmax()) if differs.any() else count
