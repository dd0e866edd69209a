"""Comparisons as conversations, in the formats of real models."""

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.preference import (
    LABELS,
    Comparison,
    ComparisonRenderer,
    ComparisonRendererFromChatRenderer,
    LabeledComparison,
    prepare_comparisons,
)
from cookbook_fx.renderers import get_renderer
from tests.family_tokenizers import tiny_tokenizer


def said(text: str) -> tuple[Message, ...]:
    return (Message(role="assistant", content=text),)


COMPARISON = Comparison(
    prompt_conversation=(Message(role="user", content="where is the cat"),),
    completion_A=said("on the mat"),
    completion_B=said("a dog"),
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_directory):
    from shell.hub import load_tokenizer

    return load_tokenizer(tiny_model_directory)


@pytest.fixture(params=["chatml", "role_colon"])
def renderer(request, tokenizer):
    return ComparisonRendererFromChatRenderer(renderer=get_renderer(request.param, tokenizer))


def test_the_format_is_upstreams(tokenizer):
    renderer = ComparisonRendererFromChatRenderer(renderer=get_renderer("role_colon", tokenizer))
    prompt = tokenizer.decode(renderer.build_generation_prompt(COMPARISON))
    assert prompt == (
        "<|im_start|>User: where is the cat\n\n"
        "System: ==== Completion A ====\n\n"
        "Assistant: on the mat\n\n"
        "System: ==== Completion B ====\n\n"
        "Assistant: a dog\n\n"
        "System: ==== Preference ====\n\n"
        "Assistant:"
    )


def test_only_the_labels_first_token_is_trained(renderer):
    assert isinstance(renderer, ComparisonRenderer)
    prompt = renderer.build_generation_prompt(COMPARISON)
    for label in LABELS:
        labeled = LabeledComparison(comparison=COMPARISON, label=label)
        tokens, weights = renderer.build_supervised_example(labeled)
        label_tokens = renderer.label_tokens[label]
        np.testing.assert_array_equal(tokens, [*prompt, *label_tokens])
        np.testing.assert_array_equal(weights, [0] * len(prompt) + [1] * len(label_tokens))


def test_labels_are_cut_where_they_differ(tokenizer):
    renderer = ComparisonRendererFromChatRenderer(renderer=get_renderer("chatml", tokenizer))
    assert renderer.label_tokens == {
        label: (tokenizer.encode(label)[0],) for label in ("A", "B", "Tie")
    }


def test_a_format_that_begins_every_answer_alike_trains_up_to_the_label():
    """Upstream cuts after the first weighted token, which here says nothing of the label."""
    tokenizer = tiny_tokenizer("qwen3")
    chat = get_renderer("qwen3", tokenizer)
    tokens = ComparisonRendererFromChatRenderer(renderer=chat).label_tokens
    beginnings = {label_tokens[:-1] for label_tokens in tokens.values()}
    assert len(beginnings) == 1
    assert len({label_tokens[-1] for label_tokens in tokens.values()}) == 3
    assert tokenizer.decode(beginnings.pop()).startswith("<think>")


def test_a_comparison_longer_than_the_limit_is_left_out_and_not_cut(renderer):
    labeled = LabeledComparison(comparison=COMPARISON, label="A")
    length = len(renderer.build_supervised_example(labeled).tokens)
    fits = prepare_comparisons([labeled], renderer=renderer, max_length=length)
    assert (len(fits.forward), len(fits.swapped), fits.too_long) == (1, 1, 0)
    assert fits.forward[0].length == length - 1
    none = prepare_comparisons([labeled], renderer=renderer, max_length=length - 1)
    assert (none.forward, none.swapped, none.too_long) == ((), (), 1)
