"""Engines and runs in processes of their own, which can be killed, and what they leave behind."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from shell.engine.checkpoints import CheckpointStore, parse_path
from shell.hub.weights import read_config
from shell.stores import RunCheckpoints
from tests.shell.cli.conftest import start

API_KEY = "tml-for-tests-of-faults"


@dataclass(kw_only=True)
class EngineProcess:
    """`cookbook-fx serve` on a port that stays the same from one life to the next."""

    model: Path
    folder: Path
    port: int = field(default_factory=lambda: free_port())
    lives: int = 0
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.lives += 1
        arguments = ["serve", "--model", str(self.model), "--port", str(self.port)]
        self.process = start([*arguments, "--api-key", API_KEY], cwd=self.folder)
        deadline = time.monotonic() + 120
        while not answers(self.url):
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline, "the engine does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def is_alive(self) -> bool:
        return self.process.poll() is None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def run_process(arguments: list[str], *, run: Path, url: str | None) -> subprocess.Popen:
    """A command that trains, on the engine at `url` or on one of its own."""
    there = [] if url is None else ["--base-url", url]
    os.environ["TINKER_API_KEY"] = API_KEY
    return start([*arguments, *there, "--run-dir", str(run)], cwd=run.parent)


def checkpoint_store(home: Path, model: Path) -> CheckpointStore:
    return CheckpointStore(home / "checkpoints", config=read_config(model), base_model=str(model))


def load_everything_listed(home: Path, model: Path, *, known: set[str]) -> None:
    """Loads every checkpoint that an engine would list and that is not among those known."""
    store = checkpoint_store(home, model)
    for checkpoint in store.list():
        if checkpoint.data not in known:
            is_state = checkpoint.path.segment == "weights"
            loaded = (store.load_state if is_state else store.load_adapter)(checkpoint)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded))
            known.add(checkpoint.data)


def final_weights(run: Path, home: Path, model: Path) -> list[np.ndarray]:
    """Weights and optimizer state of a finished run, from its engine's disk."""
    with RunCheckpoints(run / "checkpoints") as checkpoints:
        latest = checkpoints.latest()
    assert latest is not None
    assert latest.final
    store = checkpoint_store(home, model)
    # What can be sampled from is the same as what can be trained further.
    sampled = store.load_adapter(store.find(parse_path(latest.sampler_path)))
    state = store.load_state(store.find(parse_path(latest.state_path)))
    for ours, theirs in zip(jax.tree.leaves(sampled), jax.tree.leaves(state.adapter), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
