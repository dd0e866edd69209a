"""Hugging Face datasets from local files, in memory and streamed."""

import json

import pytest

from cookbook_fx.chat import Message, conversation_from_dict
from cookbook_fx.errors import ConfigurationError, DataError
from shell.hub import conversations_from_dataset, open_dataset, stream_conversations


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": str(i)}], "extra": i} for i in range(50)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def contents(conversations):
    return [int(messages[0].content) for messages in conversations]


def test_map_style_keeps_the_order(path):
    dataset = open_dataset(str(path), split="train[:10]")
    assert contents(conversations_from_dataset(dataset)) == list(range(10))


def test_rows_of_another_shape_are_given_to_the_callers_function(path):
    dataset = open_dataset(str(path))
    made = conversations_from_dataset(
        dataset, to_conversation=lambda row: (Message(role="user", content=str(row["extra"] * 2)),)
    )
    assert contents(made) == list(range(0, 100, 2))


def test_streams_are_shuffled_alike_for_one_seed_and_otherwise_for_another(path):
    dataset = open_dataset(str(path), streaming=True)

    def order(seed, buffer=20):
        return contents(stream_conversations(dataset, epoch_seed=seed, shuffle_buffer=buffer))

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(2)) == list(range(50))
    assert order(1, buffer=1) == list(range(50))


def test_a_stream_reads_no_further_than_it_is_asked(path):
    seen = []

    def note(row):
        seen.append(row["extra"])
        return conversation_from_dict(row)

    dataset = open_dataset(str(path), streaming=True)
    stream = stream_conversations(dataset, epoch_seed=0, shuffle_buffer=1, to_conversation=note)
    next(stream)
    assert seen == [0]


def test_a_bad_row_is_numbered(path):
    with path.open("a") as file:
        file.write('\n{"messages": [], "extra": 50}')
    with pytest.raises(DataError, match=r"row 50 of the dataset: .*at least one message"):
        conversations_from_dataset(open_dataset(str(path)))
    stream = stream_conversations(open_dataset(str(path), streaming=True), epoch_seed=0)
    with pytest.raises(DataError, match=r"of the dataset: .*at least one message"):
        list(stream)


def test_what_cannot_be_opened_is_said(path, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="'test' of"):
        open_dataset(str(path), split="test")
    (tmp_path / "rows.csv").touch()
    with pytest.raises(DataError, match="must end in one of"):
        open_dataset(str(tmp_path / "rows.csv"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"no local file .*HF_HUB_OFFLINE"):
        open_dataset("owner/name")
    path.write_text('{"messages": [')
    with pytest.raises(DataError, match="'train' of"):
        open_dataset(str(path))


def test_a_buffer_holds_something(path):
    dataset = open_dataset(str(path), streaming=True)
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        stream_conversations(dataset, epoch_seed=0, shuffle_buffer=0)
