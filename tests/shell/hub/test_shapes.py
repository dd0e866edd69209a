"""Shapes from the beginnings of files: on this disk, and on a hub that is on this machine."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cookbook_fx.catalog import (
    get_full_finetune_param_count,
    get_hidden_size,
    get_lora_param_count,
)
from cookbook_fx.errors import ModelError
from shell.hub import read_shapes
from shell.hub.models import DEFAULT_MODEL
from tests.hub_server import HUB_ID, reach_no_hub, serve_hub

BIG_BYTES = 32 * 2**20


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("COOKBOOK_FX_HOME", str(tmp_path / "home"))
    reach_no_hub(tmp_path, monkeypatch)


@pytest.fixture
def repository(tmp_path) -> Path:
    directory = tmp_path / "repository"
    directory.mkdir()
    return directory


@pytest.fixture
def said():
    return []


def read(name, said):
    return dict(read_shapes(str(name), say=said.append))


def write_shards(directory, *, big=2):
    """Two shards and their index; their tensors."""
    first = {"model.embed_tokens.weight": np.zeros((5, big), np.float16)}
    second = {"model.norm.weight": np.zeros(big, np.float32), "scalar": np.float32(1.0)}
    second = {name: np.asarray(tensor) for name, tensor in second.items()}
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map = {}
    for name, tensors in zip(names, (first, second), strict=True):
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return {"model.embed_tokens.weight": (5, big), "model.norm.weight": (big,), "scalar": ()}


def write_header(file, header):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(content).to_bytes(8, "little") + content)


# ---- on this machine


def test_a_model_in_one_file(tiny_model_directory, said):
    shapes = read(tiny_model_directory, said)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (16, 32)
    assert get_hidden_size(shapes) == 32
    assert said == []


def test_a_model_in_shards(repository, said):
    wanted = write_shards(repository)
    assert read(repository, said) == wanted


def test_a_missing_shard_is_named(repository, said):
    write_shards(repository)
    (repository / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        read(repository, said)


def test_a_gguf_file(write_gguf, said):
    small = write_gguf()
    shapes = read(small.path, said)
    assert shapes == {name: tensor.shape for name, tensor in small.tensors.items()}


def test_the_smollm2_model_as_it_is_published(smollm2_directory, said):
    shapes = read(smollm2_directory, said)
    assert get_full_finetune_param_count(shapes) == 134_515_008
    assert get_lora_param_count(shapes) == 11_360_256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no header"),
        (b"\x01\x02", "no header"),
        (b"<!DOCTYPE html><html></html>", "no header"),
        ((40).to_bytes(8, "little") + b'{"a": ', "ends within its header"),
        ((3).to_bytes(8, "little") + b"{]}", "not JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "want a JSON object, got list"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "its tensor a has the shape None"),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_said(repository, said, content, message):
    (repository / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.safetensors is .*{message}"):
        read(repository, said)


@pytest.mark.parametrize("shape", [None, "2", [2, -1], [True], [1.0], [[1]], {}])
def test_shapes_that_are_none_are_refused(repository, said, shape):
    write_header(repository / "model.safetensors", {"a": {"dtype": "F32", "shape": shape}})
    with pytest.raises(ModelError, match="its tensor a has the shape"):
        read(repository, said)


def test_nesting_without_end_is_refused(repository, said):
    write_header(repository / "model.safetensors", b"[" * 200_000)
    with pytest.raises(ModelError, match="not JSON"):
        read(repository, said)


# ---- on the hub


@pytest.fixture(params=[True, False], ids=["ranges", "whole files only"])
def ranges(request):
    return request.param


def test_of_a_model_on_the_hub_only_headers_are_read(repository, said, monkeypatch, ranges):
    wanted = write_shards(repository, big=BIG_BYTES // 10)
    with serve_hub(repository, monkeypatch, ranges=ranges) as received:
        assert read(HUB_ID, said) == wanted
    assert said == [f"Reading the shapes of {HUB_ID} on the Hugging Face hub."]
    # What is in flight when a connection is closed has been sent too.
    most = 2**17 if ranges else 2**23
    shards = [request.sent_bytes for request in received if request.path.endswith("safetensors")]
    assert len(shards) == 2
    assert max(shards) <= most < BIG_BYTES


def test_a_header_longer_than_the_first_request_is_read_to_its_end(
    repository, said, monkeypatch, ranges
):
    header = {
        f"tensor.{i}": {"dtype": "F32", "shape": [i], "data_offsets": []} for i in range(9999)
    }
    write_header(repository / "model.safetensors", header)
    with serve_hub(repository, monkeypatch, ranges=ranges):
        shapes = read(HUB_ID, said)
    assert shapes == {f"tensor.{i}": (i,) for i in range(9999)}


def test_a_suffix_is_passed_over(tiny_model_directory, said, monkeypatch):
    with serve_hub(tiny_model_directory, monkeypatch):
        assert read(f"{HUB_ID}:peft:262144", said) == read(tiny_model_directory, said)


def test_a_file_torn_on_the_hub_is_said(repository, said, monkeypatch, ranges):
    (repository / "model.safetensors").write_bytes((99).to_bytes(8, "little") + b"{}")
    with (
        serve_hub(repository, monkeypatch, ranges=ranges),
        pytest.raises(ModelError, match=rf"{HUB_ID}/model\.safetensors is torn"),
    ):
        read(HUB_ID, said)


def test_a_damaged_index_is_said(repository, said, monkeypatch):
    (repository / "model.safetensors.index.json").write_text('{"weight_map": {"a": [1]}}')
    with (
        serve_hub(repository, monkeypatch),
        pytest.raises(ModelError, match=f"{HUB_ID}/.*index.json is damaged"),
    ):
        read(HUB_ID, said)


def test_a_model_without_safetensors_is_said(repository, said, monkeypatch):
    (repository / "pytorch_model.bin").touch()
    with (
        serve_hub(repository, monkeypatch),
        pytest.raises(ModelError, match=r"no model\.safetensors of someone/tiny; only .*safetens"),
    ):
        read(HUB_ID, said)


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, f"{HUB_ID} needs its terms accepted"), (503, "answered 503 when asked for model")],
)
def test_a_refusal_is_said(repository, said, monkeypatch, status, message):
    with (
        serve_hub(repository, monkeypatch, refuse_with=status),
        pytest.raises(ModelError, match=message),
    ):
        read(HUB_ID, said)


def test_a_model_the_hub_does_not_have_is_said(repository, said, monkeypatch):
    with (
        serve_hub(repository, monkeypatch),
        pytest.raises(ModelError, match="no public model someone/else"),
    ):
        read("someone/else", said)


@pytest.mark.parametrize("name", [HUB_ID, DEFAULT_MODEL])
def test_a_hub_out_of_reach_is_said(said, name):
    with pytest.raises(ModelError, match="hub cannot be reached"):
        read(name, said)


def test_what_can_be_no_model_is_said(said):
    with pytest.raises(ModelError, match=r"no model 'gpt-9': .*neither a directory"):
        read("gpt-9", said)
