"""What crosses to the SDK arrives there unchanged."""

import numpy as np
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

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


@given(datums())
def test_every_column_of_a_datum_arrives_with_its_values_and_shape(datum):
    sent = convert.to_sdk_datum(datum)
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


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_samples_come_back_as_arrays(reason):
    sequence = tinker.SampledSequence(
        tokens_np=np.array([4, 5], np.int32),
        logprobs_np=np.array([-0.5, -0.25], np.float32),
        stop_reason=reason,
        sequence_id="a",
    )
    (sample,) = convert.from_sdk_samples(tinker.SampleResponse(sequences=[sequence]))
    assert (sample.tokens.dtype, sample.tokens.tolist()) == (np.int32, [4, 5])
    assert (sample.logprobs.dtype, sample.logprobs.tolist()) == (np.float32, [-0.5, -0.25])
    assert sample.stop_reason == reason


def test_an_empty_completion_is_an_empty_array():
    sequence = tinker.SampledSequence(stop_reason="length", sequence_id="a")
    (sample,) = convert.from_sdk_samples(tinker.SampleResponse(sequences=[sequence]))
    assert (sample.tokens.shape, sample.logprobs.shape) == ((0,), (0,))
