"""Two keys on one engine: what one client makes is not there for another."""

import httpx
import pytest
import tinker

from cookbook_fx.errors import ConfigurationError
from shell.engine.serve import EngineConfig, embedded_engine, read_keys

ANNA, BORIS = "tml-anna", "tml-boris"
PROTOBUF = {"Content-Type": "application/x-protobuf"}


@pytest.fixture(scope="module")
def shared(tiny_model_directory, tmp_path_factory):
    config = EngineConfig(
        model=str(tiny_model_directory),
        state_dir=tmp_path_factory.mktemp("shared"),
        api_keys={"anna": ANNA, "boris": BORIS},
    )
    with embedded_engine(config) as endpoint:
        yield endpoint.base_url


@pytest.fixture
def annas(shared, base_model):
    """What Anna has: a session, a model, both kinds of checkpoints, a sampler, a sample."""
    with tinker.ServiceClient(base_url=shared, api_key=ANNA) as service:
        model = service.create_lora_training_client(base_model=base_model, rank=2).result()
        state = model.save_state("kept").result().path
        exported = model.save_weights_external("out").result().path
        yield service, model, state, exported


def http(url, key):
    return httpx.Client(base_url=f"{url}/api/v1/", headers={"X-API-Key": key}, timeout=60)


def test_every_id_and_path_of_one_is_absent_for_the_other(shared, annas, base_model, wire_body):
    _, model, state, exported = annas
    run = model.model_id
    session = run.split(":")[0]
    with http(shared, ANNA) as anna, http(shared, BORIS) as boris:
        asked = {"session_id": session, "sampling_session_seq_id": 99, "base_model": base_model}
        sampler = anna.post("create_sampling_session", json=asked).json()["sampling_session_id"]
        prompt = {"chunks": [{"tokens": [5, 6]}]}
        sample = {
            "sampling_session_id": sampler,
            "seq_id": 0,
            "prompt": prompt,
            "sampling_params": {"max_tokens": 1},
        }
        request_id = anna.post("asample", json=sample).json()["request_id"]
        place = {"model_id": run, "seq_id": 50}
        target = {"type": "sampling_session", "sampling_session_id": sampler}
        theirs = boris.post("create_session", json={}).json()["session_id"]
        lora = {"base_model": base_model, "lora_config": {"rank": 2}}
        number = {"session_id": session, "model_seq_id": 7}
        checkpoint = f"training_runs/{run}/checkpoints/weights/kept"
        outside = f"training_runs/{run}/checkpoints/external_weights/out/external_weights_urls"
        opened = {"session_id": theirs, "sampling_session_seq_id": 0, "model_path": state}
        body = wire_body(run, 50)
        calls = {
            "heartbeat": lambda c: c.post("session_heartbeat", json={"session_id": session}),
            "finish": lambda c: c.post(f"sessions/{session}/finish", json={}),
            "session": lambda c: c.get(f"sessions/{session}"),
            "create": lambda c: c.post("create_model", json=lora | number),
            "restore": lambda c: c.post("load_weights", json=number | {"path": state}),
            "info": lambda c: c.post("get_info", json={"model_id": run}),
            "train": lambda c: c.post("forward_backward", content=body, headers=PROTOBUF),
            "step": lambda c: c.post("optim_step", json=place | {"adam_params": {}}),
            "save": lambda c: c.post("save_weights", json=place | {"path": "x"}),
            "save sampler": lambda c: c.post("save_weights_for_sampler", json=place),
            "export": lambda c: c.post("save_weights_external", json=place | {"path": "x"}),
            "load": lambda c: c.post("load_weights", json=place | {"path": state}),
            "retrieve": lambda c: c.post("retrieve_future", json={"request_id": request_id}),
            "cancel": lambda c: c.post("cancel_future", json={"request_id": request_id}),
            "futures": lambda c: c.post("retrieve_futures", json={"target": target}),
            "join": lambda c: c.post(
                "join_sampling_session", json={"sampling_session_id": sampler}
            ),
            "sampler": lambda c: c.get(f"samplers/{sampler}"),
            "sample": lambda c: c.post("asample", json=sample | {"seq_id": 1}),
            "open sampler": lambda c: c.post("create_sampling_session", json=asked),
            "sample checkpoint": lambda c: c.post("create_sampling_session", json=opened),
            "weights info": lambda c: c.post("weights_info", json={"tinker_path": state}),
            "run": lambda c: c.get(f"training_runs/{run}"),
            "urls": lambda c: c.get(outside),
            "archive": lambda c: c.get(f"{checkpoint}/archive"),
            "ttl": lambda c: c.put(f"{checkpoint}/ttl", json={"ttl_seconds": 3600}),
            "publish": lambda c: c.post(f"{checkpoint}/publish"),
            "unpublish": lambda c: c.delete(f"{checkpoint}/publish"),
            "delete": lambda c: c.delete(checkpoint),
        }
        answers = {name: call(boris).status_code for name, call in calls.items()}
        assert answers == dict.fromkeys(calls, 404)
        assert boris.get("sessions").json()["sessions"] == [theirs]
        assert boris.get("training_runs").json()["training_runs"] == []
        assert boris.get("checkpoints").json()["checkpoints"] == []
        assert boris.get(f"training_runs/{run}/checkpoints").json()["checkpoints"] == []
        # To Anna all of it is there, and as it was.
        assert anna.post("retrieve_future", json={"request_id": request_id}).status_code == 200
        assert anna.get(f"training_runs/{run}").json()["model_owner"] == "anna"
        mine = anna.get(f"training_runs/{run}/checkpoints").json()["checkpoints"]
        assert {each["tinker_path"] for each in mine} == {state, exported}
        assert not any(each["public"] for each in mine)


