"""gpt-oss's format, token for token that of openai-harmony.

Two differences are meant, and both are the chat template's way: instructions without tools after
them end with a blank line; and all reasoning before the last final response is dropped, where the
library drops what stands before the first, and nothing while a call awaits its result.
"""

import base64

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cookbook_fx.chat import Message, TextPart, ThinkingPart, ToolCall, ToolSpec, content_of
from cookbook_fx.renderers import gpt_oss
from tests.family_tokenizers import CONTROL_TOKENS, Unreachable, real_tokenizer

pytestmark = pytest.mark.parity
harmony = pytest.importorskip("openai_harmony")

TEXT = st.lists(
    st.text(alphabet="ab é\n日.🎉<|", min_size=1, max_size=8)
    | st.sampled_from([token for token, _ in CONTROL_TOKENS["gpt_oss"]]),
    min_size=1,
    max_size=3,
).map("".join)
NAMES = st.text(alphabet="ab_-", min_size=1, max_size=6)


@pytest.fixture(scope="module")
def tokenizer():
    try:
        return real_tokenizer("gpt_oss")
    except Unreachable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def encoding(tokenizer, tmp_path_factory):
    """The library's own encoding; it checks the hash of the vocabulary it reads."""
    folder = tmp_path_factory.mktemp("encodings")
    bytes_of = {letter: byte for byte, letter in enumerate(_letters())}
    added = tokenizer.get_added_vocab()
    ranks = ((i, word) for word, i in tokenizer.get_vocab().items() if word not in added)
    with open(folder / "o200k_base.tiktoken", "wb") as file:
        for rank, word in sorted(ranks):
            spelled = base64.b64encode(bytes(bytes_of[letter] for letter in word))
            file.write(spelled + b" %d\n" % rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        yield harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def _letters():
    """The letter that a byte-level vocabulary spells each byte with."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def schemas(depth):
    told = st.fixed_dictionaries(
        {},
        optional={
            "title": TEXT, "description": TEXT, "nullable": st.booleans(),
            "default": TEXT | st.none() | st.integers() | st.just({"é": [1.5]}),
            "examples": st.lists(TEXT | st.integers(), max_size=2),
        },
    )  # fmt: skip
    names = st.sampled_from(["string", "number", "integer", "boolean", "null", "array"])
    kinds = [
        names.map(lambda name: {"type": name}),
        st.lists(names, min_size=1, max_size=3).map(lambda types: {"type": types}),
        st.lists(TEXT, max_size=2).map(lambda values: {"type": "string", "enum": values}),
        st.just({"anyOf": [{"type": "string"}]}),
    ]
    if depth:
        inner = schemas(depth - 1)
        kinds += [
            objects(inner),
            inner.map(lambda items: {"type": "array", "items": items}),
            st.lists(inner, min_size=1, max_size=2).map(lambda variants: {"oneOf": variants}),
        ]
    return st.tuples(st.one_of(kinds), told).map(lambda both: both[1] | both[0])


def objects(inner, *, min_size=0):
    return st.builds(
        lambda properties, count: {
            "type": "object", "properties": properties, "required": list(properties)[:count],
        },
        st.dictionaries(NAMES, inner, min_size=min_size, max_size=2),
        st.integers(0, 2),
    )  # fmt: skip


TOOLS = st.lists(
    st.builds(
        ToolSpec,
        name=NAMES,
        description=TEXT | st.just(""),
        parameters=objects(schemas(2), min_size=1),
    ),
    min_size=1,
    max_size=2,
)


@st.composite
def histories(draw):
    """Pairs of a message here and what it is there, up to a user's or a tool's message."""
    pairs = [_user(draw(TEXT))]
    for _ in range(draw(st.integers(0, 3))):
        reasoning, text = draw(TEXT | st.just("")), draw(TEXT)
        if draw(st.booleans()):
            call = ToolCall(name=draw(NAMES), arguments=draw(st.sampled_from(["{}", '"<|call|>"'])))
            pairs += [_response(reasoning, text, call), _result(call.name, draw(TEXT))]
        else:
            pairs += [_response(reasoning, text, None), _user(draw(TEXT))]
    return pairs


def _user(text):
    there = harmony.Message.from_role_and_content(harmony.Role.USER, text)
    return Message(role="user", content=text), [there]


def _result(name, text):
    author = harmony.Author.new(harmony.Role.TOOL, f"functions.{name}")
    there = harmony.Message.from_author_and_content(author, text)
    there = there.with_recipient("assistant").with_channel("commentary")
    return Message(role="tool", name=name, content=text), [there]


def _response(reasoning, text, call):
    here = Message(
        role="assistant",
        content=content_of([ThinkingPart(thinking=reasoning), TextPart(text=text)]),
        tool_calls=(call,) if call else (),
    )

    def said(text, channel):
        message = harmony.Message.from_role_and_content(harmony.Role.ASSISTANT, text)
        return message.with_channel(channel)

    there = [said(reasoning, "analysis")] if reasoning else []
    if call is None:
        return here, [*there, said(text, "final")]
    made = said(call.arguments, "commentary").with_content_type("<|constrain|>json")
    made = made.with_recipient(f"functions.{call.name}")
    return here, [*there, said(text, "commentary"), made]


def _is_final(said):
    return said[-1].channel == "final"


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_prompts_are_those_of_the_library(tokenizer, encoding, data):
    renderer = gpt_oss(tokenizer, reasoning="high")
    text, tools = data.draw(TEXT | st.just("")), data.draw(TOOLS | st.just([]))
    pairs = data.draw(histories())
    system = harmony.SystemContent.new().with_conversation_start_date("2025-06-28")
    system = system.with_reasoning_effort(harmony.ReasoningEffort.HIGH)
    there = [harmony.Message.from_role_and_content(harmony.Role.SYSTEM, system)]
    if text or tools:
        developer = harmony.DeveloperContent.new()
        if text:
            developer = developer.with_instructions(text if tools else f"{text}\n\n")
        if tools:
            described = [
                harmony.ToolDescription.new(
                    tool.name, tool.description, parameters=dict(tool.parameters)
                )
                for tool in tools
            ]
            developer = developer.with_function_tools(described)
        there.append(harmony.Message.from_role_and_content(harmony.Role.DEVELOPER, developer))
    last_final = max((i for i, (_, said) in enumerate(pairs) if _is_final(said)), default=-1)
    there += [
        message
        for i, (_, said) in enumerate(pairs)
        for message in said
        if i > last_final or message.channel != "analysis"
    ]
    messages = [Message(role="system", content=text, tools=tuple(tools)), *(m for m, _ in pairs)]
    expected = encoding.render_conversation_for_completion(
        harmony.Conversation.from_messages(there),
        harmony.Role.ASSISTANT,
        config=harmony.RenderConversationConfig(auto_drop_analysis=False),
    )
    assert renderer.build_generation_prompt(messages).tolist() == expected


@given(reasoning=TEXT, text=TEXT, name=NAMES)
def test_the_library_reads_what_is_written(tokenizer, encoding, reasoning, text, name):
    renderer = gpt_oss(tokenizer)
    here, there = _response(reasoning, text, ToolCall(name=name, arguments="{}"))
    tokens, weights = renderer.build_supervised_example([here])
    produced = tokens[weights == 1].tolist()
    read = encoding.parse_messages_from_completion_tokens(produced, harmony.Role.ASSISTANT)
    assert [message.to_dict() for message in read] == [message.to_dict() for message in there]
    assert renderer.parse_response(produced).message == here
