"""Weights read from directories that are whole, in another precision, sharded or broken."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cookbook_fx.errors import ModelError
from shell.hub import load_weights
from shell.hub.weights import context_length


@pytest.fixture
def directory(tiny_model_directory, tmp_path):
    """A copy of the tiny model that a test may break."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny_model_directory.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def shard(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:7], names[7:]), start=1):
        filename = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / filename)
        weight_map |= dict.fromkeys(part, filename)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_matrices_are_transposed_and_joined(directory):
    tensors = load_file(directory / "model.safetensors")
    weights = load_weights(directory)
    layer = "model.layers.1.self_attn"
    joined = [tensors[f"{layer}.{kind}_proj.weight"].T for kind in "qkv"]
    np.testing.assert_array_equal(weights.layers.qkv[1], np.concatenate(joined, axis=1))
    np.testing.assert_array_equal(weights.embedding, tensors["model.embed_tokens.weight"])
    assert weights.unembedding is None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_are_converted(directory, dtype):
    tensors = load_file(directory / "model.safetensors")
    stored = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file(stored, directory / "model.safetensors")
    embedding = load_weights(directory).embedding
    assert embedding.dtype == np.float32
    expected = stored["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(embedding, expected)


def test_the_result_may_be_bfloat16(directory):
    assert load_weights(directory, dtype="bfloat16").layers.down.dtype == ml_dtypes.bfloat16


def test_shards_are_one_model(directory):
    whole = load_weights(directory)
    shard(directory)
    np.testing.assert_array_equal(load_weights(directory).layers.gate_up, whole.layers.gate_up)


def test_a_missing_shard_is_named(directory):
    shard(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        load_weights(directory)


def test_no_weights_at_all_is_said(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_weights(directory)


def test_a_missing_tensor_is_named(directory):
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ModelError, match=r"tensor model\.layers\.1\.mlp\.down_proj\.weight"):
        load_weights(directory)


def test_a_quantised_tensor_is_refused_by_name(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight .* stored as I8"):
        load_weights(directory)


@pytest.mark.parametrize("kept", [0, 4, 50, 10_000])
def test_a_torn_file_is_named(directory, kept):
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors is torn"):
        load_weights(directory)


def test_an_unsupported_architecture_is_named(directory):
    (directory / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        load_weights(directory)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_broken_config_is_named(directory, content):
    (directory / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_weights(directory)


def test_a_directory_without_config_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="not a Hugging Face model directory"):
        load_weights(tmp_path)


def test_an_index_without_a_map_is_named(directory):
    (directory / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="no weight_map"):
        load_weights(directory)


def test_an_index_whose_shards_have_no_names_is_refused(directory):
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
    with pytest.raises(ModelError, match="damaged"):
        load_weights(directory)


def test_the_context_of_a_model_that_only_another_engine_can_run(tmp_path):
    config = {"architectures": ["Qwen3MoeForCausalLM"], "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(tmp_path) == 4096
    (tmp_path / "config.json").write_text("{}")
    assert context_length(tmp_path) is None
