"""The command line in this process and in others, on the tiny model."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shell.cli.main import main

REPOSITORY = Path(__file__).parents[3]
NAMES = ["the cat", "the dog", "the mat", "the door", "an assistant", "the other one", "a name"]


def conversation(index: int) -> dict:
    return {
        "messages": [
            {"role": "user", "content": f"where is {NAMES[index % 7]}"},
            {"role": "assistant", "content": f"on {NAMES[(3 * index + 1) % 7]}"},
        ]
    }


def write_conversations(path: Path, *, begin: int, end: int) -> Path:
    path.write_text("".join(json.dumps(conversation(i)) + "\n" for i in range(begin, end)))
    return path


@pytest.fixture
def home(tmp_path: Path, caches_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own that shares compiled programs with the others."""
    home = tmp_path / "home"
    home.mkdir()
    (caches_home / "compiled").mkdir(exist_ok=True, parents=True)
    (home / "compiled").symlink_to(caches_home / "compiled")
    monkeypatch.setenv("COOKBOOK_FX_HOME", str(home))
    return home


@pytest.fixture
def sft_arguments(tmp_path: Path, tiny_model_directory: Path, home: Path) -> list[str]:
    """`sft` for 12 short steps, saved every 2."""
    train = write_conversations(tmp_path / "train.jsonl", begin=0, end=24)
    held_out = write_conversations(tmp_path / "heldout.jsonl", begin=24, end=28)
    return [
        "sft", "--model", str(tiny_model_directory), "--data", str(train),
        "--eval-data", str(held_out), "--batch-size", "4", "--num-epochs", "2",
        "--lora-rank", "4", "--learning-rate", "0.01", "--save-every", "2", "--eval-every", "5",
        "--question", "where is the cat",
    ]  # fmt: skip


def start(arguments: list[str], *, cwd: Path) -> subprocess.Popen:
    """The command in a process of its own; its output can be read as text."""
    program = "import sys; from shell.cli.main import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def command(capsys: pytest.CaptureFixture) -> Callable:
    """Runs a command in this process: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run
