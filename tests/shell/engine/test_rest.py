"""Looking things up and tidying up, with the SDK's RestClient."""

import io
import json
import os
import subprocess
import sys
import tarfile

import httpx
import pytest
import safetensors.numpy
import tinker


@pytest.fixture
def rest(tiny_engine):
    return tinker.RestClient(base_url=tiny_engine.base_url, api_key=tiny_engine.api_key)


@pytest.fixture
def saved(new_model):
    """A model with a checkpoint for training and one for sampling."""
    model = new_model()
    state = model.save_state("first", user_metadata={"loss": "low"}, ttl_seconds=7200).result()
    sampler = model.save_weights_for_sampler("first").result()
    return model, state.path, sampler.path


def test_the_engine_says_what_it_serves(rest, base_model):
    [served] = rest.get_server_capabilities().result().supported_models
    assert served.model_name == base_model
    assert served.max_context_length == 512


def test_checkpoints_are_listed_with_what_is_known_of_them(rest, saved):
    model, state, sampler = saved
    listed = rest.list_checkpoints(model.model_id).result().checkpoints
    assert [c.tinker_path for c in listed] == [state, sampler]
    assert [c.checkpoint_type for c in listed] == ["training", "sampler"]
    assert listed[0].checkpoint_id == "weights/first"
    assert listed[0].user_metadata == {"loss": "low"}
    assert (listed[0].expires_at - listed[0].time).total_seconds() == pytest.approx(7200, abs=60)
    assert listed[1].expires_at is None
    everything = rest.list_user_checkpoints(limit=1000).result()
    assert {state, sampler} <= {c.tinker_path for c in everything.checkpoints}


def test_a_run_is_found_by_its_id_and_in_the_list(rest, saved, base_model):
    model, state, sampler = saved
    run = rest.get_training_run(model.model_id).result()
    assert (run.base_model, run.is_lora, run.lora_rank) == (base_model, True, 4)
    assert run.last_checkpoint.tinker_path == state
    assert run.last_sampler_checkpoint.tinker_path == sampler
    runs = rest.list_training_runs(limit=1000).result()
    assert model.model_id in {r.training_run_id for r in runs.training_runs}
    assert runs.cursor.total_count == len(runs.training_runs)
    by_path = rest.get_training_run_by_tinker_path(state).result()
    assert by_path.training_run_id == model.model_id


def test_looking_at_a_run_is_no_request_of_its_own(raw, raw_model):
    def last_request():
        return raw.get(f"training_runs/{raw_model}").json()["last_request_time"]

    assert last_request() == last_request()


def test_weights_info_tells_the_shape(rest, saved):
    _, state, _ = saved
    info = rest.get_weights_info_by_tinker_path(state).result()
    assert (info.is_lora, info.lora_rank, info.train_unembed) == (True, 4, True)


def test_a_deleted_checkpoint_is_gone_and_the_other_stays(rest, saved):
    model, state, sampler = saved
    rest.delete_checkpoint_from_tinker_path(state).result()
    left = rest.list_checkpoints(model.model_id).result().checkpoints
    assert [c.tinker_path for c in left] == [sampler]
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(state).result()


def test_a_time_to_live_can_be_changed_and_taken_away(rest, saved):
    model, state, _ = saved
    rest.set_checkpoint_ttl_from_tinker_path(state, None).result()
    [training, _] = rest.list_checkpoints(model.model_id).result().checkpoints
    assert training.expires_at is None
    with pytest.raises(tinker.BadRequestError, match="3600"):
        rest.set_checkpoint_ttl_from_tinker_path(state, 10).result()


def test_sessions_and_samplers_can_be_looked_up(rest, saved, client, base_model):
    model, _, path = saved
    session_id = model.model_id.split(":")[0]
    sampler = client.create_sampling_client(model_path=path).result()
    assert sampler.get_base_model() == base_model
    assert session_id in rest.list_sessions(limit=1000).result().sessions
    session = rest.get_session(session_id).result()
    assert session.training_run_ids == [model.model_id]
    [sampler_id] = session.sampler_ids
    found = rest.get_sampler(sampler_id).result()
    assert (found.base_model, found.model_path) == (base_model, path)


