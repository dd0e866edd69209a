"""DPO beside tinker-cookbook's: one loss, its metrics and its gradients; and a batch of none."""

import numpy as np
import pytest

from cookbook_fx.numerics import preference_gradients, sequence_logprobs

torch = pytest.importorskip("torch")
train_dpo = pytest.importorskip("tinker_cookbook.preference.train_dpo")

pytestmark = pytest.mark.parity


def test_dpo_is_upstreams_in_value_metrics_and_gradient() -> None:
    random = np.random.default_rng(0)
    logprobs = -random.exponential(size=(16, 2, 32)).astype(np.float32)
    reference = logprobs + random.normal(scale=0.3, size=logprobs.shape).astype(np.float32)
    weights = (np.arange(32) < random.integers(1, 33, (16, 2, 1))).astype(np.float32)

    tokens = torch.tensor(logprobs, requires_grad=True)
    sums = (tokens * torch.tensor(weights)).sum(-1)
    reference_sums = torch.tensor((reference * weights).sum(-1))
    loss, expected = train_dpo.compute_dpo_loss(
        list(sums[:, 0]), list(sums[:, 1]),
        list(reference_sums[:, 0]), list(reference_sums[:, 1]), dpo_beta=0.3,
    )  # fmt: skip
    loss.backward()

    metrics, gradients = preference_gradients(
        logprobs, weights=weights, beta=0.3,
        reference_logprobs=sequence_logprobs(reference, weights),
    )  # fmt: skip

    assert float(metrics.loss) == pytest.approx(expected.pop("dpo_loss"), rel=1e-5)
    for name, value in expected.items():
        assert float(getattr(metrics, name)) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    np.testing.assert_allclose(gradients, tokens.grad, rtol=1e-4, atol=1e-7)


def test_no_pairs_which_stop_upstream_are_a_loss_of_zero() -> None:
    empty = np.zeros((0, 2, 8), np.float32)

    metrics, _ = preference_gradients(
        empty, weights=empty, reference_logprobs=empty[..., 0], beta=0.1
    )

    assert [float(value) for value in metrics] == [0] * 6
    with pytest.raises(RuntimeError, match="non-empty"):
        train_dpo.compute_dpo_loss([], [], [], [], dpo_beta=0.1)