def test_a_checkpoint_of_another_cannot_be_loaded_until_it_is_published(shared, annas):
    _, model, state, _ = annas
    with tinker.ServiceClient(base_url=shared, api_key=BORIS) as boris:
        with pytest.raises(tinker.RequestFailedError, match="no checkpoint"):
            boris.create_training_client_from_state(state).result()
        anna = tinker.RestClient(base_url=shared, api_key=ANNA)
        rest = tinker.RestClient(base_url=shared, api_key=BORIS)
        anna.publish_checkpoint_from_tinker_path(state).result()
        loaded = boris.create_training_client_from_state(state).result()
        assert loaded.get_info().lora_rank == 2
        seen = rest.get_training_run(model.model_id, access_scope="accessible").result()
        assert seen.model_owner == "anna"
        # It can be read, and not be changed.
        with pytest.raises(tinker.NotFoundError):
            rest.delete_checkpoint_from_tinker_path(state).result()


def test_a_token_stands_for_the_key_it_was_made_for(shared, annas):
    _, model, _, _ = annas
    with http(shared, ANNA) as anna:
        token = anna.post("auth/token", json={}).json()["jwt"]
    with http(shared, token) as by_token:
        assert by_token.get(f"training_runs/{model.model_id}").status_code == 200
    with http(shared, token[:-3] + "abc") as forged:
        refused = forged.get("sessions")
        assert refused.status_code == 401
        assert "invalid_token" in refused.headers["WWW-Authenticate"]


def test_a_file_of_keys_is_read_or_refused_with_the_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of this machine\n\nanna tml-a\nboris  tml-b\n")
    assert read_keys(file) == {"anna": "tml-a", "boris": "tml-b"}
    file.write_text("anna tml-a\nanna tml-b\n")
    with pytest.raises(ConfigurationError, match="line 2"):
        read_keys(file)
    file.write_text("# none\n")
    with pytest.raises(ConfigurationError, match="no keys"):
        read_keys(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_keys(tmp_path / "absent")
    with pytest.raises(ConfigurationError, match="all different"):
        EngineConfig(api_keys={"anna": "tml-a", "boris": "tml-a"})
