import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.chat import (
    ROLES,
    ImagePart,
    Message,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
    content_of,
    conversation_from_dict,
    conversation_to_dict,
    message_from_dict,
    tool_from_dict,
)
from cookbook_fx.errors import DataError

TEXT = st.text(max_size=8)
NAMES = st.text(min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=2)
CALLS = st.builds(ToolCall, name=NAMES, arguments=st.builds(json.dumps, JSON), id=st.none() | NAMES)
UNPARSED = st.builds(UnparsedToolCall, raw_text=TEXT, error=TEXT)
TOOLS = st.builds(ToolSpec, name=NAMES, description=TEXT, parameters=OBJECTS)
SAID = st.builds(TextPart, text=TEXT) | st.builds(ImagePart, image=TEXT)
PARTS = SAID | st.builds(ThinkingPart, thinking=TEXT)


def tuples(of):
    return st.lists(of, max_size=3).map(tuple)


@st.composite
def messages(draw):
    role = draw(st.sampled_from(ROLES))
    parts = draw(st.lists(PARTS if role == "assistant" else SAID, max_size=4))
    own = {
        "assistant": {"tool_calls": tuples(CALLS), "unparsed_tool_calls": tuples(UNPARSED)},
        "tool": {"name": st.none() | NAMES, "tool_call_id": st.none() | NAMES},
        "system": {"tools": tuples(TOOLS)},
        "developer": {"tools": tuples(TOOLS)},
    }
    rest = draw(st.fixed_dictionaries(own.get(role, {})))
    trainable = draw(st.none() | st.booleans())
    return Message(role=role, content=content_of(parts), trainable=trainable, **rest)


@given(st.lists(messages(), min_size=1, max_size=3))
def test_everything_a_message_holds_is_read_back_from_json(conversation):
    row = json.loads(json.dumps(conversation_to_dict(conversation)))
    assert conversation_from_dict(row) == tuple(conversation)


def called(arguments):
    call = {"function": {"name": "now", "arguments": arguments}}
    return message_from_dict({"role": "assistant", "tool_calls": [call]}).tool_calls[0].arguments


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_a_call_without_arguments_has_an_empty_object_of_them(arguments):
    assert called(arguments) == "{}"


def test_what_a_tool_takes_is_any_object_only_where_it_is_not_said():
    assert tool_from_dict({"name": "f", "parameters": {}}).parameters == {}
    said = {"type": "object", "properties": {}}
    assert tool_from_dict({"name": "f", "parameters": None}).parameters == said


def test_a_tool_keeps_its_parameters_whatever_becomes_of_those_given():
    given_parameters = {"required": ("a",), 1: {}}
    tool = ToolSpec(name="f", description="", parameters=given_parameters)
    given_parameters["more"] = True
    assert tool.parameters == {"required": ["a"], "1": {}}


def test_reasoning_may_be_said_twice_but_not_otherwise():
    twice = {"role": "assistant", "content": "", "reasoning": "Hm.", "reasoning_content": "Hm."}
    assert message_from_dict(twice).thinking == "Hm."
    with pytest.raises(DataError, match="given twice, otherwise"):
        message_from_dict(twice | {"reasoning": "Ha."})


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "read",
    [
        called,
        lambda value: tool_from_dict({"name": "f", "parameters": value}),
        lambda value: message_from_dict({"role": "user", "content": value}),
        lambda value: message_from_dict({"role": value, "content": "Hi"}),
    ],
)
def test_nesting_without_end_is_refused(read):
    with pytest.raises(DataError):
        read(nested(200_000))


@pytest.mark.parametrize(
    "make",
    [
        lambda half: ImagePart(image=half),
        lambda half: UnparsedToolCall(raw_text=half, error=""),
        lambda half: UnparsedToolCall(raw_text="", error=half),
        lambda half: ToolCall(name="f", arguments="{}", id=half),
    ],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(make):
    with pytest.raises(DataError, match="not Unicode text"):
        make("\ud800")
