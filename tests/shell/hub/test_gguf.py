"""Conversion against files written by the reference library with published tensor layouts."""

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

import shell.hub.gguf
from cookbook_fx.errors import ModelError
from shell.hub import load_tokenizer, load_weights
from shell.hub.gguf import convert_gguf, unpermute
from shell.hub.weights import read_config


def converted(source, tmp_path):
    directory = tmp_path / "converted"
    directory.mkdir()
    convert_gguf(source.path, directory)
    return directory


def test_unpermute_by_hand():
    # One head of four rows: pairs (0,1), (2,3) become the halves (0,2), (1,3).
    rows = np.array([[0.0], [1.0], [2.0], [3.0]])
    assert unpermute(rows, heads=1).ravel().tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_tensors_and_config_come_back(write_gguf, tmp_path, architecture, tied):
    source = write_gguf(architecture, tied=tied)
    directory = converted(source, tmp_path)
    assert read_config(directory) == source.config
    tensors = load_file(directory / "model.safetensors")
    assert tensors.keys() == source.tensors.keys()
    for name, expected in source.tensors.items():
        np.testing.assert_array_equal(tensors[name], expected, err_msg=name)


@pytest.mark.parametrize("quantisation", ["Q8_0", "Q4_1", "F16"])
def test_quantised_tensors_are_close_to_what_was_stored(write_gguf, tmp_path, quantisation):
    source = write_gguf(quantised=gguf.GGMLQuantizationType[quantisation])
    tensors = load_file(converted(source, tmp_path) / "model.safetensors")
    for name, expected in source.tensors.items():
        step = (expected.max() - expected.min()) / (15 if quantisation == "Q4_1" else 127)
        np.testing.assert_allclose(tensors[name], expected, atol=step, err_msg=name)


def test_large_models_are_sharded(write_gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(shell.hub.gguf, "_SHARD_BYTES", 40_000)
    source = write_gguf()
    directory = converted(source, tmp_path)
    shards = sorted(path.name for path in directory.glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert len(shards) > 1
    embedding = load_weights(directory).embedding
    np.testing.assert_array_equal(embedding, source.tensors["model.embed_tokens.weight"])


def test_the_tokenizer_has_its_special_tokens_and_template(write_gguf, tmp_path):
    tokenizer = load_tokenizer(converted(write_gguf(), tmp_path))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    last = len(tokenizer) - 1
    assert tokenizer.encode("<|im_start|>ab<think><|im_end|>") == [1, last, last - 1, 2]
    assert tokenizer.decode([1, last, last - 1, 2], skip_special_tokens=True) == "ab<think>"
    chat = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "ab"


def test_a_bos_is_added_only_where_the_file_says_so(write_gguf, tmp_path):
    tokenizer = load_tokenizer(converted(write_gguf(pre="llama-bpe", add_bos=True), tmp_path))
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert len(tokenizer.encode("a", add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["it", "'s", "Ġ", "1", "2", "3", "4", "Ġok"]),
        ("gpt-2", ["it", "'s", "Ġ1234", "Ġok"]),
        ("llama-bpe", ["it", "'s", "Ġ", "123", "4", "Ġok"]),
        ("qwen2", ["it", "'s", "Ġ", "1", "2", "3", "4", "Ġok"]),
    ],
)
def test_pre_tokenizers_cut_as_published(write_gguf, tmp_path, pre, pieces):
    tokenizer = load_tokenizer(converted(write_gguf(pre=pre), tmp_path))
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("it's 1234 ok")
    assert [piece for piece, _ in cut] == pieces


def llama3_divisors(factor):
    # The published rule, per frequency: long waves are slowed, short ones kept, between blended.
    divisors = []
    for pair in range(4):
        wavelength = 2 * np.pi * 1e5 ** (2 * pair / 8)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192 / 1:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def test_llama_3_rope_divisors_become_the_scaling_they_were_made_from(write_gguf, tmp_path):
    source = write_gguf(extra_tensors={"rope_freqs.weight": llama3_divisors(32.0)})
    scaling = read_config(converted(source, tmp_path)).rope_scaling
    assert (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor) == (32, 1, 4)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"pre": "tekken"}, "pre-tokenizer 'tekken'"),
        ({"model": "llama"}, "tokenizer model 'llama'"),
        ({"without": "model.layers.1.mlp.up_proj.weight"}, "layers.1.mlp.up_proj"),
        ({"without": "model.embed_tokens.weight"}, "token_embd"),
        ({"rope_scaling": "yarn"}, "RoPE scaling 'yarn'"),
        ({"extra_tensors": {"blk.0.attn_q.bias": np.zeros(4, np.float32)}}, "blk.0.attn_q.bias"),
        ({"extra_tensors": {"rope_freqs.weight": np.full(4, 2, np.float32)}}, "not Llama 3's"),
    ],
)
def test_what_is_not_implemented_is_named(write_gguf, tmp_path, parts, named):
    with pytest.raises(ModelError, match=named):
        converted(write_gguf(**parts), tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 100, 5_000, 0.5, 0.99])
def test_a_torn_file_is_refused(write_gguf, tmp_path, kept):
    source = write_gguf()
    content = source.path.read_bytes()
    source.path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ModelError, match=r"small\.gguf"):
        converted(source, tmp_path)
