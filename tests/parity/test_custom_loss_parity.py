"""Custom losses beside the SDK's torch ones on one engine: the same wire, the same weights."""

import asyncio
import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx.data import Datum
from cookbook_fx.lm import AdamParams
from cookbook_fx.preference import (
    Comparison,
    LabeledComparison,
    PairInputs,
    prepare_pairs,
    token_preference_loss,
)
from shell.clients import NewLoRA, connect, convert, forward_backward_custom

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

ADAM = AdamParams(learning_rate=1e-2)


def datums() -> list[Datum]:
    random = np.random.default_rng(0)
    return [
        Datum(
            tokens=random.integers(3, 300, length).astype(np.int32),
            target_tokens=random.integers(3, 300, length).astype(np.int32),
            weights=(np.arange(length) >= length // 3).astype(np.float32),
        )
        for length in (5, 9, 17, 8)
    ]


def weights_after(engine, directory, backward) -> list[np.ndarray]:
    """The log-probabilities after three steps, which the weights decide."""

    async def run():
        async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
            lora = NewLoRA(base_model=str(directory), rank=4, seed=3)
            trainer = await service.create(lora)
            for _ in range(3):
                await backward(trainer)
                await trainer.optim_step(ADAM)
            return (await trainer.forward(datums())).logprobs

    return asyncio.run(run())


def test_a_custom_loss_trains_the_same_weights_as_the_sdks(tiny_engine, tiny_model_directory):
    def ours(logprobs, weights, inputs):
        means = jnp.sum(logprobs * weights, axis=-1) / jnp.sum(weights, axis=-1)
        return jnp.sum(means**2) + jnp.sum(jnp.tanh(logprobs) * weights), None

    def theirs(data, logprobs_list):
        total = 0.0
        for datum, logprobs in zip(data, logprobs_list, strict=True):
            weights = torch.tensor(datum.loss_fn_inputs["weights"].data)
            mean = (logprobs * weights).sum() / weights.sum()
            total = total + mean**2 + (torch.tanh(logprobs) * weights).sum()
        return total, {}

    async def with_jax(trainer):
        await (await forward_backward_custom(trainer, datums(), ours).backward(None))

    async def with_torch(trainer):
        await trainer.sdk.forward_backward_custom(convert.to_sdk_data(datums()), theirs)

    left = weights_after(tiny_engine, tiny_model_directory, with_jax)
    right = weights_after(tiny_engine, tiny_model_directory, with_torch)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_dpo_trains_the_same_weights_as_upstreams_loss_through_the_sdk(
    tiny_engine, tiny_model_directory
):
    train_dpo = pytest.importorskip("tinker_cookbook.preference.train_dpo")
    random = np.random.default_rng(1)
    reference = [-random.exponential(size=d.length).astype(np.float32) for d in datums()]
    sums = [np.dot(r, d.weights) for r, d in zip(reference, datums(), strict=True)]
    inputs = PairInputs(
        np.array(sums).reshape(2, 2), np.zeros(2, bool), {"beta": 0.3, "label_smoothing": 0.0}
    )
    measured = {}

    def dpo(logprobs, weights, inputs):
        return token_preference_loss(logprobs, weights, inputs, loss="dpo")

    def theirs(data, logprobs_list):
        weights = [torch.tensor(datum.loss_fn_inputs["weights"].data) for datum in data]
        policy = [torch.dot(p, w) for p, w in zip(logprobs_list, weights, strict=True)]
        fixed = [torch.tensor(float(value)) for value in sums]
        return train_dpo.compute_dpo_loss(
            policy[::2], policy[1::2], fixed[::2], fixed[1::2], dpo_beta=0.3
        )

    async def with_jax(trainer):
        passed = await forward_backward_custom(trainer, datums(), dpo).backward(inputs)
        measured["ours"] = await passed

    async def with_torch(trainer):
        answer = await trainer.sdk.forward_backward_custom(convert.to_sdk_data(datums()), theirs)
        measured["theirs"] = answer.metrics

    left = weights_after(tiny_engine, tiny_model_directory, with_jax)
    right = weights_after(tiny_engine, tiny_model_directory, with_torch)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert measured["ours"].loss == pytest.approx(measured["theirs"]["dpo_loss"], rel=1e-3)
    for name in ("accuracy", "margin", "chosen_reward", "rejected_reward"):
        value = float(getattr(measured["ours"].metrics.labeled, name))
        assert value == pytest.approx(measured["theirs"][name], rel=1e-3, abs=1e-4), name


def test_upstream_trains_a_tie_as_a_preference_and_here_it_is_none(tiny_model_directory):
    """Their bug 7, seen in their code, beside our records of the same comparison."""
    datasets = pytest.importorskip("tinker_cookbook.preference.dpo_datasets")
    source = inspect.getsource(datasets.DPODatasetBuilderFromComparisons)
    assert 'if labeled_comparison.label == "A"' in source
    assert "Tie" not in source

    from cookbook_fx.chat import Message
    from cookbook_fx.renderers import get_renderer
    from shell.hub import load_tokenizer

    tie = LabeledComparison(
        comparison=Comparison(
            prompt_conversation=(Message(role="user", content="where"),),
            completion_A=(Message(role="assistant", content="cat"),),
            completion_B=(Message(role="assistant", content="dog"),),
        ),
        label="Tie",
    )
    renderer = get_renderer("chatml", load_tokenizer(tiny_model_directory))
    assert prepare_pairs([tie], renderer=renderer, max_length=None).pairs == ()
