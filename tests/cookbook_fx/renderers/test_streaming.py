"""Whatever way a response's tokens arrive, what comes out is what it parses to."""

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cookbook_fx.chat import Message, TextPart, ThinkingPart, ToolCall
from cookbook_fx.renderers import RENDERERS, Revision, TextDelta, ThinkingDelta, get_renderer
from tests.family_tokenizers import family_of
from tests.family_tokenizers import tiny_tokenizer as family_tokenizer

# Enough for all renderers together.
shared_fixture = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SAID = st.text(alphabet="ab é\n日.🎉 ", max_size=12)
QUESTION = Message(role="user", content="What now?")
REASONING = ("qwen3", "qwen3_keep_thinking", "qwen3_instruct", "deepseekv3_thinking",
             "deepseekv3_keep_thinking", "gpt_oss_no_sysprompt")  # fmt: skip


@pytest.fixture(params=RENDERERS)
def name(request):
    return request.param


@pytest.fixture
def tokenizer(name, tiny_tokenizer):
    family = family_of(name)
    return tiny_tokenizer if family is None else family_tokenizer(family)


@pytest.fixture
def renderer(name, tokenizer):
    return get_renderer(name, tokenizer)


def streamed(renderer, updates, prompt=None):
    """Everything that came out, an update at a time, and the result."""
    parser = renderer.streaming_parser(prompt)
    state, came = parser.init(), []
    for tokens in updates:
        state = parser.update(state, tokens)
        came.append(list(state.deltas))
    finished = parser.finish(state)
    return [*came, list(finished.deltas)], finished.parsed


def one_by_one(tokens):
    return [[token] for token in tokens]


def flat(came):
    return [delta for deltas in came for delta in deltas]


def held(deltas):
    """Text, reasoning and calls that deltas add up to."""
    text, thinking, calls = "", "", []
    for delta in deltas:
        match delta:
            case TextDelta(more):
                text += more
            case ThinkingDelta(more):
                thinking += more
            case ToolCall():
                calls.append(delta)
            case Revision(message):
                text, thinking = message.text, message.thinking
                calls = list(message.tool_calls)
    return text, thinking, tuple(calls)


def in_message(message):
    return message.text, message.thinking, message.tool_calls


def response(renderer, message):
    """What the renderer would have sampled as this message."""
    tokens, weights = renderer.build_supervised_example([QUESTION, message])
    return tokens[weights == 1].tolist()


def cut(tokens, lengths):
    """Tokens in pieces of these lengths, used in turn."""
    pieces, begin = [], 0
    while begin < len(tokens):
        length = lengths[len(pieces) % len(lengths)]
        pieces.append(tokens[begin : begin + length])
        begin += length
    return pieces


LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any)


@st.composite
def soups(draw):
    """How to make tokens: a control token by its number, or text."""
    return draw(st.lists(st.integers(0, 30) | SAID, max_size=12))


@shared_fixture
@given(soup=soups(), lengths=LENGTHS)
@example(soup=["a", 3, "b", 4, "c", 2], lengths=[1])
def test_any_tokens_in_any_split_come_out_as_they_parse(renderer, tokenizer, soup, lengths):
    control = sorted(tokenizer.get_added_vocab().values())
    tokens = []
    for item in soup:
        if isinstance(item, int):
            tokens.append(control[item % len(control)])
        else:
            tokens += tokenizer.encode(item, add_special_tokens=False)
    came, parsed = streamed(renderer, cut(tokens, lengths))
    assert parsed == renderer.parse_response(tokens)
    assert held(flat(came)) == in_message(parsed.message)
    at_once, same = streamed(renderer, [tokens])
    assert same == parsed
    assert held(flat(at_once)) == in_message(parsed.message)


@shared_fixture
@given(content=SAID, lengths=LENGTHS)
def test_what_is_rendered_comes_out_without_revision(renderer, name, content, lengths):
    message = Message(role="assistant", content=content)
    prompt = renderer.build_generation_prompt([QUESTION])
    came, parsed = streamed(renderer, cut(response(renderer, message), lengths), prompt)
    assert not any(isinstance(delta, Revision) for delta in flat(came))
    assert held(flat(came)) == in_message(parsed.message)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", REASONING)
@given(thinking=SAID, content=SAID, calls=st.integers(0, 2), lengths=LENGTHS)
def test_reasoning_and_calls_come_out_without_revision(name, thinking, content, calls, lengths):
    renderer = get_renderer(name, family_tokenizer(family_of(name)))
    call = ToolCall(name="look", arguments='{"where": "日"}')
    # gpt-oss stops at a call.
    count = min(calls, 1) if name.startswith("gpt_oss") else calls
    message = Message(
        role="assistant",
        content=(ThinkingPart(thinking=thinking), TextPart(text=content)),
        tool_calls=(call,) * count,
    )
    tokens = response(renderer, message)
    came, parsed = streamed(renderer, cut(tokens, lengths))
    assert not any(isinstance(delta, Revision) for delta in flat(came))
    assert held(flat(came)) == in_message(parsed.message)


def test_no_character_and_no_trailing_space_comes_out_before_it_is_certain(tiny_tokenizer):
    renderer = get_renderer("chatml", tiny_tokenizer)
    tokens = tiny_tokenizer.encode("é \n b", add_special_tokens=False)
    assert len(tokens) == 6
    end = renderer.get_stop_sequences()[0]
    came, _ = streamed(renderer, one_by_one([*tokens, end]))
    texts = ["".join(delta.text for delta in deltas) for deltas in came]
    assert texts == ["", "é", "", "", "", " \n b", "", ""]


