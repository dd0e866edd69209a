"""Renderers by name, one's own included, in this process and in others."""

import os
import pickle
import subprocess
import sys

import pytest

from cookbook_fx.catalog import renderer_warning
from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import RENDERERS, get_renderer, register_renderer
from cookbook_fx.renderers.llama3 import llama3
from tests.family_tokenizers import tiny_tokenizer

MODULE = """
from datetime import date
from functools import partial

from cookbook_fx.renderers import RENDERERS, gpt_oss

dated = partial(gpt_oss, reasoning="low", current_date=date(2026, 1, 31))

def quiet(tokenizer):
    return RENDERERS["llama3"](tokenizer)

def number(tokenizer):
    return 3
"""
PROGRAM = """
import pickle, sys
from cookbook_fx.chat import Message
from cookbook_fx.renderers import get_renderer
from tests.family_tokenizers import tiny_tokenizer

name = pickle.loads(bytes.fromhex(sys.argv[1]))
renderer = get_renderer(name, tiny_tokenizer("llama3"))
print(renderer.build_generation_prompt([Message(role="user", content="Hi")]).tolist())
"""
HI = [Message(role="user", content="Hi")]


@pytest.fixture
def tokenizer():
    return tiny_tokenizer("llama3")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on the path, with a module of the user's in it."""
    (tmp_path / "my_formats.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_formats", None)


def test_a_renderer_of_ones_own_is_named_by_its_place(folder, tokenizer):
    mine = get_renderer("my_formats:quiet", tokenizer)
    theirs = get_renderer("llama3", tokenizer)
    assert mine.build_generation_prompt(HI).tolist() == theirs.build_generation_prompt(HI).tolist()


def test_a_date_of_ones_own_goes_by_name(folder):
    tokenizer = tiny_tokenizer("gpt_oss")
    prompt = get_renderer("my_formats:dated", tokenizer).build_generation_prompt(HI)
    text = tokenizer.decode(prompt)
    assert "Current date: 2026-01-31\n\nReasoning: low\n" in text
    usual = get_renderer("gpt_oss_low_reasoning", tokenizer).build_generation_prompt(HI)
    assert tokenizer.decode(usual) == text.replace("2026-01-31", "2025-06-28")


def test_another_process_finds_it_by_the_same_name(folder, tokenizer):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, pickle.dumps("my_formats:quiet").hex()],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = get_renderer("llama3", tokenizer).build_generation_prompt(HI).tolist()
    assert ran.stdout.strip() == str(expected)


def test_what_is_imported_must_make_a_renderer(folder, tokenizer):
    with pytest.raises(ConfigurationError, match=r"'my_formats:number' should make .* makes a int"):
        get_renderer("my_formats:number", tokenizer)


def test_registering_changes_nothing_for_anyone_else(tokenizer):
    before = dict(RENDERERS)
    renderers = register_renderer(RENDERERS, "mine", llama3)
    assert before == dict(RENDERERS)
    assert get_renderer("mine", tokenizer, renderers=renderers).name == "llama3"
    assert get_renderer("llama3", tokenizer, renderers=renderers).name == "llama3"
    with pytest.raises(ConfigurationError, match="got 'mine'"):
        get_renderer("mine", tokenizer)
    with pytest.raises(ConfigurationError, match="'llama3' is taken"):
        register_renderer(renderers, "llama3", llama3)


def test_nobody_is_warned_of_a_renderer_of_their_own():
    assert renderer_warning("Qwen/Qwen3-8B", "llama3") is not None
    assert renderer_warning("Qwen/Qwen3-8B", "my_formats:quiet") is None


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError, match="does not support item assignment"):
        RENDERERS["mine"] = llama3


def test_an_unknown_name_is_answered_with_the_known_and_the_near_ones(tokenizer):
    with pytest.raises(ConfigurationError, match=r"chatml, .*template.*did you mean llama3\?"):
        get_renderer("lama3", tokenizer)


def test_registering_as_if_it_changed_the_library_is_not_silently_lost():
    with pytest.raises(TypeError, match="factory"):
        register_renderer("mine", llama3)
