import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import TrainOnWhat, get_renderer
from cookbook_fx.supervised import conversation_to_datum, datum_from_tokens_weights


def tokens_and_weights(weights):
    return np.arange(10, 10 + len(weights)), np.array(weights, np.float32)


def test_targets_are_the_tokens_one_later_with_their_weights():
    datum = datum_from_tokens_weights(*tokens_and_weights([1, 0, 2, 3]))
    assert datum.tokens.tolist() == [10, 11, 12]
    assert datum.target_tokens.tolist() == [11, 12, 13]
    assert datum.weights.tolist() == [0, 2, 3]
    assert {a.dtype for a in (datum.tokens, datum.target_tokens)} == {np.dtype(np.int32)}
    assert datum.weights.dtype == np.float32


def test_what_is_too_long_loses_its_end_before_weights_are_reduced():
    datum = datum_from_tokens_weights(*tokens_and_weights([0, 0, 1, 1, 1]), 4, "mean")
    assert datum.target_tokens.tolist() == [11, 12, 13]
    assert datum.weights.tolist() == [0, 0.5, 0.5]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=50), st.integers(2, 60))
def test_mean_weights_add_up_to_one_or_are_left_at_zero(weights, max_length):
    tokens, weights = tokens_and_weights(weights)
    mean = datum_from_tokens_weights(tokens, weights, max_length, "mean")
    plain = datum_from_tokens_weights(tokens, weights, max_length)
    assert mean.length == plain.length == min(len(tokens), max_length) - 1
    assert mean.weights.sum() == pytest.approx(1.0 if plain.weights.any() else 0.0)
    np.testing.assert_allclose(mean.weights * plain.weights.sum(), plain.weights, atol=1e-6)


def test_unusable_arguments_are_refused():
    for weights in ([], [1.0]):
        with pytest.raises(DataError, match="at least 2 tokens"):
            datum_from_tokens_weights(*tokens_and_weights(weights))
    for max_length in (1, 0, -1):
        with pytest.raises(ConfigurationError, match="`max_length` must be at least 2"):
            datum_from_tokens_weights(*tokens_and_weights([1, 1, 1]), max_length)


def test_what_annotations_would_refuse_is_refused_without_them_too():
    unchecked = inspect.unwrap(datum_from_tokens_weights)
    with pytest.raises(DataError, match="each token needs a weight, got 3 and 2"):
        unchecked(np.arange(3), np.ones(2, np.float32))
    with pytest.raises(ConfigurationError, match="none or mean, got 'sum'"):
        unchecked(*tokens_and_weights([1, 1]), None, "sum")


def test_a_conversation_trains_on_all_its_responses_alike_by_default(tiny_tokenizer):
    renderer = get_renderer("chatml", tiny_tokenizer)
    roles = ("user", "assistant", "user", "assistant")
    messages = [Message(role=role, content=f"{role} {i}") for i, role in enumerate(roles)]
    datum = conversation_to_datum(messages, renderer, None)
    trained = datum.target_tokens[datum.weights > 0]
    assert tiny_tokenizer.decode(trained) == "assistant 1<|im_end|>assistant 3<|im_end|>"
    np.testing.assert_allclose(datum.weights[datum.weights > 0], 1 / len(trained), rtol=1e-6)
    summed = conversation_to_datum(
        messages, renderer, None, TrainOnWhat.LAST_ASSISTANT_MESSAGE, "none"
    )
    assert set(summed.weights.tolist()) == {0.0, 1.0}
