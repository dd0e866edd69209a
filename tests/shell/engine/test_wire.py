import json

import numpy as np
import pytest
from tinker.proto import response_conv
from tinker.proto import tinker_public_pb2 as pb

from cookbook_fx.lm import LossOutput, PromptScores, Sampled
from shell.engine import wire
from shell.engine.requests import ForwardBackward, OptimStep, SamplePrompt, Unusable


def operation(body):
    return wire.forward_backward(body, content_encoding="").operation


def tensor(array, shape=True):
    kind = pb.DTYPE_INT64 if array.dtype == np.int64 else pb.DTYPE_FLOAT32
    return pb.Tensor(dense=array.tobytes(), dtype=kind, shape=array.shape if shape else ())


def sparse(dense):
    rows, columns = np.nonzero(dense)
    starts = np.searchsorted(rows, np.arange(len(dense) + 1)).astype(np.int64)
    kind = pb.DTYPE_INT64 if dense.dtype == np.int64 else pb.DTYPE_FLOAT32
    csr = pb.SparseCsr(
        values=dense[rows, columns].tobytes(),
        crow_indices=starts.tobytes(),
        col_indices=columns.astype(np.int64).tobytes(),
    )
    return pb.Tensor(sparse_csr=csr, dtype=kind, shape=dense.shape)


def request(tokens, **inputs):
    text = pb.EncodedTextChunk(tokens=np.array(tokens, np.int32).tobytes())
    datum = pb.Datum(model_input=[pb.Chunk(encoded_text=text)], loss_fn_inputs=inputs)
    return pb.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="cross_entropy", data=[datum])


def test_sparse_columns_become_dense_with_token_zero_unlisted():
    targets = np.array([[3, 0, 9], [0, 0, 0], [0, 4, 0]], np.int64)
    weights = np.array([[0.5, 0.25, 0], [0, 0, 0], [0, -1, 0]], np.float32)
    message = request([1, 2, 3], target_tokens=sparse(targets), weights=sparse(weights))
    passed = operation(message.SerializeToString())
    assert isinstance(passed, ForwardBackward)
    np.testing.assert_array_equal(passed.datums[0].target_tokens, targets)
    np.testing.assert_array_equal(passed.datums[0].weights, weights)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (request([1, 2]), "lack target_tokens"),
        (request([1], target_tokens=tensor(np.array([5, 6]))), "must have shape"),
        (request([1], target_tokens=tensor(np.array([5])), mask=tensor(np.array([1]))), "mask"),
        (
            request([1], target_tokens=pb.Tensor(dense=b"123", dtype=pb.DTYPE_INT64)),
            "whole",
        ),
        (
            request([1], target_tokens=pb.Tensor(dense=b"", dtype=pb.DTYPE_INT64, shape=[7])),
            "cannot have shape",
        ),
        (
            request(
                [1, 2, 3],
                target_tokens=pb.Tensor(dense=bytes(24), dtype=pb.DTYPE_INT64, shape=[-1, -3]),
            ),
            "cannot have shape",
        ),
        (request([1], target_tokens=tensor(np.array([2**32 + 5]))), "no token ids"),
        (request([1], target_tokens=tensor(np.array([5.7], np.float32))), "integers"),
        (
            request([1], target_tokens=pb.Tensor(dense=b"", dtype=pb.DTYPE_BFLOAT16)),
            "supported: float32",
        ),
        (pb.ForwardBackwardRequest(model_id="m", seq_id=1), "at least one datum"),
    ],
)
def test_content_that_cannot_be_used_keeps_its_place_in_the_order(message, complaint):
    unusable = operation(message.SerializeToString())
    assert isinstance(unusable, Unusable)
    assert complaint in unusable.reason


def test_torn_sparse_indices_are_refused():
    good = sparse(np.eye(3, dtype=np.int64))
    for columns in ([0, 1, 3], [0, 1], [-1, 1, 2]):
        good.sparse_csr.col_indices = np.array(columns, np.int64).tobytes()
        assert (
            "sparse" in operation(request([1, 2, 3], target_tokens=good).SerializeToString()).reason
        )


def test_what_cannot_be_attributed_is_malformed():
    for body in (b"\xff\xff\xff", b""):
        with pytest.raises(wire.Malformed):
            wire.forward_backward(body, content_encoding="")
    with pytest.raises(wire.Malformed, match="compressed"):
        wire.forward_backward(request([1]).SerializeToString(), content_encoding="zstd")
    with pytest.raises(wire.Malformed, match="from 1"):
        wire.optim_step(b'{"model_id": "m", "seq_id": 0}')
    for body in (b"[]", b"{", b"\xff", b'{"model_id": 3, "seq_id": 1}'):
        with pytest.raises(wire.Malformed):
            wire.optim_step(body)


