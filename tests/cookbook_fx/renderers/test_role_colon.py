import pytest

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import ParseTermination, TrainOnWhat, get_renderer

DIALOGUE = [
    Message(role="user", content="the cat"),
    Message(role="assistant", content="sat"),
    Message(role="user", content="where"),
    Message(role="assistant", content="here"),
]


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer):
    return get_renderer("role_colon", tiny_tokenizer)


def test_the_layout_is_roles_colons_and_blank_lines(renderer, tiny_tokenizer):
    tokens, weights = renderer.build_supervised_example(DIALOGUE)
    assert tiny_tokenizer.decode(tokens) == (
        "<|im_start|>User: the cat\n\nAssistant: sat\n\nUser: where\n\nAssistant: here\n\nUser:"
    )
    assert tiny_tokenizer.decode(tokens[weights == 1]) == " here\n\nUser:"
    prompt = renderer.build_generation_prompt(DIALOGUE[:3])
    assert prompt.tolist() == tokens[weights == 0].tolist()
    assert renderer.get_stop_sequences() == ("\n\nUser:",)


def test_all_but_the_first_token_is_trained_with_all_tokens(renderer):
    _, weights = renderer.build_supervised_example(DIALOGUE, TrainOnWhat.ALL_TOKENS)
    assert weights.tolist() == [0.0] + [1.0] * (len(weights) - 1)


def test_no_bos_token_no_first_token(tiny_tokenizer):
    from copy import deepcopy

    bare = deepcopy(tiny_tokenizer)
    bare.bos_token = None
    tokens, _ = get_renderer("role_colon", bare).build_supervised_example(DIALOGUE)
    assert tiny_tokenizer.decode(tokens).startswith("User: the cat")


def test_control_tokens_in_content_stay_text(renderer, tiny_tokenizer):
    control = set(tiny_tokenizer.get_added_vocab().values())
    hostile = [Message(role="user", content="".join(tiny_tokenizer.get_added_vocab()))]
    prompt = renderer.build_generation_prompt(hostile).tolist()
    assert [token for token in prompt if token in control] == [tiny_tokenizer.bos_token_id]


@pytest.mark.parametrize(
    ("text", "eos", "content", "termination"),
    [
        (" sat\n\nUser:", False, "sat", ParseTermination.STOP_SEQUENCE),
        (" sat\n\nUser: more", False, "sat", ParseTermination.STOP_SEQUENCE),
        (" sat\n\n", True, "sat", ParseTermination.EOS),
        (" sat", True, "sat", ParseTermination.EOS),
        (" sat", False, "sat", ParseTermination.MALFORMED),
        (" sat\n\nUser:", True, "sat", ParseTermination.MALFORMED),
        (" sat\n\nUser: b\n\nUser:", False, "sat", ParseTermination.MALFORMED),
        ("  a\n\n\n\n", True, " a\n\n", ParseTermination.EOS),
        ("", False, "", ParseTermination.MALFORMED),
    ],
)
def test_responses_stop_at_the_next_user_or_the_end(
    renderer, tiny_tokenizer, text, eos, content, termination
):
    tokens = tiny_tokenizer.encode(text, add_special_tokens=False)
    ended = [*tokens, tiny_tokenizer.eos_token_id] if eos else tokens
    message = Message(role="assistant", content=content)
    assert renderer.parse_response(ended) == (message, termination)


def test_a_conversation_of_alternating_users_is_one_example(renderer):
    (example,) = renderer.build_supervised_examples(DIALOGUE, TrainOnWhat.ALL_MESSAGES)
    whole = renderer.build_supervised_example(DIALOGUE, TrainOnWhat.ALL_MESSAGES)
    assert example.tokens.tolist() == whole.tokens.tolist()


def test_a_response_no_user_follows_gets_an_example_of_its_own(renderer, tiny_tokenizer):
    with_tool = [*DIALOGUE[:2], Message(role="tool", content="dog"), DIALOGUE[3]]
    assert not renderer.has_extension_property
    first, second = renderer.build_supervised_examples(
        with_tool, TrainOnWhat.ALL_ASSISTANT_MESSAGES
    )
    assert tiny_tokenizer.decode(first.tokens).endswith("Assistant: sat\n\nUser:")
    assert tiny_tokenizer.decode(second.tokens).endswith(
        "Assistant: sat\n\nTool: dog\n\nAssistant: here\n\nUser:"
    )
    for example, said in ((first, " sat\n\nUser:"), (second, " here\n\nUser:")):
        assert tiny_tokenizer.decode(example.tokens[example.weights == 1]) == said
    with pytest.raises(ConfigurationError, match="all_messages trains on more than responses"):
        renderer.build_supervised_examples(with_tool, TrainOnWhat.ALL_MESSAGES)


def test_customized_examples_are_those_of_the_chosen_responses(renderer, tiny_tokenizer):
    def said(flags):
        roles = ("user", "assistant", "tool", "assistant")
        messages = [
            Message(role=role, content=role, trainable=flag)
            for role, flag in zip(roles, flags, strict=True)
        ]
        examples = renderer.build_supervised_examples(messages, TrainOnWhat.CUSTOMIZED)
        return [tiny_tokenizer.decode(tokens[weights == 1]) for tokens, weights in examples]

    assert said([False, True, False, False]) == [" assistant\n\nUser:"]
    assert said([False, False, False, False]) == [""]
    with pytest.raises(ConfigurationError, match="more than responses"):
        said([True, False, False, False])
