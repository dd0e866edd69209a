"""What crosses to the SDK arrives there unchanged."""

import copy
import dataclasses
import gc
import inspect
import pickle

import numpy as np
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types import ForwardBackwardInput, ForwardBackwardRequest

from cookbook_fx.data import Datum
from cookbook_fx.lm import AdamParams
from shell.clients import convert

floats = st.floats(-10, 10, width=32)


@st.composite
def datums(draw) -> Datum:
    length = draw(st.integers(1, 20))
    candidates = draw(st.none() | st.integers(1, 3))
    targets_shape = (length,) if candidates is None else (length, candidates)
    ids = st.integers(0, 2**31 - 1)
    columns = {
        name: draw(st.none() | arrays.arrays(np.float32, length, elements=floats))
        for name in ("logprobs", "advantages")
    }
    return Datum(
        tokens=draw(arrays.arrays(np.int32, length, elements=ids)),
        target_tokens=draw(arrays.arrays(np.int32, targets_shape, elements=ids)),
        weights=draw(st.none() | arrays.arrays(np.float32, targets_shape, elements=floats)),
        **columns,
    )


def usual(datum: Datum) -> tinker.Datum:
    """The same, made as the SDK's documentation does: of lists, validated."""
    columns = ("target_tokens", "weights", "logprobs", "advantages")
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(datum.tokens.tolist()),
        loss_fn_inputs={
            name: tinker.TensorData.from_numpy(getattr(datum, name))
            for name in columns
            if getattr(datum, name) is not None
        },
    )


def request_of(data: list[tinker.Datum]):
    request = ForwardBackwardRequest(
        model_id="m",
        seq_id=1,
        forward_backward_input=ForwardBackwardInput(data=data, loss_fn="cross_entropy"),
    )
    return forward_backward_request_to_proto(request)


@given(datums())
def test_every_column_of_a_datum_arrives_with_its_values_and_shape(datum):
    (sent,) = convert.to_sdk_data([datum])
    assert sent.model_input.to_ints() == datum.tokens.tolist()
    expected = {
        name: getattr(datum, name)
        for name in ("target_tokens", "weights", "logprobs", "advantages")
        if getattr(datum, name) is not None
    }
    assert set(sent.loss_fn_inputs) == set(expected)
    for name, column in expected.items():
        tensor = sent.loss_fn_inputs[name]
        assert tensor.dtype == ("int64" if name == "target_tokens" else "float32")
        np.testing.assert_array_equal(tensor.to_numpy(), column)


@given(st.lists(datums(), max_size=3))
def test_the_request_is_the_one_the_sdk_makes_of_lists(data):
    assert request_of(convert.to_sdk_data(data)) == request_of([usual(datum) for datum in data])


def test_the_models_input_is_used_as_one_made_of_lists():
    """Everything other people's code does with a `ModelInput`."""
    datum = Datum(tokens=np.array([5, 2**31 - 1, 7], np.int32), target_tokens=np.arange(3))
    (ours,), theirs = convert.to_sdk_data([datum]), usual(datum)
    sent, made = ours.model_input, theirs.model_input
    tokens = sent.chunks[0].tokens

    assert sent == made
    assert made == sent
    assert sent != tinker.ModelInput.from_ints([5, 6, 7])
    assert tokens != 5
    assert sent.length == 3
    assert sent.to_ints() == made.to_ints()
    assert {type(token) for token in sent.to_ints()} == {int}
    assert (tokens[0], tokens[-1], tokens[1:], list(tokens), 7 in tokens) == (
        *(5, 7, [2**31 - 1, 7], [5, 2**31 - 1, 7]),
        True,
    )
    assert type(tokens[0]) is int
    assert repr(sent) == repr(made)
    assert sent.model_dump() == made.model_dump()
    assert sent.model_dump(mode="json") == made.model_dump(mode="json")
    assert sent.model_dump_json(exclude_unset=True) == made.model_dump_json(exclude_unset=True)
    assert tinker.ModelInput.model_validate(sent.model_dump()) == made
    assert tinker.ModelInput.model_validate_json(sent.model_dump_json()) == made
    assert sent.append_int(8) == made.append_int(8)
    assert pickle.loads(pickle.dumps(sent)) == copy.deepcopy(sent) == made
    assert dataclasses.replace(ours, loss_fn_inputs={}).model_input == made


