"""Inspect tasks on our models: the score is that of the same grading by hand."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest

pytest.importorskip("inspect_ai")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

from inspect_ai import Task  # noqa: E402
from inspect_ai.dataset import Sample as InspectSample  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
)
from inspect_ai.scorer import includes  # noqa: E402
from inspect_ai.solver import generate, use_tools  # noqa: E402
from inspect_ai.tool import ToolCall, ToolInfo, tool  # noqa: E402

from cookbook_fx.chat import Message, ThinkingPart  # noqa: E402
from cookbook_fx.errors import ConfigurationError  # noqa: E402
from cookbook_fx.renderers import get_renderer  # noqa: E402
from shell.clients import Sample, SampleRequest, connect  # noqa: E402
from shell.evaluation.inspect_tasks import (  # noqa: E402
    InspectEvaluator,
    InspectFailed,
    InspectModel,
    conversation_from_inspect,
)
from shell.hub import load_tokenizer  # noqa: E402

TASK = '''
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def letters():
    """Whether an answer holds an e; a model that knows nothing sometimes does."""
    words = ("the cat", "the dog", "the mat", "the door")
    data = [Sample(input=word, target="e") for word in words]
    return Task(dataset=data, solver=generate(), scorer=includes())
'''
WORDS = ("the cat", "the dog", "the mat", "the door")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_directory):
    return load_tokenizer(tiny_model_directory)


def test_a_task_scores_as_the_same_grading_by_hand(
    tiny_engine, tiny_model_directory, tokenizer, tmp_path
):
    (tmp_path / "letters.py").write_text(TASK)
    renderer = get_renderer("chatml", tokenizer)
    evaluator = InspectEvaluator(
        tasks=[f"{tmp_path / 'letters.py'}@letters"],
        renderer=renderer,
        tokenizer=tokenizer,
        temperature=0.0,
        max_tokens=12,
        log_dir=tmp_path / "logs",
    )

    async def run():
        async with connect(base_url=tiny_engine.base_url, api_key=tiny_engine.api_key) as service:
            sampler = await service.sampler(base_model=str(tiny_model_directory))
            # Two at once take turns.
            async with asyncio.TaskGroup() as group:
                runs = [group.create_task(evaluator(sampler, seed=0)) for _ in range(2)]
            by_hand = []
            for word in WORDS:
                request = SampleRequest(
                    prompt=renderer.build_generation_prompt((Message(role="user", content=word),)),
                    max_tokens=12, stop=renderer.get_stop_sequences(), temperature=0.0,
                )  # fmt: skip
                (sample,) = await sampler.sample(request)
                by_hand.append("e" in renderer.parse_response(sample.tokens).message.text)
            return [run.result() for run in runs], by_hand

    ((report,), (again,)), by_hand = asyncio.run(run())
    assert report == again
    assert report.name == "letters"
    assert report.scores["accuracy"] == np.mean(by_hand)
    assert report.scores["num_samples"] == 4
    assert list((tmp_path / "logs").glob("*.eval"))


def test_a_task_that_is_not_there_is_told(tokenizer):
    renderer = get_renderer("chatml", tokenizer)
    evaluator = InspectEvaluator(tasks=["nowhere.py@no"], renderer=renderer, tokenizer=tokenizer)
    with pytest.raises(InspectFailed, match=r"nowhere\.py@no"):
        asyncio.run(evaluator(None, seed=0))


@dataclass
class Scripted:
    """Answers with given tokens; notes the requests."""

    tokens: list[int]
    stop_reason: str = "stop"
    requests: list = field(default_factory=list)

    async def sample(self, request):
        self.requests.append(request)
        one = Sample(
            tokens=np.array(self.tokens, np.int32),
            logprobs=-np.arange(len(self.tokens), dtype=np.float32),
            stop_reason=self.stop_reason,
        )
        return (one,) * request.num_samples


def generated(
    tokenizer, text, *, tools=(), choice="auto", stop_reason="stop", model=None, **config
):
    sampler = Scripted([*tokenizer.encode(text, add_special_tokens=False)], stop_reason)
    api = InspectModel(
        "tiny", sampler=sampler, renderer=get_renderer("chatml", tokenizer), tokenizer=tokenizer,
        **(model or {}),
    )  # fmt: skip
    asked = [ChatMessageUser(content="the cat")]
    output = asyncio.run(api.generate(asked, list(tools), choice, GenerateConfig(**config)))
    return output, sampler.requests


def test_stop_reasons_usage_and_logprobs_are_the_real_ones(tokenizer):
    output, (request,) = generated(
        tokenizer, "on the mat<|im_end|>", logprobs=True, num_choices=2, seed=7, top_p=0.5
    )
    assert (request.num_samples, request.seed, request.top_p) == (2, 7, 0.5)
    assert [choice.stop_reason for choice in output.choices] == ["stop", "stop"]
    assert output.completion == "on the mat"
    sampled = len(output.choices[0].logprobs.content)
    assert output.usage.output_tokens == 2 * sampled
    assert output.usage.input_tokens == len(request.prompt)
    pieces = output.choices[0].logprobs.content
    assert "".join(piece.token for piece in pieces) == "on the mat<|im_end|>"
    assert b"".join(bytes(piece.bytes) for piece in pieces).startswith(b"on the mat")
    assert [piece.logprob for piece in pieces] == [-float(place) for place in range(sampled)]


@pytest.mark.parametrize(
    ("window", "reason"), [(None, "max_tokens"), (90, "model_length"), (20, "model_length")]
)
def test_what_was_cut_off_says_by_what(tokenizer, window, reason):
    output, _ = generated(
        tokenizer, "on the", stop_reason="length", max_tokens=64, model={"context_window": window}
    )
    assert output.stop_reason == reason


def test_a_tasks_own_stop_ends_the_text(tokenizer):
    output, _ = generated(tokenizer, "on the mat", stop_reason="length", stop_seqs=["the"])
    assert (output.completion, output.stop_reason) == ("on ", "stop")


def test_seeds_differ_between_prompts_and_times_and_not_between_runs(tokenizer):
    def seeds():
        sampler = Scripted([2])
        api = InspectModel(
            "tiny", sampler=sampler, renderer=get_renderer("chatml", tokenizer),
            tokenizer=tokenizer,
        )  # fmt: skip
        for word in ("a", "b", "a"):
            asked = [ChatMessageUser(content=word)]
            asyncio.run(api.generate(asked, [], "auto", GenerateConfig()))
        return [request.seed for request in sampler.requests]

    assert len(set(seeds())) == 3
    assert seeds() == seeds()


def test_what_cannot_be_honored_is_refused(tokenizer):
    look = ToolInfo(name="look", description="Looks.")
    with pytest.raises(ConfigurationError, match="frequency_penalty"):
        generated(tokenizer, "on", frequency_penalty=1.0)
    with pytest.raises(ConfigurationError, match="tool_choice"):
        generated(tokenizer, "on", tools=[look], choice="any")
    generated(tokenizer, "on", tools=[look], choice="none")


def test_messages_keep_their_reasoning_calls_and_results():
    conversation = conversation_from_inspect(
        [
            ChatMessageSystem(content="Be brief."),
            ChatMessageUser(content=[ContentText(text="What "), ContentText(text="time?")]),
            ChatMessageAssistant(
                content=[ContentReasoning(reasoning="Look."), ContentText(text="One moment.")],
                tool_calls=[ToolCall(id="1", function="now", arguments={"zone": "UTC"})],
            ),
            ChatMessageTool(content="noon", tool_call_id="1", function="now"),
        ]
    )
    system, user, assistant, result = conversation
    assert (system.role, user.text) == ("system", "What time?")
    assert assistant.parts[0] == ThinkingPart(thinking="Look.")
    assert assistant.tool_calls[0].parsed_arguments == {"zone": "UTC"}
    assert (result.role, result.name, result.tool_call_id) == ("tool", "now", "1")


@dataclass
class InTurn:
    """Says one text after another; notes what it was shown."""

    texts: list[list[int]]
    prompts: list = field(default_factory=list)

    async def sample(self, request):
        self.prompts.append(request.prompt)
        tokens = np.array(self.texts.pop(0), np.int32)
        logprobs = np.zeros(len(tokens), np.float32)
        return (Sample(tokens=tokens, logprobs=logprobs, stop_reason="stop"),)


def test_a_tool_that_is_called_in_a_task_answers_the_model(tiny_model_directory):
    tokenizer = load_tokenizer(tiny_model_directory)
    tags = [f"<{end}{name}>" for name in ("think", "tool_call") for end in ("", "/")]
    tokenizer.add_special_tokens({"additional_special_tokens": tags})
    places = []

    @tool
    def look():
        async def execute(place: str) -> str:
            """Looks somewhere.

            Args:
                place: where.
            """
            places.append(place)
            return "a cat"

        return execute

    call = '{"name": "look", "arguments": {"place": "the mat"}}'
    said = [
        f"<think>\nWhere?\n</think>\n\n<tool_call>\n{call}\n</tool_call><|im_end|>",
        "the cat is on the mat<|im_end|>",
    ]
    sampler = InTurn([tokenizer.encode(text, add_special_tokens=False) for text in said])
    task = Task(
        dataset=[InspectSample(input="where is the cat", target="mat")],
        solver=[use_tools(look()), generate()],
        scorer=includes(),
        name="seek",
    )
    evaluator = InspectEvaluator(
        tasks=[task], renderer=get_renderer("qwen3", tokenizer), tokenizer=tokenizer
    )
    (report,) = asyncio.run(evaluator(sampler, seed=0))
    assert (report.name, report.scores["accuracy"], places) == ("seek", 1.0, ["the mat"])
    first, second = map(tokenizer.decode, sampler.prompts)
    assert "Looks somewhere." in first
    # The model sees its own call, with the thought before it, and what came of it.
    assert "Where?" in second
    assert "a cat" in second.rpartition("look")[2]
