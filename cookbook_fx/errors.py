"""Every exception the library raises on purpose, by whose fault it is.

    CookbookError
    ├── ConfigurationError   the caller asked for something impossible (also a ValueError)
    ├── DataError            a file or record cannot be used as it is (also a ValueError)
    ├── ModelError           a model cannot be loaded or lacks what is needed (also a ValueError)
    ├── ServiceError         an engine failed or could not be reached (also a RuntimeError)
    └── StorageError         a file of ours could not be written or read (also an OSError)

A message says what was wanted, what came, and what to do.
"""


class CookbookError(Exception):
    """Root of all errors raised on purpose; catch it to catch them all."""


class ConfigurationError(CookbookError, ValueError):
    """An argument, option or combination of them that cannot work."""


class DataError(CookbookError, ValueError):
    """Data from outside that is torn, malformed or has nothing to train on."""


class ModelError(CookbookError, ValueError):
    """A model directory, file or name that cannot be used."""


class ServiceError(CookbookError, RuntimeError):
    """The engine refused, failed or could not be reached."""


class StorageError(CookbookError, OSError):
    """A disk that is full, a file that cannot be written, a folder that cannot be made."""
