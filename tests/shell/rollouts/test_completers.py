"""Against the embedded engine, over HTTP."""

import asyncio

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, ServiceError
from cookbook_fx.renderers import get_renderer
from shell.clients import connect
from shell.hub import load_tokenizer
from shell.rollouts import (
    ContextOverflow,
    GroupTokenCompleter,
    TinkerMessageCompleter,
    TinkerTokenCompleter,
    do_group_rollout,
)
from tests.scripted_rollouts import group_of

PROMPT = [1, 40, 41, 42]


@pytest.fixture
def asking(tiny_engine, tiny_model_directory):
    """Runs a function of a sampler to its end."""

    def ask(work):
        async def run():
            base_url, api_key = tiny_engine.base_url, tiny_engine.api_key
            async with connect(base_url=base_url, api_key=api_key) as service:
                return await work(await service.sampler(base_model=str(tiny_model_directory)))

        return asyncio.run(run())

    return ask


@pytest.fixture(scope="module")
def renderer(tiny_model_directory):
    return get_renderer("chatml", load_tokenizer(tiny_model_directory))


def test_an_answer_has_a_log_probability_for_each_token(asking):
    async def work(sampler):
        complete = TinkerTokenCompleter(sampler, max_tokens=6)
        return await complete(np.array(PROMPT), [], seed=3)

    answer = asking(work)
    assert len(answer.tokens) == len(answer.logprobs) == 6
    assert answer.stop_reason == "length"
    assert np.all(answer.logprobs < 0)


def test_the_lowest_bound_on_tokens_holds(asking):
    async def work(sampler):
        short = TinkerTokenCompleter(sampler, max_tokens=6, context_window=len(PROMPT) + 4)
        return [
            len((await short(PROMPT, [], max_tokens=bound, seed=1)).tokens)
            for bound in (None, 9, 4, 2)
        ]

    assert asking(work) == [4, 4, 4, 2]


def test_a_prompt_that_fills_the_context_is_told(asking):
    async def work(sampler):
        complete = TinkerTokenCompleter(sampler, max_tokens=6, context_window=len(PROMPT))
        await complete(PROMPT, [])

    with pytest.raises(ContextOverflow, match=r"4 tokens leaves no room .* window of 4"):
        asking(work)


def test_a_prompt_the_engine_refuses_is_a_service_error(asking):
    async def work(sampler):
        await TinkerTokenCompleter(sampler, max_tokens=6)([1] * 600, [])

    with pytest.raises(ServiceError, match="512"):
        asking(work)


def test_no_tokens_at_all_are_refused(asking):
    async def work(sampler):
        TinkerTokenCompleter(sampler, max_tokens=0)

    with pytest.raises(ConfigurationError, match="`max_tokens` must be at least 1"):
        asking(work)


def test_many_answers_differ_and_come_again_with_the_same_seed(asking):
    async def work(sampler):
        complete = TinkerTokenCompleter(sampler, max_tokens=6)
        assert isinstance(complete, GroupTokenCompleter)
        return [await complete.many(PROMPT, [], num_samples=3, seed=5) for _ in range(2)]

    first, second = ([answer.tokens.tolist() for answer in many] for many in asking(work))
    assert first == second
    assert len({tuple(tokens) for tokens in first}) == 3


def test_a_stop_token_ends_an_answer_and_is_part_of_it(asking):
    async def work(sampler):
        complete = TinkerTokenCompleter(sampler, max_tokens=8)
        free = (await complete(PROMPT, [], seed=1)).tokens.tolist()
        return free, await complete(PROMPT, [free[2]], seed=1)

    free, stopped = asking(work)
    assert stopped.tokens.tolist() == free[: free.index(free[2]) + 1]
    assert stopped.stop_reason == "stop"


def test_a_group_with_a_seed_comes_again_bit_for_bit(asking):
    async def work(sampler):
        policy = TinkerTokenCompleter(sampler, max_tokens=5)
        return [
            await do_group_rollout(group_of(3, turns=2, prompt=list(PROMPT)), policy, seed=8)
            for _ in range(2)
        ]

    def content(group):
        turns = [turn for each in group.trajectories_G for turn in each.transitions]
        return [(list(turn.ac.tokens), turn.ac.logprobs.tobytes()) for turn in turns]

    first, second = map(content, asking(work))
    assert first == second
    assert len(first) == 6


def test_a_conversation_is_answered_with_a_message(asking, renderer):
    messages = [Message(role="user", content="where is the cat")]

    async def work(sampler):
        complete = TinkerMessageCompleter(sampler, renderer=renderer, max_tokens=5)
        tokens = TinkerTokenCompleter(sampler, max_tokens=5)
        said = await complete.respond(messages, seed=4)
        prompt = renderer.build_generation_prompt(messages)
        same = await tokens(prompt, renderer.get_stop_sequences(), seed=4)
        return await complete(messages), said, renderer.parse_response(same.tokens)

    message, said, same = asking(work)
    assert message.role == "assistant"
    assert said == same
    assert not said.termination.is_clean


def test_a_conversation_stops_where_it_is_told_to(asking, renderer):
    messages = [Message(role="user", content="where is the cat")]

    async def work(sampler):
        tokens = TinkerTokenCompleter(sampler, max_tokens=5)
        prompt = renderer.build_generation_prompt(messages)
        free = (await tokens(prompt, renderer.get_stop_sequences(), seed=4)).tokens.tolist()
        complete = TinkerMessageCompleter(sampler, renderer=renderer, max_tokens=5, stop=[free[1]])
        return free, await complete.respond(messages, seed=4)

    free, said = asking(work)
    assert said == renderer.parse_response(free[: free.index(free[1]) + 1])
