"""Short runs of every kind on the tiny model, as commands."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shell.cli.conftest import NAMES, write_conversations
from tests.shell.training.conftest import engine as engine
from tests.shell.training.conftest import engine_state as engine_state
from tests.shell.training.conftest import prepared as prepared
from tests.shell.training.conftest import weights as weights
from tests.shell.training.test_dpo import pairs as pairs


@pytest.fixture(scope="session")
def fault_home(caches_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of these tests' own that shares compiled programs with the others."""
    home = tmp_path_factory.mktemp("fault-home")
    (caches_home / "compiled").mkdir(exist_ok=True, parents=True)
    (home / "compiled").symlink_to(caches_home / "compiled")
    return home


@pytest.fixture
def home(fault_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COOKBOOK_FX_HOME", str(fault_home))
    monkeypatch.setenv("TINKER_API_KEY", os.environ.get("TINKER_API_KEY", ""))
    return fault_home


@pytest.fixture(scope="session")
def commands(
    tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """Commands of 8 short steps (`rl`: 6), each step saved."""
    folder = tmp_path_factory.mktemp("fault-data")
    conversations = write_conversations(folder / "train.jsonl", begin=0, end=16)
    held_out = write_conversations(folder / "heldout.jsonl", begin=24, end=26)
    pairs = folder / "pairs.jsonl"
    lines = [
        {
            "prompt": f"where is {NAMES[i % 7]} {i}",
            "chosen": f"on {NAMES[(3 * i + 1) % 7]}",
            "rejected": "dog " * (i % 3 + 1),
        }
        for i in range(18)
    ]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = [
        "--model", str(tiny_model_directory), "--lora-rank", "4", "--learning-rate", "0.01",
        "--save-every", "1",
    ]  # fmt: skip
    return {
        "sft": [
            "sft", *common, "--data", str(conversations), "--eval-data", str(held_out),
            "--batch-size", "4", "--num-epochs", "2", "--eval-every", "4", "--question", "where",
        ],
        "rl": [
            "rl", *common, "--groups-per-batch", "2", "--group-size", "4", "--max-tokens", "12",
            "--max-steps", "6", "--eval-every", "3", "--num-test", "2", "--largest", "1",
        ],
        "dpo": [
            "dpo", *common, "--data", str(pairs), "--test-size", "2", "--batch-size", "4",
            "--num-epochs", "2", "--eval-every", "4",
        ],
    }  # fmt: skip
