"""Prompts out of the records people keep them in, and cut to a length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.distillation import prompt_from_dict, truncated_text
from cookbook_fx.errors import ConfigurationError, DataError
from tests.family_tokenizers import tiny_tokenizer

TOKENIZER = tiny_tokenizer("qwen3")


def count(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False))


@given(st.text(max_size=60), st.integers(1, 40))
def test_what_is_cut_is_the_longest_beginning_or_nearly(text, max_tokens):
    kept = truncated_text(text, tokenizer=TOKENIZER, max_tokens=max_tokens)
    assert text.startswith(kept)
    assert count(kept) <= max_tokens
    if count(text) <= max_tokens:
        assert kept == text
    else:
        # A character is four bytes at most, of which each may be a token.
        assert max_tokens - count(kept) < 4 + 1


def test_no_tokens_at_all_are_refused():
    with pytest.raises(ConfigurationError, match="`max_tokens` must be at least 1, got 0"):
        truncated_text("a", tokenizer=TOKENIZER, max_tokens=0)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?"},
        {"question": "Why?", "final_answer": "4", "difficulty": 3.0},
        {"instruction": "Why?", "output": "So."},
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Why?"}]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"prompt": [{"role": "user", "content": "Why?"}]},
    ],
)  # fmt: skip
def test_common_records_are_read(row):
    assert prompt_from_dict(row) == "Why?"


def test_a_conversation_without_a_question_has_no_prompt():
    assert prompt_from_dict({"messages": [{"role": "assistant", "content": "So."}]}) is None


@pytest.mark.parametrize("row", [{}, {"text": "Why?"}, {"prompt": "  "}, {"messages": "Why?"}])
def test_other_records_are_refused_with_their_keys(row):
    with pytest.raises(DataError, match="a prompt must be text under prompt, question"):
        prompt_from_dict(row)


def test_a_message_that_is_none_is_refused():
    with pytest.raises(DataError, match="a message must be an object"):
        prompt_from_dict({"messages": ["Why?"]})
