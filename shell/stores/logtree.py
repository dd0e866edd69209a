"""A tree of what happened, written while it happens: as HTML to read and as JSON.

What is logged lands in the scope that is open where the task or thread was started, so that tasks
that go on at once do not mix. Where no tree is being written, everything here does nothing.

    with logtree.init_trace("A morning", path=Path("morning.html")):
        with logtree.scope_header("Breakfast"):
            logtree.log_text("There was tea.")
"""

import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from cookbook_fx.chat import Message
from cookbook_fx.reports.logtree import (
    Code,
    Details,
    Header,
    Html,
    Node,
    Scope,
    Table,
    Text,
    conversation,
    logtree_json,
    logtree_page,
)
from shell.stores.files import write_atomically

Function = TypeVar("Function", bound=Callable[..., Any])

# What is nested deeper stands in the scope above, under a heading of its own.
_DEEPEST = 64


class Tree:
    """A tree under way.

    Args:
        title: the page's.
    """

    def __init__(self, title: str) -> None:
        self._root = _Open(title, {}, is_folded=False, depth=0)
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")

    @contextmanager
    def active(self) -> Iterator[None]:
        """What is logged in the block goes into this tree; so does the error that ends it."""
        token = _here.set(self._root)
        try:
            yield
        except BaseException as error:
            self._root.children.append(_of_error(error))
            raise
        finally:
            _here.reset(token)

    @property
    def scope(self) -> Scope:
        """What there is so far."""
        return self._root.frozen()

    def write(self, path: Path) -> None:
        """Writes what there is so far, as HTML and beside it as JSON, each whole or not at all.

        Args:
            path: of the page; the JSON's ends in .json.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        write_tree(self.scope, path, started_at=self._started_at)


def write_tree(tree: Scope, path: Path, *, started_at: str = "") -> None:
    """Writes a tree as HTML and beside it as JSON, each whole or not at all.

    Args:
        tree: its title is the page's.
        path: of the page; the JSON's ends in .json.
        started_at: when it was begun, in words.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    page = logtree_page(tree, started_at=started_at)
    # What is no Unicode text, as halves of characters, has no bytes.
    write_atomically(path, page.encode(errors="replace").decode(), what="the logtree")
    write_atomically(
        path.with_suffix(".json"), logtree_json(tree, started_at=started_at), what="the logtree"
    )


@contextmanager
def init_trace(
    title: str, path: Path | None = None, *, write_on_error: bool = True
) -> Iterator[Tree]:
    """Collects what is logged in the block, and writes it at its end.

    Args:
        title: the page's.
        path: of the page, and with the ending .json of the JSON; None writes nothing.
        write_on_error: write also where an error ends the block, with its traceback.

    Raises:
        StorageError: it cannot be written.
    """
    tree = Tree(title)
    try:
        with tree.active():
            yield tree
    except BaseException:
        if path is not None and write_on_error:
            tree.write(path)
        raise
    if path is not None:
        tree.write(path)


def is_active() -> bool:
    """Whether what is logged here goes anywhere; ask before making what is costly to make."""
    return _here.get() is not None


@contextmanager
def scope_header(title: str, **attributes: Any) -> Iterator[None]:
    """What is logged in the block stands under a heading.

    Args:
        title: the heading.
        attributes: beside it, as names and values.
    """
    with _scope(title, attributes, is_folded=False):
        yield


@contextmanager
def scope_details(summary: str, **attributes: Any) -> Iterator[None]:
    """What is logged in the block is folded away under a summary."""
    with _scope(summary, attributes, is_folded=True):
        yield


@contextmanager
def scope_disable() -> Iterator[None]:
    """What is logged in the block goes nowhere."""
    token = _here.set(None)
    try:
        yield
    finally:
        _here.reset(token)


