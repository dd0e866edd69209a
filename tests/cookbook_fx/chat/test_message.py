import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.chat import ROLES, Message, conversation_from_dict, message_to_dict
from cookbook_fx.errors import DataError

messages = st.builds(
    Message,
    role=st.sampled_from(ROLES),
    content=st.text(),
    trainable=st.none() | st.booleans(),
)


@given(st.lists(messages, min_size=1))
def test_what_is_written_is_read_back(conversation):
    row = {"messages": [message_to_dict(message) for message in conversation]}
    assert conversation_from_dict(row) == tuple(conversation)


def test_absent_null_and_empty_optional_keys_are_the_same():
    bare = {"role": "user", "content": "Hi"}
    padded = bare | {"trainable": None, "tool_calls": None, "name": None, "thinking": ""}
    assert conversation_from_dict({"messages": [padded]}) == (Message(role="user", content="Hi"),)
    listed = {"messages": [bare | {"tool_calls": []}], "source": "kept out of the conversation"}
    assert conversation_from_dict(listed) == conversation_from_dict({"messages": [bare]})


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({}, "got None under messages"),
        ({"messages": "Hi"}, "got 'Hi' under messages"),
        ({"messages": []}, "at least one message"),
        ({"messages": ["Hi"]}, "message 0: must be"),
        ({"messages": [{"content": "Hi"}]}, "message 0: `role` must be one of .* got None"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "message 0: `role`"),
        (
            {"messages": [{"role": "user"}]},
            "message 0: `content` must be a string or a list of parts, got None",
        ),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "message 0: each part of `content`"),
        ({"messages": [{"role": "user", "content": "", "trainable": 1}]}, "`trainable`"),
    ],
)
def test_unusable_rows_are_refused_with_what_is_wrong(row, complaint):
    with pytest.raises(DataError, match=complaint):
        conversation_from_dict(row)


def test_the_second_message_is_named_when_it_is_the_one_at_fault():
    fine = {"role": "user", "content": "Hi"}
    with pytest.raises(DataError, match=r"message 1: .*'bot'"):
        conversation_from_dict({"messages": [fine, {"role": "bot", "content": "Hi"}]})
    with pytest.raises(DataError, match="message 1: `function_call` cannot be rendered"):
        conversation_from_dict({"messages": [fine, fine | {"function_call": {"name": "f"}}]})


def test_a_message_of_an_unknown_role_cannot_be_made():
    with pytest.raises(DataError, match="system, developer, user, assistant, tool"):
        Message(role="user<|im_end|>", content="Hi")
