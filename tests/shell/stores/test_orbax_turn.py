"""A run's records and an engine's states, saved and read at once in one process."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from cookbook_fx.lm import LoRAConfig, init_lora, init_train_state
from shell.engine.checkpoints import CheckpointPath, CheckpointStore
from shell.hub.weights import read_config
from shell.stores import RunCheckpoint, RunCheckpoints

COUNT = 4


@pytest.fixture
def store(tiny_model_directory, tmp_path) -> CheckpointStore:
    config = read_config(tiny_model_directory)
    return CheckpointStore(tmp_path / "states", config=config, base_model="tiny")


def test_states_and_records_are_saved_at_once(store, tiny_model_directory, tmp_path):
    lora = LoRAConfig(rank=2)
    state = init_train_state(init_lora(read_config(tiny_model_directory), lora))

    def save_states() -> None:
        for number in range(COUNT):
            saved = store.save(
                CheckpointPath(model_id="model", segment="weights", name=str(number)),
                adapter=state.adapter,
                optimizer=state.optimizer,
                lora=lora,
                ttl_seconds=None,
                user_metadata=None,
                overwrite=False,
            )
            leaves = zip(
                jax.tree.leaves(store.load_state(saved)), jax.tree.leaves(state), strict=True
            )
            for loaded, given in leaves:
                np.testing.assert_array_equal(loaded, given)

    def save_records() -> None:
        with RunCheckpoints(tmp_path / "records") as records:
            for number in range(3 * COUNT):
                records.save(RunCheckpoint(next_step=number, state_path="tinker://"))
            assert len(records.all()) == 3 * COUNT

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(save_states), threads.submit(save_records)]:
            done.result()
