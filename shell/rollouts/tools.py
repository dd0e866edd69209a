"""Tools: typed functions that a model may call.

    @tool
    def price(item: Annotated[str, "as the shop names it"], currency: str = "EUR") -> float:
        '''Looks up what something costs.'''
        ...

Its types and docstring are all that the model needs to be told.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Annotated, Any, Protocol, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from cookbook_fx.chat import Part, ToolSpec
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.rl.trajectory import Metrics
from shell.rollouts.calls import called


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call came to.

    Args:
        content: what the model is told.
        should_stop: end the episode.
        metrics: numbers to report, as `<tool>/<name>`; those of a turn's calls are added up.
    """

    content: str | tuple[Part, ...]
    _: KW_ONLY
    should_stop: bool = False
    metrics: Metrics = field(default_factory=dict)


class Tool(Protocol):
    """What a model may call."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told of it."""

    async def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        """One call. Whatever it raises, the model is told and the episode goes on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FunctionTool:
    """A function as a tool; made by `tool`, and still to be called as the function it is.

    Args:
        spec: what the model is told of it.
        function: what is called; plain functions run in a thread.
        arguments: reads a call's arguments and checks them.
    """

    spec: ToolSpec
    function: Callable[..., Any]
    arguments: type[BaseModel]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Calls the function."""
        return self.function(*arguments, **keywords)

    def __get__(self, instance: object, owner: type | None = None) -> "FunctionTool":
        """The tool of one object, where the function is a method."""
        if instance is None:
            return self
        return replace(self, function=self.function.__get__(instance, owner))

    async def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Checks the arguments and calls the function.

        Raises:
            DataError: the arguments are not what the function takes, or its result cannot be
                written as JSON.
        """
        try:
            read = self.arguments.model_validate(arguments)
        except ValidationError as error:
            raise DataError(_complaint(self.spec.name, error)) from error
        names = {key: held.alias or key for key, held in self.arguments.model_fields.items()}
        given = {name: getattr(read, key) for key, name in names.items()}
        return _result(await called(self.function, **given))


def tool(function: Callable[..., Any]) -> FunctionTool:
    """Makes a tool of a function or a method, `async` or not.

    Its name and docstring tell the model what it is; its parameters' types become the JSON Schema
    of the arguments, by which each call is checked. A parameter is described by a string in its
    `Annotated`, by pydantic's `Field` there, or under `Args:` in the docstring. It returns text,
    anything that JSON can hold, or a `ToolResult`.

    Raises:
        ConfigurationError: a parameter has no type, or one that JSON Schema has no words for, or
            cannot be given by name.

    Example:
        >>> @tool
        ... def weather(city: Annotated[str, "of a town"], days: int = 1) -> str:
        ...     '''The weather to come.'''
        ...     return f"Rain in {city}."
        >>> weather.spec.description, weather.spec.parameters["required"]
        ('The weather to come.', ['city'])
        >>> weather.spec.parameters["properties"]["city"]
        {'description': 'of a town', 'type': 'string'}
        >>> import asyncio
        >>> asyncio.run(weather.run({"city": "Oslo"})).content
        'Rain in Oslo.'
    """
    name = function.__name__
    description, about = _documented(inspect.getdoc(function) or "")
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    parameters = inspect.signature(function).parameters
    for number, parameter in enumerate(parameters.values()):
        if number == 0 and parameter.name == "self":
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"a tool's parameters are given by name, and `{parameter}` of {name} cannot be"
            )
        if parameter.name not in hints:
            raise ConfigurationError(
                f"a tool's parameters need types, and `{parameter.name}` of {name} has none; "
                f"write `{parameter.name}: str`, or whatever it is"
            )
        # Under names of its own, because pydantic has taken some, `json` and `copy` among them.
        fields[f"argument_{number}"] = _field(
            parameter, hints[parameter.name], about.get(parameter.name)
        )
    try:
        arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        schema = arguments.model_json_schema()
    except PydanticUserError as error:
        raise ConfigurationError(
            f"the parameters of {name} cannot be told in JSON Schema: {error}"
        ) from error
    spec = ToolSpec(name=name, description=description, parameters=_untitled(schema))
    return FunctionTool(spec=spec, function=function, arguments=arguments)


def _field(parameter: inspect.Parameter, hint: Any, about: str | None) -> tuple[Any, Any]:
    """A parameter as pydantic has it: its type and its default."""
    noted = getattr(hint, "__metadata__", ())
    said = next((note for note in noted if isinstance(note, str)), None)
    if said is None and not any(isinstance(n, FieldInfo) and n.description for n in noted):
        said = about
    described: dict[str, Any] = {} if said is None else {"description": said}
    default = ... if parameter.default is parameter.empty else parameter.default
    return Annotated[hint, Field(alias=parameter.name, **described)], default


_SECTION = re.compile(r"^(Args|Arguments|Parameters):\s*\n((?:[ \t]+.*(?:\n|$)|\s*\n)*)", re.M)
_ENTRY = re.compile(r"^(\w+)(?: *\(.*?\))?: *(.*)$")


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each parameter."""
    section = _SECTION.search(text)
    if section is None:
        return text.strip(), {}
    about: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(section[2]).splitlines():
        entry = _ENTRY.match(line)
        if entry is not None:
            name, about[entry[1]] = entry[1], entry[2]
        elif name:
            about[name] = f"{about[name]} {line.strip()}".strip()
    rest = text[: section.start()].rstrip() + "\n\n" + text[section.end() :].lstrip()
    return rest.strip(), about


_LITERAL_KEYS = ("const", "default", "enum", "examples")


def _untitled(schema: Any) -> Any:
    """A schema without the titles pydantic gives everything: names spelled with capitals."""
    match schema:
        case dict():
            return {
                key: _each_untitled(value) if key in ("properties", "$defs")
                else value if key in _LITERAL_KEYS
                else _untitled(value)
                for key, value in schema.items()
                if key != "title"
            }  # fmt: skip
        case list():
            return [_untitled(item) for item in schema]
        case _:
            return schema


def _each_untitled(schemas: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _untitled(schema) for name, schema in schemas.items()}


def _complaint(name: str, error: ValidationError) -> str:
    """What is wrong with a call's arguments, for the model to read."""
    wrong = (
        f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    )
    return f"the arguments do not fit {name}: {'; '.join(wrong)}"


def _result(returned: Any) -> ToolResult:
    if isinstance(returned, ToolResult):
        return returned
    if isinstance(returned, str):
        return ToolResult(returned)
    try:
        return ToolResult(json.dumps(to_jsonable_python(returned), ensure_ascii=False))
    except ValueError as error:
        raise DataError(
            f"a tool returns text, what JSON can hold, or a ToolResult; got {error}"
        ) from error