@pytest.mark.parametrize("family", ["qwen3", "deepseekv3_thinking"])
def test_reasoning_and_calls_come_out_as_soon_as_they_are_known(family):
    renderer = get_renderer(family, family_tokenizer(family_of(family)))
    calls = (ToolCall(name="look", arguments="{}"), ToolCall(name="see", arguments="{}"))
    message = Message(
        role="assistant",
        content=(ThinkingPart(thinking="Hm."), TextPart(text="Yes.")),
        tool_calls=calls,
    )
    tokens = response(renderer, message)
    came, _ = streamed(renderer, one_by_one(tokens))
    first = next(i for i, deltas in enumerate(came) if deltas)
    assert isinstance(came[first][0], ThinkingDelta)
    assert [delta for deltas in came[: len(tokens) - 1] for delta in deltas][-2:] == list(calls)
    assert came[-2:] == [[], []]


def test_a_role_colon_response_waits_for_what_may_be_its_stop(tiny_tokenizer):
    renderer = get_renderer("role_colon", tiny_tokenizer)
    pieces = [" Hi", "\n\n", "Use", " it", "\n\nUser", ":", " Bye"]
    updates = [tiny_tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]
    came, parsed = streamed(renderer, updates)
    texts = ["".join(delta.text for delta in deltas) for deltas in came]
    assert texts == ["Hi", "", "", "\n\nUse it", "", "", "", ""]
    assert parsed.message.content == "Hi\n\nUse it"


@pytest.mark.parametrize("family", ["qwen3", "deepseekv3_thinking"])
def test_the_prompt_tells_whether_reasoning_has_begun(family):
    tokenizer = family_tokenizer(family_of(family))
    renderer = get_renderer(family, tokenizer)
    think = tokenizer.convert_tokens_to_ids("<think>")
    closed = tokenizer.convert_tokens_to_ids("</think>")
    word = tokenizer.encode("so", add_special_tokens=False)
    for prompt, expected in (([think], ThinkingDelta("so")), ([think, closed], TextDelta("so"))):
        came, _ = streamed(renderer, [word], np.array(prompt))
        assert came[0] == [expected]


def test_reasoning_begun_in_the_prompt_and_never_ended_is_revised():
    """Nothing tells a parser that the prompt opened it, so it is text."""
    tokenizer = family_tokenizer("deepseekv3")
    renderer = get_renderer("deepseekv3_thinking", tokenizer)
    said = tokenizer.encode("so", add_special_tokens=False)
    came, parsed = streamed(renderer, [said, list(renderer.get_stop_sequences())])
    assert came == [[ThinkingDelta("so")], [], [Revision(parsed.message)]]
    assert parsed.message.text == "so"


@pytest.mark.parametrize("family", ["qwen3", "deepseekv3_thinking", "gpt_oss_low_reasoning"])
def test_long_reasoning_and_calls_come_out_whole(family):
    renderer = get_renderer(family, family_tokenizer(family_of(family)))
    call = ToolCall(name="look", arguments=f'{{"where": "{"far and away " * 40}"}}')
    message = Message(
        role="assistant",
        content=(ThinkingPart(thinking="so, " * 100), TextPart(text="well, " * 60 + "yes")),
        tool_calls=(call,) if family.startswith("gpt") else (call, call),
    )
    tokens = response(renderer, message)
    assert len(tokens) > 700
    came, parsed = streamed(renderer, one_by_one(tokens))
    assert parsed.message == message
    assert held(flat(came)) == in_message(message)
    assert not any(isinstance(delta, Revision) for delta in flat(came))


def test_a_renderer_can_be_sent_to_another_process(renderer, name):
    if name == "template":
        pytest.skip("a compiled template cannot be sent; make the renderer where it is used")
    message = Message(role="assistant", content="Yes.")
    tokens = response(renderer, message)
    there = pickle.loads(pickle.dumps(renderer))
    assert response(there, message) == tokens
    assert streamed(there, [tokens]) == streamed(renderer, [tokens])


def test_a_state_can_be_gone_on_from_twice(tiny_tokenizer):
    renderer = get_renderer("chatml", tiny_tokenizer)
    parser = renderer.streaming_parser()
    a, b, end = (tiny_tokenizer.encode(text, add_special_tokens=False) for text in ("a", "b", "c"))
    state = parser.update(parser.init(), a)
    both = [parser.finish(parser.update(state, more)).parsed for more in (b, end)]
    assert [parsed.message.content for parsed in both] == ["ab", "ac"]


def test_a_tokenizer_that_cannot_spell_its_tokens_lets_all_out_in_the_end(tiny_tokenizer):
    renderer = get_renderer("chatml", tiny_tokenizer)
    parser = renderer.streaming_parser()
    parser = replace(parser, codec=replace(parser.codec, spelled=None))
    tokens = tiny_tokenizer.encode("ab", add_special_tokens=False)
    state = parser.update(parser.init(), tokens)
    assert state.deltas == ()
    assert parser.finish(state).deltas == (TextDelta("ab"),)


def test_long_responses_take_time_in_proportion():
    """Blanks and marks without end; in square time, eight times as many would take 64 times."""
    tokenizer = family_tokenizer("qwen3")
    renderer = get_renderer("qwen3", tokenizer)
    blank = tokenizer.encode("\n", add_special_tokens=False)
    marks = [tokenizer.convert_tokens_to_ids(tag) for tag in ("<tool_call>", "</tool_call>")]

    def seconds(tokens):
        begin = time.process_time()
        _, parsed = streamed(renderer, one_by_one(tokens))
        assert not parsed.termination.is_clean
        return time.process_time() - begin

    for tokens in (blank * 1_000, marks * 250):
        short, long = (min(seconds(tokens * times) for _ in range(2)) for times in (1, 8))
        assert long < 24 * short
