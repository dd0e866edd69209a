"""What a message is made of besides plain text: reasoning, images, calls of tools."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from cookbook_fx.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """Something said.

    Raises:
        DataError: not Unicode text.
    """

    text: str

    def __post_init__(self) -> None:
        check_unicode(self.text, "the text")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingPart:
    """Reasoning that precedes what is said; formats differ in whether history keeps it.

    Raises:
        DataError: not Unicode text.
    """

    thinking: str

    def __post_init__(self) -> None:
        check_unicode(self.thinking, "the reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An image, by address.

    Args:
        image: a URL, `data:` included. It is not fetched; renderers without images refuse it.

    Raises:
        DataError: not Unicode text.
    """

    image: str

    def __post_init__(self) -> None:
        check_unicode(self.image, "the image's address")


Part = TextPart | ThinkingPart | ImagePart


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call the assistant makes.

    Args:
        name: of the tool; not empty.
        arguments: JSON text, as it was written.
        id: what a result refers to it by, where the conversation says.

    Raises:
        DataError: the name is empty, or the arguments are not JSON (NaN and Infinity are not).

    Example:
        >>> ToolCall(name="weather", arguments='{"city": "Oslo"}').parsed_arguments
        {'city': 'Oslo'}
    """

    name: str
    arguments: str
    id: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise DataError("a tool call needs a name, got an empty one")
        check_unicode(self.name, "the tool's name")
        check_unicode(self.arguments, "the arguments")
        check_unicode(self.id or "", "the call's id")
        parse_json(self.arguments)

    @property
    def parsed_arguments(self) -> Any:
        """The arguments as Python values, an object as a dict."""
        return parse_json(self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnparsedToolCall:
    """Something that looks like a call and is none.

    Args:
        raw_text: just as the model wrote it.
        error: why it is no call.

    Raises:
        DataError: not Unicode text.
    """

    raw_text: str
    error: str

    def __post_init__(self) -> None:
        check_unicode(self.raw_text, "what looks like a call")
        check_unicode(self.error, "the reason why it is none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool a model is told of.

    Args:
        name: what it is called by; not empty.
        description: what it does.
        parameters: JSON Schema of its arguments. A copy is kept, as JSON has it: lists for tuples,
            text for all keys.

    Raises:
        DataError: the name is empty, or the parameters cannot be written as JSON.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.name:
            raise DataError("a tool needs a name, got an empty one")
        check_unicode(self.name, "the tool's name")
        check_unicode(self.description, "the tool's description")
        try:
            text = json.dumps(self.parameters, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"the parameters of {self.name} are not JSON: {error}") from error
        check_unicode(text, f"the parameters of {self.name}")
        object.__setattr__(self, "parameters", parse_json(text))


def parse_json(text: str) -> Any:
    """What JSON text stands for.

    Raises:
        DataError: it is not JSON; NaN and Infinity, which Python reads, are refused too.

    Example:
        >>> parse_json("[1, null]")
        [1, None]
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise DataError(f"the arguments are not JSON: {error}") from error
    except RecursionError as error:
        raise DataError("the arguments are nested too deeply to be read") from error


def check_unicode(text: str, what: str) -> None:
    """JSON and the command line can bring in half a surrogate pair; no tokenizer reads one.

    Raises:
        DataError: `text` cannot be written as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} is not Unicode text: {shown(text)}") from None


def shown(value: object) -> str:
    """A value in an error message, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
