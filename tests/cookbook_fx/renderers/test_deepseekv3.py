import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.chat import (
    ImagePart,
    Message,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
    content_of,
)
from cookbook_fx.errors import DataError, ModelError
from cookbook_fx.renderers import ParseTermination, TrainOnWhat, get_renderer
from tests.family_tokenizers import tiny_tokenizer

PLAIN, THINKING, KEEP = "deepseekv3", "deepseekv3_thinking", "deepseekv3_keep_thinking"
NAMES = (PLAIN, "deepseekv3_disable_thinking", THINKING, KEEP)
TOKENIZER = tiny_tokenizer("deepseekv3")
RENDERERS = {name: get_renderer(name, TOKENIZER) for name in NAMES}
CONTROL = {
    index
    for index, token in TOKENIZER.added_tokens_decoder.items()
    if not token.content.isspace()
}  # fmt: skip

# The format's marks in short.
MARKS = {
    "[BOS]": "<｜begin▁of▁sentence｜>", "[END]": "<｜end▁of▁sentence｜>",
    "[U]": "<｜User｜>", "[A]": "<｜Assistant｜>",
    "[calls]": "<｜tool▁calls▁begin｜>", "[/calls]": "<｜tool▁calls▁end｜>",
    "[call]": "<｜tool▁call▁begin｜>", "[/call]": "<｜tool▁call▁end｜>", "[sep]": "<｜tool▁sep｜>",
    "[result]": "<｜tool▁output▁begin｜>", "[/result]": "<｜tool▁output▁end｜>",
}  # fmt: skip


def spelled(text):
    for short, mark in MARKS.items():
        text = text.replace(short, mark)
    return text


def ids(text):
    """Of a text whose marks, in short or not, are control tokens."""
    return TOKENIZER.encode(spelled(text), add_special_tokens=False)


def shortened(tokens):
    text = TOKENIZER.decode(tokens)
    for short, mark in MARKS.items():
        text = text.replace(mark, short)
    return text


def system(text, **more):
    return Message(role="system", content=text, **more)


def user(text):
    return Message(role="user", content=text)


def tool(text):
    return Message(role="tool", content=text)


def says(*parts, calls=()):
    """The assistant: texts, reasoning as one-element lists."""
    content = [
        ThinkingPart(thinking=part[0]) if isinstance(part, list) else TextPart(text=part)
        for part in parts
    ]
    return Message(role="assistant", content=content_of(content), tool_calls=tuple(calls))


LOOK = ToolCall(name="look", arguments='{"at": 1}')
CALLED = '[calls][call]look[sep]{"at": 1}[/call][/calls]'


