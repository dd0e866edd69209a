import asyncio
import json
import time
from dataclasses import dataclass

import pytest

from cookbook_fx.chat import Message, ToolCall, ToolSpec, UnparsedToolCall
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import get_renderer
from cookbook_fx.tokens import TokensWithLogprobs
from shell.rollouts import (
    EnvFromMessageEnv,
    RolloutLimits,
    RolloutOptions,
    ToolEnv,
    ToolLimits,
    ToolResult,
    do_single_rollout,
    tool,
)
from tests.family_tokenizers import tiny_tokenizer

QUESTION = Message(role="user", content="What is 2 + 3?")


@tool
def add(x: int, y: int) -> str:
    """Adds two numbers."""
    return str(x + y)


@tool
async def slow(seconds: float) -> str:
    """Takes its time."""
    await asyncio.sleep(seconds)
    return "awake"


@tool
def broken() -> str:
    """Fails."""
    raise ZeroDivisionError("no luck")


@tool
def stop(answer: str) -> ToolResult:
    """Ends the episode."""
    return ToolResult(f"got {answer}", should_stop=True, metrics={"length": len(answer)})


def called(*calls, text=""):
    return Message(
        role="assistant",
        content=text,
        tool_calls=tuple(
            ToolCall(name=name, arguments=json.dumps(arguments), id=f"call-{i}")
            for i, (name, arguments) in enumerate(calls)
        ),
    )


def say(text):
    return Message(role="assistant", content=text)


def reward(history):
    return float("5" in history[-1].text), {"messages": len(history)}


def env_of(*tools, messages=(QUESTION,), reward_fn=reward, **options):
    return ToolEnv(tools or (add, slow, broken, stop), messages, reward_fn, **options)


def stepped(env, *messages):
    async def episode():
        await env.initial_observation()
        return [await env.step(message) for message in messages]

    return asyncio.run(episode())


def results(step, last=1):
    return [message.text for message in step.next_messages if message.role == "tool"][-last:]


def test_tools_are_declared_called_and_the_answer_graded():
    env = env_of()
    initial = asyncio.run(env.initial_observation())
    assert [message.role for message in initial] == ["system", "user"]
    assert [spec.name for spec in initial[0].tools] == ["add", "slow", "broken", "stop"]

    call, answer = stepped(env, called(("add", {"x": 2, "y": 3})), say("It is 5"))
    assert call.next_messages[-1] == Message(
        role="tool", content="5", name="add", tool_call_id="call-0"
    )
    assert (call.reward, call.episode_done) == (0.0, False)
    assert call.metrics == {"tool_calls": 1.0, "tool_errors": 0.0}
    assert call.logs == {"tool_call_0": 'add({"x": 2, "y": 3})', "tool_result_0": "5"}
    assert (answer.reward, answer.episode_done) == (1.0, True)
    assert answer.metrics["stop/completed"] == 1.0
    assert answer.metrics["messages"] == 5


def test_a_reward_may_be_a_number_and_its_function_async():
    async def half(history):
        await asyncio.sleep(0)
        return 0.5

    (step,) = stepped(env_of(reward_fn=half), say("5"))
    assert step.reward == 0.5
    (step,) = stepped(env_of(reward_fn=lambda history: 2), say("5"))
    assert step.reward == 2


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("subtract", {}, "there is no tool 'subtract'; there are add, broken, slow, stop"),
        ("add", {"x": 1}, "the arguments do not fit add: y: Field required"),
        ("add", [1, 2], "the arguments of add must be an object, got [1, 2]"),
        ("broken", {}, "ZeroDivisionError: no luck"),
        ("slow", {"seconds": 30}, "it took longer than 0.05 seconds"),
    ],
)
def test_errors_are_told_to_the_model_and_counted(name, arguments, wanted):
    limits = ToolLimits(seconds_per_call=0.05)
    (step,) = stepped(env_of(limits=limits), called((name, arguments)))
    assert results(step) == [f"Error: {wanted}"]
    assert step.metrics == {"tool_calls": 1.0, "tool_errors": 1.0}
    assert not step.episode_done


