"""Chat templates run so that what was said can be told from what the template writes itself.

Messages are given to the template as `Said` strings. To a template they are the text they stand
for: it may trim, cut, compare or search them, and what comes of it is said as well. But where one
is written out, marks stand around it, which `written` reads. Marks hold a digest of all that was
said, so nothing said can spell one; they are letters and digits, so no filter changes them; and
inside, a mark breaks every control token. A template that takes text apart behind the marks' back
leaves marks without their partners or a broken token outside of them, and is found out.
"""

import datetime
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cookbook_fx.errors import ConfigurationError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """How said text is marked when it is written out.

    Args:
        key: letters and digits that nothing said holds.
        control: what control tokens look like.
        inside_space: leave white space at the edges outside, for templates that trim text together
            with what they wrote around it.
    """

    key: str
    control: re.Pattern[str]
    inside_space: bool

    def around(self, text: str, source: int) -> str:
        """The text, marked as coming from this source."""
        text = self.control.sub(lambda token: f"{token[0][0]}{self.key}k{token[0][1:]}", text)
        inside = text.strip() if self.inside_space else text
        before = text[: len(text) - len(text.lstrip())] if self.inside_space else ""
        after = text[len(before) + len(inside) :]
        return f"{before}{self.key}b{source}x{inside}{self.key}e{after}"


class Said(str):
    """Text that shows where it came from when it is written out, and is itself to all methods."""

    __slots__ = ("_marks", "_source", "_text")
    _marks: Marks
    _source: int
    _text: str

    def __new__(cls, text: str, marks: Marks, source: int) -> "Said":
        said = super().__new__(cls, marks.around(text, source))
        said._marks, said._source, said._text = marks, source, text
        return said

    def _derived(self, value: Any) -> Any:
        """What a method made of the text, as said as the text."""
        if isinstance(value, str):
            return Said(value, self._marks, self._source)
        if isinstance(value, list | tuple):
            return type(value)(map(self._derived, value))
        return value

    def __iter__(self) -> Iterator[str]:
        return iter([self._derived(letter) for letter in self._text])


def _text_of(value: Any) -> Any:
    return value._text if isinstance(value, Said) else value


def _of_text(name: str) -> Callable[..., Any]:
    """A method of `str`, done to the text."""
    method = getattr(str, name)

    def done(self: Said, *args: Any, **options: Any) -> Any:
        return self._derived(method(self._text, *map(_text_of, args), **options))

    return done


# Not those that put text into other text (`+`, `%`, `join`, `format`): those take the marks along.
for _name in (
    "__contains__", "__eq__", "__ge__", "__getitem__", "__gt__", "__hash__", "__le__", "__len__",
    "__lt__", "__ne__", "capitalize", "casefold", "count", "endswith", "expandtabs", "find",
    "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower",
    "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
):  # fmt: skip
    setattr(Said, _name, _of_text(_name))


class Span(NamedTuple):
    """`text[begin:end]` was said, by this source."""

    begin: int
    end: int
    source: int


class Written(NamedTuple):
    """What a template wrote: all of it, and what in it was said, in order; that may be empty."""

    text: str
    spans: tuple[Span, ...]

    def until(self, end: int) -> "Written":
        """What was written up to a place that is not inside a span."""
        return Written(self.text[:end], tuple(span for span in self.spans if span.end <= end))

    def begins_with(self, other: "Written") -> bool:
        """Whether the other is how this one begins, said by the same."""
        known, later = self.spans[: len(other.spans)], self.spans[len(other.spans) :]
        is_same = self.text.startswith(other.text) and known == other.spans
        return is_same and (not later or later[0].begin >= len(other.text))

    def runs(self, begin: int, end: int) -> Iterator[tuple[str, bool]]:
        """`text[begin:end]` in pieces, and of each whether it was said."""
        at = begin
        first = bisect_right(self.spans, begin, key=attrgetter("end"))
        for span in islice(self.spans, first, None):
            if span.begin >= end:
                break
            # An empty one.
            if span.end <= at:
                continue
            if span.begin > at:
                yield self.text[at : span.begin], False
            yield self.text[max(at, span.begin) : min(end, span.end)], True
            at = span.end
        if at < end:
            yield self.text[at:end], False


def written(marked: str, marks: Marks) -> Written:
    """Reads the marks in what a template wrote.

    Raises:
        DataError: they do not fit together, so it cannot be told what was said.
    """
    pieces: list[str] = []
    spans: list[Span] = []
    length = at = 0
    opened: tuple[int, int] | None = None
    for mark in re.finditer(f"{marks.key}(?:b([0-9]+)x|(e)|k)", marked):
        pieces.append(marked[at : mark.start()])
        length += mark.start() - at
        at = mark.end()
        if mark[1] and opened is None:
            opened = (length, int(mark[1]))
        elif mark[2] and opened is not None:
            spans.append(Span(opened[0], length, opened[1]))
            opened = None
        elif mark[1] or opened is None:
            raise taken_apart()
    if opened is not None:
        raise taken_apart()
    return Written("".join([*pieces, marked[at:]]), tuple(spans))


def taken_apart() -> DataError:
    """What to raise where it cannot be told what was said."""
    return DataError(
        "the chat template takes this conversation's text apart in a way that cannot be followed, "
        "so what was said cannot be told from control tokens; take tags such as <think> out of "
        "the text (reasoning and calls have parts of their own), or use the family's own renderer"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A compiled chat template, and the variables it is given beside the messages."""

    compiled: jinja2.Template = field(repr=False)
    variables: Mapping[str, Any]

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        asks: bool,
    ) -> str:
        """What the template makes of the messages; `asks` for a response at the end.

        Raises:
            DataError: the template refuses them.
        """
        try:
            return self.compiled.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=asks,
                **self.variables,
            )
        # Templates refuse with the first; the others are what Python makes of messages that they
        # did not expect.
        except (
            jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError
        ) as error:  # fmt: skip
            raise DataError(f"the chat template refuses this conversation: {error}") from error


def chat_template(
    source: str, variables: Mapping[str, Any], *, date: datetime.date | None
) -> ChatTemplate:
    """A template compiled as transformers does it, but for the clock.

    Args:
        source: in Jinja.
        variables: what it may ask for beside the messages, such as `bos_token`.
        date: what it takes for today; None leaves it without, and many then have one of their own.

    Raises:
        ConfigurationError: the source is not Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    if date is not None:
        environment.globals["strftime_now"] = date.strftime
    try:
        return ChatTemplate(compiled=environment.from_string(source), variables=variables)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigurationError(
            f"the tokenizer's chat template is not Jinja, line {error.lineno}: {error.message}"
        ) from error


class _Generation(Extension):
    """`{% generation %}` says what a model generates; it is found out otherwise here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """transformers' filter: HTML is not escaped."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
