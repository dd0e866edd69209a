"""What the SDK never does, or not on purpose: by plain HTTP."""

import asyncio
import json
import threading
import time

import httpx
import pytest

from cookbook_fx.lm import LoRAConfig, init_lora
from shell.engine.checkpoints import CheckpointPath, CheckpointStore
from shell.engine.compute import BaseModel, Compute, EngineLimits
from shell.engine.memory import Memory
from shell.engine.requests import CreateSamplingSession, CreateSession
from shell.engine.serve import EngineConfig, embedded_engine
from shell.engine.service import Service
from shell.engine.sessions import Finished
from shell.hub.weights import load_weights, read_config

PROTOBUF = {"Content-Type": "application/x-protobuf"}


def submit(raw, body):
    return raw.post("forward_backward", content=body, headers=PROTOBUF)


def optim_step(raw, model_id, seq_id, **settings):
    body = {"model_id": model_id, "seq_id": seq_id, "adam_params": {"learning_rate": 0.01}}
    return raw.post("optim_step", json=body | settings)


def pending(raw, promise):
    """Whether a result is still to come, without waiting for a whole long poll."""
    try:
        raw.post("retrieve_future", json={"request_id": promise["request_id"]}, timeout=0.3)
    except httpx.ReadTimeout:
        return True
    return False


def test_operations_that_arrive_out_of_order_run_in_order(raw, raw_model, wire_body, fetch):
    step = optim_step(raw, raw_model, 4).json()
    third = submit(raw, wire_body(raw_model, 3)).json()
    second = submit(raw, wire_body(raw_model, 2)).json()
    assert pending(raw, step)
    assert pending(raw, second)
    first = submit(raw, wire_body(raw_model, 1)).json()
    assert fetch(step).json()["metrics"]["step"] == 1
    bodies = [fetch(promise).content for promise in (first, second, third)]
    assert bodies[0] == bodies[1] == bodies[2]


def test_a_repeated_operation_runs_once(raw, raw_model, wire_body, fetch):
    first = submit(raw, wire_body(raw_model, 1)).json()
    again = submit(raw, wire_body(raw_model, 1)).json()
    assert first["request_id"] == again["request_id"]
    steps = [optim_step(raw, raw_model, 2).json() for _ in range(3)]
    assert len({promise["request_id"] for promise in steps}) == 1
    assert fetch(steps[0]).json()["metrics"]["step"] == 1
    late = optim_step(raw, raw_model, 2).json()
    assert fetch(late).json()["metrics"]["step"] == 1
    assert fetch(optim_step(raw, raw_model, 3).json()).json()["metrics"]["step"] == 2


def test_bad_content_takes_its_place_instead_of_leaving_a_hole(raw, raw_model, wire_body, fetch):
    bad = submit(raw, wire_body(raw_model, 1, loss_fn="no_such_loss"))
    assert bad.status_code == 200
    failed = fetch(bad.json())
    assert failed.status_code == 200
    assert failed.json()["category"] == "user"
    assert "no_such_loss" in failed.json()["error"]
    worse = optim_step(raw, raw_model, 2, adam_params={"learning_rate": "fast"})
    assert fetch(worse.json()).json()["category"] == "user"
    assert fetch(optim_step(raw, raw_model, 3).json()).json()["metrics"]["step"] == 1


def test_creation_is_recognised_when_repeated(raw, base_model, fetch):
    session_id = raw.post("create_session", json={}).json()["session_id"]
    body = {
        "session_id": session_id,
        "model_seq_id": 3,
        "base_model": base_model,
        "lora_config": {"rank": 2},
    }
    first, again = (raw.post("create_model", json=body).json() for _ in range(2))
    assert first == again
    assert first["model_id"] == f"{session_id}:train:3"
    fetch(first)
    described = raw.get(f"sessions/{session_id}").json()
    assert described["training_run_ids"] == [first["model_id"]]


