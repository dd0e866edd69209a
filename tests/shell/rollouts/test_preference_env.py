"""Rewards by comparison: all matches at once, both patterns, nobody left out."""

import asyncio
import time

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.errors import DataError
from cookbook_fx.preference import TournamentPattern
from cookbook_fx.renderers import get_renderer
from cookbook_fx.rl import Trajectory, Transition
from cookbook_fx.tokens import TokensWithLogprobs
from shell.hub import ComparisonBuilderFromJsonl, load_tokenizer
from shell.rollouts import do_group_rollout
from shell.rollouts.preference_env import (
    PairwisePreferenceDataset,
    PairwisePreferenceGroupBuilder,
    PairwisePreferenceRLDatasetBuilder,
)

PROMPT = (Message(role="user", content="where is the cat"),)


@pytest.fixture(scope="module")
def renderer(tiny_model_directory):
    return get_renderer("chatml", load_tokenizer(tiny_model_directory))


async def shorter(comparison) -> float:
    first, second = (
        len(each[0].text) for each in (comparison.completion_A, comparison.completion_B)
    )
    return float(np.sign(first - second))


def group(renderer, *, model=shorter, **options) -> PairwisePreferenceGroupBuilder:
    return PairwisePreferenceGroupBuilder(
        convo_prefix=PROMPT,
        policy_renderer=renderer,
        preference_model=model,
        **{"num_envs": 4} | options,
    )


def answers(renderer, *texts: str, cut: tuple[int, ...] = ()) -> list[Trajectory]:
    """Episodes of one turn; those whose number is in `cut` lack their stop."""
    made = []
    for number, text in enumerate(texts):
        said = (*PROMPT, Message(role="assistant", content=text))
        prompt = renderer.build_generation_prompt(PROMPT)
        tokens = renderer.build_supervised_example(said).tokens[len(prompt) :]
        stop = list(tokens).index(renderer.get_stop_sequences()[0])
        tokens = tokens[: stop + (number not in cut)]
        action = TokensWithLogprobs(tokens=tokens, maybe_logprobs=[-1.0] * len(tokens))
        turn = Transition(ob=prompt, ac=action, reward=0.0, episode_done=True)
        made.append(Trajectory(transitions=[turn], final_ob=[]))
    return made


def rewards(builder, trajectories):
    return asyncio.run(builder.compute_group_rewards(trajectories, [None] * len(trajectories)))


@pytest.mark.parametrize("pattern", list(TournamentPattern))
def test_an_answer_earns_what_it_wins_and_pays_for_its_form(renderer, pattern):
    builder = group(renderer, tournament_pattern=pattern)
    found = rewards(builder, answers(renderer, "a", "bb", "ccc", "dddd", cut=(1,)))
    assert [metrics["format"] for _, metrics in found] == [1, 0, 1, 1]
    wins = [metrics["win_minus_loss"] for _, metrics in found]
    np.testing.assert_allclose(wins, [1, 1 / 3, -1 / 3, -1])
    np.testing.assert_allclose([reward for reward, _ in found], [1, 1 / 3 - 1, -1 / 3, -1])
    assert builder.logging_tags() == ["pair_pref"]


def test_a_lone_tail_member_is_compared_and_not_zeroed(renderer):
    found = rewards(group(renderer), answers(renderer, "aa", "bb", "cc", "dd", "e"))
    assert found[4][0] == 1
    assert [reward for reward, _ in found[:4]] == [-0.25] * 4


def test_matches_are_scored_at_once(renderer):
    async def slow(comparison) -> float:
        await asyncio.sleep(0.1)
        return 0.0

    began = time.perf_counter()
    rewards(group(renderer, model=slow), answers(renderer, "a", "b", "c", "d"))
    assert time.perf_counter() - began < 0.6  # 12 matches, one by one, take 1.2 s


def test_answers_are_preprocessed_before_they_are_compared(renderer):
    seen = []

    async def noted(comparison) -> float:
        seen.append((comparison.completion_A[0].text, comparison.completion_B[0].text))
        return 0.0

    once = {"tournament_pattern": TournamentPattern.ALL_PAIRS_ONE_WAY}
    builder = group(renderer, model=noted, content_preprocessor=str.upper, **once)
    rewards(builder, answers(renderer, "a cat", "b"))
    assert seen == [("A CAT", "B")]


def test_what_is_no_score_is_refused(renderer):
    async def wrong(comparison) -> float:
        return float("nan")

    with pytest.raises(DataError, match="from -1"):
        rewards(group(renderer, model=wrong), answers(renderer, "a", "b"))


def test_one_failed_match_ends_the_others(renderer):
    ended = []

    async def failing(comparison) -> float:
        if comparison.completion_A[0].text == "a":
            await asyncio.sleep(0.05)
            raise OSError("the judge is away")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(True)
            raise
        return 0.0

    with pytest.raises(OSError, match="the judge is away"):
        rewards(group(renderer, model=failing), answers(renderer, "a", "b", "c"))
    assert len(ended) == 4


def test_a_group_is_played_and_rewarded(renderer):
    class Says:
        async def __call__(self, prompt, stop, *, max_tokens=None, seed=None):
            tokens = [*np.random.default_rng(seed).integers(3, 200, 3).tolist(), stop[0]]
            return TokensWithLogprobs(tokens=tokens, maybe_logprobs=[-1.0] * 4)

    played = asyncio.run(do_group_rollout(group(renderer), Says(), seed=3))
    assert len(played.trajectories_G) == 4
    assert sum(played.final_rewards_G) == pytest.approx(0)


def test_batches_are_functions_of_seed_and_index(renderer):
    prompts = [(Message(role="user", content=str(number)),) for number in range(7)]

    def made(seed=None) -> PairwisePreferenceDataset:
        return PairwisePreferenceDataset(
            prompts=prompts,
            renderer=renderer,
            batch_size=3,
            preference_model=shorter,
        ).with_epoch(seed)

    def asked(dataset, index):
        return [builder.convo_prefix for builder in dataset.get_batch(index)]

    assert len(made()) == 3
    first = [asked(made(5), index) for index in range(3)]
    again = [asked(made(5), index) for index in (2, 0, 1)]
    assert first == [again[1], again[2], again[0]]
    assert sorted((each for batch in first for each in batch), key=str) == sorted(prompts, key=str)
    assert first != [asked(made(6), index) for index in range(3)]


def test_the_prompts_of_comparisons_make_a_data_set(renderer, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n')
    builder = PairwisePreferenceRLDatasetBuilder(
        comparison_builder=ComparisonBuilderFromJsonl(train_path=str(path)),
        policy_renderer=renderer,
        batch_size=2,
        preference_model=shorter,
    )
    train, test = asyncio.run(builder())
    ((only,),) = [train.get_batch(0)]
    assert only.convo_prefix[0].text == "2 + 2?"
    assert test is None
