"""Seeds for the parts of a run."""

import numpy as np


def derived_seed(*numbers: int) -> int:
    """A seed that follows from `numbers` and is unrelated to that of others.

    Zeros at the end do not count: what is told apart by it should have as many numbers each.

    Args:
        numbers: a run's seed and what tells a part of it from the others, none negative.

    Returns:
        From 0 to 2^31 - 1, which every engine takes.

    Raises:
        ValueError: a number is negative.

    Example:
        >>> derived_seed(0, 3) == derived_seed(0, 3), derived_seed(0, 3) == derived_seed(3, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)
