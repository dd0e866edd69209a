"""Tokenizers and the tokens that end a text."""

import json
import shutil

import pytest

from cookbook_fx.errors import ConfigurationError, ModelError
from shell.hub import (
    NO_TOKENIZERS,
    end_tokens,
    get_tokenizer,
    load_tokenizer,
    register_tokenizer,
)


@pytest.mark.parametrize("content", ['{"version": "1.0", "tr', "[]", ""])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_torn_file_is_named(tiny_model_directory, tmp_path, name, content):
    directory = shutil.copytree(tiny_model_directory, tmp_path / "model")
    (directory / name).write_text(content)
    with pytest.raises(ModelError, match=f"the tokenizer in {directory} cannot be read"):
        load_tokenizer(directory)


def test_a_text_may_end_in_several_tokens(tiny_model_directory, tmp_path):
    directory = shutil.copytree(tiny_model_directory, tmp_path / "model")
    assert end_tokens(directory) == (2,)
    for written, read in [(7, (7,)), ([2, 0], (2, 0))]:
        text = json.dumps({"eos_token_id": written})
        (directory / "generation_config.json").write_text(text)
        assert end_tokens(directory) == read
    (directory / "generation_config.json").write_text('{"eos_tok')
    with pytest.raises(ModelError, match="is torn or not a JSON object"):
        end_tokens(directory)


def test_a_tokenizer_by_its_models_name_needs_no_weights(tiny_model_directory, tmp_path):
    directory = shutil.copytree(tiny_model_directory, tmp_path / "model")
    (directory / "model.safetensors").unlink()
    expected = load_tokenizer(tiny_model_directory).encode("the cat")
    assert get_tokenizer(str(directory)).encode("the cat") == expected


def test_a_suffix_is_passed_over_and_a_directory_that_has_one_in_its_name_is_not(
    tiny_model_directory, tmp_path, monkeypatch
):
    monkeypatch.setenv("COOKBOOK_FX_HOME", str(tmp_path / "home"))
    kept = tmp_path / "home" / "models" / "tiny-model"
    shutil.copytree(tiny_model_directory, kept)
    assert get_tokenizer("tiny-model:peft:131072").name_or_path == str(kept)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_directory, "tiny-model:peft:131072")
    assert get_tokenizer("tiny-model:peft:131072").name_or_path == "tiny-model:peft:131072"


def test_a_directory_wins_over_a_known_name(tiny_model_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_directory, "smollm2-135m-instruct")
    assert len(get_tokenizer("smollm2-135m-instruct")) == 300


def test_an_unknown_model_is_answered_with_what_would_do():
    with pytest.raises(ModelError, match=r"no model 'no-such-model'.*smollm2-135m-instruct"):
        get_tokenizer("no-such-model:peft")


def test_a_tokenizer_of_ones_own_by_its_place(tiny_model_directory, tmp_path, monkeypatch):
    (tmp_path / "my_tokenizers.py").write_text(
        "from shell.hub import load_tokenizer\n"
        f"def tiny(): return load_tokenizer({str(tiny_model_directory)!r})\n"
        "def text(): return 'tokenizer'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(get_tokenizer("my_tokenizers:tiny")) == 300
    with pytest.raises(ConfigurationError, match="should make a fast tokenizer, and makes a str"):
        get_tokenizer("my_tokenizers:text")
    with pytest.raises(ConfigurationError, match="no function small"):
        get_tokenizer("my_tokenizers:small")


def test_a_registered_tokenizer_is_in_the_result_alone(tiny_model_directory):
    def tiny():
        return load_tokenizer(tiny_model_directory)

    tokenizers = register_tokenizer(NO_TOKENIZERS, "me/mine", tiny)
    assert len(get_tokenizer("me/mine", tokenizers=tokenizers)) == 300
    assert not NO_TOKENIZERS
    with pytest.raises(ConfigurationError, match="'me/mine' is taken"):
        register_tokenizer(tokenizers, "me/mine", tiny)
