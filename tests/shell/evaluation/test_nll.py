"""Held-out NLL: the hand-computed number, whatever the batches."""

import asyncio
from math import log

import numpy as np
import pytest

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError
from shell.clients import ForwardResult, NewLoRA, connect
from shell.evaluation import NLLEvaluator


def datum(length: int, weight: float) -> Datum:
    ids = np.arange(1, length + 2, dtype=np.int32)
    return Datum(
        tokens=ids[:-1], target_tokens=ids[1:], weights=np.full(length, weight, np.float32)
    )


class FixedTrainer:
    """Every target of the datum with n tokens has log-probability -n; notes batch sizes."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def forward(self, data):
        self.batch_sizes.append(len(data))
        logprobs = tuple(np.full(one.length, -one.length, np.float32) for one in data)

        async def answer() -> ForwardResult:
            return ForwardResult(loss_sum=0.0, logprobs=logprobs)

        return answer()


def measured(evaluator: NLLEvaluator, trainer: FixedTrainer):
    return asyncio.run(evaluator.measure(evaluator.submit(trainer)))


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (64, [3])])
def test_the_weighted_mean_over_all_batches(batch_size, sizes):
    trainer = FixedTrainer()
    evaluator = NLLEvaluator(
        data=(datum(1, 1.0), datum(2, 0.5), datum(4, 0.25)),
        byte_lengths=np.full(10, 3, np.int32),
        batch_size=batch_size,
        name="held_out",
    )
    report = measured(evaluator, trainer)
    assert trainer.batch_sizes == sizes
    assert report.name == "held_out"
    assert report.likelihood.mean_nll == pytest.approx((1 * 1 + 2 * 1 + 4 * 1) / 3)
    assert report.likelihood.num_loss_tokens == 7
    bits = (1 * 1 + 2 * 2 + 4 * 4) / log(2)
    assert report.likelihood.bits_per_byte == pytest.approx(bits / (7 * 3))


def test_without_byte_lengths_there_are_no_bits_per_byte():
    report = measured(NLLEvaluator(data=(datum(2, 1.0),)), FixedTrainer())
    assert report.likelihood.bits_per_byte is None


def test_nothing_to_measure_is_refused():
    with pytest.raises(ConfigurationError, match="at least one example"):
        NLLEvaluator(data=())


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size"):
        NLLEvaluator(data=(datum(2, 1.0),), batch_size=0)


def test_an_engine_gives_the_same_number_in_one_batch_and_in_many(
    tiny_engine, tiny_model_directory
):
    data = tuple(datum(length, 1 / length) for length in (3, 9, 17, 5))

    async def run():
        base_url, api_key = tiny_engine.base_url, tiny_engine.api_key
        async with connect(base_url=base_url, api_key=api_key) as service:
            trainer = await service.create(
                NewLoRA(base_model=str(tiny_model_directory), rank=2, seed=0)
            )
            evaluators = [NLLEvaluator(data=data, batch_size=size) for size in (1, 4)]
            submitted = [evaluator.submit(trainer) for evaluator in evaluators]
            pairs = zip(evaluators, submitted, strict=True)
            return [await evaluator.measure(answers) for evaluator, answers in pairs]

    alone, together = asyncio.run(run())
    assert alone.likelihood.mean_nll == pytest.approx(together.likelihood.mean_nll, abs=1e-5)
    assert alone.likelihood.mean_nll == pytest.approx(log(300), rel=0.2)
