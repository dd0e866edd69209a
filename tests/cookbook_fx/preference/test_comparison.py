"""Comparisons in the forms people write them down in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.chat import Message
from cookbook_fx.errors import DataError
from cookbook_fx.preference import (
    LABELS,
    Comparison,
    LabeledComparison,
    labeled_comparison_from_dict,
    labeled_comparison_to_dict,
)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


EXPECTED = LabeledComparison(
    comparison=Comparison(
        prompt_conversation=(user("2 + 2?"),),
        completion_A=(assistant("4."),),
        completion_B=(assistant("5."),),
    ),
    label="A",
)

QUESTION = {"role": "user", "content": "2 + 2?"}
GOOD, BAD = {"role": "assistant", "content": "4."}, {"role": "assistant", "content": "5."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "chosen": "4.", "rejected": "5."},
        {"question": "2 + 2?", "chosen": "4.", "rejected": "5.", "score": 1},
        {"instruction": "2 + 2?", "input": "", "chosen": "4.", "rejected": "5."},
        {"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]},
        {"messages": [QUESTION], "chosen": GOOD, "rejected": BAD, "label": None},
        # As Arrow fills absent keys.
        {"prompt": None, "messages": [QUESTION], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {"prompt": "2 + 2?", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {
            "conversations": [{"from": "human", "value": "2 + 2?"}],
            "chosen": {"from": "gpt", "value": "4."},
            "rejected": {"from": "gpt", "value": "5."},
        },
        {
            "comparison": {
                "prompt_conversation": [QUESTION],
                "completion_A": [GOOD],
                "completion_B": [BAD],
            },
            "label": "A",
        },
    ],
)
def test_the_usual_forms_mean_the_same(row):
    assert labeled_comparison_from_dict(row) == EXPECTED


def test_instruction_and_input_and_system_are_all_part_of_the_prompt():
    row = {"instruction": "Add.", "input": "2 and 2", "chosen": "4.", "rejected": "5."}
    labeled = labeled_comparison_from_dict(row | {"system": "Be brief."})
    assert [m.text for m in labeled.comparison.prompt_conversation] == [
        "Be brief.", "Add.\n2 and 2",
    ]  # fmt: skip


def test_equal_whole_conversations_still_have_a_completion_each():
    labeled = labeled_comparison_from_dict(
        {"chosen": [QUESTION, GOOD], "rejected": [QUESTION, GOOD]}
    )
    assert labeled.ranked.chosen == labeled.ranked.rejected == (assistant("4."),)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "chosen"),
        ({"prompt": "a", "chosen": "b"}, "chosen"),
        ({"prompt": "a", "question": "a", "chosen": "b", "rejected": "c"}, "more than once"),
        ({"chosen": "b", "rejected": "c"}, "no prompt"),
        ({"chosen": [QUESTION, GOOD], "rejected": [GOOD]}, "no prompt"),
        ({"prompt": "3?", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]}, "not what"),
        ({"prompt": "a", "chosen": [QUESTION], "rejected": [QUESTION]}, "no prompt"),
        ({"prompt": "a", "chosen": [GOOD, QUESTION], "rejected": [BAD]}, "end with the assistant"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "`prompt` must be text or messages"),
        ({"prompt": [], "chosen": "b", "rejected": "c"}, "`prompt` must be text or messages"),
        ({"prompt": [3], "chosen": "b", "rejected": "c"}, "a message must be"),
        ({"prompt": [{"from": "martian", "value": "x"}], "chosen": "b", "rejected": "c"}, "`from`"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "system": 3}, "`system`"),
        (
            {"messages": [{"role": "system", "content": "x"}, QUESTION], "system": "y",
             "chosen": "b", "rejected": "c"}, "both as",
        ),
        ({"instruction": 3, "chosen": "b", "rejected": "c"}, "instruction"),
        ({"comparison": {"completion_A": "a"}, "label": "A"}, "`comparison` must hold"),
        (
            {"comparison": {"prompt_conversation": "q", "completion_A": "a", "completion_B": "b"}},
            "label",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_in_words(row, said):
    with pytest.raises(DataError, match=said):
        labeled_comparison_from_dict(row)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
completions = st.lists(st.builds(assistant, texts), min_size=1, max_size=2).map(tuple)
comparisons = st.builds(
    Comparison,
    prompt_conversation=st.lists(st.builds(user, texts), min_size=1, max_size=2).map(tuple),
    completion_A=completions,
    completion_B=completions,
)
labeled_comparisons = st.builds(
    LabeledComparison, comparison=comparisons, label=st.sampled_from(LABELS)
)


@given(labeled_comparisons)
def test_a_record_comes_back_as_it_was(labeled):
    assert labeled_comparison_from_dict(labeled_comparison_to_dict(labeled)) == labeled


@given(labeled_comparisons)
def test_swapping_keeps_what_was_preferred_and_undoes_itself(labeled):
    assert labeled.swap().swap() == labeled
    assert labeled.swap().comparison.completion_A == labeled.comparison.completion_B
    assert labeled.swap().is_tie == labeled.is_tie
    if not labeled.is_tie:
        assert labeled.swap().ranked == labeled.ranked
        assert labeled.ranked.chosen == getattr(labeled.comparison, f"completion_{labeled.label}")
