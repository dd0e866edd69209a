"""Conversations shown as they are trained: coloured, marked, or as a page."""

import json
import re
import shutil
import subprocess

import pytest

from cookbook_fx.renderers import get_renderer
from cookbook_fx.supervised import prepare_conversations
from shell.hub import load_tokenizer, read_conversations
from tests.family_tokenizers import tiny_tokenizer
from tests.shell.cli.conftest import conversation, start, write_conversations
from tests.shell.cli.test_bad_input import refused

CODES = re.compile("\x1b\\[[0-9;]*m")
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
MARKED = f"""{SYSTEM}<|im_end|>
<|im_start|>user
where is the cat<|im_end|>
<|im_start|>assistant
{{+on the dog<|im_end|>+}}
"""


@pytest.fixture(autouse=True)
def _neither_forced_nor_forbidden(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def data(tmp_path):
    return write_conversations(tmp_path / "mine.jsonl", begin=0, end=3)


@pytest.fixture
def show(command, home, data, tiny_model_directory):
    """Runs `show` on the data with the tiny model."""

    def run(*arguments):
        return command("show", data, "--model", tiny_model_directory, *arguments)

    return run


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_trained_stands_between_marks_where_there_are_no_colors(show):
    status, out, err = show("--renderer", "chatml", "--limit", "1")
    assert (status, err) == (0, "")
    heading, text = out.split("\n", 1)
    counts = re.fullmatch(r"conversation 0: (\d+) tokens, (\d+) trained", heading)
    assert 0 < int(counts[2]) < int(counts[1])
    assert text == f"{MARKED}\nThere are more conversations than these 1; --limit None shows all.\n"


def test_on_a_terminal_each_line_has_its_color(show, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    status, out, _ = show("--limit", "1")
    assert status == 0
    assert "\x1b[33mwhere is the cat<|im_end|>\x1b[0m\n" in out
    assert "\x1b[32mon the dog<|im_end|>\x1b[0m\n" in out
    assert "{+" not in out
    assert MARKED.replace("{+", "").replace("+}", "") in CODES.sub("", out)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_where_colors_are_unwanted_or_unknown_there_are_none(show, monkeypatch, name, value):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv(name, value)
    status, out, _ = show("--limit", "1")
    assert status == 0
    assert MARKED in out
    assert not re.search("\x1b\\[3[0-9]m", out)


def test_counts_are_what_a_run_would_train_on(show, data, tiny_model_directory):
    _, out, _ = show()
    found = re.findall(r"conversation (\d): (\d+) tokens, (\d+) trained", out)
    assert [int(number) for number, _, _ in found] == [0, 1, 2]
    assert "conversations are shown" not in out
    account = prepare_conversations(
        read_conversations(data),
        renderer=get_renderer("chatml", load_tokenizer(tiny_model_directory)),
        max_length=None,
    ).preparation
    # A datum has one token fewer than its sequence: the last is only a target.
    assert sum(int(tokens) - 1 for _, tokens, _ in found) == account.tokens
    assert sum(int(trained) for _, _, trained in found) == account.loss_tokens


def test_a_conversation_that_is_trained_on_in_parts_is_shown_in_parts(
    command, home, data, tmp_path, tiny_model_directory
):
    thinking = shutil.copytree(tiny_model_directory, tmp_path / "thinking")
    tiny_tokenizer("qwen3").save_pretrained(thinking)
    turns = conversation(0)["messages"]
    turns[1]["content"] = "<think>\nhm\n</think>\n\non the mat"
    write_rows(data, {"messages": turns * 2})
    status, out, err = command("show", data, "--model", thinking, "--renderer", "qwen3")
    assert (status, err) == (0, "")
    assert re.findall(r"conversation 0, part (\d) of 2: ", out) == ["1", "2"]
    assert out.count("hm\n</think>\n\non the mat<|im_end|>+}") == 2


@pytest.mark.parametrize("option", ["--train-on", "--train-on-what"])
def test_which_messages_are_trained_on_is_chosen(show, option):
    status, out, _ = show("--limit", "1", option, "all_user_and_system_messages")
    assert status == 0
    assert "<|im_start|>user\n{+where is the cat<|im_end|>+}\n" in out
    assert "\non the dog<|im_end|>\n" in out


def test_the_first_token_is_never_trained(show):
    _, out, _ = show("--limit", "1", "--train-on", "all_tokens")
    counts = re.search(r"(\d+) tokens, (\d+) trained", out)
    assert int(counts[1]) == int(counts[2]) + 1
    assert "\n<|im_start|>{+system\n" in out


def test_what_is_not_trained_at_all_is_shown_all_the_same(show, data):
    write_rows(data, {"messages": [{"role": "user", "content": "nobody answers"}]})
    status, out, _ = show()
    assert status == 0
    assert re.search(r"conversation 0: \d+ tokens, 0 trained\n", out)
    assert "nobody answers" in out


def test_text_cannot_command_the_terminal_or_pass_for_markup(show, data, monkeypatch):
    hostile = conversation(0)
    hostile["messages"][0]["content"] = "\x1b[2J[bold]中\r\n"
    write_rows(data, hostile)
    monkeypatch.setenv("FORCE_COLOR", "1")
    status, out, _ = show()
    assert status == 0
    assert "␛[2J[bold]中␍" in out


def test_a_page_is_written_in_place_of_the_examples(show, tmp_path, data):
    hostile = conversation(0)
    hostile["messages"][1]["content"] = "</pre><script>alert(1)</script>"
    write_rows(data, conversation(1), hostile)
    page = tmp_path / "page.html"
    status, out, err = show("--html", page)
    assert (status, out, err) == (0, f"Page: {page}\n", "")
    html = page.read_text()
    assert "<title>mine.jsonl, rendered by chatml</title>" in html
    assert re.findall(r"<h2>conversation (\d): \d+ tokens, \d+ trained</h2>", html) == ["0", "1"]
    assert "&lt;/pre&gt;&lt;script&gt;" in html
    assert "<script" not in html


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path, home, data, tiny_model_directory):
    write_conversations(data, begin=0, end=400)
    arguments = ["show", str(data), "--model", str(tiny_model_directory), "--limit", "None"]
    with start(arguments, cwd=tmp_path) as process:
        head = subprocess.run(
            ["head", "-n", "1"], stdin=process.stdout, capture_output=True, text=True
        )
        process.stdout.close()
        process.wait(timeout=60)
    assert head.stdout.startswith("conversation 0: ")


def test_characters_that_the_output_cannot_hold_are_spelled_out(
    tmp_path, home, data, tiny_model_directory, monkeypatch
):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    foreign = conversation(0)
    foreign["messages"][0]["content"] = "中"
    write_rows(data, foreign)
    with start(["show", str(data), "--model", str(tiny_model_directory)], cwd=tmp_path) as process:
        out = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert "\\u4e2d<|im_end|>" in out


def test_a_missing_file_is_named(command, home, tmp_path):
    assert "none.jsonl cannot be read" in refused(command, "show", tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (json.dumps(conversation(0))[:-9], "line 1: not a JSON object"),
        ("", "no conversation"),
        ('{"messages": [{"role": "robot", "content": "beep"}]}', "'robot'"),
    ],
)
def test_damaged_data_is_named_with_its_line(
    command, home, data, tiny_model_directory, text, wanted
):
    data.write_text(text)
    err = refused(command, "show", data, "--model", tiny_model_directory)
    assert wanted in err
    assert "mine.jsonl" in err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--renderer", "chatmal"), "must be one of chatml, "),
        (("--renderer", "llama3"), "the tokenizer has no token '<|"),
        (("--train-on", "customized"), "conversation 0: "),
        (("--limit", "0"), "`limit` must be 1 or more, got 0"),
        (("--html", "no/such/folder/page.html"), "the page could not be written to no/such/folder"),
        (("--html", "."), "the page could not be written to ."),
    ],
)
def test_what_cannot_be_shown_is_said(command, home, data, tiny_model_directory, arguments, wanted):
    err = refused(command, "show", data, "--model", tiny_model_directory, *arguments)
    assert wanted in err


def test_a_renderer_made_for_other_models_is_warned_of(command, data, smollm2_directory):
    status, out, err = command("show", data, "--renderer", "role_colon", "--limit", "1")
    assert status == 0
    assert err.startswith("Warning: the renderer role_colon is not made for smollm2")
    assert "Assistant:{+ on the dog" in out