def test_a_tools_own_timeout_is_not_taken_for_the_limit():
    @tool
    def impatient() -> str:
        """Gives up."""
        raise TimeoutError("the server is gone")

    (step,) = stepped(env_of(impatient), called(("impatient", {})))
    assert results(step) == ["Error: TimeoutError: the server is gone"]


def test_text_that_is_no_unicode_is_an_error_and_no_crash():
    @tool
    def half(fails: bool) -> str:
        """Half a character."""
        if fails:
            raise ValueError("\ud800")
        return "\ud800"

    calls = called(("half", {"fails": False}), ("half", {"fails": True}))
    (step,) = stepped(env_of(half), calls)
    not_unicode, failed = results(step, last=2)
    assert "not Unicode" in not_unicode
    assert failed == "Error: ValueError: ?"
    assert step.metrics["tool_errors"] == 2.0


def test_calls_run_at_once_and_answers_keep_their_order():
    waits = (0.3, 0.1, 0.2)
    order = []

    @tool
    async def wait(seconds: float) -> float:
        """Waits."""
        await asyncio.sleep(seconds)
        order.append(seconds)
        return seconds

    calls = called(*(("wait", {"seconds": each}) for each in waits))
    begun = time.monotonic()
    (step,) = stepped(env_of(wait), calls)
    assert time.monotonic() - begun < sum(waits)
    assert results(step, last=3) == [str(each) for each in waits]
    assert order == sorted(waits)
    order.clear()
    (step,) = stepped(env_of(wait, execution="sequential"), calls)
    assert order == list(waits)


def test_a_tool_may_end_the_episode():
    calls = called(("stop", {"answer": "5"}), ("stop", {"answer": "five"}), ("add", {}))
    (step,) = stepped(env_of(), calls)
    assert step.episode_done
    assert step.metrics["stop/tool_stopped"] == 1.0
    assert step.metrics["stop/length"] == 5.0
    assert step.metrics["tool_errors"] == 1.0


def test_calls_beyond_those_of_a_turn_are_refused():
    sums = [("add", {"x": i, "y": 0}) for i in range(3)]
    (step,) = stepped(env_of(limits=ToolLimits(calls_per_turn=2)), called(*sums))
    assert results(step, last=3) == ["0", "1", "Error: no further calls may be made now"]
    assert step.metrics == {"tool_calls": 2.0, "tool_errors": 1.0}
    assert not step.episode_done


@pytest.mark.parametrize("told_by_rollout", [True, False])
def test_calls_beyond_those_of_an_episode_end_it(told_by_rollout):
    env = env_of(limits=ToolLimits(calls_per_episode=None if told_by_rollout else 3))
    if told_by_rollout:
        env.bound_tool_calls(3)
        env.bound_tool_calls(7)
    sums = [("add", {"x": i, "y": 5}) for i in range(2)]
    first, second = stepped(env, called(*sums), called(*sums))
    assert not first.episode_done
    assert results(second, last=2) == ["5", "Error: no further calls may be made now"]
    assert second.metrics["stop/max_tool_calls"] == 1.0
    assert "messages" in second.metrics
    assert second.episode_done


def test_exactly_as_many_calls_as_allowed_do_not_end_it():
    env = env_of(limits=ToolLimits(calls_per_episode=1))
    call, answer = stepped(env, called(("add", {"x": 2, "y": 3})), say("5"))
    assert not call.episode_done
    assert answer.metrics["stop/completed"] == 1.0


def test_the_last_turn_makes_its_calls_and_is_graded():
    env = env_of(limits=ToolLimits(turns=2))
    first, second = stepped(env, *[called(("add", {"x": 2, "y": 3}))] * 2)
    assert not first.episode_done
    assert (second.reward, second.metrics["stop/max_turns"]) == (1.0, 1.0)


