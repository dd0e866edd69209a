import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cookbook_fx.errors import ConfigurationError, DataError, ServiceError
from cookbook_fx.lm import LoRAConfig, TrainState, init_lora, init_train_state
from shell.engine.checkpoints import (
    CheckpointPath,
    CheckpointStore,
    NoSuchCheckpoint,
    parse_path,
)
from shell.hub.weights import read_config

LORA = LoRAConfig(rank=3, train_unembed=False, seed=5)


@pytest.fixture
def config(tiny_model_directory):
    return read_config(tiny_model_directory)


@pytest.fixture
def store(tmp_path, config):
    return CheckpointStore(tmp_path / "store", config=config, base_model="tiny")


def random_state(config, seed):
    rng = np.random.default_rng(seed)
    state = init_train_state(init_lora(config, LORA))

    def fill(leaf):
        if leaf.dtype == np.int32:
            return leaf + seed
        return jax.numpy.asarray(rng.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(fill, state)


def path(name="a", segment="weights", model_id="s:train:0"):
    return CheckpointPath(model_id=model_id, segment=segment, name=name)


def save(store, state, where=None, **options):
    return store.save(
        where or path(),
        adapter=state.adapter,
        optimizer=state.optimizer,
        lora=LORA,
        **{"ttl_seconds": None, "user_metadata": None, "overwrite": False} | options,
    )


def same_bits(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )


def test_adapter_moments_and_step_count_come_back_bit_for_bit(store, config):
    state = random_state(config, 11)
    save(store, state, user_metadata={"note": "x"})
    found = store.find(path())
    assert found.lora == LORA
    assert found.user_metadata == {"note": "x"}
    assert found.size_bytes > 0
    loaded = store.load_state(found)
    assert isinstance(loaded, TrainState)
    assert same_bits(loaded, state)
    assert same_bits(store.load_adapter(found), state.adapter)


def test_what_was_loaded_runs_the_programs_compiled_before(store, config):
    state = random_state(config, 11)
    traces = []

    @jax.jit
    def program(adapter):
        traces.append(1)
        return jax.tree.map(lambda leaf: leaf + 1, adapter)

    program(state.adapter)
    save(store, state)
    program(store.load_adapter(store.find(path())))
    assert len(traces) == 1
    assert program._cache_size() == 1


def test_a_name_is_taken_until_overwriting_is_asked_for(store, config, tmp_path):
    first, second = random_state(config, 1), random_state(config, 2)
    save(store, first)
    with pytest.raises(DataError, match="exists already"):
        save(store, second)
    assert same_bits(store.load_state(store.find(path())), first)
    save(store, second, overwrite=True)
    assert same_bits(store.load_state(store.find(path())), second)
    assert len(list((tmp_path / "store").glob("*/data/*"))) == 1


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "-flag", "a\0b", "a\n", "é", "x" * 151],
)
def test_no_name_can_leave_its_folder(name):
    with pytest.raises(DataError, match="cannot be used"):
        path(name)
    with pytest.raises(DataError, match="cannot be used"):
        path(model_id=name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "weights/a",
        "tinker://m/weights",
        "tinker://m/weights/a/b",
        "tinker://m/other/a",
        "tinker://../weights/a",
        "tinker://m/weights/..",
        "file:///m/weights/a",
    ],
)
def test_a_path_that_is_none_of_ours_is_refused(text):
    with pytest.raises(DataError):
        parse_path(text)


def test_paths_survive_parsing():
    assert str(parse_path("tinker://s-1:train:0/sampler_weights/step=10")) == (
        "tinker://s-1:train:0/sampler_weights/step=10"
    )


def test_weights_for_sampling_have_no_optimizer_to_continue_with(store, config):
    state = random_state(config, 3)
    store.save(
        path(segment="sampler_weights"),
        adapter=state.adapter,
        optimizer=None,
        lora=LORA,
        ttl_seconds=None,
        user_metadata=None,
        overwrite=False,
    )
    found = store.find(path(segment="sampler_weights"))
    assert same_bits(store.load_adapter(found), state.adapter)
    with pytest.raises(DataError, match="save_state"):
        store.load_state(found)


