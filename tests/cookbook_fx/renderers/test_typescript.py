"""Schemas that are not as they should be; what becomes of the others is tested with gpt-oss."""

import pytest

from cookbook_fx.chat import ToolSpec
from cookbook_fx.errors import DataError
from cookbook_fx.renderers.typescript import function_type


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ({"type": "object", "properties": None}, ""),
        ({"type": "object", "properties": ["a"]}, "_: {\n}"),
        ({"type": "object", "properties": {"a": None}}, "_: {\na?: any,\n}"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": None},
            "_: {\na?: string,\n}",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "object", "properties": None}}},
            "_: {\na?: {\n    },\n}",
        ),
        ({"type": "object", "properties": {1: {}}, "required": [1]}, "_: {\n1?: any,\n}"),
    ],
)
def test_what_a_schema_leaves_open_is_any(parameters, arguments):
    tool = ToolSpec(name="f", description="", parameters=parameters)
    assert function_type(tool) == f"type f = ({arguments}) => any;"


def test_a_schema_nested_too_deeply_is_refused():
    parameters = {"type": "string"}
    for _ in range(320):
        parameters = {"type": "object", "properties": {"a": parameters}}
    tool = ToolSpec(name="f", description="", parameters=parameters)
    with pytest.raises(DataError, match="nested too deeply"):
        function_type(tool)
