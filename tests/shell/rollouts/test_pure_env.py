import asyncio
from functools import partial
from typing import NamedTuple

import pytest

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import get_renderer
from cookbook_fx.tokens import TokensWithLogprobs
from shell.rollouts import (
    Ask,
    Done,
    EnvFromMessageEnv,
    ProblemGroupBuilder,
    PureGroupBuilder,
    PureMessageEnv,
    PureTokenEnv,
    do_group_rollout,
    do_single_rollout,
)
from tests.family_tokenizers import tiny_tokenizer

TOKENIZER = tiny_tokenizer("qwen3")
RENDERER = get_renderer("qwen3_instruct", TOKENIZER)


class Game(NamedTuple):
    secret: int
    guesses_left: int = 3


def init(secret):
    return Ask(Game(secret), "Guess a number.")


def step(game, message):
    guess = int(message.text) if message.text.isdecimal() else 0
    if guess == game.secret:
        return Done(1.0, metrics={"guesses_left": game.guesses_left})
    if game.guesses_left == 1:
        return Done(0.0, stop_reason="no_guesses_left")
    hint = "Higher." if guess < game.secret else "Lower."
    left = game._replace(guesses_left=game.guesses_left - 1)
    return Ask(left, hint, reward=0.125, metrics={"wrong": 1.0}, logs={"guess": guess})


def tokens(text):
    return TOKENIZER.encode(f"{text}<|im_end|>", add_special_tokens=False)


class Guesser:
    """Answers the nth prompt of an episode with the nth guess, and keeps the prompts."""

    def __init__(self, *guesses):
        self.guesses = guesses
        self.prompts = []

    async def __call__(self, prompt, stop, *, max_tokens=None, seed=None):
        self.prompts.append(TOKENIZER.decode(prompt))
        turn = self.prompts[-1].count("assistant\n") - 1
        said = tokens(self.guesses[turn])
        return TokensWithLogprobs(tokens=said, maybe_logprobs=[-1.0] * len(said))


def test_an_episode_goes_on_until_done():
    guesser = Guesser(50, 20, 42)
    env = EnvFromMessageEnv(RENDERER, PureMessageEnv(init(42), step))
    played = asyncio.run(do_single_rollout(guesser, env))
    assert [turn.reward for turn in played.transitions] == [0.125, 0.125, 1.0]
    assert played.stop_reason == "completed"
    assert played.transitions[-1].metrics["guesses_left"] == 1
    assert played.transitions[0].metrics["wrong"] == 1.0
    assert played.transitions[0].logs == {"guess": 50}
    assert guesser.prompts[2] == (
        "<|im_start|>user\nGuess a number.<|im_end|>\n<|im_start|>assistant\n50<|im_end|>\n"
        "<|im_start|>user\nLower.<|im_end|>\n<|im_start|>assistant\n20<|im_end|>\n"
        "<|im_start|>user\nHigher.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_why_it_ended_is_the_environments_own_word():
    env = EnvFromMessageEnv(RENDERER, PureMessageEnv(init(42), step))
    played = asyncio.run(do_single_rollout(Guesser(1, 2, 3), env))
    assert played.stop_reason == "no_guesses_left"


def test_the_state_is_the_functions_and_episodes_share_nothing():
    first = init(42)

    async def both():
        one, two = (PureMessageEnv(first, step) for _ in range(2))
        await one.step(Message(role="assistant", content="50"))
        await one.step(Message(role="assistant", content="50"))
        return await two.step(Message(role="assistant", content="50"))

    assert asyncio.run(both()).next_messages[-1].text == "Lower."
    assert first == init(42)


@pytest.mark.parametrize(
    "say",
    [
        Message(role="tool", content="3", name="die"),
        [{"role": "tool", "content": "3", "name": "die"}],
        (Message(role="tool", content="3", name="die"),),
    ],
)
def test_what_is_said_may_be_text_a_message_or_several(say):
    env = PureMessageEnv(
        Ask(None, {"role": "user", "content": "Roll."}), lambda state, message: Ask(state, say)
    )

    async def episode():
        return await env.step(Message(role="assistant", content="")), await env.add_messages(())

    taken, kept = asyncio.run(episode())
    assert [message.role for message in taken.next_messages] == ["user", "assistant", "tool"]
    assert kept == taken.next_messages


def test_responses_that_cannot_be_read_stay_in_the_conversation():
    env = EnvFromMessageEnv(
        RENDERER, PureMessageEnv(init(42), step), terminate_on_parse_error=False
    )

    async def episode():
        await env.initial_observation()
        await env.step(tokens("5")[:-1])
        return await env.step(tokens("50"))

    shown = TOKENIZER.decode(asyncio.run(episode()).next_observation)
    assert shown.index("could not be read") < shown.index("50") < shown.index("Lower.")


def test_a_group_asks_the_same_first_and_init_is_called_once():
    problems = []

    async def beginning(problem):
        problems.append(problem)
        return init(problem)

    async def stepping(game, message):
        return step(game, message)

    builder = PureGroupBuilder(
        beginning, stepping, 42, num_envs=3, renderer=RENDERER, dataset_name="game"
    )
    group = asyncio.run(do_group_rollout(builder, Guesser(50, 42)))
    assert problems == [42]
    assert group.get_total_rewards() == [1.125] * 3
    assert builder.logging_tags() == ["game"]
    with pytest.raises(ConfigurationError, match="num_envs"):
        PureGroupBuilder(init, step, 42, num_envs=0, renderer=RENDERER)


def test_a_group_may_set_what_becomes_of_unreadable_responses():
    builder = PureGroupBuilder(
        init,
        step,
        42,
        num_envs=1,
        renderer=RENDERER,
        adapter=partial(EnvFromMessageEnv, failed_parse_reward=-7.0),
    )

    async def failed():
        (env,) = await builder.make_envs()
        return await env.step(tokens("5")[:-1])

    assert asyncio.run(failed()).reward == -7.0


def test_what_is_asked_first_cannot_earn_anything():
    for first in (Ask(0, "Hi", reward=1.0), Ask(0, "Hi", metrics={"a": 1.0})):
        with pytest.raises(ConfigurationError, match="asked first"):
            PureMessageEnv(first, step)


def test_an_environment_in_tokens_extends_its_prompt():
    def echo(left, action):
        if left == 0:
            return Done(float(action[0]), metrics={"last": 1.0})
        return Ask(left - 1, [100 + action[0]], reward=0.5)

    class Counting:
        def __init__(self):
            self.prompts = []

        async def __call__(self, prompt, stop, *, max_tokens=None, seed=None):
            assert list(stop) == [0]
            self.prompts.append(list(prompt))
            answer = [len(self.prompts), 0]
            return TokensWithLogprobs(tokens=answer, maybe_logprobs=[-1.0, -1.0])

    make = partial(PureTokenEnv, Ask(1, [7, 8]), echo, stop=[0])
    counting = Counting()
    group = asyncio.run(do_group_rollout(ProblemGroupBuilder(make, num_envs=1), counting))
    assert counting.prompts == [[7, 8], [7, 8, 1, 0, 101]]
    assert group.get_total_rewards() == [2.5]
    (trajectory,) = group.trajectories_G
    assert trajectory.stop_reason == "completed"
