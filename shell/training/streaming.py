"""Batches of a data set too large to hold, read as they are needed."""

from collections.abc import Callable, Iterable, Iterator

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.supervised import Preparation, Prepared


class StreamedBatches:
    """The same batch for the same index and epoch seed, as a data set in memory would give.

    Going forward reads each batch once. Going back begins the epoch again, so a resumed run
    passes over what it has used and continues with the batches it would have had.

    Args:
        open_epoch: the batches of the epoch with a seed, from its beginning; as from
            `stream_batches` over `stream_conversations`.
        num_batches: batches in an epoch; a stream does not know its own length.

    Raises:
        ConfigurationError: `num_batches` is below 1.

    Example:
        >>> accounts = [Preparation(conversations=1), Preparation(conversations=2)]
        >>> epoch = [Prepared(datums=(), preparation=account) for account in accounts]
        >>> batches = StreamedBatches(lambda seed: epoch, num_batches=2)
        >>> len(batches), batches.get_batch(1, epoch_seed=0), batches.read.conversations
        (2, (), 3)
    """

    def __init__(
        self, open_epoch: Callable[[int], Iterable[Prepared]], *, num_batches: int
    ) -> None:
        if num_batches < 1:
            raise ConfigurationError(f"`num_batches` must be at least 1, got {num_batches}")
        self._open_epoch = open_epoch
        self._num_batches = num_batches
        self._epoch_seed: int | None = None
        self._batches: Iterator[Prepared] = iter(())
        self._next_index = 0
        self._read = Preparation()

    def __len__(self) -> int:
        return self._num_batches

    @property
    def read(self) -> Preparation:
        """What became of the conversations read since the epoch was opened."""
        return self._read

    def get_batch(self, index: int, *, epoch_seed: int) -> tuple[Datum, ...]:
        """One batch of the epoch with that seed.

        Raises:
            DataError: the stream ends before it, or a row of it is damaged.
            ConfigurationError: an epoch has no such batch.
        """
        if not 0 <= index < self._num_batches:
            raise ConfigurationError(
                f"an epoch has batches 0 to {self._num_batches - 1}, got {index}"
            )
        if epoch_seed != self._epoch_seed or index < self._next_index:
            self._batches = iter(self._open_epoch(epoch_seed))
            self._epoch_seed, self._next_index, self._read = epoch_seed, 0, Preparation()
        while True:
            prepared = next(self._batches, None)
            if prepared is None:
                raise DataError(
                    f"the stream ended after {self._next_index} batches, but {self._num_batches} "
                    "were announced; lower `num_batches`"
                )
            self._read += prepared.preparation
            self._next_index += 1
            if self._next_index > index:
                return prepared.datums
