"""The same commands on SkyRL's Tinker server.

Needs SkyRL in an environment of its own that also holds `uv`; `SKYRL_PYTHON` names its python:

    SKYRL_PYTHON=~/skyrl/bin/python pytest -m slow tests/shell/clients/test_skyrl.py
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from tests.shell.cli.conftest import write_conversations
from tests.shell.cli.test_commands import rows
from tests.shell.faults.processes import answers, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SKYRL_PYTHON" not in os.environ, reason="SKYRL_PYTHON names no SkyRL"),
]

# The SDKs that speak JSON, as its server of today does.
IS_UNDERSTOOD = tuple(map(int, tinker.__version__.split(".")[:2])) <= (0, 25)
READY_SECONDS = 300
_BACKEND = {
    "max_lora_adapters": 6, "max_lora_rank": 8, "train_micro_batch_size": 4,
    "gradient_checkpointing": True, "loss_chunk_size": 256,
}  # fmt: skip


@pytest.fixture(scope="module")
def skyrl(tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where it listens. It starts its second process by `uv`, as it was started itself."""
    folder = tmp_path_factory.mktemp("skyrl")
    binaries = Path(os.environ["SKYRL_PYTHON"]).parent
    port = free_port()
    command = [
        "uv", "run", "--no-project", "-m", "skyrl.tinker.api",
        "--host", "127.0.0.1", "--port", str(port), "--base-model", str(tiny_model_directory),
        "--backend", "jax", "--backend-config", json.dumps(_BACKEND),
        "--database-url", f"sqlite:///{folder}/tinker.db", "--checkpoints-base", str(folder),
    ]  # fmt: skip
    environment = os.environ | {
        "VIRTUAL_ENV": str(binaries.parent), "PATH": f"{binaries}:{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + READY_SECONDS
        while not answers(url):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < ends, "SkyRL did not start"
            time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


def command(skyrl: str, model: Path, run: Path, *arguments: str) -> subprocess.CompletedProcess:
    program = "import sys; from shell.cli.main import main; sys.exit(main())"
    common = ("--base-url", skyrl, "--model", str(model), "--renderer", "chatml")
    return subprocess.run(
        [
            sys.executable, "-c", program, *arguments, *common,
            "--lora-rank", "4", "--learning-rate", "0.01", "--run-dir", str(run),
        ],
        env=os.environ | {"TINKER_API_KEY": "tml-dummy", "TINKER_TELEMETRY": "0"},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip


needs_earlier_sdk = pytest.mark.skipif(not IS_UNDERSTOOD, reason="SkyRL needs tinker 0.24.1")


@needs_earlier_sdk
def test_fine_tuning_learns(skyrl, tiny_model_directory, tmp_path):
    data = write_conversations(tmp_path / "train.jsonl", begin=0, end=16)
    done = command(
        skyrl, tiny_model_directory, tmp_path / "run",
        "sft", "--data", str(data), "--batch-size", "4", "--num-epochs", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [row["train_mean_nll"] for row in rows(tmp_path / "run") if "train_mean_nll" in row]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5


@needs_earlier_sdk
def test_reinforcement_learning_samples_and_trains(skyrl, tiny_model_directory, tmp_path):
    done = command(
        skyrl, tiny_model_directory, tmp_path / "run",
        "rl", "arithmetic", "--max-steps", "2", "--groups-per-batch", "2", "--group-size", "2",
        "--max-tokens", "8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    episodes = (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()
    assert len(episodes) == 8
    assert not any("error_type" in json.loads(line) for line in episodes)


@needs_earlier_sdk
def test_a_loss_it_has_not_is_refused_with_its_name(skyrl, tiny_model_directory, tmp_path):
    done = command(
        skyrl, tiny_model_directory, tmp_path / "run",
        "rl", "arithmetic", "--loss", "dro", "--max-steps", "1", "--groups-per-batch", "2",
        "--group-size", "2", "--max-tokens", "8",
    )  # fmt: skip
    assert done.returncode != 0
    assert "dro" in done.stdout + done.stderr


@pytest.mark.skipif(IS_UNDERSTOOD, reason="this SDK is understood")
@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_with_a_later_sdk_it_is_said_which_to_use(skyrl, tiny_model_directory, tmp_path, kind):
    data = write_conversations(tmp_path / "train.jsonl", begin=0, end=4)
    arguments = {
        "sft": ("sft", "--data", str(data), "--batch-size", "4"),
        "rl": ("rl", "arithmetic", "--max-steps", "1", "--groups-per-batch", "2", "--group-size",
               "2", "--max-tokens", "8"),
    }[kind]  # fmt: skip
    done = command(skyrl, tiny_model_directory, tmp_path / "run", *arguments)
    assert done.returncode != 0
    assert "with SkyRL's server, use tinker 0.24.1" in done.stdout + done.stderr