@pytest.mark.parametrize(
    ("messages", "name", "prompt", "trained"),
    [
        ([user("a"), says("b")], PLAIN, "[BOS][U]a[A]</think>", "b[END]"),
        ([user("a"), says("b")], THINKING, "[BOS][U]a[A]<think>", "</think>b[END]"),
        ([user("a"), says("b")], KEEP, "[BOS][U]a[A]<think>", "</think>b[END]"),
        ([user("a"), says(["r"], "b")], PLAIN, "[BOS][U]a[A]</think>", "b[END]"),
        ([user("a"), says(["r"], "b")], THINKING, "[BOS][U]a[A]<think>", "r</think>b[END]"),
        ([user("a"), says(["r"], "b")], KEEP, "[BOS][U]a[A]<think>", "r</think>b[END]"),
        ([user("a"), says(["r"])], PLAIN, "[BOS][U]a[A]</think>", "[END]"),
        ([user("a"), says(["r"])], THINKING, "[BOS][U]a[A]<think>", "r</think>[END]"),
        ([user("a"), says("wh", ["r"], "at")], PLAIN, "[BOS][U]a[A]</think>", "what[END]"),
        (
            [user("a"), says("b ", ["r"], "c")],
            THINKING, "[BOS][U]a[A]<think>", "</think>b <think>r</think>c[END]",
        ),
        (
            [system(" s\n"), user("a"), says(["r"], "b"), user("c"), says("d")],
            PLAIN, "[BOS] s\n[U]a[A]</think>b[END][U]c[A]</think>", "d[END]",
        ),
        (
            [user("a"), says(["r"], "b"), user("c"), says("d")],
            THINKING, "[BOS][U]a[A]</think>b[END][U]c[A]<think>", "</think>d[END]",
        ),
        (
            [user("a"), says(["r"], "b"), user("c"), says("d")],
            KEEP, "[BOS][U]a[A]<think>r</think>b[END][U]c[A]<think>", "</think>d[END]",
        ),
        ([user("a"), says("b"), user("c"), says("d")], KEEP,
         "[BOS][U]a[A]b[END][U]c[A]<think>", "</think>d[END]"),
        (
            [user("a"), says("b", calls=[LOOK, LOOK])],
            PLAIN, "[BOS][U]a[A]</think>", f"b{CALLED[:-8]}{CALLED[7:]}[END]",
        ),
        (
            [user("a"), says(calls=[LOOK]), tool("x"), tool("y"), says("b")],
            PLAIN, f"[BOS][U]a[A]</think>{CALLED}[END][result]x[/result][result]y[/result]",
            "b[END]",
        ),
        (
            [user("a"), says(["r"], calls=[LOOK]), tool("x"), says(["q"], "b")],
            PLAIN, f"[BOS][U]a[A]</think>{CALLED}[END][result]x[/result]", "b[END]",
        ),
        (
            [user("a"), says(["r"], calls=[LOOK]), tool("x"), says(["q"], "b")],
            THINKING,
            f"[BOS][U]a[A]</think><think>r</think>{CALLED}[END][result]x[/result]",
            "<think>q</think>b[END]",
        ),
        (
            [user("a"), says(["r"], calls=[LOOK]), tool("x"), says(["q"], "b")],
            KEEP,
            f"[BOS][U]a[A]<think>r</think>{CALLED}[END][result]x[/result]",
            "<think>q</think>b[END]",
        ),
        (
            [user("a"), says(calls=[LOOK]), tool("x"), says(["q"], "b"), user("c"), says("d")],
            THINKING,
            f"[BOS][U]a[A]</think>{CALLED}[END][result]x[/result]b[END][U]c[A]<think>",
            "</think>d[END]",
        ),
        ([user("a"), says("b"), says("c")], PLAIN,
         "[BOS][U]a[A]</think>b[END][A]</think>", "c[END]"),
    ],
)  # fmt: skip
def test_the_layout(messages, name, prompt, trained):
    renderer = RENDERERS[name]
    tokens, weights = renderer.build_supervised_example(messages)
    assert tokens.tolist() == ids(prompt + trained)
    assert tokens[weights == 1].tolist() == ids(trained)
    assert renderer.build_generation_prompt(messages[:-1]).tolist() == ids(prompt)
    assert renderer.get_stop_sequences() == tuple(ids("[END]"))


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_call_is_followed_by_the_end_token(name):
    call = says(calls=[LOOK])
    tokens, weights = RENDERERS[name].build_supervised_example([user("a"), call])
    assert tokens[-1] == ids("[END]")[0]
    assert weights[-1] == 1
    assert RENDERERS[name].parse_response(tokens[weights == 1]) == (
        call,
        ParseTermination.STOP_SEQUENCE,
    )
    later = RENDERERS[name].build_generation_prompt([user("a"), call, tool("x")])
    assert shortened(later).endswith("[/calls][END][result]x[/result]")


def test_instructions_stand_at_the_start_with_blank_lines_between():
    renderer = RENDERERS[PLAIN]
    developer = Message(role="developer", content="two")
    said = [system("one"), user("a"), says("b"), developer, user("c"), system("three")]
    tokens, weights = renderer.build_supervised_example(
        said, TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES
    )
    assert shortened(tokens) == "[BOS]one\n\ntwo\n\nthree[U]a[A]</think>b[END][U]c"
    assert shortened(tokens[weights == 1]) == "one\n\nthreeac"
    prompt = renderer.build_generation_prompt([user("a"), says(calls=[LOOK]), tool("x"), developer])
    assert shortened(prompt) == f"[BOS]two[U]a[A]</think>{CALLED}[END][result]x[/result]"


