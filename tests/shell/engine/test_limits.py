"""What does not fit is refused with the number that would; what is too much waits."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tinker

from shell.engine import app
from shell.engine.compute import EngineLimits
from shell.engine.serve import EngineConfig, embedded_engine

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def narrow(tiny_model_directory, tmp_path_factory):
    """An engine with little memory and short queues, and the SDK's completion queue on."""
    limits = EngineLimits(
        memory_bytes=8 * MEGABYTE, max_queued_samples=8, max_body_bytes=MEGABYTE, max_sessions=9
    )
    config = EngineConfig(
        model=str(tiny_model_directory),
        state_dir=tmp_path_factory.mktemp("narrow"),
        limits=limits,
    )
    with embedded_engine(config) as endpoint:
        yield endpoint


@pytest.fixture
def service(narrow):
    with tinker.ServiceClient(base_url=narrow.base_url, api_key=narrow.api_key) as service:
        yield service


def test_a_rank_that_does_not_fit_is_refused_with_the_largest_that_does(service, base_model):
    with pytest.raises(tinker.RequestFailedError, match="largest rank that fits is") as refused:
        service.create_lora_training_client(base_model=base_model, rank=4096).result()
    fits = int(str(refused.value).split("that fits is ")[1].split()[0].rstrip(".,;:"))
    assert 1 < fits < 4096
    assert service.create_lora_training_client(base_model=base_model, rank=4).result().model_id


def test_a_pass_that_does_not_fit_is_refused_with_how_much_does(service, base_model, make_datum):
    model = service.create_lora_training_client(base_model=base_model, rank=2).result()
    long = [make_datum([5] * 500)] * 8
    with pytest.raises(tinker.RequestFailedError, match="tokens at once fit"):
        model.forward_backward(long, "cross_entropy").result()
    short = model.forward_backward([make_datum([5, 6, 7])], "cross_entropy").result()
    assert short.metrics["loss:sum"] > 0


def test_the_sdk_waits_while_the_queue_is_full_and_nothing_is_lost(service, base_model):
    sampler = service.create_sampling_client(base_model=base_model).result()
    prompt = tinker.ModelInput.from_ints([5, 6])
    params = tinker.SamplingParams(max_tokens=60, stop=[])
    pending = [sampler.sample(prompt, 4, params) for _ in range(6)]
    answers = [each.result() for each in pending]
    assert [len(answer.sequences) for answer in answers] == [4] * 6
    assert all(len(s.tokens) == 60 for answer in answers for s in answer.sequences)


def test_a_body_beyond_the_limit_is_refused_unread(narrow):
    headers = {"X-API-Key": narrow.api_key}
    for content in (b" " * (MEGABYTE + 1), iter([b" " * 10**5] * 11)):
        reply = httpx.post(
            f"{narrow.base_url}/api/v1/create_session", content=content, headers=headers
        )
        assert reply.status_code == 413


def test_sessions_beyond_the_limit_have_to_wait(narrow):
    headers = {"X-API-Key": narrow.api_key}
    with httpx.Client(base_url=f"{narrow.base_url}/api/v1/", headers=headers) as raw:
        replies = [raw.post("create_session", json={}) for _ in range(10)]
        assert (replies[-1].status_code, replies[-1].headers["Retry-After"]) == (429, "1")
        for reply in replies:
            if reply.status_code == 200:
                raw.post(f"sessions/{reply.json()['session_id']}/finish", json={})
        assert raw.post("create_session", json={}).status_code == 200


def test_a_prompt_that_fills_the_context_is_scored(client, base_model):
    sampler = client.create_sampling_client(base_model=base_model).result()
    tokens = [5 + index % 200 for index in range(512)]
    full = tinker.ModelInput.from_ints(tokens)
    scores = sampler.compute_logprobs(full).result()
    shorter = sampler.compute_logprobs(tinker.ModelInput.from_ints(tokens[:-1])).result()
    assert len(scores) == 512
    np.testing.assert_allclose(scores[1:511], shorter[1:], atol=1e-5)
    with pytest.raises(tinker.RequestFailedError, match="no room"):
        sampler.sample(full, 1, tinker.SamplingParams(max_tokens=1)).result()


def test_the_sdks_completion_queue_brings_every_sample(tiny_engine, base_model, monkeypatch):
    monkeypatch.setitem(app._CLIENT_CONFIG, "sample_use_retrieve_futures", True)
    monkeypatch.setitem(app._CLIENT_CONFIG, "sample_join_sampling_session", True)
    with tinker.ServiceClient(
        base_url=tiny_engine.base_url, api_key=tiny_engine.api_key
    ) as service:
        sampler = service.create_sampling_client(base_model=base_model).result()
        params = tinker.SamplingParams(max_tokens=3, stop=[])
        prompts = [tinker.ModelInput.from_ints([5, index]) for index in range(6, 18)]
        pending = [sampler.sample(prompt, 1, params) for prompt in prompts]
        answers = [each.result() for each in pending]
        assert all(len(answer.sequences[0].tokens) == 3 for answer in answers)
        too_long = tinker.ModelInput.from_ints([5] * 600)
        with pytest.raises(tinker.RequestFailedError, match="no room"):
            sampler.sample(too_long, 1, params).result()


def test_a_sample_that_nobody_awaits_any_more_is_given_up(raw, client, base_model):
    sampler = client.create_sampling_client(base_model=base_model).result()
    params = tinker.SamplingParams(max_tokens=500, stop=[])
    prompt = tinker.ModelInput.from_ints([5, 6])

    async def give_up():
        # A hundred thousand tokens: far more than any machine samples in the time given.
        async with asyncio.timeout(0.1):
            await asyncio.gather(*(sampler.sample(prompt, 8, params) for _ in range(32)))

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    asked = {"session_id": raw.post("create_session", json={}).json()["session_id"]}
    body = asked | {"sampling_session_seq_id": 0, "base_model": base_model}
    own = raw.post("create_sampling_session", json=body).json()["sampling_session_id"]
    sample = {
        "sampling_session_id": own,
        "seq_id": 0,
        "num_samples": 128,
        "prompt": {"chunks": [{"tokens": [5, 6]}]},
        "sampling_params": {"max_tokens": 500, "stop": []},
    }
    request_id = raw.post("asample", json=sample).json()["request_id"]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(raw.post, "retrieve_future", json={"request_id": request_id})
        assert raw.post("cancel_future", json={"request_id": request_id}).status_code == 204
        assert "cancelled" in waiting.result().json()["error"]
    assert raw.post("cancel_future", json={"request_id": "nothing"}).status_code == 404
    again = sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=2, stop=[])).result()
    assert len(again.sequences[0].tokens) == 2


def test_what_was_asked_of_a_snapshot_is_answered_though_newer_ones_took_its_place(new_model):
    model = new_model()
    first = model.save_weights_and_get_sampling_client().result()
    prompt = tinker.ModelInput.from_ints([5, 6])
    params = tinker.SamplingParams(max_tokens=200, stop=[])
    pending = first.sample(prompt, 2, params)
    newer = [model.save_weights_and_get_sampling_client() for _ in range(17)]
    for each in newer:
        each.result()
    assert len(pending.result().sequences) == 2
    with pytest.raises(tinker.NotFoundError, match="newer ones took its place"):
        first.sample(prompt, 1, params).result()
