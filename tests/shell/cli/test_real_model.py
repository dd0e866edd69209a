"""The default model on instructions that nobody of this project wrote, as a user would train it."""

import json
import random
import time

import jax
import numpy as np
import pytest

from cookbook_fx.chat import message_to_dict
from shell.engine.checkpoints import CheckpointStore, parse_path
from shell.hub import DEFAULT_MODEL
from shell.hub.weights import read_config
from tests.shell.cli.conftest import start
from tests.shell.cli.test_commands import last_checkpoint, rows, wait_for_rows
from tests.support_data import llamafactory_conversations

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, smollm2_directory):
    """Eight steps on instruction rows, saved every two."""
    data = tmp_path_factory.mktemp("data") / "instructions.jsonl"
    conversations = llamafactory_conversations()[:80]
    lines = [json.dumps({"messages": [message_to_dict(m) for m in c]}) for c in conversations]
    data.write_text("\n".join(lines))
    return [
        "sft", "--data", str(data), "--test-size", "16", "--max-length", "256",
        "--learning-rate", "3e-4", "--save-every", "2", "--eval-every", "None",
    ]  # fmt: skip


def final_state(run, home, directory):
    checkpoint = last_checkpoint(run)
    assert checkpoint.final
    store = CheckpointStore(
        home / "checkpoints", config=read_config(directory), base_model=DEFAULT_MODEL
    )
    state = store.load_state(store.find(parse_path(checkpoint.state_path)))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def finish(arguments, run):
    with start([*arguments, "--run-dir", str(run)], cwd=run.parent) as process:
        out = process.communicate(timeout=600)[0]
    assert process.returncode == 0, out
    return out


def test_killed_three_times_it_learns_the_same_weights_bit_for_bit(
    arguments, tmp_path, caches_home, smollm2_directory
):
    finish(arguments, tmp_path / "whole")
    chance = random.Random()
    killed = tmp_path / "killed"
    for _ in range(3):
        done = len(rows(killed)) if (killed / "metrics.jsonl").exists() else 0
        with start([*arguments, "--run-dir", str(killed)], cwd=tmp_path) as process:
            wait_for_rows(process, killed, done + chance.randint(1, 2))
            time.sleep(chance.uniform(0, 3))
            process.kill()
    assert "Continuing after step" in finish(arguments, killed)

    assert rows(killed) == rows(tmp_path / "whole")
    ours = final_state(killed, caches_home, smollm2_directory)
    theirs = final_state(tmp_path / "whole", caches_home, smollm2_directory)
    assert len(ours) == len(theirs) > 0
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left, right)
    nll = [row["train_mean_nll"] for row in rows(killed) if "train_mean_nll" in row]
    assert len(nll) == 8