def test_calls_that_cannot_be_read_are_answered():
    unparsed = (UnparsedToolCall(raw_text="{", error="Tool call is not JSON"),)
    only = Message(role="assistant", content="", unparsed_tool_calls=unparsed)
    beside = Message(
        role="assistant",
        content="",
        tool_calls=(ToolCall(name="add", arguments='{"x": 2, "y": 3}'),),
        unparsed_tool_calls=unparsed,
    )
    for message in (only, beside):
        (step,) = stepped(env_of(), message)
        assert "Tool call is not JSON" in step.next_messages[-1].text
        assert step.logs["unparsed_0"] == "Tool call is not JSON"
        assert not step.episode_done
    assert results(step) == ["5"]


def test_what_cannot_be_an_environment_is_refused():
    with pytest.raises(ConfigurationError, match="two are named add"):
        env_of(add, add)
    spec = ToolSpec(name="f", description="", parameters={})
    declared = Message(role="system", content="", tools=(spec,))
    with pytest.raises(DataError, match="declared"):
        env_of(messages=(declared, QUESTION))
    with pytest.raises(ConfigurationError, match="calls_per_turn"):
        ToolLimits(calls_per_turn=0)


@dataclass
class Scripted:
    """A policy that says what it was told to, and remembers the prompts."""

    answers: list
    prompts: list

    async def __call__(self, prompt, stop, *, max_tokens=None, seed=None):
        self.prompts.append(list(prompt))
        tokens = self.answers[len(self.prompts) - 1]
        return TokensWithLogprobs(tokens=tokens, maybe_logprobs=[-1.0] * len(tokens))


FORMATS = {
    "qwen3": (
        "qwen3",
        '<tool_call>\n{"name": "add", "arguments": {"x": 2, "y": 3}}\n</tool_call><|im_end|>',
        "<tool_call>\n{add}\n</tool_call><|im_end|>",
        "5<|im_end|>",
    ),
    "deepseekv3": (
        "deepseekv3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>"
        '{"x": 2, "y": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>"
        "{x}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
        "5<｜end▁of▁sentence｜>",
    ),
    "gpt_oss": (
        "gpt_oss_medium_reasoning",
        ' to=functions.add<|channel|>commentary json<|message|>{"x": 2, "y": 3}<|call|>',
        " to=functions.add<|channel|>commentary json<|message|>{x}<|call|>",
        "<|channel|>final<|message|>5<|return|>",
    ),
}


@pytest.mark.parametrize("family", FORMATS)
def test_a_whole_episode_in_formats_that_have_tools(family):
    name, good, bad, final = FORMATS[family]
    tokenizer = tiny_tokenizer(family)
    renderer = get_renderer(name, tokenizer)
    script = [tokenizer.encode(text, add_special_tokens=False) for text in (bad, good, final)]
    policy = Scripted(script, [])
    env = EnvFromMessageEnv(renderer, env_of(add))
    trajectory = asyncio.run(do_single_rollout(policy, env))
    assert trajectory.stop_reason == "completed"
    assert [turn.reward for turn in trajectory.transitions] == [0.0, 0.0, 1.0]
    assert [turn.metrics["parse_error"] for turn in trajectory.transitions] == [1.0, 0.0, 0.0]
    assert [turn.metrics["tool_calls"] for turn in trajectory.transitions] == [0.0, 1.0, 0.0]
    prompts = [tokenizer.decode(prompt) for prompt in policy.prompts]
    assert "Adds two numbers." in prompts[0]
    assert "could not be read" in prompts[1]
    assert "5" in prompts[2].removeprefix(prompts[1])


def test_the_rollouts_limit_of_calls_ends_the_episode_with_a_grade():
    name, good, _, _ = FORMATS["qwen3"]
    tokenizer = tiny_tokenizer("qwen3")
    script = [tokenizer.encode(good, add_special_tokens=False)] * 3
    env = EnvFromMessageEnv(
        get_renderer(name, tokenizer), env_of(add, reward_fn=lambda history: 0.25)
    )
    options = RolloutOptions(limits=RolloutLimits(tool_calls=2))
    trajectory = asyncio.run(do_single_rollout(Scripted(script, []), env, options=options))
    assert trajectory.stop_reason == "max_tool_calls"
    assert [turn.reward for turn in trajectory.transitions] == [0.0, 0.0, 0.25]
