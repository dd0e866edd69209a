"""Prompts from files and data sets in the columns that DeepMath and Tulu 3 publish."""

import json

import pytest

from cookbook_fx.errors import DataError
from shell.hub.prompts import PROMPT_DATASETS, load_prompts


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


DEEPMATH = {
    "question": "Evaluate the limit.", "final_answer": "0", "difficulty": 4.5, "topic": "Limits",
    "r1_solution_1": "Okay ...",
}  # fmt: skip
TULU3 = {
    "id": "sft_1", "source": "flan",
    "messages": [
        {"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "A wren."},
    ],
}  # fmt: skip
SILENT = {"messages": [{"role": "assistant", "content": "Hello."}]}


def test_their_rows_are_read_in_order_and_silent_ones_passed_over(tmp_path):
    assert load_prompts(write(tmp_path / "deep.jsonl", DEEPMATH)) == ("Evaluate the limit.",)
    assert load_prompts(write(tmp_path / "tulu.jsonl", SILENT, TULU3)) == ("Name a bird.",)


def test_a_data_set_of_another_form_is_opened_by_its_split(tmp_path):
    rows = [DEEPMATH | {"question": f"What is {i}?"} for i in range(5)]
    (tmp_path / "deep.json").write_text(json.dumps(rows))
    asked = load_prompts(str(tmp_path / "deep.json"), split="train[:2]")
    assert asked == ("What is 0?", "What is 1?")


def test_nothing_to_ask_and_rows_of_another_shape_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no prompt"):
        load_prompts(write(tmp_path / "silent.jsonl", SILENT))
    with pytest.raises(DataError, match=r"line 2.*a prompt must be text"):
        load_prompts(write(tmp_path / "odd.jsonl", DEEPMATH, {"text": "x"}))


@pytest.mark.parametrize("name", sorted(PROMPT_DATASETS))
def test_without_the_hub_it_is_said_what_can_stand_in(name, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="prompts of your own can stand in: a JSONL file"):
        load_prompts(name)
