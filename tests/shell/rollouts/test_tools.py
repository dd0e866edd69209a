import asyncio
import enum
import threading
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from cookbook_fx.chat import TextPart
from cookbook_fx.errors import ConfigurationError, DataError
from shell.rollouts import ToolResult, tool


@tool
def add(x: int, y: int) -> str:
    """Adds two numbers."""
    return str(x + y)


@tool
async def slow(seconds: float) -> str:
    """Takes its time."""
    await asyncio.sleep(seconds)
    return "awake"


def test_schema_comes_from_types_docstring_and_annotations():
    class Place(BaseModel):
        title: str
        title_of: dict[str, int] = {}

    class Unit(enum.Enum):
        C = "celsius"
        K = "kelvin"

    @tool
    def weather(
        place: Place,
        day: Annotated[date, "when"],
        hours: Annotated[int, Field(ge=0, le=24, description="how many")] = 3,
        *,
        mode: Literal["brief", "long"] = "brief",
        unit: Unit = Unit.C,
        json: list[str] | None = None,
    ) -> str:
        """The weather to come.

        Nothing is certain.

        Args:
            place: where it is, in a description
                of two lines.
            hours: not this one.
            mode (str): how much.

        Returns:
            A forecast.
        """
        return f"{type(place).__name__} {place.title} {day.year} {hours} {mode} {unit} {json}"

    spec = weather.spec
    assert (spec.name, spec.description) == (
        "weather",
        "The weather to come.\n\nNothing is certain.\n\nReturns:\n    A forecast.",
    )
    assert spec.parameters["required"] == ["place", "day"]
    assert spec.parameters["additionalProperties"] is False
    properties = spec.parameters["properties"]
    assert properties["place"]["description"] == "where it is, in a description of two lines."
    assert properties["day"] == {"description": "when", "format": "date", "type": "string"}
    assert properties["hours"] == {
        "default": 3, "description": "how many", "maximum": 24, "minimum": 0, "type": "integer"
    }  # fmt: skip
    assert properties["mode"]["enum"] == ["brief", "long"]
    assert properties["mode"]["description"] == "how much."
    assert properties["json"]["anyOf"][1] == {"type": "null"}
    assert "title" not in spec.parameters
    assert set(spec.parameters["$defs"]["Place"]["properties"]) == {"title", "title_of"}
    assert "title" not in spec.parameters["$defs"]["Place"]["properties"]["title"]

    arguments = {"place": {"title": "Oslo"}, "day": "2026-08-19", "unit": "kelvin"}
    ran = asyncio.run(weather.run(arguments))
    assert ran.content == "Place Oslo 2026 3 brief Unit.K None"


def test_it_is_still_the_function():
    assert add(2, 3) == "5"
    assert asyncio.run(slow(0.0)) == "awake"


def test_methods_know_their_object():
    class Counter:
        def __init__(self, count):
            self.count = count

        @tool
        async def more(self, by: int = 1) -> int:
            """Counts."""
            self.count += by
            return self.count

    one, ten = Counter(1), Counter(10)
    assert one.more.spec.parameters["properties"].keys() == {"by"}
    assert asyncio.run(one.more.run({})).content == "2"
    assert asyncio.run(ten.more.run({"by": 5})).content == "15"
    assert (one.count, ten.count) == (2, 15)
    assert Counter.more.spec is one.more.spec


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"x": 1}, "y: Field required"),
        ({"x": 1, "y": "two"}, "y: Input should be a valid integer"),
        ({"x": 1, "y": 2, "z": 3}, "z: Extra inputs are not permitted"),
    ],
)
def test_arguments_that_do_not_fit_are_told(arguments, complaint):
    with pytest.raises(DataError, match=f"do not fit add: {complaint}"):
        asyncio.run(add.run(arguments))


def test_what_it_returns_becomes_text():
    @dataclass
    class Point:
        x: int

    def returning(value):
        @tool
        def give() -> object:
            """Gives."""
            return value

        return asyncio.run(give.run({})).content

    assert returning({"á": [1, None]}) == '{"á": [1, null]}'
    assert returning(Point(3)) == '{"x": 3}'
    assert returning(None) == "null"
    parts = (TextPart(text="a"),)
    assert returning(ToolResult(parts)) == parts
    with pytest.raises(DataError, match="what JSON can hold"):
        returning(object())


def test_functions_that_cannot_be_tools_are_refused():
    with pytest.raises(ConfigurationError, match="`x` of f has none"):

        @tool
        def f(x):
            """No type."""

    for kinds in ("*xs: int", "**xs: int", "x: int, /"):
        scope: dict = {}
        exec(f"def g({kinds}): pass", scope)
        with pytest.raises(ConfigurationError, match="by name"):
            tool(scope["g"])

    with pytest.raises(ConfigurationError, match="JSON Schema"):

        @tool
        def h(x: threading.Event):
            """No schema."""
