"""The few sizes that ragged work is padded to: every new size costs a compilation.

What is large and costs time in proportion (tokens) grows by quarters, what is small next to it
(rows, groups, rollouts) by doubling.
"""

import numpy as np

SMALLEST = 16
"""Below this many, padding costs less than one more program would."""


def bucket(count: int | np.integer) -> int:
    """Rounds up to one of 16, 20, 25, 32, 40...: each a quarter larger than the one before.

    Counts spread over a range of ten to one meet at most twelve sizes, on average an eighth larger
    than asked for. 0 becomes 16, so that work of no size is still work.

    Args:
        count: how many are needed, at least 0.

    Example:
        >>> [bucket(count) for count in (0, 16, 17, 30, 1000)]
        [16, 16, 20, 32, 1162]
    """
    size = SMALLEST
    while size < count:
        size = -(-5 * size // 4)
    return size


def power_of_two(count: int | np.integer) -> int:
    """Rounds up to a power of two; 0 becomes 1.

    Example:
        >>> [power_of_two(count) for count in (0, 1, 3, 8)]
        [1, 1, 4, 8]
    """
    return 1 << max(int(count) - 1, 0).bit_length()
