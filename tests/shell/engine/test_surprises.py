"""The protocol's surprises, each met through the real SDK.

Here: the first chunk of a batch arriving last, a refused operation that must not wedge the model,
metric names with one colon, a loss that is always summed, numbers that are not finite, sessions
that outlive their telemetry's end, asynchronous methods that warn and work.
Elsewhere: results polled without pause (test_protocol: long polls end with try_again; test_limits:
the completion queue), sample ids (every test that samples), tokenizers by model name
(test_training: get_tokenizer), engines that are down and proxies (tests/shell/clients:
test_service), empty bodies (test_protocol), colons in ids (test_rest, every path), stopping during
long polls (test_protocol).
"""

import asyncio
import math

import numpy as np
import pytest
import tinker

from shell.engine import app


def test_chunks_of_a_batch_arrive_with_the_first_last_and_are_one_batch(
    tiny_engine, base_model, batch, monkeypatch
):
    def pass_over(chunk_length):
        monkeypatch.setitem(app._CLIENT_CONFIG, "fwdbwd_max_chunk_len", chunk_length)
        with tinker.ServiceClient(
            base_url=tiny_engine.base_url, api_key=tiny_engine.api_key
        ) as service:
            model = service.create_lora_training_client(
                base_model=base_model, rank=4, seed=7
            ).result()
            output = model.forward_backward(batch, "cross_entropy").result()
            step = model.optim_step(tinker.AdamParams(learning_rate=0.01)).result()
        logprobs = [each["logprobs"].to_numpy() for each in output.loss_fn_outputs]
        return output.metrics, logprobs, step.metrics

    (whole, logprobs, step), (parts, by_chunk, step_by_chunk) = pass_over(100), pass_over(1)
    assert parts["loss:sum"] == pytest.approx(whole["loss:sum"], rel=1e-5)
    assert step_by_chunk["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-4)
    for one, other in zip(logprobs, by_chunk, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_fails_wedges_nothing_and_metrics_are_finite_and_well_named(new_model, batch):
    model = new_model()
    infinite = [
        tinker.Datum(
            model_input=batch[0].model_input,
            loss_fn_inputs=dict(batch[0].loss_fn_inputs)
            | {"weights": np.full(len(batch[0].model_input.to_ints()), np.inf, np.float32)},
        )
    ]
    for data, loss in ((infinite, "cross_entropy"), (batch, "no_such_loss")):
        with pytest.raises(tinker.RequestFailedError):
            model.forward_backward(data, loss).result()
        # A captured failure ends the telemetry's session and not the engine's.
        metrics = model.forward_backward(batch, "cross_entropy").result().metrics
        assert all(name.count(":") == 1 for name in metrics)
        assert math.isfinite(metrics["loss:sum"])
    assert model.optim_step(tinker.AdamParams()).result().metrics["step"] == 1


def test_asynchronous_methods_warn_and_work(client, base_model, batch):
    async def use():
        with pytest.warns(FutureWarning):
            model = await client.create_lora_training_client_async(base_model=base_model, rank=2)
        with pytest.warns(FutureWarning):
            pending = await model.forward_backward_async(batch, "cross_entropy")
        return (await pending).metrics["loss:sum"]

    assert asyncio.run(use()) > 0
