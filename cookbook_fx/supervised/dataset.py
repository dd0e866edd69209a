"""Batches as a function of the epoch's seed and the batch's index, and of nothing else."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SupervisedDataset:
    """Datums in batches of `batch_size`, shuffled anew by each epoch's seed.

    Every datum is in one batch of every epoch: where the size does not divide their number, the
    last batch of the epoch is short.

    Args:
        datums: rendered examples, as from `prepare_conversations`; they are small beside a model,
            and rendering once costs less than once an epoch.
        batch_size: datums in a batch.

    Raises:
        DataError: there are no datums.
        ConfigurationError: `batch_size` is below 1.

    Example:
        >>> import numpy as np
        >>> ids = np.arange(4, dtype=np.int32)
        >>> datums = tuple(Datum(tokens=ids[i:], target_tokens=ids[i:]) for i in range(3))
        >>> dataset = SupervisedDataset(datums=datums, batch_size=2)
        >>> len(dataset), [datum.length for datum in dataset.get_batch(0, epoch_seed=None)]
        (2, [4, 3])
    """

    datums: tuple[Datum, ...]
    batch_size: int

    def __post_init__(self) -> None:
        if not self.datums:
            raise DataError("a data set needs at least one example to train on, got none")
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {self.batch_size}")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.datums) // self.batch_size)

    def get_batch(self, index: int, *, epoch_seed: int | None) -> tuple[Datum, ...]:
        """Batch `index` of the epoch, the same whenever and wherever it is asked for.

        Args:
            index: from 0 to `len(self) - 1`.
            epoch_seed: what the epoch's order follows from, at least 0; None keeps the data's own.

        Raises:
            ConfigurationError: there is no such batch.
        """
        if not 0 <= index < len(self):
            raise ConfigurationError(f"batches go from 0 to {len(self) - 1}, got {index}")
        begin = index * self.batch_size
        order = epoch_order(len(self.datums), epoch_seed)[begin : begin + self.batch_size]
        return tuple(self.datums[position] for position in order)


# Cached, because every batch of an epoch asks for the same order.
@lru_cache(maxsize=4)
def epoch_order(size: int, epoch_seed: int | None) -> Int[np.ndarray, " example"]:
    """The order of an epoch's examples: a permutation that follows from the seed.

    Args:
        size: how many examples there are.
        epoch_seed: at least 0; None keeps the data's own order.
    """
    in_order = np.arange(size)
    order = in_order if epoch_seed is None else np.random.default_rng(epoch_seed).permutation(size)
    # Whoever asks next is given the same array.
    order.setflags(write=False)
    return order
