"""What the name of a model may be: a run, an adapter, a directory, a path."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cookbook_fx.errors import ConfigurationError, CookbookError
from shell.cli.target import Target, find_target
from shell.stores import RunCheckpoint, open_run_folder
from shell.training import ModelChoice

PATH = "tinker://mine:train:0/sampler_weights/final"


def found(named, *, model=None, base_url=None) -> Target:
    return find_target(None if named is None else str(named), model=model, base_url=base_url)


def run_folder(folder: Path, *, sampler_path: str | None, save: bool = True) -> Path:
    choice = ModelChoice(model="owner/base", renderer="role_colon")
    with open_run_folder(folder, config={"model": asdict(choice)}) as opened:
        if save:
            opened.checkpoints.save(
                RunCheckpoint(
                    next_step=1,
                    state_path="tinker://mine:train:0/weights/1",
                    sampler_path=sampler_path,
                    final=False,
                )
            )
    return folder


def test_a_run_is_its_last_checkpoint_in_its_own_format(tmp_path, home):
    whole = found(run_folder(tmp_path / "a", sampler_path=PATH))
    assert whole == Target(model="owner/base", checkpoint=PATH, renderer="role_colon")
    early = found(run_folder(tmp_path / "b", sampler_path=None))
    assert early.name == "tinker://mine:train:0/weights/1"
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        found(run_folder(tmp_path / "c", sampler_path=None, save=False))


def test_the_base_model_of_a_path_is_left_to_the_engine_that_has_it(home):
    elsewhere = found(PATH, base_url="http://127.0.0.1:1")
    assert elsewhere == Target(model=None, checkpoint=PATH)
    assert found(PATH, model="owner/base", base_url="http://127.0.0.1:1").model == "owner/base"
    with pytest.raises(CookbookError, match="there is no checkpoint"):
        found(PATH)


def test_other_weights_in_the_same_directory_have_another_stamp(tiny_model_directory, tmp_path):
    target = found(tiny_model_directory)
    assert target == Target(model=str(tiny_model_directory))
    assert found(tiny_model_directory).stamp == target.stamp
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    before = found(tmp_path).stamp
    weights.write_bytes(b"other")
    assert found(tmp_path).stamp != before
    assert found(None).stamp == found(None).name == "smollm2-135m-instruct"


def test_an_adapter_belongs_to_the_model_that_it_names(tmp_path, home):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    with pytest.raises(ConfigurationError, match="give it by --model"):
        found(tmp_path)
    with pytest.raises(ConfigurationError, match="does not look"):
        found(tmp_path, model="owner/base", base_url="http://127.0.0.1:1")
