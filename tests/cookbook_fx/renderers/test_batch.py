import numpy as np
import pytest

from cookbook_fx.chat import Message, TextPart, ThinkingPart, ToolCall
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import RENDERERS, TrainOnWhat, build_supervised_batch, get_renderer
from tests.family_tokenizers import family_of
from tests.family_tokenizers import tiny_tokenizer as family_tokenizer

T = TrainOnWhat
CONVERSATIONS = [
    [Message(role="system", content="Be brief."), Message(role="user", content="Hi"),
     Message(role="assistant", content="Hello."), Message(role="user", content="Hi"),
     Message(role="assistant", content="Hello again <|im_end|>")],
    [Message(role="user", content=""), Message(role="assistant", content="")],
]  # fmt: skip
REASONING = [
    [Message(role="user", content="Hi"),
     Message(role="assistant", content=(ThinkingPart(thinking="Hm."), TextPart(text="Yes."))),
     Message(role="user", content="So?"),
     Message(role="assistant", content="", tool_calls=(ToolCall(name="look", arguments="{}"),))],
]  # fmt: skip


@pytest.fixture(params=RENDERERS)
def renderer(request, tiny_tokenizer):
    family = family_of(request.param)
    return get_renderer(request.param, family_tokenizer(family) if family else tiny_tokenizer)


def same(one, other):
    return all(
        np.array_equal(a.tokens, b.tokens) and np.array_equal(a.weights, b.weights)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("option", [T.LAST_ASSISTANT_MESSAGE, T.ALL_ASSISTANT_MESSAGES])
def test_a_batch_is_what_its_conversations_are_one_by_one(renderer, option):
    batch = build_supervised_batch(renderer, CONVERSATIONS, option)
    assert len(batch) == len(CONVERSATIONS)
    for messages, examples in zip(CONVERSATIONS, batch, strict=True):
        assert same(examples, renderer.build_supervised_examples(messages, option))


def test_reasoning_and_calls_are_too():
    renderer = get_renderer("qwen3", family_tokenizer("qwen3"))
    (examples,) = build_supervised_batch(renderer, REASONING, T.ALL_ASSISTANT_MESSAGES)
    assert len(examples) == 2
    assert same(
        examples, renderer.build_supervised_examples(REASONING[0], T.ALL_ASSISTANT_MESSAGES)
    )


def test_no_conversations_make_no_examples(renderer):
    assert build_supervised_batch(renderer, []) == []


def test_what_cannot_be_rendered_is_told_by_its_number(renderer):
    with pytest.raises(DataError, match=r"^conversation 2: .*at least one message"):
        build_supervised_batch(renderer, [*CONVERSATIONS, []])
    with pytest.raises(ConfigurationError, match=r"^conversation 0: .*trainable"):
        build_supervised_batch(renderer, CONVERSATIONS, T.CUSTOMIZED)


def test_texts_encoded_ahead_are_not_encoded_again():
    renderer = get_renderer("llama3", family_tokenizer("llama3"))
    ahead = renderer.encoded_ahead(CONVERSATIONS)
    known = ahead.layout.codec.ahead
    for text in ("Be brief.", "Hi", "Hello."):
        assert known(text) == renderer.layout.codec.encode(text)
    assert known("something else") is None