def scope_header_decorator(title: str | None = None) -> Callable[[Function], Function]:
    """Puts what a function logs, awaited or not, under a heading: the title, or its name."""

    def decorate(function: Function) -> Function:
        heading = title if title is not None else function.__name__

        @functools.wraps(function)
        async def awaited(*arguments: Any, **keywords: Any) -> Any:
            with scope_header(heading):
                return await function(*arguments, **keywords)

        @functools.wraps(function)
        def called(*arguments: Any, **keywords: Any) -> Any:
            with scope_header(heading):
                return function(*arguments, **keywords)

        return awaited if inspect.iscoroutinefunction(function) else called  # type: ignore[return-value]

    return decorate


def log(node: Node) -> None:
    """Adds any node of `cookbook_fx.reports.logtree`, made beforehand."""
    here = _here.get()
    if here is not None:
        here.children.append(node)


def log_text(text: str) -> None:
    """Adds text; no character of it is markup."""
    log(Text(text=text))


def header(text: str) -> None:
    """Adds a heading; `scope_header` makes one with what belongs to it."""
    log(Header(text=text))


def log_html(markup: Markup) -> None:
    """Adds markup that is to be trusted.

    Raises:
        DataError: it is a plain string and not `markupsafe.Markup`.
    """
    log(Html(markup=markup))


def log_code(text: str, *, language: str = "text") -> None:
    """Adds program text, in the colors of a language that Pygments knows."""
    log(Code(text=text, language=language))


def details(text: str, *, summary: str = "Details") -> None:
    """Adds text that is folded away."""
    log(Details(summary=summary, text=text))


def log_conversation(messages: Iterable[Message]) -> None:
    """Adds messages, one below the other."""
    if is_active():
        log(conversation(messages))


def table(
    rows: Sequence[Mapping[str, Any] | Sequence[Any]],
    *,
    columns: Sequence[str] = (),
    caption: str = "",
) -> None:
    """Adds a table.

    Args:
        rows: values by their columns' names, or in the order of the columns.
        columns: their names; of rows by name, None given, those that they have.
        caption: above it.

    Raises:
        DataError: a row has more or fewer values than there are columns.
    """
    if not is_active():
        return
    names = dict.fromkeys(columns)
    if not columns:
        names = dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row)
    values = tuple(
        tuple(row.get(name, "") for name in names) if isinstance(row, Mapping) else tuple(row)
        for row in rows
    )
    log(Table(columns=tuple(map(str, names)), rows=values, caption=caption))


def table_from_dict(values: Mapping[str, Any], *, caption: str = "") -> None:
    """Adds a table of names and values."""
    log(Table(columns=(), rows=tuple(values.items()), caption=caption))


class _Open:
    """A scope that is written to. It outlives its block, as tasks begun in it may."""

    __slots__ = ("_attributes", "_is_folded", "_title", "children", "depth")

    def __init__(
        self, title: str, attributes: Mapping[str, Any], *, is_folded: bool, depth: int
    ) -> None:
        self._title = title
        self._attributes = attributes
        self._is_folded = is_folded
        self.depth = depth
        self.children: list[Node | _Open] = []

    def frozen(self) -> Scope:
        """As it is now."""
        return Scope(
            title=self._title,
            attributes=self._attributes,
            is_folded=self._is_folded,
            children=tuple(
                child.frozen() if isinstance(child, _Open) else child for child in self.children
            ),
        )


_here: ContextVar[_Open | None] = ContextVar("logtree", default=None)


@contextmanager
def _scope(title: str, attributes: Mapping[str, Any], *, is_folded: bool) -> Iterator[None]:
    here = _here.get()
    if here is None:
        yield
        return
    if here.depth >= _DEEPEST:
        here.children.append(Header(text=title))
        yield
        return
    inner = _Open(title, attributes, is_folded=is_folded, depth=here.depth + 1)
    here.children.append(inner)
    token = _here.set(inner)
    try:
        yield
    finally:
        _here.reset(token)


def _of_error(error: BaseException) -> Scope:
    return Scope(
        title=f"Ended by {type(error).__name__}",
        children=(Code(text="".join(traceback.format_exception(error)), language="pytb"),),
    )
