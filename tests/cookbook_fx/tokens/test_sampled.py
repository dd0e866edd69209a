import pickle

import numpy as np
import pytest

from cookbook_fx.errors import DataError
from cookbook_fx.tokens import TokensWithLogprobs


def test_what_was_sampled_is_kept_as_given():
    tokens, logprobs = np.array([5, 6], np.int32), np.array([-0.5, -1.0], np.float32)
    sampled = TokensWithLogprobs(tokens=tokens, maybe_logprobs=logprobs, stop_reason="length")
    assert sampled.tokens is tokens
    assert sampled.logprobs is sampled.maybe_logprobs is logprobs
    assert sampled.stop_reason == "length"


def test_it_travels_between_processes():
    sampled = TokensWithLogprobs(tokens=[5], maybe_logprobs=[-0.5])
    copied = pickle.loads(pickle.dumps(sampled))
    assert (copied.tokens, copied.logprobs, copied.stop_reason) == ([5], [-0.5], "stop")


def test_without_logprobs_only_the_tokens_can_be_had():
    sampled = TokensWithLogprobs(tokens=[5, 6])
    assert sampled.tokens == [5, 6]
    with pytest.raises(DataError, match="no log-probabilities; ask for them when sampling"):
        _ = sampled.logprobs


def test_nothing_sampled_is_no_missing_logprobs():
    assert TokensWithLogprobs(tokens=[], maybe_logprobs=[]).logprobs == []


@pytest.mark.parametrize("logprobs", [[], [-0.5], [-0.5] * 3, np.zeros(3, np.float32)])
def test_another_number_of_logprobs_is_refused(logprobs):
    with pytest.raises(DataError, match=f"got {len(logprobs)} for 2 tokens"):
        TokensWithLogprobs(tokens=[5, 6], maybe_logprobs=logprobs)
