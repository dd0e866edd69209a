import numpy as np
import pytest

from cookbook_fx.data import Datum
from cookbook_fx.errors import DataError
from cookbook_fx.supervised import likelihood_report

BYTES = np.array([0, 1, 2, 4], np.int32)


def datum(targets, weights):
    targets = np.array(targets, np.int32)
    weights = None if weights is None else np.array(weights, np.float32)
    return Datum(tokens=np.zeros(len(targets), np.int32), target_tokens=targets, weights=weights)


def test_hand_computed_batch():
    datums = [datum([1, 2, 0], [0.0, 0.25, 0.75]), datum([3, 3], [1.0, 0.0])]
    logprobs = [np.array([-9.0, -2.0, -4.0]), np.array([-1.0, -np.inf])]
    report = likelihood_report(datums, logprobs, byte_lengths=BYTES)
    assert (report.num_sequences, report.num_tokens, report.num_loss_tokens) == (2, 5, 3)
    assert report.mean_nll == pytest.approx((0.5 + 3.0 + 1.0) / 2)
    # Token 0 is a control token: it counts as a loss token, not as text.
    assert report.bits_per_byte == pytest.approx((2.0 + 1.0) / (np.log(2) * (2 + 4)))


def test_loss_tokens_are_counted_and_bits_are_unchanged_by_the_weights_scale():
    targets, logprobs = [1, 2, 3], [np.array([-1.0, -2.0, -3.0], np.float32)]
    whole = likelihood_report([datum(targets, [0.0, 1.0, 1.0])], logprobs, byte_lengths=BYTES)
    scaled = likelihood_report([datum(targets, [0.0, 0.5, 0.5])], logprobs, byte_lengths=BYTES)
    assert whole == scaled
    assert whole.num_loss_tokens == 2


def test_absent_weights_count_as_ones():
    report = likelihood_report([datum([1, 1], None)], [np.array([-1.0, -3.0])])
    assert (report.num_loss_tokens, report.mean_nll, report.bits_per_byte) == (2, 2.0, None)


def test_nothing_to_predict_is_zero():
    report = likelihood_report([datum([1], [0.0])], [np.array([-5.0])], byte_lengths=BYTES)
    assert (report.num_loss_tokens, report.mean_nll, report.bits_per_byte) == (0, 0.0, 0.0)
    assert likelihood_report([], []).num_sequences == 0


def test_soft_targets_have_a_mean_and_no_bytes():
    soft = Datum(
        tokens=np.zeros(1, np.int32),
        target_tokens=np.array([[1, 2]], np.int32),
        weights=np.array([[0.75, 0.25]], np.float32),
    )
    report = likelihood_report([soft], [np.array([[-1.0, -5.0]])], byte_lengths=BYTES)
    assert report.mean_nll == pytest.approx(2.0)
    assert report.bits_per_byte is None


def test_logprobs_must_fit():
    with pytest.raises(DataError, match="in the shape of its targets"):
        likelihood_report([datum([1, 2], None)], [np.zeros(3)])
    with pytest.raises(DataError, match="each datum needs logprobs"):
        likelihood_report([datum([1, 2], None)], [])
