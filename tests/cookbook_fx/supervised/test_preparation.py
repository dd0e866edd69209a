import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import TrainOnWhat, get_renderer
from cookbook_fx.supervised import Preparation, prepare_conversations, stream_batches

shared_fixture = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30
)


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer):
    return get_renderer("chatml", tiny_tokenizer)


def dialogue(*contents):
    roles = ("user", "assistant") * len(contents)
    return tuple(
        Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)
    )


def test_every_conversation_is_accounted_for(renderer):
    length = len(renderer.build_supervised_example(dialogue("a", "b")).tokens)
    conversations = [
        dialogue("a", "b"),
        dialogue("a", "b" * 50),
        dialogue("a" * 50, "b"),
        dialogue("a"),
    ]
    datums, account = prepare_conversations(conversations, renderer=renderer, max_length=length)
    assert account == Preparation(
        conversations=4,
        datums=2,
        truncated=1,
        cut_off=1,
        nothing_to_train=1,
        tokens=2 * (length - 1),
        loss_tokens=sum(int((datum.weights > 0).sum()) for datum in datums),
    )
    assert account.left_out == 2
    assert [datum.length for datum in datums] == [length - 1] * 2


def test_a_conversation_whose_responses_stand_apart_gives_several_datums(tiny_tokenizer):
    renderer = get_renderer("role_colon", tiny_tokenizer)
    turns = ("user", "assistant", "tool", "assistant")
    conversation = tuple(Message(role=role, content="x") for role in turns)
    datums, account = prepare_conversations([conversation], renderer=renderer, max_length=None)
    assert (account.conversations, account.datums, len(datums)) == (1, 2, 2)


def test_the_conversation_at_fault_is_named(renderer):
    flagged = (Message(role="user", content="a", trainable=True),)
    options = {"renderer": renderer, "max_length": None}
    with pytest.raises(ConfigurationError, match="conversation 1: message 0 says `trainable`"):
        prepare_conversations([dialogue("a", "b"), flagged], **options)
    with pytest.raises(DataError, match=r"conversation 0: .* at least one message"):
        prepare_conversations([()], **options)
    with pytest.raises(ConfigurationError, match="`max_length`"):
        prepare_conversations([dialogue("a", "b")], renderer=renderer, max_length=1)


@shared_fixture
@given(
    sizes=st.lists(st.integers(0, 3), max_size=9),
    batch_size=st.integers(1, 4),
)
def test_a_stream_holds_what_the_whole_holds(renderer, sizes, batch_size):
    conversations = [dialogue(*"abc"[:size] or ("a",)) for size in sizes]
    whole = prepare_conversations(conversations, renderer=renderer, max_length=None)
    batches = list(
        stream_batches(
            iter(conversations), renderer=renderer, batch_size=batch_size, max_length=None
        )
    )
    streamed = [datum.tokens.tolist() for batch in batches for datum in batch.datums]
    assert streamed == [datum.tokens.tolist() for datum in whole.datums]
    assert sum((batch.preparation for batch in batches), Preparation()) == whole.preparation
    assert all(len(batch.datums) == batch_size for batch in batches[:-1])


def test_a_stream_reads_no_further_than_its_batch(renderer):
    read = []

    def conversations():
        for index in range(10):
            read.append(index)
            yield dialogue("a", "b")

    stream = stream_batches(conversations(), renderer=renderer, batch_size=3, max_length=None)
    next(stream)
    assert read == [0, 1, 2]


def test_a_stream_needs_a_batch_size(renderer):
    with pytest.raises(ConfigurationError, match="`batch_size` must be at least 1, got 0"):
        next(stream_batches([], renderer=renderer, batch_size=0, max_length=None))


def test_options_reach_the_renderer_and_the_weights(renderer):
    conversations = [dialogue("a", "b")]
    (datum,), _ = prepare_conversations(
        conversations,
        renderer=renderer,
        max_length=None,
        train_on_what=TrainOnWhat.ALL_TOKENS,
        reduction="none",
    )
    assert datum.weights.tolist() == [1.0] * datum.length