def test_an_optimizer_step_with_bad_or_foreign_settings_fails_in_its_place():
    def step(**settings):
        body = json.dumps({"model_id": "m", "seq_id": 4, **settings}).encode()
        return wire.optim_step(body).operation

    assert isinstance(step(adam_params={"learning_rate": 0.5}), OptimStep)
    assert "AdamW" in step(optimizer_params={"type": "dimuon"}).reason
    assert "beta1" in step(adam_params={"beta1": 1.5}).reason
    assert "learning_rate" in step(adam_params={"learning_rate": "fast"}).reason


def sample(**fields):
    body = {
        "sampling_session_id": "s",
        "seq_id": 0,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
        "sampling_params": {},
    }
    return wire.sample_request(json.dumps(body | fields).encode()).request


def test_a_seed_may_be_wider_than_a_machine_word():
    for seed in (0, -5, 2**64 - 1, 2**127):
        assert sample(sampling_params={"seed": seed}).seed == seed
    assert "at most 256 bits" in sample(sampling_params={"seed": 2**300}).reason


@pytest.mark.parametrize(
    ("stop", "strings", "tokens"),
    [
        (None, (), None),
        ("\n", ("\n",), None),
        (["a", "b"], ("a", "b"), None),
        ([7, 8], (), (7, 8)),
        ([], (), ()),
    ],
)
def test_every_form_of_stop(stop, strings, tokens):
    asked = sample(sampling_params={"stop": stop})
    assert isinstance(asked, SamplePrompt)
    assert (asked.stop_strings, asked.stop_tokens) == (strings, tokens)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"prompt": {"chunks": []}}, "at least one token"),
        ({"prompt": {"chunks": [{"type": "image", "data": ""}]}}, "image"),
        ({"prompt": {"chunks": [{"tokens": ["a"]}]}}, "integers"),
        ({"prompt": {"chunks": [{"tokens": [10**30]}]}}, "integers"),
        ({"sampling_params": {"stop": [1, "a"]}}, "stop must be"),
        ({"topk_sample_logprobs": 3}, "topk_sample_logprobs"),
        ({"record_stability_info": True}, "record_stability_info"),
    ],
)
def test_a_sampling_request_that_cannot_be_met_says_why(fields, complaint):
    assert complaint in sample(**fields).reason


def test_outputs_of_different_shapes_come_back_as_they_were():
    arrays = (
        np.array([-1.0, -2.0], np.float32),
        np.array([-3.0], np.float32),
        np.arange(6, dtype=np.float32).reshape(3, 2),
    )
    done = wire.training_done(LossOutput(loss_sum=2.5, logprobs=arrays))
    output = response_conv.deserialize_forward_backward_output(done.body)
    assert output.metrics == {"loss:sum": 2.5}
    for sent, got in zip(arrays, output.loss_fn_outputs, strict=True):
        np.testing.assert_array_equal(got["logprobs"].to_numpy(), sent)


def test_samples_and_prompt_scores_come_back_as_they_were():
    nan = np.nan
    scores = PromptScores(
        logprobs=np.array([nan, -1.0], np.float32),
        topk_ids=np.array([[0, 0], [4, 9]], np.int32),
        topk_logprobs=np.array([[nan, nan], [-0.5, -1.0]], np.float32),
    )
    samples = (
        Sampled(np.array([3, 4]), np.array([-1.0, -0.25]), "stop"),
        Sampled(np.array([5]), np.array([-2.0]), "length"),
    )
    got = response_conv.deserialize_sample_response(wire.sample_done(samples, scores).body)
    assert [s.stop_reason for s in got.sequences] == ["stop", "length"]
    assert [list(s.tokens) for s in got.sequences] == [[3, 4], [5]]
    assert [list(s.logprobs) for s in got.sequences] == [[-1.0, -0.25], [-2.0]]
    assert got.prompt_logprobs == [None, -1.0]
    assert got.topk_prompt_logprobs == [None, [(4, -0.5), (9, -1.0)]]


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [([1, 2**40], "more than"), ([0, 2**62], "more than"), ([-1, 3], "do not describe")],
)
def test_a_sparse_matrix_is_no_larger_than_it_may_be(shape, complaint):
    starts = np.zeros(max(0, shape[0] + 1), np.int64).tobytes()
    matrix = pb.Tensor(
        sparse_csr=pb.SparseCsr(crow_indices=starts), dtype=pb.DTYPE_INT64, shape=shape
    )
    text = pb.EncodedTextChunk(tokens=np.array([5], np.int32).tobytes())
    datum = pb.Datum(
        model_input=[pb.Chunk(encoded_text=text)], loss_fn_inputs={"target_tokens": matrix}
    )
    body = pb.ForwardBackwardRequest(model_id="m", seq_id=1, data=[datum]).SerializeToString()
    operation = wire.forward_backward(body, content_encoding="").operation
    assert isinstance(operation, Unusable)
    assert complaint in operation.reason
