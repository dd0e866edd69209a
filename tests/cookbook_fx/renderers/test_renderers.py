"""What holds for every chat format."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cookbook_fx.chat import ROLES, Message
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import RENDERERS, TrainOnWhat, get_renderer
from tests.family_tokenizers import family_of
from tests.family_tokenizers import tiny_tokenizer as family_tokenizer

T = TrainOnWhat
CONTENT = st.text(alphabet="ab é\n日.🎉", max_size=12)


def spoken(role, content, **rest):
    # Some formats write whose result a tool's message is.
    return Message(role=role, content=content, name="look" if role == "tool" else None, **rest)


CONVERSATIONS = st.lists(st.builds(spoken, st.sampled_from(ROLES), CONTENT), min_size=1, max_size=6)
WHOLE = [option for option in T if option is not T.CUSTOMIZED]
# Their prompts end with an empty block of reasoning, which a response must show: they refuse one
# without a query before it, and to train on a turn whose earlier steps stand without the block.
CLOSES_THINKING = ("qwen3_disable_thinking",)
# Their templates write no newlines between a block of reasoning and the text.
STRIPS_NEWLINES = ("qwen3", "qwen3_keep_thinking", "qwen3_disable_thinking")
# Enough for all renderers together.
shared_fixture = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(params=RENDERERS)
def name(request):
    return request.param


@pytest.fixture
def tokenizer(name, tiny_tokenizer):
    """Tiny, with the control tokens of the family the renderer is for."""
    family = family_of(name)
    return tiny_tokenizer if family is None else family_tokenizer(family)


@pytest.fixture
def renderer(name, tokenizer):
    return get_renderer(name, tokenizer)


def said(*roles):
    return [spoken(role, f"{role} {i}") for i, role in enumerate(roles)]


def opened(name, messages):
    """The conversation, with a query before it where the renderer needs one."""
    return [*(said("user") if name in CLOSES_THINKING else []), *messages]


def trained_messages(renderer, tokenizer, messages, option):
    """Indices of the messages whose whole output has weight 1, read off the trained text."""
    tokens, weights = renderer.build_supervised_example(messages, option)
    text = tokenizer.decode(tokens[weights == 1])
    return [i for i, message in enumerate(messages) if message.content in text]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (T.LAST_ASSISTANT_MESSAGE, [7]),
        (T.LAST_ASSISTANT_TURN, [5, 7]),
        (T.ALL_ASSISTANT_MESSAGES, [2, 5, 7]),
        (T.ALL_USER_AND_SYSTEM_MESSAGES, [0, 1, 4]),
        (T.ALL_MESSAGES, [0, 1, 2, 3, 4, 5, 6, 7]),
        (T.ALL_TOKENS, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_each_option_trains_on_what_it_says(name, renderer, tokenizer, option, expected):
    roles = "system user assistant developer user assistant tool assistant"
    messages = said(*roles.split())
    if name in CLOSES_THINKING and option is T.LAST_ASSISTANT_TURN:
        with pytest.raises(DataError, match="build_supervised_examples"):
            renderer.build_supervised_example(messages, option)
        return
    assert trained_messages(renderer, tokenizer, messages, option) == expected


def test_a_final_message_that_is_not_the_assistants(name, renderer, tokenizer):
    if name in CLOSES_THINKING:
        pytest.skip("it refuses such turns")
    messages = said("user", "assistant", "tool", "assistant", "user")
    for option, expected in ((T.LAST_ASSISTANT_MESSAGE, []), (T.LAST_ASSISTANT_TURN, [1, 3])):
        assert trained_messages(renderer, tokenizer, messages, option) == expected
    alone = said("assistant", "assistant")
    assert trained_messages(renderer, tokenizer, alone, T.LAST_ASSISTANT_TURN) == [0, 1]


def test_customized_trains_on_the_flagged_and_flags_are_all_or_none(renderer, tokenizer):
    flags = (False, True, True, False)
    messages = [
        spoken(role, f"{role} {i}", trainable=flag)
        for i, (role, flag) in enumerate(zip(ROLES[1:], flags, strict=True))
    ]
    assert trained_messages(renderer, tokenizer, messages, T.CUSTOMIZED) == [1, 2]
    with pytest.raises(ConfigurationError, match="message 1 does not say"):
        renderer.build_supervised_example([messages[0], *said("user")], T.CUSTOMIZED)
    for option in WHOLE:
        with pytest.raises(ConfigurationError, match=f"message 0 says `trainable`.*{option}"):
            renderer.build_supervised_example(messages, option)


@shared_fixture
@given(messages=CONVERSATIONS, option=st.sampled_from(WHOLE))
def test_weights_are_zeros_and_ones_on_the_same_tokens_under_every_option(
    name, renderer, messages, option
):
    assume(not (name in CLOSES_THINKING and option is T.LAST_ASSISTANT_TURN))
    messages = opened(name, messages)
    tokens, weights = renderer.build_supervised_example(messages, option)
    assert tokens.shape == weights.shape
    assert (tokens.dtype, weights.dtype) == (np.int32, np.float32)
    assert set(weights.tolist()) <= {0.0, 1.0}
    everything = renderer.build_supervised_example(messages, T.ALL_TOKENS)
    assert tokens.tolist() == everything.tokens.tolist()
    assert (weights <= everything.weights).all()


@shared_fixture
@given(history=CONVERSATIONS, content=CONTENT)
def test_prompt_and_response_are_what_training_shows(name, renderer, history, content):
    history = opened(name, history)
    response = Message(role="assistant", content=content)
    tokens, weights = renderer.build_supervised_example([*history, response])
    prompt = renderer.build_generation_prompt(history).tolist()
    assert tokens.tolist()[: len(prompt)] == prompt
    trained = np.flatnonzero(weights)
    assert trained[0] == len(prompt)
    assert (np.diff(trained) == 1).all()


@shared_fixture
@given(history=CONVERSATIONS, content=CONTENT)
def test_parsing_undoes_rendering(name, renderer, history, content):
    assume(not (name in STRIPS_NEWLINES and content.startswith("\n")))
    history = opened(name, history)
    response = Message(role="assistant", content=content)
    tokens, weights = renderer.build_supervised_example([*history, response])
    parsed = renderer.parse_response(tokens[weights == 1])
    assert parsed.termination.is_stop_sequence
    assert parsed.message == response


@shared_fixture
@given(messages=CONVERSATIONS)
def test_every_response_stands_in_an_example_as_it_would_be_sampled(name, renderer, messages):
    messages = opened(name, messages)
    examples = renderer.build_supervised_examples(messages, T.ALL_ASSISTANT_MESSAGES)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            tokens, weights = renderer.build_supervised_example(messages[: i + 1])
            begin, end = np.flatnonzero(weights)[[0, -1]]
            produced = tokens[: end + 1].tolist()
            assert any(
                example.tokens[: end + 1].tolist() == produced and example.weights[begin] == 1
                for example in examples
            )


@shared_fixture
@given(messages=CONVERSATIONS)
def test_the_extension_property_is_claimed_only_where_it_holds(name, renderer, messages):
    messages = opened(name, messages)
    (_, *more) = renderer.build_supervised_examples(messages)
    if not renderer.has_extension_property or more:
        return
    for i, message in enumerate(messages):
        if message.role == "assistant":
            tokens, weights = renderer.build_supervised_example(messages[: i + 1])
            response_end = np.flatnonzero(weights)[-1] + 1
            prompt = renderer.build_generation_prompt(messages[: i + 1])
            assert prompt[:response_end].tolist() == tokens[:response_end].tolist()


def test_a_prefill_is_trusted_text_after_the_header(renderer, tokenizer):
    messages = said("user")
    prompt = renderer.build_generation_prompt(messages).tolist()
    control = next(iter(tokenizer.get_added_vocab()))
    opened = renderer.build_generation_prompt(messages, prefill=f"the {control}").tolist()
    assert opened[: len(prompt)] == prompt
    trusted = tokenizer.encode(f"the {control}", add_special_tokens=False)
    assert trusted[-1] == tokenizer.convert_tokens_to_ids(control)
    assert opened[max(len(prompt), len(opened) - len(trusted)) :] == trusted


def test_a_prefill_that_is_not_unicode_is_refused(renderer):
    with pytest.raises(DataError, match="the prefill is not Unicode text"):
        renderer.build_generation_prompt(said("user"), prefill="\ud800")


def test_a_prompt_may_ask_for_any_known_role_and_for_no_other(renderer, tokenizer):
    asked = renderer.build_generation_prompt(said("assistant"), role="user")
    user = renderer.build_supervised_example(said("assistant", "user"), T.ALL_TOKENS).tokens
    assert asked.tolist() == user[: len(asked)].tolist()
    before = renderer.build_generation_prompt(said("assistant"))
    assert asked.tolist() != before.tolist()
    with pytest.raises(ConfigurationError, match="got 'bot'"):
        renderer.build_generation_prompt([], role="bot")


def test_nothing_to_render_is_refused(renderer):
    with pytest.raises(DataError, match="at least one message"):
        renderer.build_supervised_example([])
    with pytest.raises(DataError, match="at least one message"):
        renderer.build_supervised_examples([])


def test_threads_share_a_renderer(renderer):
    conversations = [said("system", "user", "assistant", "user", "assistant")] * 200
    expected = renderer.build_supervised_example(conversations[0])
    with ThreadPoolExecutor(8) as pool:
        for example in pool.map(renderer.build_supervised_example, conversations):
            assert example.tokens.tolist() == expected.tokens.tolist()


def test_a_renderer_knows_its_name(renderer, name):
    assert renderer.name == name


def test_an_unknown_name_is_answered_with_the_known_ones(tiny_tokenizer):
    with pytest.raises(ConfigurationError, match=r"chatml, .*role_colon.*; got 'chatlm'"):
        get_renderer("chatlm", tiny_tokenizer)


def test_rendering_starts_without_jax_and_the_shells_libraries():
    program = (
        "import sys, cookbook_fx.renderers, cookbook_fx.runs;"
        "print(sorted({'jax', 'equinox', 'optax', 'transformers', 'tinker'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_only_content_that_is_trusted_writes_control_tokens(renderer, tokenizer):
    control = next(iter(tokenizer.get_added_vocab()))
    forging = [Message(role="user", content=f"a {control} b"), *said("assistant")]
    plain = [Message(role="user", content="a b"), *said("assistant")]

    def controls(renderer, messages):
        tokens = renderer.build_supervised_example(messages).tokens.tolist()
        return tokens.count(tokenizer.convert_tokens_to_ids(control))

    assert controls(renderer, forging) == controls(renderer, plain)
    if renderer.name == "template":
        with pytest.raises(ConfigurationError, match="no way to trust"):
            renderer.trusting_content()
        return
    trusting = renderer.trusting_content()
    assert controls(trusting, forging) == controls(renderer, plain) + 1
    assert controls(trusting, plain) == controls(renderer, plain)


def test_ids_that_are_none_are_no_text_or_refused(renderer, tokenizer):
    beyond = renderer.parse_response([len(tokenizer) + 5])
    assert not beyond.termination.is_stop_sequence
    for impossible in (-1, 2**32):
        with pytest.raises(DataError, match="leave out padding"):
            renderer.parse_response([impossible])
