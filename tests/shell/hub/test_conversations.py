"""JSONL as people have it: marks, blank lines, torn ends; every complaint has a line number."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.chat import ROLES, Message, message_to_dict
from cookbook_fx.errors import DataError
from shell.hub import read_conversations

GOOD = b'{"messages": [{"role": "user", "content": "hi"}]}'
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(ROLES),
    content=st.text(st.characters(codec="utf-8")),
    trainable=st.sampled_from([None, True, False]),
)


def write(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    return path


@given(conversations=st.lists(st.lists(MESSAGES, min_size=1).map(tuple), min_size=1))
def test_what_is_written_is_read(tmp_path_factory, conversations):
    rows = [{"messages": [message_to_dict(m) for m in messages]} for messages in conversations]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = write(tmp_path_factory.mktemp("data"), text.encode())
    assert read_conversations(path) == tuple(conversations)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD,
        GOOD + b"\r\n",
        b"\n  \n" + GOOD + b"\n\n",
        b'{"messages": [{"role": "user", "content": "hi", "trainable": null}], "id": 3}',
    ],
)
def test_harmless_variants(tmp_path, content):
    expected = ((Message(role="user", content="hi"),),)
    assert read_conversations(write(tmp_path, content)) == expected


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"messages": [{"role": "us', "line 3: not a JSON object .* torn"),
        (b"[" * 100_000, "line 3: not JSON that can be read"),
        (b"9" * 5000, "line 3: not JSON that can be read"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "line 3: .* Unicode"),
        (b"[", "line 3: not a JSON object .* one JSON list"),
        (b"[]", "line 3: a JSON object is wanted, got list"),
        (b'{"messages": []}', "line 3: .*at least one message"),
        (b'{"text": "hi"}', "line 3: .*messages"),
        (b'{"messages": [{"role": "wizard", "content": "x"}]}', "line 3: message 0: .*wizard"),
        (b'{"messages": [{"role": "user", "content": "\xe9"}]}', "line 3: not UTF-8"),
    ],
)
def test_complaints_name_the_line(tmp_path, line, complaint):
    path = write(tmp_path, GOOD + b"\n\n" + line)
    with pytest.raises(DataError, match=complaint):
        read_conversations(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="holds no conversation"):
        read_conversations(write(tmp_path, content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        read_conversations(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_conversations(tmp_path)


def test_what_follows_the_first_ones_is_not_looked_at(tmp_path):
    path = write(tmp_path, b"\n" + GOOD + b"\n" + GOOD + b"\n{torn")
    assert len(read_conversations(path, first=2)) == 2
    with pytest.raises(DataError, match="line 4: not a JSON object"):
        read_conversations(path)
