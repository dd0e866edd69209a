"""`chat`: turns from standard input, commands, and answers in pieces that come to the whole."""

import asyncio
import io
import json
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import get_renderer
from cookbook_fx.renderers.streaming import TextDelta
from shell.cli.conversing import Answer, Speaker, harmless
from shell.clients import Sample, SampleRequest, connect
from shell.hub import load_tokenizer

ASKED = (Message(role="user", content="where is the cat"),)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_directory):
    return load_tokenizer(tiny_model_directory)


@dataclass
class Scripted:
    """Says a text, as many of its tokens at a time as it is asked for."""

    tokens: list[int]
    prompt_tokens: int
    asked: list = field(default_factory=list)

    async def sample(self, request: SampleRequest):
        self.asked.append(request.max_tokens)
        begin = len(request.prompt) - self.prompt_tokens
        piece = self.tokens[begin : begin + request.max_tokens]
        one = Sample(
            tokens=np.array(piece, np.int32),
            logprobs=np.zeros(len(piece), np.float32),
            stop_reason="stop" if begin + len(piece) >= len(self.tokens) else "length",
        )
        return (one,)


def said(text, tokenizer, *, renderer="chatml", **settings):
    formatted = get_renderer(renderer, tokenizer)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    prompt = formatted.build_generation_prompt(ASKED)
    sampler = Scripted(tokens, len(prompt))
    answer = Answer(
        speaker=Speaker(sampler=sampler, renderer=formatted, **settings), conversation=ASKED
    )

    async def collected():
        return [delta async for delta in answer.deltas()]

    return asyncio.run(collected()), answer, sampler


def test_pieces_come_to_the_whole_whatever_they_cut_in_two(tokenizer):
    # In this vocabulary, each of these characters is several tokens.
    text = "Grüße 🐈‍⬛ aus 東京, the other one " * 6
    deltas, answer, sampler = said(f"{text.rstrip()}<|im_end|>", tokenizer)
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == text.rstrip()
    assert "�" not in "".join(delta.text for delta in deltas)
    assert answer.so_far().message.text == text.rstrip()
    assert answer.so_far().termination.is_clean
    assert sampler.asked[:4] == [8, 16, 32, 32]


def test_a_stop_that_is_text_ends_the_answer_wherever_it_is_cut(tokenizer):
    for lead in range(1, 12):
        deltas, _, _ = said("x" * lead + "\n\nUser: and you", tokenizer, renderer="role_colon")
        assert "".join(delta.text for delta in deltas) == "x" * lead


def test_no_more_is_asked_for_than_allowed(tokenizer):
    deltas, answer, sampler = said("x" * 100, tokenizer, max_tokens=20)
    assert (sampler.asked, answer.room) == ([8, 12], 20)
    assert "".join(delta.text for delta in deltas) == "x" * 20
    assert not answer.so_far().termination.is_clean
    with pytest.raises(ConfigurationError, match="/undo or /reset"):
        said("x", tokenizer, context_window=10)
    with pytest.raises(ConfigurationError, match="max_tokens"):
        said("x", tokenizer, max_tokens=0)


def test_an_engine_says_in_pieces_what_it_says_at_once(
    tokenizer, tiny_engine, tiny_model_directory
):
    renderer = get_renderer("chatml", tokenizer)

    async def run():
        async with connect(base_url=tiny_engine.base_url, api_key=tiny_engine.api_key) as service:
            sampler = await service.sampler(base_model=str(tiny_model_directory))
            speaker = Speaker(sampler=sampler, renderer=renderer, max_tokens=30, temperature=0.0)
            answer = Answer(speaker=speaker, conversation=ASKED)
            text = "".join([delta.text async for delta in answer.deltas()])
            request = SampleRequest(
                prompt=renderer.build_generation_prompt(ASKED), max_tokens=30,
                stop=renderer.get_stop_sequences(), temperature=0.0,
            )  # fmt: skip
            (whole,) = await sampler.sample(request)
            return answer.tokens, text, whole.tokens.tolist()

    pieces, text, whole = asyncio.run(run())
    assert pieces == whole
    assert text == renderer.parse_response(whole).message.text


def test_lines_from_standard_input_are_turns_and_commands(
    command, home, tmp_path, tiny_model_directory, tiny_engine, monkeypatch
):
    monkeypatch.setenv("TINKER_API_KEY", tiny_engine.api_key)
    saved = tmp_path / "talk.jsonl"
    lines = [
        "where is the cat", "and the dog", "/undo", f"/save {saved}", "/nonsense", "/save",
        "/reset", "/undo", f"/save {saved}", "", "/system Be brief.", "a name", f"/save {saved}",
        "/quit", "never read",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    status, out, err = command(
        "chat", tiny_model_directory, "--base-url", tiny_engine.base_url, "--max-tokens", 4,
        "--temperature", 0, "--system", "Be kind.",
    )  # fmt: skip
    assert status == 0
    assert out.count("\n") >= 3
    assert "\x1b" not in out
    assert "> " not in err
    assert "there is no command /nonsense" in err
    assert err.count("/save FILE keeps a conversation") == 2
    first, second = map(json.loads, saved.read_text().splitlines())
    assert [turn["role"] for turn in first["messages"]] == ["system", "user", "assistant"]
    assert first["messages"][0]["content"] == "Be kind."
    assert first["messages"][1]["content"] == "where is the cat"
    assert harmless(first["messages"][2]["content"]).strip() in out
    assert [turn["content"] for turn in second["messages"][:2]] == ["Be brief.", "a name"]


def test_what_a_model_says_commands_no_terminal():
    assert harmless("\x1b[2Ja\tb\nc\x07\u202e é🐈") == "[2Ja\tb\nc é🐈"
