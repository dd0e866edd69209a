"""Talking to an engine: what is asked for arrives, and what goes wrong is said in seconds."""

import asyncio
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, ServiceError
from cookbook_fx.lm import AdamParams
from shell.clients import CheckpointNotFound, NewLoRA, SampleRequest, Service, connect


def datum(*tokens: int) -> Datum:
    ids = np.array(tokens, np.int32)
    return Datum(tokens=ids[:-1], target_tokens=ids[1:], weights=np.ones(len(ids) - 1, np.float32))


def on(endpoint, talk, **changes):
    """Runs `talk(service)` with a session on the engine."""

    async def run():
        address = {"base_url": endpoint.base_url, "api_key": endpoint.api_key} | changes
        async with connect(**address) as service:
            return await talk(service)

    return asyncio.run(run())


def test_training_learns_saves_restores_and_samples(tiny_engine, tiny_model_directory):
    batch = [datum(1, 60, 61, 62, 2), datum(5, 70, 71, 2)]
    name = str(tiny_model_directory)

    async def talk(service):
        trainer = await service.create(NewLoRA(base_model=name, rank=8, seed=1))
        untrained = await trainer.forward(batch)
        for _ in range(60):
            trainer.forward_backward(batch)
            step = trainer.optim_step(AdamParams(learning_rate=0.01))
        trained = trainer.forward(batch)
        state, sampler_path = trainer.save_state("a"), trainer.save_for_sampling("b")
        assert "grad_norm" in (await step).metrics
        restored = await service.restore(await state, with_optimizer=True)
        sampler = await service.sampler(path=await sampler_path)
        (sample,) = await sampler.sample(
            SampleRequest(
                prompt=np.array([1, 60], np.int32), max_tokens=6, stop=[2], temperature=0.0
            )
        )
        return untrained, await trained, await restored.forward(batch), sample

    untrained, trained, restored, sample = on(tiny_engine, talk)
    assert trained.loss_sum < untrained.loss_sum / 10
    assert [array.shape for array in trained.logprobs] == [(4,), (3,)]
    for ours, theirs in zip(restored.logprobs, trained.logprobs, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sample.tokens.tolist() == [61, 62, 2]
    assert sample.stop_reason == "stop"


def test_a_snapshot_samples_and_scores_with_the_weights_it_was_taken_of(
    tiny_engine, tiny_model_directory
):
    sequence = datum(1, 60, 61, 62, 2)
    tokens = np.append(sequence.tokens, sequence.target_tokens[-1])

    async def talk(service):
        trainer = await service.create(
            NewLoRA(base_model=str(tiny_model_directory), rank=8, seed=1)
        )
        scores, forwards = [], []
        for _ in range(2):
            forward, snapshot = trainer.forward([sequence]), trainer.snapshot()
            trainer.forward_backward([sequence])
            trainer.optim_step(AdamParams(learning_rate=0.05))
            sampler = await snapshot
            scores.append(await sampler.score(tokens))
            forwards.append((await forward).logprobs[0])
            request = SampleRequest(prompt=tokens[:2], max_tokens=3, stop=[], seed=7)
            (sample,) = await sampler.sample(request)
            again = await sampler.score(np.concatenate([tokens[:2], sample.tokens]))
            np.testing.assert_allclose(again[2:], sample.logprobs, atol=1e-4)
        return scores, forwards

    scores, forwards = on(tiny_engine, talk)
    for score, forward in zip(scores, forwards, strict=True):
        assert score.dtype == np.float32
        assert np.isnan(score[0])
        np.testing.assert_allclose(score[1:], forward, atol=1e-4)
    assert np.abs(scores[0][1:] - scores[1][1:]).max() > 0.01


def test_an_engine_that_goes_away_is_noticed_while_it_is_waited_for():
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments):
            pass

    async def run():
        with HTTPServer(("127.0.0.1", 0), Healthy) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
            service = Service(sdk=None, url=f"http://127.0.0.1:{server.server_port}")
            watching = asyncio.create_task(service.watch(patience_seconds=0.1, every_seconds=0.02))
            await asyncio.sleep(0.3)
            assert not watching.done()
            await asyncio.to_thread(server.shutdown)
        async with asyncio.timeout(10):
            await watching

    with pytest.raises(ServiceError, match="no engine answers"):
        asyncio.run(run())