def test_what_is_not_there_is_404_and_what_makes_no_sense_400(raw, wire_body, raw_model):
    cases = [
        (404, submit(raw, wire_body("nobody:train:0", 1))),
        (404, optim_step(raw, "nobody:train:0", 1)),
        (404, raw.post("retrieve_future", json={"request_id": "nothing"})),
        (404, raw.post("session_heartbeat", json={"session_id": "nobody"})),
        (404, raw.post("get_info", json={"model_id": "nobody:train:0"})),
        (404, raw.get("samplers/nobody")),
        (404, raw.get("training_runs/nobody")),
        (404, raw.get("no/such/route")),
        (404, raw.post("weights_info", json={"tinker_path": "tinker://m/weights/a"})),
        (400, raw.post("weights_info", json={"tinker_path": "tinker://../weights/a"})),
        (400, submit(raw, b"\xff\xff")),
        (400, submit(raw, wire_body(raw_model, 0))),
        (400, raw.post("optim_step", content=b"{")),
        (400, raw.post("create_model", json={})),
        (400, raw.delete("training_runs/m/checkpoints/bare")),
        (404, raw.delete("training_runs/m/checkpoints/weights/a")),
        (400, raw.delete("training_runs/m/checkpoints/weights/%2e%2e")),
        (400, raw.post("save_weights_external", json={})),
        (400, raw.post("create_custom_loss", json={})),
        (400, raw.get("checkpoints", params={"limit": "many"})),
    ]
    for status, reply in cases:
        assert reply.status_code == status, reply.text
        assert reply.json()["detail"]


def test_every_route_but_the_probe_wants_the_key(tiny_engine):
    url = f"{tiny_engine.base_url}/api/v1"
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    for headers in ({}, {"X-API-Key": "tml-wrong"}, {"X-API-Key": ""}):
        for path in ("client/config", "retrieve_future", "no/such/route"):
            reply = httpx.post(f"{url}/{path}", json={}, headers=headers)
            assert reply.status_code == 401
            assert "API key" in reply.json()["detail"]


def test_a_finished_session_frees_its_models_and_turns_heartbeats_away(raw, raw_model, wire_body):
    session_id = raw_model.split(":")[0]
    assert raw.post("session_heartbeat", json={"session_id": session_id}).status_code == 200
    finish = {"reason": {"type": "success"}, "detail": None}
    assert raw.post(f"sessions/{session_id}/finish", json=finish).status_code == 204
    assert raw.post("session_heartbeat", json={"session_id": session_id}).status_code == 410
    assert raw.post(f"sessions/{session_id}/finish", json=finish).status_code == 410
    refused = submit(raw, wire_body(raw_model, 1))
    assert refused.status_code == 404
    assert "closed by its client" in refused.json()["detail"]


def test_a_sampling_session_number_serves_one_snapshot_and_the_session_ends_well(
    raw, raw_model, fetch
):
    replies = []
    for seq_id in (1, 2):
        body = {"model_id": raw_model, "seq_id": seq_id, "sampling_session_seq_id": 7}
        replies.append(fetch(raw.post("save_weights_for_sampler", json=body).json()).json())
    session_id = raw_model.split(":")[0]
    assert replies[0]["sampling_session_id"] == f"{session_id}:sample:7"
    assert replies[1]["category"] == "user"
    assert "exists already" in replies[1]["error"]
    assert raw.post(f"sessions/{session_id}/finish").status_code == 204


def test_a_session_that_ends_while_a_checkpoint_is_read_gets_no_sampler(
    tiny_model_directory, tmp_path
):
    config = read_config(tiny_model_directory)
    lora = LoRAConfig(rank=2)
    path = CheckpointPath(model_id="s:train:0", segment="sampler_weights", name="a")
    store = CheckpointStore(tmp_path, config=config, base_model="tiny")
    store.save(
        path,
        adapter=init_lora(config, lora),
        optimizer=None,
        lora=lora,
        ttl_seconds=None,
        user_metadata=None,
        overwrite=False,
    )
    base = BaseModel(
        names=("tiny",),
        tokenizer_name="tiny",
        directory=tiny_model_directory,
        weights=load_weights(tiny_model_directory),
        decode=str,
        end_tokens=(),
    )

    async def end_while_reading():
        compute = Compute(base, Memory(base.weights, 10**9), EngineLimits())
        service = Service(compute, store, EngineLimits())
        session_id = service.create_session(CreateSession(user_metadata=None, display_name=None))
        asked = CreateSamplingSession(
            session_id=session_id, sampling_session_seq_id=0, base_model=None, model_path=str(path)
        )
        opening = asyncio.create_task(service.create_sampling_session(asked))
        await asyncio.sleep(0)
        service.finish_session(session_id, "was closed")
        try:
            with pytest.raises(Finished, match="was closed"):
                await opening
            assert service.sessions.samplers() == ()
        finally:
            await service.stop()

    asyncio.run(end_while_reading())


