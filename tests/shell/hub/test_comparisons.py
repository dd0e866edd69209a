"""Preferences from files and datasets, and the data sets made of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.errors import DataError
from cookbook_fx.renderers import get_renderer
from shell.hub import (
    ComparisonBuilderFromDataset,
    ComparisonBuilderFromJsonl,
    load_comparisons,
    load_tokenizer,
)
from shell.hub.comparisons import (
    ChatDatasetBuilderFromComparisons,
    DPODatasetBuilderFromComparisons,
)

ROWS = [
    {"prompt": f"where is {name}", "chosen": f"{name} on the mat", "rejected": "a dog"}
    for name in ("the cat", "the door", "one")
]
TIE = {
    "comparison": {"prompt_conversation": "where", "completion_A": "cat", "completion_B": "dog"},
    "label": "Tie",
}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def renderer(tiny_model_directory):
    return get_renderer("chatml", load_tokenizer(tiny_model_directory))


def test_lines_of_any_form_are_read_and_a_bad_one_is_told_by_its_number(tmp_path):
    path = write(tmp_path / "a.jsonl", [ROWS[0], TIE])
    assert [labeled.label for labeled in load_comparisons(path)] == ["A", "Tie"]
    bad = write(tmp_path / "b.jsonl", [ROWS[0], {"prompt": "a"}])
    with pytest.raises(DataError, match=r"b\.jsonl, line 2: a preference must be"):
        load_comparisons(bad)
    with pytest.raises(DataError, match="holds no preference"):
        load_comparisons(write(tmp_path / "c.jsonl", []))


def test_a_json_list_of_sharegpt_rows_is_read_as_a_dataset(tmp_path):
    rows = [
        {
            "conversations": [{"from": "human", "value": row["prompt"]}],
            "chosen": {"from": "gpt", "value": row["chosen"]},
            "rejected": {"from": "gpt", "value": row["rejected"]},
        }
        for row in ROWS
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = load_comparisons(str(tmp_path / "a.json"))
    assert found == load_comparisons(write(tmp_path / "a.jsonl", ROWS))
    builder = ComparisonBuilderFromDataset(name_or_path=str(tmp_path / "a.json"))
    assert builder.get_labeled_comparisons() == (found, None)


def test_a_row_of_a_dataset_that_cannot_be_read_is_told_by_its_number(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROWS[0], {"prompt": "a", "chosen": "b"}]))
    with pytest.raises(DataError, match="row 1 of"):
        load_comparisons(str(tmp_path / "a.json"))


def test_pairs_for_dpo_and_what_became_of_the_rest(tmp_path, renderer):
    builder = ComparisonBuilderFromJsonl(
        train_path=write(tmp_path / "a.jsonl", [*ROWS, TIE]),
        test_path=write(tmp_path / "b.jsonl", [ROWS[0], TIE]),
    )
    made = DPODatasetBuilderFromComparisons(
        comparison_builder=builder, renderer=renderer, batch_size=2, ties="half"
    )()
    assert len(made.train.pairs) == 4
    assert made.train_preparation.ties == 1
    assert len(made.test) == 1
    assert made.test_preparation.dropped_ties == 1
    alone = ComparisonBuilderFromJsonl(train_path=write(tmp_path / "a.jsonl", ROWS))
    made = DPODatasetBuilderFromComparisons(
        comparison_builder=alone, renderer=renderer, batch_size=2
    )()
    assert made.test is None


@pytest.mark.parametrize("swap", [False, True])
def test_examples_for_a_preference_model_show_one_order_or_both(tmp_path, renderer, swap):
    path = write(tmp_path / "a.jsonl", [*ROWS, TIE])
    made = ChatDatasetBuilderFromComparisons(
        comparison_builder=ComparisonBuilderFromJsonl(train_path=path, test_path=path),
        renderer=renderer,
        batch_size=4,
        swap=swap,
    )()
    (batch,) = [made.train.get_batch(i, epoch_seed=1) for i in range(len(made.train))]
    again = made.train.get_batch(0, epoch_seed=1)
    assert len(batch) == (8 if swap else 4)
    for left, right in zip(batch, again, strict=True):
        np.testing.assert_array_equal(left.tokens, right.tokens)
    assert len(made.test) == 8
    assert all(np.count_nonzero(datum.weights) == 1 for datum in batch)
