import asyncio
import threading

import pytest

from cookbook_fx.chat import Message
from cookbook_fx.renderers import get_renderer
from cookbook_fx.rl import PARSE_ERROR_MASKED
from shell.rollouts import (
    EnvFromMessageEnv,
    InitialObservationOverflow,
    MessageEnv,
    MessageStepResult,
    ParseErrorPolicy,
)
from tests.family_tokenizers import tiny_tokenizer

TOKENIZER = tiny_tokenizer("qwen3")
RENDERER = get_renderer("qwen3_instruct", TOKENIZER)
UNREADABLE = "<tool_call>\n{not JSON}\n</tool_call>"


class Echo(MessageEnv):
    """Repeats what it hears, three times at most; keeps the conversation unless told not to."""

    def __init__(self, *, keeps=True):
        self.history = [Message(role="user", content="Speak.")]
        self.heard = []
        self.bounds = []
        self.keeps = keeps

    async def initial_observation(self):
        return self.history

    async def step(self, message):
        self.heard.append(message)
        self.history += [message, Message(role="user", content=f"You said {message.text}")]
        return MessageStepResult(
            reward=0.5,
            episode_done=len(self.heard) == 3,
            next_messages=self.history,
            metrics={"heard": 1.0},
            logs={"said": message.text},
        )

    async def add_messages(self, messages):
        if not self.keeps:
            return None
        self.history += messages
        return self.history

    def bound_tool_calls(self, max_tool_calls):
        self.bounds.append(max_tool_calls)


def said(text, *, ended=True):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    return [*ids, TOKENIZER.convert_tokens_to_ids("<|im_end|>")] if ended else ids


def shown(step):
    return TOKENIZER.decode(step.next_observation)


def played(env, *actions, **extra):
    """The steps that these actions lead to."""

    async def episode():
        await env.initial_observation()
        return [await env.step(action, extra={"stop_reason": "stop"} | extra) for action in actions]

    return asyncio.run(episode())


def test_messages_become_prompts_and_actions_messages():
    message_env = Echo()
    first, second, third = played(EnvFromMessageEnv(RENDERER, message_env), *map(said, "abc"))
    assert shown(first) == (
        "<|im_start|>user\nSpeak.<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nYou said a<|im_end|>\n<|im_start|>assistant\n"
    )
    assert shown(second).startswith(shown(first) + "b<|im_end|>\n")
    assert [step.episode_done for step in (first, second, third)] == [False, False, True]
    assert (third.reward, third.logs) == (0.5, {"said": "c"})
    assert third.metrics == {"parse_error": 0.0, "heard": 1.0}
    assert [message.text for message in message_env.heard] == ["a", "b", "c"]
    assert tuple(first.next_stop_condition) == tuple(RENDERER.get_stop_sequences())


def test_messages_may_be_dictionaries_and_the_stop_the_environments():
    class Dictionaries(MessageEnv):
        async def initial_observation(self):
            return [{"role": "user", "content": "Hi"}]

        async def step(self, message):
            more = [{"role": "user", "content": "More"}]
            return MessageStepResult(0.0, False, more, {}, {}, ["!"])

    (step,) = played(EnvFromMessageEnv(RENDERER, Dictionaries()), said("a"))
    assert shown(step) == "<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"
    assert step.next_stop_condition == ["!"]