def test_bodies_may_be_empty_and_telemetry_is_taken(raw):
    headers = {"Content-Type": "application/json"}
    assert raw.post("client/config", content=b"", headers=headers).status_code == 200
    assert raw.post("client/dynamic_config", content=b"", headers=headers).status_code == 200
    assert raw.post("telemetry", json={"events": []}).json() == {"status": "accepted"}


@pytest.fixture
def impatient(tiny_model_directory, tmp_path):
    """An engine whose waits are short."""
    limits = EngineLimits(
        long_poll_seconds=0.2,
        patience_seconds=0.4,
        idle_session_seconds=1.0,
        maintenance_seconds=0.1,
        max_queued_samples=8,
        unnamed_samplers=2,
    )
    config = EngineConfig(model=str(tiny_model_directory), state_dir=tmp_path, limits=limits)
    with (
        embedded_engine(config) as endpoint,
        httpx.Client(
            base_url=f"{endpoint.base_url}/api/v1/", headers={"X-API-Key": endpoint.api_key}
        ) as http,
    ):
        yield http


def new_session_and_model(raw, base_model):
    session_id = raw.post("create_session", json={}).json()["session_id"]
    body = {
        "session_id": session_id,
        "model_seq_id": 0,
        "base_model": base_model,
        "lora_config": {"rank": 2},
    }
    return session_id, raw.post("create_model", json=body).json()["model_id"]


def test_a_long_poll_ends_with_try_again_and_a_hole_with_a_failure(
    impatient, base_model, wire_body
):
    _, model_id = new_session_and_model(impatient, base_model)
    early = submit(impatient, wire_body(model_id, 2)).json()
    begun = time.monotonic()
    reply = impatient.post("retrieve_future", json={"request_id": early["request_id"]})
    assert time.monotonic() - begun >= 0.2
    assert reply.status_code == 408
    assert reply.json()["type"] == "try_again"
    for _ in range(100):
        if reply.status_code != 408:
            break
        reply = impatient.post("retrieve_future", json={"request_id": early["request_id"]})
    assert reply.json()["category"] == "server"
    assert "operation 1" in reply.json()["error"]
    later = optim_step(impatient, model_id, 3).json()
    time.sleep(0.1)
    done = impatient.post("retrieve_future", json={"request_id": later["request_id"]})
    while done.status_code == 408:
        done = impatient.post("retrieve_future", json={"request_id": later["request_id"]})
    assert done.json()["metrics"]["step"] == 1


def test_a_silent_session_is_freed(impatient, base_model):
    session_id, model_id = new_session_and_model(impatient, base_model)
    deadline = time.monotonic() + 30
    # Asking for the list is no sign of life from the session.
    while session_id in impatient.get("sessions").json()["sessions"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    gone = optim_step(impatient, model_id, 1)
    assert gone.status_code == 404
    assert "silent" in gone.json()["detail"]


def test_too_many_waiting_samples_are_turned_away(impatient, base_model):
    session_id = impatient.post("create_session", json={}).json()["session_id"]
    body = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": base_model}
    sampler = impatient.post("create_sampling_session", json=body).json()["sampling_session_id"]

    def ask(seq_id):
        return impatient.post(
            "asample",
            json={
                "sampling_session_id": sampler,
                "seq_id": seq_id,
                "num_samples": 5,
                "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]},
                "sampling_params": {"max_tokens": 200, "stop": []},
            },
        )

    first, second = ask(0), ask(1)
    assert first.status_code == 200
    assert len(set(first.json()["sample_sequence_ids"])) == 5
    assert second.status_code == 429
    assert "waiting" in second.json()["detail"]
    assert ask(0).json() == first.json()


def test_a_number_of_samples_beyond_all_limits_is_refused_at_once(raw, base_model):
    session_id = raw.post("create_session", json={}).json()["session_id"]
    body = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": base_model}
    sampler = raw.post("create_sampling_session", json=body).json()["sampling_session_id"]
    body = {
        "sampling_session_id": sampler,
        "seq_id": 0,
        "num_samples": 10**15,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]},
        "sampling_params": {},
    }
    refused = raw.post("asample", json=body)
    assert refused.status_code == 400
    assert "at most 4096" in refused.json()["detail"]