@pytest.mark.parametrize("name", NAMES)
def test_an_instruction_that_comes_last_is_the_last_message(name):
    said = [user("a"), says("b"), system("c")]
    tokens, weights = RENDERERS[name].build_supervised_example(said)
    assert not weights.any()
    # What is not the last message stands as history.
    tag = "" if name == KEEP else "</think>"
    assert shortened(tokens) == f"[BOS]c[U]a[A]{tag}b[END]"


def test_a_kept_block_is_not_trained_where_the_prompt_opened_it():
    said = [user("a"), says(["r"], calls=[LOOK]), tool("x"), says("b")]
    keep, drop = (
        [
            shortened(example.tokens[example.weights == 1])
            for option in (TrainOnWhat.LAST_ASSISTANT_TURN, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
            for example in [RENDERERS[name].build_supervised_example(said, option)]
        ]
        for name in (KEEP, THINKING)
    )
    assert keep == [f"r</think>{CALLED}[END]b[END]", f"<think>r</think>{CALLED}[END]b[END]"]
    assert drop == [f"<think>r</think>{CALLED}[END]b[END]"] * 2


def test_reasoning_at_the_beginning_of_a_text_is_reasoning():
    inline = [user("a"), Message(role="assistant", content="<think>r</think>b"), user("c")]
    for name, history in (
        (PLAIN, "</think>b"),
        (THINKING, "</think>b"),
        (KEEP, "<think>r</think>b"),
    ):
        prompt = RENDERERS[name].build_generation_prompt(inline)
        assert prompt[: -len(ids("[U]c[A]<think>"))].tolist() == ids(f"[BOS][U]a[A]{history}[END]")
    tokens, weights = RENDERERS[THINKING].build_supervised_example(inline[:2])
    assert tokens[weights == 1].tolist() == ids("r</think>b[END]")


def test_tools_are_declared_after_the_instructions_that_come_with_them():
    tools = (
        ToolSpec(name="look", description="Naïve.", parameters={"type": "object", "é": 1}),
        ToolSpec(name="go", description="", parameters={}),
    )
    instruction = system("Be brief.", tools=tools)
    prompt = RENDERERS[PLAIN].build_generation_prompt([instruction, user("a")])
    before, format_, after = shortened(prompt).partition(
        "[calls][call]tool_call_name[sep]tool_call_arguments[/call][/calls]"
    )
    assert before.startswith(
        "[BOS]Be brief.\n\n## Tools\nYou have access to the following tools:\n\n"
        '### look\nDescription: Naïve.\n\nParameters: {"type": "object", "é": 1}\n'
        "### go\nDescription: \n\nParameters: {}\n\n"
    )
    assert after.endswith("without separators or spaces[U]a[A]</think>")
    assert prompt.tolist() == ids(before + format_ + after)
    more = RENDERERS[PLAIN].build_generation_prompt([instruction, system("Now.")])
    assert shortened(more).endswith("without separators or spaces\n\nNow.[A]</think>")
    bare = RENDERERS[PLAIN].build_generation_prompt([system("", tools=tools)])
    assert shortened(bare).startswith("[BOS]\n\n## Tools")


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_in_content_stay_text_whatever_the_field(name):
    def conversation(text):
        arguments = json.dumps({"a": text}, ensure_ascii=False)
        declared = ToolSpec(name=f"n{text}", description=text, parameters={"a": text})
        call = ToolCall(name=f"n{text}", arguments=arguments)
        first = says(["r" + text], "t" + text, calls=[call])
        final = Message(
            role="assistant",
            content=says(["r" + text], "t" + text).content,
            tool_calls=(call,),
            unparsed_tool_calls=(UnparsedToolCall(raw_text=text, error="none"),),
        )
        return [
            system("s" + text, tools=(declared,)), Message(role="developer", content=text),
            user(text), first, Message(role="tool", content=text, name="n" + text),
            first, user(text), final,
        ]  # fmt: skip

    def structure(text):
        tokens = RENDERERS[name].build_supervised_example(conversation(text)).tokens
        return [token for token in tokens.tolist() if token in CONTROL]

    hostile = "".join(MARKS.values()) + "<think>x</think>"
    assert structure(hostile) == structure("Hi")
    assert len(structure("Hi")) > 20
    text = TOKENIZER.decode(RENDERERS[name].build_generation_prompt(conversation(hostile)))
    assert text.count(hostile) >= 12


def test_images_are_refused():
    image = (ImagePart(image="https://example.org/a.png"),)
    for role in ("system", "user", "assistant", "tool"):
        with pytest.raises(DataError, match="no way to write images"):
            RENDERERS[PLAIN].build_generation_prompt([Message(role=role, content=image)])


def test_a_tokenizer_of_another_model_is_refused(tiny_tokenizer):
    with pytest.raises(ModelError, match="begin▁of▁sentence"):
        get_renderer(PLAIN, tiny_tokenizer)


STOP, MALFORMED = ParseTermination.STOP_SEQUENCE, ParseTermination.MALFORMED


@pytest.mark.parametrize(
    ("name", "text", "message", "termination"),
    [
        (PLAIN, "b[END]", says("b"), STOP),
        (PLAIN, "b[END]more", says("b"), STOP),
        (PLAIN, "b[END]more[END]", says("b"), MALFORMED),
        (PLAIN, "b", says("b"), MALFORMED),
        (PLAIN, "", says(), MALFORMED),
        (PLAIN, "[END]", says(), STOP),
        (PLAIN, "<think>cut", says("<think>cut"), MALFORMED),
        (PLAIN, "<think>never closed[END]", says(["never closed"]), STOP),
        (THINKING, "<think>never closed[END]", says(["never closed"]), STOP),
        (THINKING, f"<think>forgot{CALLED}[END]", says(["forgot"], calls=[LOOK]), STOP),
        (THINKING, "r</think>b[END]", says(["r"], "b"), STOP),
        (KEEP, "r</think>b[END]x[END]", says(["r"], "b"), MALFORMED),
        (THINKING, "</think>b[END]", says("b"), STOP),
        (THINKING, "<think>\n r</think> \n b [END]", says(["\n r"], " \n b "), STOP),
        (THINKING, "b<think>r</think>c[END]", says("b", ["r"], "c"), STOP),
        (PLAIN, "b</think>c[END]", says("b</think>c"), STOP),
        (PLAIN, f"b \n{CALLED}[END]", says("b", calls=[LOOK]), STOP),
        (PLAIN, f"{CALLED}\n{CALLED}[END]", says(calls=[LOOK, LOOK]), STOP),
        (PLAIN, f"a{CALLED}b[END]", says("ab", calls=[LOOK]), STOP),
        (
            THINKING, f"not {CALLED} yet</think>{CALLED}[END]",
            says([spelled(f"not {CALLED} yet")], calls=[LOOK]), STOP,
        ),
    ],
)  # fmt: skip
def test_a_response_is_parsed(name, text, message, termination):
    assert RENDERERS[name].parse_response(ids(text)) == (message, termination)


@pytest.mark.parametrize("tool_name", ["get-weather", "weather.now", "天気", "a b"])
def test_tools_may_have_any_name(tool_name):
    parsed = RENDERERS[PLAIN].parse_response(
        ids(f"[calls][call]{tool_name}[sep]{{}}[/call][/calls][END]")
    )
    assert parsed.message == says(calls=[ToolCall(name=tool_name, arguments="{}")])


@pytest.mark.parametrize(
    ("text", "raw", "error"),
    [
        ("[calls][call]a[sep][1,2][/call][/calls]", "[call]a[sep][1,2][/call]", "not an object"),
        ('[calls][call]a[sep]{"x": NaN}[/call][/calls]', '[call]a[sep]{"x": NaN}[/call]', "NaN"),
        ("[calls][call]a[sep]{bad[/call][/calls]", "[call]a[sep]{bad[/call]", "Invalid JSON"),
        ("[calls][call] [sep]{}[/call][/calls]", "[call] [sep]{}[/call]", "name is empty"),
        ("[calls][call]a{}[/call][/calls]", "[call]a{}[/call]", r"no <｜tool▁sep｜>"),
        ("[calls][call]a[sep]{}[/calls]", "[call]a[sep]{}[/calls]", "unterminated.*tool▁call▁"),
        ("[calls][call]a[sep]{}[/call]", "[calls][call]a[sep]{}[/call]", "unterminated.*calls"),
        ("[call]a[sep]{}[/call]", "[call]a[sep]{}[/call]", "outside"),
        ("[calls]a[/calls]", "[calls]a[/calls]", "no call is inside"),
    ],
)
def test_what_is_no_call_is_kept_with_the_reason(text, raw, error):
    parsed = RENDERERS[PLAIN].parse_response(ids(f"b{text}[END]"))
    assert (parsed.message.content, parsed.message.tool_calls) == ("b", ())
    (unparsed,) = parsed.message.unparsed_tool_calls
    assert unparsed.raw_text == spelled(raw)
    assert re.search(error, unparsed.error)
    rendered = RENDERERS[PLAIN].build_generation_prompt([parsed.message])
    assert shortened(rendered[:-2]) == f"[BOS][A]</think>b{raw}[END]"
    assert sum(token in CONTROL for token in rendered.tolist()) == 6


def test_good_calls_stand_beside_bad_ones():
    parsed = RENDERERS[PLAIN].parse_response(
        ids(f"[calls]so[call]a[sep]{{}}[call]b[sep]{{}}[/call]and[/calls]{CALLED}[END]")
    )
    b = ToolCall(name="b", arguments="{}")
    assert parsed.message.tool_calls == (b, LOOK)
    raw = [spelled("so"), spelled("[call]a[sep]{}"), "and"]
    assert [call.raw_text for call in parsed.message.unparsed_tool_calls] == raw


PIECES = st.lists(
    st.sampled_from([*MARKS, "<think>", "</think>", "{}", " ", "\n", "w1", "w2", "w3", "w4"]),
    max_size=20,
)


@given(PIECES, st.sampled_from(NAMES))
def test_no_word_of_a_response_is_lost(pieces, name):
    if "[END]" in pieces:
        pieces = pieces[: pieces.index("[END]")]
    text = "".join(pieces)
    message, termination = RENDERERS[name].parse_response(ids(f"{text}[END]"))
    assert termination == STOP
    kept = [
        part.thinking if isinstance(part, ThinkingPart) else part.text for part in message.parts
    ]
    kept += [call.raw_text for call in message.unparsed_tool_calls]
    kept += [f"{call.name} {call.arguments}" for call in message.tool_calls]
    for word in ("w1", "w2", "w3", "w4"):
        assert sum(said.count(word) for said in kept) == text.count(word)


# Control-token text included. Reasoning at the beginning of a text is read as reasoning.
TEXT = st.text(alphabet=" \nab<é日🎉", max_size=6) | st.sampled_from(
    ["</think>", "x<think>y</think>", *MARKS.values()]
)
PARTS = TEXT.map(lambda text: TextPart(text=text)) | TEXT.map(
    lambda text: ThinkingPart(thinking=text)
)
CALLS = st.builds(
    lambda name, value: ToolCall(
        name=f"n{name}", arguments=json.dumps({"a": value}, ensure_ascii=False)
    ),
    TEXT,
    TEXT,
)
RESPONSES = st.builds(
    lambda parts, calls: Message(
        role="assistant", content=content_of(parts), tool_calls=tuple(calls)
    ),
    st.lists(PARTS, max_size=4),
    st.lists(CALLS, max_size=2),
)
OTHERS = st.builds(Message, role=st.sampled_from(["user", "tool"]), content=TEXT)
INSTRUCTIONS = st.builds(Message, role=st.sampled_from(["system", "developer"]), content=TEXT)
SPOKEN = st.lists(RESPONSES | OTHERS, max_size=6)
CONVERSATIONS = st.lists(RESPONSES | OTHERS | OTHERS | INSTRUCTIONS, max_size=6)


@given(CONVERSATIONS, RESPONSES, st.sampled_from(NAMES))
def test_a_response_begins_where_its_prompt_ends_and_parses_as_itself(history, response, name):
    renderer = RENDERERS[name]
    tokens, weights = renderer.build_supervised_example([*history, response])
    prompt = renderer.build_generation_prompt(history)
    assert tokens[: len(prompt)].tolist() == prompt.tolist()
    assert np.flatnonzero(weights).tolist() == list(range(len(prompt), len(tokens)))
    message, termination = renderer.parse_response(tokens[len(prompt) :])
    assert termination == STOP
    parts = response.parts
    if not renderer.layout.thinks:
        parts = [part for part in parts if isinstance(part, TextPart)]
    content = content_of(parts)
    if response.tool_calls and isinstance(content, str):
        content = content.rstrip()
    elif response.tool_calls and isinstance(content[-1], TextPart):
        content = content_of([*content[:-1], TextPart(text=content[-1].text.rstrip())])
    assert message == Message(role="assistant", content=content, tool_calls=response.tool_calls)


def extends(renderer, messages):
    """Whether each prompt and its response begin the last prompt, by rendering them all."""
    prompt = renderer.build_generation_prompt(messages).tolist()
    produced = [
        renderer.build_supervised_example(messages[: i + 1]).tokens.tolist()
        for i, message in enumerate(messages[:-1])
        if message.role == "assistant"
    ]
    return all(prompt[: len(tokens)] == tokens for tokens in produced)


@given(CONVERSATIONS, st.sampled_from(NAMES))
def test_what_is_said_to_extend_does(messages, name):
    renderer = RENDERERS[name]
    if messages and renderer.layout.extends(messages):
        assert all(extends(renderer, messages[:end]) for end in range(1, len(messages) + 1))


@settings(max_examples=40)
@given(SPOKEN, st.sampled_from(NAMES))
def test_without_late_instructions_what_extends_is_said_to(messages, name):
    renderer = RENDERERS[name]
    if messages:
        assert renderer.layout.extends(messages) == extends(renderer, messages)


@settings(max_examples=40)
@given(CONVERSATIONS, st.sampled_from(NAMES))
def test_every_response_stands_in_an_example_as_it_would_be_sampled(messages, name):
    renderer = RENDERERS[name]
    if not messages:
        return
    examples = renderer.build_supervised_examples(messages, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            produced = renderer.build_supervised_example(messages[: i + 1])
            trained = np.flatnonzero(produced.weights)
            assert any(
                example.tokens[: len(produced.tokens)].tolist() == produced.tokens.tolist()
                and (example.weights[trained] == 1).all()
                for example in examples
            )


def test_prompts_extend_where_they_should():
    def extends(name, *messages):
        return RENDERERS[name].layout.extends(messages)

    reasoned, plain = says(["r"], "b"), says("b")
    assert extends(PLAIN, user("a"), reasoned, user("c"), plain)
    assert extends(KEEP, system("s"), user("a"), reasoned, user("c"), reasoned)
    assert not extends(KEEP, user("a"), plain, user("c"), reasoned)
    assert not extends(THINKING, user("a"), reasoned, user("c"), reasoned)
    assert extends(THINKING, user("a"), reasoned)
    assert extends(THINKING, tool("a"), says(["r"], calls=[LOOK]), tool("c"), plain)
    assert not extends(THINKING, tool("a"), reasoned, tool("c"), plain)
    assert not extends(PLAIN, user("a"), plain, system("late"), plain)
    assert not any(renderer.has_extension_property for renderer in RENDERERS.values())