@pytest.mark.parametrize("keeps", [True, False])
def test_after_an_unreadable_response_the_conversation_goes_on(keeps):
    """And not from an empty prompt."""
    message_env = Echo(keeps=keeps)
    env = EnvFromMessageEnv(
        RENDERER, message_env, failed_parse_reward=-0.25, terminate_on_parse_error=False
    )
    first, second, third = played(env, said("a"), said("b", ended=False), said("c"))
    assert (second.reward, second.episode_done) == (-0.25, False)
    assert second.metrics == {"parse_error": 1.0}
    assert second.logs["parse_failure_kind"] == "structural"
    correction = (
        "b<|im_end|>\n<|im_start|>user\nThe last message could not be read.\n"
        "Error: It did not end as a message should.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert shown(second) == shown(first) + correction
    assert [message.text for message in message_env.heard] == ["a", "c"]
    before = second if keeps else first
    assert shown(third).startswith(shown(before) + "c<|im_end|>\n")


def test_by_default_an_unreadable_response_ends_the_episode():
    (step,) = played(EnvFromMessageEnv(RENDERER, Echo()), said("a", ended=False))
    assert (step.reward, step.episode_done, len(step.next_observation)) == (-1.0, True, 0)
    assert step.metrics == {"parse_error": 1.0, "stop/parse_error": 1.0}


def test_unreadable_calls_are_the_environments_unless_a_policy_says_otherwise():
    message_env = Echo()
    (step,) = played(EnvFromMessageEnv(RENDERER, message_env), said(UNREADABLE))
    assert step.metrics == {"parse_error": 1.0, "heard": 1.0}
    assert len(message_env.heard[0].unparsed_tool_calls) == 1

    policy = ParseErrorPolicy(
        max_consecutive=1,
        retry_message_template="No: {details}",
        penalty_per_error=0.5,
        terminal_reward=-2.0,
        mask_error_turns=True,
    )
    message_env = Echo()
    env = EnvFromMessageEnv(RENDERER, message_env)
    steps = played(env, *map(said, (UNREADABLE, "a", UNREADABLE, UNREADABLE)), parse_errors=policy)
    assert [step.reward for step in steps] == [-0.5, 0.5, -0.5, -2.0]
    assert [step.episode_done for step in steps] == [False, False, False, True]
    assert [step.metrics.get(PARSE_ERROR_MASKED, 0.0) for step in steps] == [1.0, 0.0, 1.0, 1.0]
    assert [step.metrics["parse_error"] for step in steps] == [1.0, 0.0, 1.0, 1.0]
    assert steps[-1].metrics["stop/parse_error"] == 1.0
    assert f"{UNREADABLE}<|im_end|>\n<|im_start|>user\nNo: Tool call is not JSON" in shown(steps[0])
    assert [message.text for message in message_env.heard] == ["a"]


def test_calls_that_can_be_read_are_made_beside_one_that_cannot():
    readable = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    message_env = Echo()
    env = EnvFromMessageEnv(RENDERER, message_env)
    (step,) = played(env, said(f"{readable}\n{UNREADABLE}"), parse_errors=ParseErrorPolicy())
    assert (step.reward, step.metrics["parse_error"]) == (0.5, 1.0)
    assert [call.name for call in message_env.heard[0].tool_calls] == ["f"]


def test_a_policy_ends_what_did_not_end_as_it_should():
    env = EnvFromMessageEnv(RENDERER, Echo(), terminate_on_parse_error=False)
    policy = ParseErrorPolicy(max_consecutive=5, terminal_reward=-3.0)
    (step,) = played(env, said("a", ended=False), parse_errors=policy)
    assert (step.reward, step.episode_done) == (-3.0, True)
    assert step.metrics == {"parse_error": 1.0, "stop/parse_error": 1.0}


def test_a_response_that_was_cut_off_ends_the_episode_or_stays_as_it_is():
    (step,) = played(
        EnvFromMessageEnv(RENDERER, Echo()), said("a", ended=False), stop_reason="length"
    )
    assert (step.reward, step.episode_done) == (-0.1, True)
    assert step.metrics == {"parse_error": 0.0, "stop/max_tokens": 1.0}

    message_env = Echo()
    env = EnvFromMessageEnv(RENDERER, message_env, terminate_on_length=False)
    (step,) = played(env, said("a", ended=False), stop_reason="length")
    assert (step.reward, step.episode_done, message_env.heard) == (0.0, False, [])
    assert shown(step) == (
        "<|im_start|>user\nSpeak.<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_prompt_that_is_too_long_ends_the_episode():
    prompt, _ = asyncio.run(EnvFromMessageEnv(RENDERER, Echo()).initial_observation())
    size = len(prompt)

    def bounded(most):
        return EnvFromMessageEnv(
            RENDERER,
            Echo(),
            max_trajectory_tokens=most,
            max_generation_tokens=10,
            context_overflow_reward=-0.75,
        )

    overflow = asyncio.run(bounded(size + 9).initial_observation())
    assert isinstance(overflow, InitialObservationOverflow)
    assert (overflow.reward, overflow.metrics) == (-0.75, {"stop/max_tokens": 1.0})
    assert f"{size} tokens and 10" in overflow.logs["initial_observation_overflow"]

    (step,) = played(bounded(size + 10), said("a"))
    assert (step.reward, step.episode_done, len(step.next_observation)) == (-0.25, True, 0)
    assert step.metrics == {"parse_error": 0.0, "heard": 1.0, "stop/context_overflow": 1.0}
    *_, last = played(bounded(1000), *map(said, "abc"))
    assert last.reward == 0.5


def test_rendering_and_parsing_happen_in_threads():
    threads = set()

    class Watched:
        def __getattr__(self, name):
            found = getattr(RENDERER, name)
            if name not in ("build_generation_prompt", "parse_response"):
                return found

            def noted(*arguments):
                threads.add((name, threading.current_thread() is threading.main_thread()))
                return found(*arguments)

            return noted

    played(EnvFromMessageEnv(Watched(), Echo()), said("a"))
    assert threads == {("build_generation_prompt", False), ("parse_response", False)}


def test_the_rollouts_bound_of_tool_calls_is_passed_on():
    message_env = Echo()
    played(EnvFromMessageEnv(RENDERER, message_env), said("a"), max_tool_calls=4)
    played(EnvFromMessageEnv(RENDERER, message_env), said("a"), max_tool_calls=None)
    assert message_env.bounds == [4]
