"""Losses of one's own on the real engine: the gradients of the losses it knows, and pipelined."""

import asyncio
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.lm import AdamParams
from shell.clients import NewLoRA, connect, forward_backward_custom
from shell.clients.custom_loss import _value_and_gradients

ADAM = AdamParams(learning_rate=1e-2)


class Weighing(NamedTuple):
    scale: np.ndarray


def cross_entropy(logprobs, weights, inputs):
    loss = -inputs.scale * jnp.sum(logprobs * weights)
    return loss, {"mean": loss / jnp.sum(weights)}


def data(lengths=(5, 9, 3), *, seed=0, candidates=None) -> list[Datum]:
    random = np.random.default_rng(seed)
    shape = () if candidates is None else (candidates,)
    return [
        Datum(
            tokens=random.integers(3, 300, length).astype(np.int32),
            target_tokens=random.integers(3, 300, (length, *shape)).astype(np.int32),
            weights=random.random((length, *shape)).astype(np.float32),
        )
        for length in lengths
    ]


def on_a_new_trainer(engine, directory, use):
    async def run():
        async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
            lora = NewLoRA(base_model=str(directory), rank=4, seed=3)
            return await use(await service.create(lora))

    return asyncio.run(run())


def stepped(backward):
    """Takes a step after `backward` and gives what is then likely."""

    async def use(trainer):
        given = await backward(trainer)
        trainer.optim_step(ADAM)
        return given, (await trainer.forward(data())).logprobs

    return use


@pytest.mark.parametrize("candidates", [None, 3])
def test_a_custom_cross_entropy_learns_what_the_engines_own_learns(
    tiny_engine, tiny_model_directory, candidates
):
    batch = data(candidates=candidates)

    async def own(trainer):
        return await trainer.forward_backward(batch)

    async def custom(trainer):
        one = forward_backward_custom(trainer, batch, cross_entropy)
        return await (await one.backward(Weighing(np.float32(1))))

    expected, theirs = on_a_new_trainer(tiny_engine, tiny_model_directory, stepped(own))
    result, ours = on_a_new_trainer(tiny_engine, tiny_model_directory, stepped(custom))
    assert result.loss == pytest.approx(expected.loss_sum, rel=1e-5)
    total = sum(datum.weights.sum() for datum in batch)
    assert float(result.metrics["mean"]) == pytest.approx(result.loss / total, rel=1e-5)
    for left, right in zip(result.logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_several_batches_are_on_their_way_before_the_first_goes_back(
    tiny_engine, tiny_model_directory
):
    first, second = data(seed=1), data((20, 4), seed=2)

    async def at_once(trainer):
        passes = [forward_backward_custom(trainer, d, cross_entropy) for d in (first, second)]
        return [await (await each.backward(Weighing(np.float32(1)))) for each in passes]

    async def together(trainer):
        return await trainer.forward_backward([*first, *second])

    _, ours = on_a_new_trainer(tiny_engine, tiny_model_directory, stepped(at_once))
    _, theirs = on_a_new_trainer(tiny_engine, tiny_model_directory, stepped(together))
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_batches_of_like_size_and_other_inputs_compile_once(tiny_engine, tiny_model_directory):
    _value_and_gradients.clear_cache()

    async def use(trainer):
        for number, lengths in enumerate([(5, 9), (12, 30), (64, 2)]):
            one = forward_backward_custom(trainer, data(lengths), cross_entropy)
            await (await one.backward(Weighing(np.float32(number))))

    on_a_new_trainer(tiny_engine, tiny_model_directory, use)
    assert _value_and_gradients._cache_size() == 1


def test_datums_without_weights_count_each_target(tiny_engine, tiny_model_directory):
    (datum,) = data((6,))
    bare = Datum(tokens=datum.tokens, target_tokens=datum.target_tokens)

    async def use(trainer):
        one = forward_backward_custom(trainer, [bare], cross_entropy)
        return await (await one.backward(Weighing(np.float32(1))))

    result = on_a_new_trainer(tiny_engine, tiny_model_directory, use)
    assert result.loss == pytest.approx(-result.logprobs[0].sum(), rel=1e-5)


def test_a_gradient_that_is_no_number_is_told_and_not_sent(tiny_engine, tiny_model_directory):
    def broken(logprobs, weights, inputs):
        return jnp.sum(jnp.sqrt(logprobs * weights)), None

    async def use(trainer):
        with pytest.raises(DataError, match="datum 0"):
            await forward_backward_custom(trainer, data(), broken).backward(None)
        # The trainer is none the worse for it.
        return await trainer.forward_backward(data())

    assert on_a_new_trainer(tiny_engine, tiny_model_directory, use).loss_sum > 0


def test_no_data_is_refused(tiny_engine, tiny_model_directory):
    async def use(trainer):
        with pytest.raises(ConfigurationError, match="at least one datum"):
            forward_backward_custom(trainer, [], cross_entropy)

    on_a_new_trainer(tiny_engine, tiny_model_directory, use)