def test_the_oldest_unnamed_snapshots_make_room(impatient, base_model):
    session_id, model_id = new_session_and_model(impatient, base_model)
    for seq_id in (1, 2, 3):
        body = {"model_id": model_id, "seq_id": seq_id, "sampling_session_seq_id": seq_id}
        promise = impatient.post("save_weights_for_sampler", json=body).json()
        request = {"request_id": promise["request_id"]}
        while (reply := impatient.post("retrieve_future", json=request)).status_code == 408:
            pass
        assert reply.json()["sampling_session_id"] == f"{session_id}:sample:{seq_id}"
    statuses = [
        impatient.get(f"samplers/{session_id}:sample:{seq_id}").status_code for seq_id in (1, 2, 3)
    ]
    assert statuses == [404, 200, 200]


def test_stopping_the_engine_ends_long_polls_at_once(tiny_model_directory, tmp_path, wire_body):
    config = EngineConfig(model=str(tiny_model_directory), state_dir=tmp_path)
    replies = []
    with embedded_engine(config) as endpoint:
        raw = httpx.Client(
            base_url=f"{endpoint.base_url}/api/v1/", headers={"X-API-Key": endpoint.api_key}
        )
        _, model_id = new_session_and_model(raw, str(tiny_model_directory))
        held = submit(raw, wire_body(model_id, 2)).json()

        def poll():
            request = {"request_id": held["request_id"]}
            replies.append(raw.post("retrieve_future", json=request, timeout=60))

        waiter = threading.Thread(target=poll)
        waiter.start()
        time.sleep(0.3)
        begun = time.monotonic()
    # A long poll would hold it for 25 s.
    assert time.monotonic() - begun < 20
    waiter.join()
    raw.close()
    assert replies[0].status_code == 408


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"seq_id": ' + b"9" * 5000 + b"}", b"[1]", b"{", b"\xff"]
)
def test_a_body_that_is_no_json_object_is_refused_whatever_it_is(raw, body):
    for route in ("create_session", "optim_step", "asample", "retrieve_future"):
        answer = raw.post(route, content=body)
        assert answer.status_code == 400
        assert route in answer.json()["detail"]


def test_numbers_of_any_size_are_refused_or_fail_their_request(raw, raw_model, fetch):
    assert optim_step(raw, raw_model, 10**30).status_code == 400
    assert "too far ahead" in optim_step(raw, raw_model, 2**31).json()["detail"]
    step = optim_step(raw, raw_model, 1, adam_params={"learning_rate": 10**400})
    assert "finite" in fetch(step.json()).json()["error"]


@pytest.mark.parametrize("stop", ["", ["\ud800"]])
def test_a_stop_string_that_no_text_can_end_in_is_refused(raw, raw_model, base_model, stop, fetch):
    session_id = raw_model.split(":")[0]
    asked = {"session_id": session_id, "sampling_session_seq_id": 1, "base_model": base_model}
    sampler = raw.post("create_sampling_session", json=asked).json()["sampling_session_id"]
    promise = raw.post(
        "asample",
        content=json.dumps(
            {
                "sampling_session_id": sampler,
                "seq_id": 1,
                "prompt": {"chunks": [{"tokens": [5, 6]}]},
                "sampling_params": {"max_tokens": 2, "stop": stop},
            }
        ),
    )
    assert "stop string" in fetch(promise.json()).json()["error"]


@pytest.mark.parametrize("model_id", ["%2e%2e", "%2e", "*", "x" * 300])
def test_a_model_id_reaches_no_folder_but_its_own(raw, model_id):
    assert raw.get(f"training_runs/{model_id}").status_code == 404
    assert raw.get(f"training_runs/{model_id}/checkpoints").json()["checkpoints"] == []
