"""A tokenizer that is torn is said to be."""

import shutil

import pytest

from cookbook_fx.errors import ModelError
from shell.hub import load_tokenizer


@pytest.mark.parametrize("content", ['{"version": "1.0", "tr', "[]", ""])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_torn_file_is_named(tiny_model_directory, tmp_path, name, content):
    directory = shutil.copytree(tiny_model_directory, tmp_path / "model")
    (directory / name).write_text(content)
    with pytest.raises(ModelError, match=f"the tokenizer in {directory} cannot be read"):
        load_tokenizer(directory)
