"""`cookbook-fx export`, and its results taken back in."""

import json

import numpy as np
import pytest
import tinker
from safetensors.numpy import load_file, save_file

from shell.engine.imports import LocalCheckpoints
from shell.hub.adapters import read_adapter
from shell.hub.models import ModelSource


@pytest.fixture
def run(command, sft_arguments, tmp_path):
    """A finished run's folder."""
    folder = tmp_path / "run"
    status, _, err = command(*sft_arguments, "--max-steps", 3, "--run-dir", folder)
    assert status == 0, err
    return folder


def test_a_run_leaves_as_an_adapter_and_as_a_model_and_both_answer_alike(
    command, run, tmp_path, tiny_model_directory, home
):
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    assert command("export", run, adapter)[0] == 0
    assert command("export", run, merged, "--merged")[0] == 0
    question = ["where is the dog", "--max-tokens", 12]
    answers = [
        command("sample", *question, *options)
        for options in (["--checkpoint", adapter], ["--model", merged])
    ]
    assert answers[0] == answers[1]
    assert answers[0][1] != command("sample", *question, "--model", tiny_model_directory)[1]

    # A tied head that was trained is no longer the embedding.
    tensors, base = (
        load_file(folder / "model.safetensors") for folder in (merged, tiny_model_directory)
    )
    assert set(tensors) == {*base, "lm_head.weight"}
    assert not json.loads((merged / "config.json").read_text())["tie_word_embeddings"]
    np.testing.assert_array_equal(
        tensors["model.embed_tokens.weight"], base["model.embed_tokens.weight"]
    )

    # What was taken in can be trained on, and leaves as the same numbers.
    source = ModelSource(name=str(tiny_model_directory), directory=tiny_model_directory)
    path = LocalCheckpoints(root=home / "checkpoints", base=source).take_in(adapter)
    again = tmp_path / "again"
    assert command("export", path, again)[0] == 0
    files = [folder / "adapter_model.safetensors" for folder in (adapter, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_nothing_is_overwritten_unasked_nor_left_in_part(command, run, tmp_path):
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "thesis.txt").write_text("dear")
    for options, advice in (([], "--overwrite"), (["--overwrite"], "remove it yourself")):
        status, _, err = command("export", run, directory, *options)
        assert (status, advice in err) == (1, True)
    assert [file.name for file in directory.iterdir()] == ["thesis.txt"]

    exported = tmp_path / "exported"
    leftover = tmp_path / ".exported.partial"
    leftover.mkdir()
    (leftover / "half").write_text("of it")
    assert command("export", run, exported)[0] == 0
    assert command("export", run, exported)[0] == 1
    assert command("export", run, exported, "--overwrite")[0] == 0
    assert sorted(file.name for file in exported.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert not leftover.exists()


def test_what_is_asked_for_must_be_there(command, home, tmp_path):
    (tmp_path / "empty").mkdir()
    for wanted, said in (
        ("tinker://nobody:train:0/weights/final", "no checkpoint"),
        (tmp_path / "empty", "checkpoints"),
        ("final", "tinker://"),
    ):
        status, _, err = command("export", wanted, tmp_path / "out")
        assert (status, said in err) == (1, True), err
        assert not (tmp_path / "out").exists()
    status, _, err = command("sample", "hello", "--checkpoint", tmp_path / "empty")
    assert (status, "adapter_config.json" in err) == (1, True), err


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"use_dora": True}, {}, "use_dora=True"),
        ({"r": 0}, {}, "r must be an integer"),
        ({"lora_alpha": "all"}, {}, "lora_alpha"),
        ({"peft_type": "IA3"}, {}, "IA3"),
        ({"r": 10**12}, {}, "ranks"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_B.weight": np.zeros((32, 3))}, "ranks"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 5))}, "shape"),
        ({}, {"model.layers.7.self_attn.q_proj.lora_B.weight": np.zeros((32, 2))}, "only B"),
        ({}, {"model.layers.0.self_attn.q_proj.lora_A.weight": np.full((2, 32), np.nan)}, "finite"),
        ({}, {"model.layers.0.self_attn.z_proj.lora_A.weight": np.zeros((2, 32))}, "z_proj"),
        ({}, {"lm_head.weight": np.zeros((2, 32))}, "whole matrix"),
        ({}, None, "adapter_model.safetensors"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_by_name(
    tmp_path, tiny_model_directory, config, tensors, said
):
    fitting = {
        "model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((2, 32)),
        "model.layers.0.self_attn.q_proj.lora_B.weight": np.ones((32, 2)),
    }
    described = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(described | config))
    if tensors is None:
        (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    else:
        save_file(
            {
                f"base_model.model.{name}": tensor.astype(np.float32)
                for name, tensor in (fitting | tensors).items()
            },
            tmp_path / "adapter_model.safetensors",
        )
    with pytest.raises(ValueError, match=said):
        read_adapter(tmp_path, base=tiny_model_directory)


def test_a_state_of_another_engine_is_fetched_from_it(
    command, tiny_engine, tiny_model_directory, tmp_path, monkeypatch
):
    monkeypatch.setenv("TINKER_API_KEY", tiny_engine.api_key)
    with tinker.ServiceClient(
        base_url=tiny_engine.base_url, api_key=tiny_engine.api_key
    ) as service:
        model = service.create_lora_training_client(
            base_model=str(tiny_model_directory), rank=3, seed=5
        ).result()
        state = model.save_state("one").result().path
        sampler = model.save_weights_for_sampler("two").result().path
        fetched = ["export", state, tmp_path / "adapter", "--base-url", tiny_engine.base_url]
        status, _, err = command(*fetched)
        assert status == 0, err
    lora, adapter = read_adapter(tmp_path / "adapter", base=tiny_model_directory)
    assert lora.rank == 3
    assert adapter.query is not None
    assert np.abs(adapter.query.a).max() > 0
    status, _, err = command("export", sampler, tmp_path / "no", "--base-url", tiny_engine.base_url)
    assert (status, "only a saved state" in err) == (1, True)
