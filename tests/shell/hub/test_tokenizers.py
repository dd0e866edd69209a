"""Tokenizers and the tokens that end a text."""

import json
import shutil

import pytest

from cookbook_fx.errors import ModelError
from shell.hub import end_tokens, load_tokenizer


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