def test_losses_take_their_settings_and_masks(tiny_engine, tiny_model_directory):
    plain = datum(1, 60, 61, 62, 2)

    async def talk(service):
        trainer = await service.create(NewLoRA(base_model=str(tiny_model_directory), rank=2))
        (current,) = (await trainer.forward([plain])).logprobs
        sampled = Datum(
            tokens=plain.tokens,
            target_tokens=plain.target_tokens,
            logprobs=(current - np.log([2, 8, 1, 1])).astype(np.float32),
            advantages=np.ones(4, np.float32),
            weights=np.array([1, 1, 0, 0], np.float32),
        )
        losses = []
        for high in (3.0, 5.0):
            config = {"clip_low_threshold": 0.5, "clip_high_threshold": high}
            losses.append((await trainer.forward([sampled], loss="gspo", config=config)).loss_sum)
            await trainer.forward_backward([sampled], loss="gspo", config=config)
        return losses

    assert on(tiny_engine, talk) == pytest.approx([-2 * 3, -2 * 4], rel=1e-4)


def test_a_prompt_is_completed_as_often_as_asked(tiny_engine, tiny_model_directory):
    async def talk(service):
        sampler = await service.sampler(base_model=str(tiny_model_directory))
        request = SampleRequest(
            prompt=np.array([1, 60], np.int32), max_tokens=5, stop=[2], num_samples=3, seed=7
        )
        return await sampler.sample(request), await sampler.sample(request)

    first, again = on(tiny_engine, talk)
    assert len(first) == 3
    assert len({tuple(sample.tokens) for sample in first}) > 1
    assert [sample.tokens.tolist() for sample in first] == [
        sample.tokens.tolist() for sample in again
    ]


def test_what_the_engine_objects_to_is_told_without_the_sdks_bookkeeping(
    tiny_engine, tiny_model_directory
):
    async def talk(service):
        trainer = await service.create(NewLoRA(base_model=str(tiny_model_directory), rank=2))
        await trainer.forward_backward([datum(1, 2, 3)], loss="no_such_loss")

    with pytest.raises(ServiceError, match="no_such_loss") as told:
        on(tiny_engine, talk)
    assert "request_id" not in str(told.value)


def test_a_model_the_engine_lacks_is_named(tiny_engine):
    async def talk(service):
        await service.create(NewLoRA(base_model="nobody/nothing"))

    with pytest.raises(ServiceError, match="nobody/nothing"):
        on(tiny_engine, talk)


@pytest.mark.parametrize("restore", [True, False])
def test_a_checkpoint_the_engine_lacks_is_told_from_other_failures(tiny_engine, restore):
    async def talk(service):
        if restore:
            await service.restore("tinker://nobody:train:0/weights/x", with_optimizer=True)
        else:
            await service.sampler(path="tinker://nobody:train:0/sampler_weights/x")

    with pytest.raises(CheckpointNotFound, match="tinker://nobody"):
        on(tiny_engine, talk)


@pytest.mark.parametrize("given", [{}, {"base_model": "m", "path": "tinker://a/weights/b"}])
def test_a_sampler_is_of_one_thing(tiny_engine, given):
    with pytest.raises(ConfigurationError, match="one of the two"):
        on(tiny_engine, lambda service: service.sampler(**given))


def test_a_wrong_key_is_refused_with_advice(tiny_engine, tiny_model_directory):
    began = time.monotonic()
    with pytest.raises(ServiceError, match="TINKER_API_KEY"):
        on(
            tiny_engine,
            lambda service: service.create(NewLoRA(base_model=str(tiny_model_directory))),
            api_key="tml-wrong",
        )
    assert time.monotonic() - began < 20


def test_a_key_of_another_form_is_refused(tiny_engine, tiny_model_directory):
    with pytest.raises(ServiceError, match="tml-"):
        on(
            tiny_engine,
            lambda service: service.create(NewLoRA(base_model=str(tiny_model_directory))),
            api_key="secret",
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_engine_that_is_not_there_is_found_out_in_seconds():
    async def talk():
        async with connect(base_url=f"http://127.0.0.1:{free_port()}", api_key="tml-x"):
            pass

    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"no engine answers at http://127\.0\.0\.1"):
        asyncio.run(talk())
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_what_is_no_url_is_refused(url):
    async def talk():
        async with connect(base_url=url, api_key="tml-x"):
            pass

    with pytest.raises(ConfigurationError, match="base URL"):
        asyncio.run(talk())


def test_a_proxy_is_kept_out_of_talk_with_this_machine(
    tiny_engine, tiny_model_directory, monkeypatch
):
    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(502)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("no_proxy", "elsewhere")
        monkeypatch.delenv("NO_PROXY", raising=False)

        async def talk(service):
            trainer = await service.create(NewLoRA(base_model=str(tiny_model_directory), rank=2))
            return await trainer.forward([datum(1, 2, 3)])

        assert len(on(tiny_engine, talk).logprobs) == 1
        proxy.shutdown()
    assert asked == []
