"""KL metrics, penalties and discounted sums against tinker-cookbook's, and where it goes wrong."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from cookbook_fx import numerics

pytestmark = pytest.mark.parity
tinker = pytest.importorskip("tinker")
torch = pytest.importorskip("torch")
theirs = pytest.importorskip("tinker_cookbook.rl.metrics")

LENGTHS = (5, 40, 131)
Row = tuple[np.ndarray, np.ndarray, np.ndarray]


def rows(seed: int) -> list[Row]:
    """Sampling and base log-probabilities of each sequence, and its mask: a prompt, then turns."""
    generator = np.random.default_rng(seed)
    drawn = []
    for length in LENGTHS:
        sampling, base = -generator.exponential(size=(2, length)).astype(np.float32)
        mask = generator.random(length) < 0.7
        mask[:2] = False
        drawn.append((np.where(mask, sampling, 0).astype(np.float32), base, mask))
    return drawn


def datums(drawn: list[Row]) -> list:
    def tensor(array: np.ndarray, dtype: type) -> object:
        return tinker.TensorData.from_torch(torch.tensor(array.astype(dtype)))

    return [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(list(range(len(mask)))),
            loss_fn_inputs={
                "target_tokens": tensor(np.arange(1, len(mask) + 1), np.int64),
                "logprobs": tensor(sampling, np.float32),
                "mask": tensor(mask, np.float32),
                "advantages": tensor(np.zeros(len(mask)), np.float32),
            },
        )
        for sampling, _, mask in drawn
    ]


def their_penalty(drawn: list[Row], coef: float, gamma: float) -> tuple[list[np.ndarray], float]:
    answers = iter([[None, *base.tolist()] for _, base, _ in drawn])

    async def compute_logprobs_async(_: object) -> list:
        return next(answers)

    client = SimpleNamespace(compute_logprobs_async=compute_logprobs_async)
    data = datums(drawn)
    metrics = asyncio.run(theirs.incorporate_kl_penalty(data, client, coef, gamma))
    advantages = [datum.loss_fn_inputs["advantages"].to_numpy() for datum in data]
    return advantages, metrics["kl_policy_base"]


def our_penalty(drawn: list[Row], coef: float, gamma: float) -> numerics.KLPenalty:
    sampling, base, mask = (np.concatenate(columns) for columns in zip(*drawn, strict=True))
    starts = np.zeros(mask.shape, bool)
    starts[np.cumsum([0, *LENGTHS[:-1]])] = True
    return numerics.kl_penalty(sampling, base, mask, coef=coef, gamma=gamma, starts=starts)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
def test_discounted_sums_are_upstream_s(gamma: float) -> None:
    values = np.random.default_rng(0).normal(size=300).astype(np.float32)

    wanted = theirs.discounted_future_sum_vectorized(torch.tensor(values), gamma).numpy()

    np.testing.assert_allclose(
        numerics.discounted_sums(values, gamma), wanted, atol=1e-5 * np.abs(wanted).max()
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95])
def test_penalties_are_upstream_s_on_sampled_tokens(gamma: float) -> None:
    drawn = rows(1)
    mask = np.concatenate([mask for _, _, mask in drawn])

    wanted, wanted_mean = their_penalty(drawn, 0.3, gamma)
    penalty = our_penalty(drawn, 0.3, gamma)

    np.testing.assert_allclose(penalty.mean_kl, wanted_mean, rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(penalty.advantages)[mask], np.concatenate(wanted)[mask], atol=2e-5
    )


def test_upstream_s_discount_reaches_prompts_and_ours_does_not() -> None:
    drawn = rows(2)
    mask = np.concatenate([mask for _, _, mask in drawn])

    leaked, _ = their_penalty(drawn, 0.3, 0.95)

    assert np.any(np.concatenate(leaked)[~mask] != 0)
    assert not np.any(np.asarray(our_penalty(drawn, 0.3, 0.95).advantages)[~mask])


def test_metrics_are_upstream_s() -> None:
    drawn = rows(3)
    sampling, training, mask = (np.concatenate(columns) for columns in zip(*drawn, strict=True))

    wanted = theirs.compute_kl_sample_train(
        datums(drawn), [torch.tensor(base) for _, base, _ in drawn]
    )

    metrics = numerics.sample_train_kl(sampling, training, mask)
    np.testing.assert_allclose(metrics.kl_v1, wanted["optim/kl_sample_train_v1"], rtol=1e-5)
    np.testing.assert_allclose(metrics.kl_v2, wanted["optim/kl_sample_train_v2"], rtol=1e-5)
    np.testing.assert_allclose(metrics.entropy, wanted["optim/entropy"], rtol=1e-5)


def test_nothing_unmasked_fails_upstream_and_is_0_here() -> None:
    drawn = [(sampling, base, np.zeros_like(mask)) for sampling, base, mask in rows(4)]
    sampling, base, mask = (np.concatenate(columns) for columns in zip(*drawn, strict=True))

    with pytest.raises(AssertionError):
        theirs.compute_kl_sample_train(datums(drawn), [torch.tensor(base) for _, base, _ in drawn])
    assert np.isnan(their_penalty(drawn, 0.3, 0.0)[1])

    assert numerics.sample_train_kl(sampling, base, mask) == (0, 0, 0, 0)
    assert not np.any(np.asarray(our_penalty(drawn, 0.3, 0.95).advantages))
