"""What happened, told as a tree of headed parts: one HTML page that needs no other, or JSON.

Every text, heading, name and value is shown as text and can be no markup. What is to be markup says
so by its type, `markupsafe.Markup`.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound

from cookbook_fx.chat import ImagePart, Message, TextPart, ThinkingPart, message_to_dict
from cookbook_fx.errors import DataError
from cookbook_fx.reports.colorized import WEIGHTED_CSS, TokenIds, Weights, format_html, visible
from cookbook_fx.reports.logtree_page import LOGTREE_PAGE, LOGTREE_STYLE
from cookbook_fx.reports.page_style import STYLE
from cookbook_fx.tokens import Tokenizer

Scalar = bool | int | float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Running text; line breaks stay."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A heading that nothing stands under; a `Scope` is one with what belongs to it."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of values.

    Args:
        columns: their names; none for a table without a head.
        rows: a value for each column.
        caption: above it.

    Raises:
        DataError: a row has more or fewer values than there are columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if self.columns and len(row) != len(self.columns):
                raise DataError(
                    f"each row needs a value for each of {len(self.columns)} columns, got "
                    f"{len(row)} values"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Program text, in the colors of its language where that is known.

    Args:
        text: the program.
        language: a name that Pygments knows, such as "python" or "json"; any other shows it plain.
    """

    text: str
    language: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Html:
    """Markup as it is. Only what is of the type `Markup` is let in, never a plain string.

    Raises:
        DataError: a plain string.
    """

    # A string, so that any other than Markup meets the error below.
    markup: str

    def __post_init__(self) -> None:
        if not isinstance(self.markup, Markup):
            raise DataError(
                "HTML must be a markupsafe.Markup, which says that it is to be trusted; got a "
                f"{type(self.markup).__name__}, which is shown as text by log_text"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Colored:
    """Tokens, each colored by a number, as `format_html` colors them.

    Args:
        text: the decoded text.
        markup: the same in colors; made by `colored`.
        values: the number of each token.
        colored_by: what the numbers are, such as "weight".
    """

    text: str
    markup: Markup
    values: tuple[float, ...]
    colored_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one speaker says in a `Conversation`.

    Args:
        role: who speaks.
        content: what is said, part by part.
        note: below it.
    """

    role: str
    content: tuple["Text | Code | Colored | Details", ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns, one below the other."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Text that is folded away until it is asked for."""

    summary: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A headed part of the tree.

    Args:
        title: its heading; "" for none.
        attributes: beside the heading, as names and values.
        children: in order.
        is_folded: whether it is folded away until it is asked for.
    """

    title: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    children: tuple["Node", ...] = ()
    is_folded: bool = False


Node = Text | Header | Table | Code | Html | Colored | Conversation | Details | Scope


def colored(
    tokens: TokenIds,
    values: Weights,
    tokenizer: Tokenizer,
    *,
    colored_by: str,
    largest: float | None = None,
) -> Colored:
    """Tokens colored by a number each: green above 0, red below, yellow at 0.

    Args:
        tokens: token ids, `[token]`.
        values: a finite number for each, such as its weight or log-probability.
        tokenizer: the one the tokens were made with.
        colored_by: what the numbers are.
        largest: the number of the strongest color; None is the largest there is.

    Raises:
        DataError: not one finite number for each token, or an id the tokenizer does not know.
    """
    numbers: Float[np.ndarray, " token"] = np.asarray(values, np.float64)
    return Colored(
        text=tokenizer.decode([int(token) for token in tokens]),
        markup=Markup(format_html(tokens, numbers, tokenizer, largest=largest)),
        values=tuple(numbers.tolist()),
        colored_by=colored_by,
    )


def conversation(messages: Iterable[Message]) -> Conversation:
    """Messages as they are shown: reasoning folded away, calls of tools as JSON.

    Example:
        >>> conversation([Message(role="user", content="Hi")]).turns[0].content
        (Text(text='Hi'),)
    """
    return Conversation(turns=tuple(map(_turn, messages)))


def _turn(message: Message) -> Turn:
    content: list[Text | Code | Colored | Details] = []
    for part in message.parts:
        match part:
            case TextPart(text=text):
                content.append(Text(text=text))
            case ThinkingPart(thinking=thinking):
                content.append(Details(summary="reasoning", text=thinking))
            case ImagePart():
                content.append(Text(text="(an image)"))
    calls = message_to_dict(message)
    for name in ("tool_calls", "unparsed_tool_calls", "tools"):
        if calls.get(name):
            content.append(Code(text=json.dumps(calls[name], indent=2), language="json"))
    return Turn(role=message.role, content=tuple(content), note=message.name or "")


class _Event(NamedTuple):
    """What the template writes next: the beginning or end of a scope, or a node."""

    kind: str
    level: int
    node: Node


def logtree_page(tree: Scope, *, started_at: str = "") -> str:
    """The tree as one HTML page that needs no other and asks no network.

    Args:
        tree: its title is the page's.
        started_at: when it was begun, in words.
    """
    page: str = _TEMPLATE.render(
        tree=tree,
        started_at=started_at,
        style=Markup(STYLE + WEIGHTED_CSS + LOGTREE_STYLE + _CODE_CSS),
        events=_events(tree.children),
    )
    return page


def _events(nodes: Sequence[Node]) -> Iterator[_Event]:
    """The nodes in order; iterative, so that no depth is too much."""
    left: list[tuple[Scope | None, Iterator[Node]]] = [(None, iter(nodes))]
    while left:
        scope, rest = left[-1]
        node = next(rest, None)
        if node is None:
            left.pop()
            if scope is not None:
                yield _Event("end", len(left), scope)
        elif isinstance(node, Scope):
            yield _Event("begin", min(6, 1 + len(left)), node)
            left.append((node, iter(node.children)))
        else:
            yield _Event(_kind(node), len(left), node)


def logtree_json(tree: Scope, *, started_at: str = "") -> str:
    """The tree as JSON: `{"title", "started_at", "root"}`, each node with its `type`.

    Numbers that are none in JSON are null; what is no scalar is its text.
    """
    value = {"title": tree.title, "started_at": started_at, "root": _json(tree)}
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _json(node: Node | Turn) -> dict[str, Any]:
    match node:
        case Scope(title=title, attributes=attributes, children=children, is_folded=is_folded):
            return {
                "type": "scope",
                "title": title,
                "attributes": {str(name): _plain(value) for name, value in attributes.items()},
                "is_folded": is_folded,
                "children": [_json(child) for child in children],
            }
        case Text(text=text) | Header(text=text):
            return {"type": type(node).__name__.lower(), "text": text}
        case Table(columns=columns, rows=rows, caption=caption):
            return {
                "type": "table",
                "caption": caption,
                "columns": list(columns),
                "rows": [[_plain(value) for value in row] for row in rows],
            }
        case Code(text=text, language=language):
            return {"type": "code", "language": language, "text": text}
        case Html(markup=markup):
            return {"type": "html", "markup": str(markup)}
        case Colored(text=text, values=values, colored_by=colored_by):
            return {
                "type": "colored",
                "text": text,
                "colored_by": colored_by,
                "values": [_plain(value) for value in values],
            }
        case Details(summary=summary, text=text):
            return {"type": "details", "summary": summary, "text": text}
        case Conversation(turns=turns):
            return {"type": "conversation", "messages": [_json(turn) for turn in turns]}
        case Turn(role=role, content=content, note=note):
            return {"role": role, "content": [_json(part) for part in content], "note": note}


def _plain(value: Any) -> Scalar:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _kind(node: Node) -> str:
    return type(node).__name__


def _cell(value: Any) -> str:
    """A value as it stands in a table."""
    if isinstance(value, np.generic):
        value = value.item()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _highlighted(code: Code) -> Markup:
    """Program text in the colors of its language."""
    try:
        lexer = get_lexer_by_name(code.language, stripnl=False)
    except ClassNotFound:
        lexer = TextLexer(stripnl=False)
    return Markup(highlight(visible(code.text), lexer, HtmlFormatter(nowrap=True)))


def _code_css() -> str:
    light, dark = (
        HtmlFormatter(style=style).get_style_defs("pre.code")
        for style in ("default", "github-dark")
    )
    return (
        f"\n{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
        "pre.code { background: var(--card) }\n"
    )


_CODE_CSS = _code_css()
# Where a text becomes markup, it says so; all others are escaped.
_ENVIRONMENT = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
)
_ENVIRONMENT.filters |= {
    "cell": _cell,
    "highlighted": _highlighted,
    "kind": _kind,
    "visible": visible,
}
_ENVIRONMENT.tests["numeric"] = _is_number
_TEMPLATE = _ENVIRONMENT.from_string(LOGTREE_PAGE)
