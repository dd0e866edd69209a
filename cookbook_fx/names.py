"""Things by name: from a table, or imported from where their owner keeps them.

A name with a colon, `package.module:function`, says where a thing is. It is plain text, so it can
be written into a config and handed to another process, where it means the same.
"""

import importlib
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from cookbook_fx.errors import ConfigurationError

T = TypeVar("T")

_PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_place(name: str) -> bool:
    """Whether a name says where a thing is imported from.

    Example:
        >>> is_place("mine.formats:shouting"), is_place("Qwen/Qwen3-8B:peft")
        (True, False)
    """
    return _PLACE.fullmatch(name) is not None


def imported(place: str, *, what: str) -> Any:
    """What stands at `package.module:function`.

    Args:
        place: where it is, as Python imports it.
        what: what it is, for an error: "a renderer".

    Raises:
        ConfigurationError: there is no such module, nothing of that name in it, or it cannot be
            called.
    """
    module_name, _, attribute = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there and lacks something else is its owner's to mend.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(
            f"{what} should be at {place}, but there is no module {error.name}; install it, or put "
            "the folder it is in on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ConfigurationError(
            f"{what} should be at {place}, but {module_name} has no function {attribute}"
        )
    return found


def named(name: str, table: Mapping[str, T], *, what: str) -> T:
    """What a name stands for.

    Args:
        name: one of the table's, or `package.module:function`.
        table: things by name.
        what: one of them, for an error: "a renderer".

    Raises:
        ConfigurationError: it stands for nothing; with the names there are, near ones first.
    """
    if name in table:
        return table[name]
    if is_place(name):
        # Whoever wrote the name vouches for the kind.
        found: T = imported(name, what=what)
        return found
    near = get_close_matches(name, table)
    advice = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigurationError(
        f"{what} must be one of {', '.join(sorted(table))}, or package.module:function; "
        f"got {name!r}{advice}"
    )


def added(table: Mapping[str, T], name: str, value: T, *, what: str) -> dict[str, T]:
    """A table with one more name in it; the one given stays as it is.

    Raises:
        ConfigurationError: the name is taken, or says where a thing is.
    """
    if name in table or ":" in name or not name:
        reason = "is taken" if name in table else "has a colon" if name else "is empty"
        raise ConfigurationError(f"{what} needs a name of its own, and {name!r} {reason}")
    return {**table, name: value}
