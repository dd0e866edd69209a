import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
import tinker

from cookbook_fx.errors import ConfigurationError, ModelError
from shell.engine.serve import EngineConfig, embedded_engine


def test_only_loopback_without_a_chosen_key():
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0 can be reached"):
        EngineConfig(host="0.0.0.0")
    assert EngineConfig(host="0.0.0.0", api_key="tml-chosen").api_key == "tml-chosen"
    with pytest.raises(ConfigurationError, match="tml-"):
        EngineConfig(api_key="secret")


def test_a_port_in_use_is_said_at_once(tiny_model_directory, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = EngineConfig(model=str(tiny_model_directory), state_dir=tmp_path, port=port)
        with (
            pytest.raises(ConfigurationError, match=f"port {port}: Address already in use"),
            embedded_engine(config),
        ):
            pass


def test_a_model_that_is_not_there_is_said_at_once(tmp_path):
    config = EngineConfig(model=str(tmp_path / "nothing"), state_dir=tmp_path)
    with pytest.raises(ModelError), embedded_engine(config):
        pass


def test_each_engine_has_its_own_port_and_key_which_no_repr_shows(tiny_model_directory, tmp_path):
    config = EngineConfig(model=str(tiny_model_directory), state_dir=tmp_path)
    with embedded_engine(config) as first, embedded_engine(config) as second:
        assert first.base_url != second.base_url
        assert first.api_key != second.api_key
        assert first.api_key.startswith("tml-")
        assert first.api_key not in repr(first)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{first.base_url}/api/v1/healthz")


def test_checkpoints_outlive_the_engine_and_the_folder_it_ran_in(
    tiny_model_directory, tmp_path, batch, logprobs, fit, monkeypatch
):
    config = EngineConfig(model=str(tiny_model_directory), state_dir=tmp_path)
    monkeypatch.chdir(tiny_model_directory.parent)
    same = EngineConfig(model=f"./{tiny_model_directory.name}", state_dir=tmp_path)

    def connect(endpoint):
        return tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key)

    with embedded_engine(config) as endpoint, connect(endpoint) as client:
        model = client.create_lora_training_client(base_model=config.model, rank=4).result()
        fit(model, batch, 2)
        saved = model.save_state("kept").result().path
        expected = logprobs(model, batch)
    with embedded_engine(same) as endpoint, connect(endpoint) as client:
        model = client.create_training_client_from_state_with_optimizer(saved).result()
        assert (logprobs(model, batch) == expected).all()


def test_a_save_that_cannot_be_written_fails_as_the_engines_fault_and_training_goes_on(
    tiny_model_directory, tmp_path, batch, fit
):
    config = EngineConfig(model=str(tiny_model_directory), state_dir=tmp_path)
    with (
        embedded_engine(config) as endpoint,
        tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as client,
    ):
        model = client.create_lora_training_client(base_model=config.model, rank=4).result()
        in_the_way = tmp_path / "checkpoints" / model.model_id.replace(":", "%3A") / "data"
        in_the_way.parent.mkdir()
        in_the_way.touch()
        with pytest.raises(tinker.RequestFailedError, match="disk full") as failure:
            model.save_state("step").result()
        assert failure.value.category is tinker.types.RequestErrorCategory.Server
        fit(model, batch, 1)
        in_the_way.unlink()
        saved = model.save_state("step").result().path
        client.create_training_client_from_state_with_optimizer(saved).result()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_serving_in_the_foreground_ends_cleanly(how, tiny_model_directory, tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from shell.engine.serve import EngineConfig, serve\n"
        "config = EngineConfig(model=sys.argv[1], state_dir=Path(sys.argv[2]))\n"
        "serve(config, say=lambda text: print(text, flush=True))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny_model_directory), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    deadline = threading.Timer(120, process.kill)
    deadline.start()
    try:
        line = process.stdout.readline()
        while "Serving" not in line:
            assert line, process.stderr.read()
            line = process.stdout.readline()
        url = line.split(" at ")[1].split(" for ")[0]
        assert httpx.get(f"{url}/api/v1/healthz").status_code == 200
        process.send_signal(how)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 0
        assert out.endswith("Stopped.\n")
        assert "Traceback" not in err
    finally:
        deadline.cancel()
        process.kill()
        process.communicate()