def test_a_published_checkpoint_says_so_until_it_is_withdrawn(rest, saved):
    model, state, _ = saved

    def public():
        return [c.public for c in rest.list_checkpoints(model.model_id).result().checkpoints]

    rest.publish_checkpoint_from_tinker_path(state).result()
    assert public() == [True, False]
    rest.unpublish_checkpoint_from_tinker_path(state).result()
    assert public() == [False, False]


def test_exported_weights_are_downloaded_without_a_key_and_are_the_adapter(rest, new_model, raw):
    model = new_model()
    path = model.save_weights_external("out", ttl_seconds=3600).result().path
    assert path == f"tinker://{model.model_id}/external_weights/out"
    [listed] = rest.list_checkpoints(model.model_id).result().checkpoints
    assert (listed.checkpoint_type, listed.checkpoint_id) == ("external", "external_weights/out")
    answer = rest.get_external_weights_urls(path).result()
    assert (answer.expires - listed.time).total_seconds() > 3000
    files = {name: httpx.get(url).content for name, url in answer.urls.items()}
    config = json.loads(files["adapter_config.json"])
    tensors = safetensors.numpy.load(files["adapter_model.safetensors"])
    assert config["r"] == 4
    assert {4} == {min(tensor.shape) for tensor in tensors.values()}
    url = answer.urls["adapter_config.json"]
    for forged in (url[:-25] + "x" + url[-24:], url.replace("adapter_config.json", "record")):
        assert httpx.get(forged).status_code == 404
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert httpx.get(url).status_code == 404


def test_what_an_earlier_sdk_downloads_is_one_archive(raw, saved):
    model, _, _ = saved
    reply = raw.get(f"training_runs/{model.model_id}/checkpoints/sampler_weights/first/archive")
    with tarfile.open(fileobj=io.BytesIO(httpx.get(reply.json()["url"]).content)) as archive:
        names = set(archive.getnames())
    assert names == {"adapter_config.json", "adapter_model.safetensors", "checkpoint_complete"}


@pytest.fixture
def tinker_command(tiny_engine, tmp_path):
    """Runs the SDK's own command line against the engine."""

    def run(*arguments):
        environment = {
            "TINKER_BASE_URL": tiny_engine.base_url,
            "TINKER_API_KEY": tiny_engine.api_key,
            "TINKER_TELEMETRY": "0",
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
        }
        command = [sys.executable, "-m", "tinker.cli", "--format", "json", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip().startswith(("{", "[")) else None

    return run


@pytest.mark.slow
def test_the_sdks_own_command_line_works(tinker_command, rest, saved, tmp_path):
    model, state, sampler = saved
    run = model.model_id
    assert tinker_command("version") is None
    listed = tinker_command("run", "list", "--limit", "0")["runs"]
    assert run in {each["training_run_id"] for each in listed}
    assert tinker_command("run", "info", run)["lora_rank"] == 4
    listed = tinker_command("checkpoint", "list", "--run-id", run)["checkpoints"]
    assert {each["tinker_path"] for each in listed} == {state, sampler}
    assert tinker_command("checkpoint", "list", "--limit", "0")["checkpoints"]
    assert tinker_command("checkpoint", "info", state)["tinker_path"] == state
    tinker_command("checkpoint", "publish", state)
    assert rest.list_checkpoints(run).result().checkpoints[0].public
    tinker_command("checkpoint", "unpublish", state)
    tinker_command("checkpoint", "set-ttl", "--remove", state)
    assert rest.list_checkpoints(run).result().checkpoints[0].expires_at is None
    tinker_command("checkpoint", "download", state, "--output", str(tmp_path))
    [config] = tmp_path.rglob("adapter_config.json")
    assert (config.parent / "adapter_model.safetensors").stat().st_size > 1000
    tinker_command("checkpoint", "delete", "--yes", sampler)
    left = rest.list_checkpoints(run).result().checkpoints
    assert [each.tinker_path for each in left] == [state]