def test_integers_of_another_width_are_refused_where_they_do_not_fit():
    wide = np.array([5, 2**31 + 5], np.int64)
    (fits,) = convert.to_sdk_data([Datum(tokens=wide[:1], target_tokens=wide[:1])])
    assert fits.model_input.to_ints() == [5]
    with pytest.raises(OverflowError):
        request_of(convert.to_sdk_data([Datum(tokens=wide, target_tokens=wide)]))


def test_arrays_of_the_dtypes_sent_are_not_copied():
    ids, weights = np.arange(4, dtype=np.int32), np.ones(4, np.float32)
    datum = Datum(tokens=ids, target_tokens=ids.astype(np.int64), weights=weights)
    (sent,) = convert.to_sdk_data([datum])

    assert np.shares_memory(np.asarray(sent.model_input.chunks[0].tokens), ids)
    assert sent.loss_fn_inputs["weights"].to_numpy() is weights


@pytest.mark.parametrize(
    ("columns", "mask"),
    [
        ({}, [1, 1, 1]),
        ({"weights": np.array([0.5, 0.0, -1.0], np.float32)}, [1, 0, 1]),
        (
            {
                "weights": np.ones(3, np.float32),
                "sequence_ratio_mask": np.array([False, True, False]),
            },
            [0, 1, 0],
        ),
    ],
)
def test_gspo_is_told_which_tokens_make_up_a_ratio(columns, mask):
    ids = np.array([1, 2, 3], np.int32)
    datum = Datum(tokens=ids, target_tokens=ids, **columns)
    (sent,) = convert.to_sdk_data([datum], loss="gspo")
    tensor = sent.loss_fn_inputs["sequence_ratio_mask"]

    assert (tensor.dtype, tensor.tolist()) == ("float32", mask)
    assert "sequence_ratio_mask" not in convert.to_sdk_data([datum], loss="ppo")[0].loss_fn_inputs


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_afterwards_as_before(enabled):
    class Unusable:
        def __iter__(self):
            raise RuntimeError

    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        convert.to_sdk_data([])
        assert gc.isenabled() is enabled
        with pytest.raises(RuntimeError):
            convert.to_sdk_data(Unusable())
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_optimizer_settings_keep_their_names():
    adam = AdamParams(
        learning_rate=0.1, beta1=0.2, beta2=0.3, eps=0.4, weight_decay=0.5, grad_clip_norm=0.6
    )
    assert convert.to_sdk_adam(adam).model_dump() == {
        "learning_rate": 0.1, "beta1": 0.2, "beta2": 0.3, "eps": 0.4, "weight_decay": 0.5,
        "grad_clip_norm": 0.6,
    }  # fmt: skip


def test_an_engine_need_not_say_its_loss():
    silent = tinker.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", loss_fn_outputs=[], metrics={}
    )
    assert convert.from_sdk_forward(silent).loss_sum is None


def test_log_probabilities_come_back_in_the_order_of_the_datums():
    outputs = [
        {"logprobs": tinker.TensorData.from_numpy(np.full(length, -length, np.float32))}
        for length in (1, 3, 2)
    ]
    result = convert.from_sdk_forward(
        tinker.ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord", loss_fn_outputs=outputs, metrics={"loss:sum": 2.5}
        )
    )
    assert result.loss_sum == 2.5
    assert [array.tolist() for array in result.logprobs] == [[-1], [-3, -3, -3], [-2, -2]]


def test_an_optimizer_step_without_measurements_is_fine():
    assert convert.from_sdk_optim(tinker.OptimStepResponse(metrics=None)).metrics == {}


def sampled(**fields) -> tinker.SampledSequence:
    """Of this SDK: earlier ones give sequences no name."""
    is_named = "sequence_id" in inspect.signature(tinker.SampledSequence).parameters
    return tinker.SampledSequence(**fields, **({"sequence_id": "a"} if is_named else {}))


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_samples_come_back_as_arrays(reason):
    sequence = sampled(
        tokens_np=np.array([4, 5], np.int32),
        logprobs_np=np.array([-0.5, -0.25], np.float32),
        stop_reason=reason,
    )
    (sample,) = convert.from_sdk_samples(tinker.SampleResponse(sequences=[sequence]))
    assert (sample.tokens.dtype, sample.tokens.tolist()) == (np.int32, [4, 5])
    assert (sample.logprobs.dtype, sample.logprobs.tolist()) == (np.float32, [-0.5, -0.25])
    assert sample.stop_reason == reason


def test_an_empty_completion_is_an_empty_array():
    sequence = sampled(stop_reason="length")
    (sample,) = convert.from_sdk_samples(tinker.SampleResponse(sequences=[sequence]))
    assert (sample.tokens.shape, sample.logprobs.shape) == ((0,), (0,))