def test_deleting_and_expiring(store, config, tmp_path, monkeypatch):
    state = random_state(config, 4)
    for name in "ab":
        save(store, state, path(name))
    store.delete(path("a"))
    with pytest.raises(NoSuchCheckpoint):
        store.find(path("a"))
    with pytest.raises(NoSuchCheckpoint):
        store.delete(path("a"))
    with pytest.raises(ConfigurationError, match="3600"):
        store.set_ttl(path("b"), 10)
    store.set_ttl(path("b"), 3600)
    assert store.find(path("b")).expires_at is not None
    record = tmp_path / "store" / "s%3Atrain%3A0" / "weights" / "b.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"expires_at": 1.0}))
    with pytest.raises(NoSuchCheckpoint):
        store.find(path("b"))
    assert store.list() == ()
    store.sweep()
    assert not record.exists()
    assert list((tmp_path / "store").glob("*/data/*")) == []


def test_listing_is_by_age_and_by_model(store, config):
    state = random_state(config, 4)
    for model_id, name in (("m1", "z"), ("m2", "b"), ("m1", "a")):
        save(store, state, path(name, model_id=model_id))
    assert [str(c.path) for c in store.list()] == [
        "tinker://m1/weights/z",
        "tinker://m2/weights/b",
        "tinker://m1/weights/a",
    ]
    assert [c.path.name for c in store.list("m1")] == ["z", "a"]
    assert store.list("m?") == ()


def test_another_base_models_checkpoint_is_refused(store, config, tmp_path):
    save(store, random_state(config, 4))
    other = CheckpointStore(tmp_path / "store", config=config, base_model="other")
    with pytest.raises(DataError, match="belongs to the base model 'tiny'"):
        other.find(path())


def test_what_a_killed_process_left_behind_is_cleared_and_the_rest_kept(store, config, tmp_path):
    state = random_state(config, 6)
    save(store, state)
    model = tmp_path / "store" / "s%3Atrain%3A0"
    abandoned, under_way = model / "data" / "dead", model / "data" / "alive"
    for folder in (abandoned, under_way):
        (folder / "adapter").mkdir(parents=True)
    partial = model / "weights" / ".dead.partial"
    partial.write_text("{")
    two_days_ago = time.time() - 2 * 86400
    for left in (abandoned, partial):
        os.utime(left, (two_days_ago, two_days_ago))
    again = CheckpointStore(tmp_path / "store", config=config, base_model="tiny")
    assert not abandoned.exists()
    assert not partial.exists()
    assert under_way.exists(), "another engine may be saving there"
    assert same_bits(again.load_state(again.find(path())), state)


def test_a_torn_file_is_named(store, config, tmp_path):
    save(store, random_state(config, 6))
    for file in (tmp_path / "store").rglob("adapter/**/*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ServiceError, match="tinker://s:train:0/weights/a cannot be read"):
        store.load_adapter(store.find(path()))


def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_else(tmp_path, config):
    """A limit on the size of files stands in for the disk: writes fail in the same places."""
    script = textwrap.dedent(
        f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        import test_checkpoints as t
        from cookbook_fx.errors import ServiceError
        config = t.read_config(Path(sys.argv[1]))
        store = t.CheckpointStore(Path(sys.argv[2]), config=config, base_model="tiny")
        first, second = t.random_state(config, 1), t.random_state(config, 2)
        t.save(store, first)
        before = sorted(Path(sys.argv[2]).rglob("*"))
        for limit in (1000, 100):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                t.save(store, second, overwrite=True)
            except ServiceError as error:
                assert "Is the disk full?" in str(error), error
            else:
                raise SystemExit("the save went through")
            assert sorted(Path(sys.argv[2]).rglob("*")) == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert t.same_bits(store.load_state(store.find(t.path())), first)
        t.save(store, second, overwrite=True)
        assert t.same_bits(store.load_state(store.find(t.path())), second)
        """
    )
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "vocab_size": 9,
                "max_position_embeddings": 8,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": True,
            }
        )
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script, str(model), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr


def test_a_damaged_record_is_named_and_stands_in_nobodys_way(store, config, tmp_path, caplog):
    save(store, random_state(config, 1), path("good"))
    record = tmp_path / "store" / "s%3Atrain%3A0" / "weights" / "torn.json"
    record.write_text('{"base_model": "ti')
    assert [checkpoint.path.name for checkpoint in store.list()] == ["good"]
    store.sweep()
    assert "torn.json is damaged" in caplog.text
    with pytest.raises(DataError, match=r"torn\.json is damaged"):
        store.find(path("torn"))
    again = CheckpointStore(tmp_path / "store", config=config, base_model="tiny")
    assert again.find(path("good"))
