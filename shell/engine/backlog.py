"""What one key's clients wait for: how much it is, and how much it may be."""

from cookbook_fx.errors import ServiceError

# What an operation takes besides its content.
_BYTES_PER_OPERATION = 4096


class Busy(ServiceError):
    """More is waiting than the engine is willing to hold; ask again later."""


class Backlog:
    """Counts what is promised and not done; used from the event loop only.

    Args:
        max_samples: most samples that may wait.
        max_bytes: most that training operations may take up while they wait. One may always.
    """

    def __init__(self, *, max_samples: int, max_bytes: int) -> None:
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._samples = 0
        self._bytes = 0

    def add_samples(self, count: int) -> None:
        """Lets so many more samples wait.

        Raises:
            Busy: they have to come again later.
        """
        if self._samples + count > self._max_samples:
            raise Busy(
                f"{self._samples} samples are waiting already and at most {self._max_samples} may; "
                "ask again later"
            )
        self._samples += count

    def remove_samples(self, count: int) -> None:
        """So many samples wait no longer."""
        self._samples -= count

    def add_operation(self, size_bytes: int, *, awaited: bool = False) -> None:
        """Lets another training operation wait.

        Args:
            size_bytes: of its content.
            awaited: others that wait can only run after it, so there is room for it.

        Raises:
            Busy: it has to come again later.
        """
        size = size_bytes + _BYTES_PER_OPERATION
        if self._bytes and not awaited and self._bytes + size > self._max_bytes:
            raise Busy(
                f"{self._bytes} bytes of training operations are waiting already and at most "
                f"{self._max_bytes} may; ask again later"
            )
        self._bytes += size

    def remove_operation(self, size_bytes: int) -> None:
        """A training operation waits no longer."""
        self._bytes -= size_bytes + _BYTES_PER_OPERATION
