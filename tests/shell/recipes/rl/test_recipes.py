"""The recipes: batches that depend on seed and index alone, and rewards worked out by hand."""

import asyncio
import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import get_args

import pytest

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.numerics.policy import LOSS_DEFAULTS
from cookbook_fx.renderers import get_renderer
from cookbook_fx.rl import Objective
from shell.hub import load_tokenizer
from shell.recipes.rl import config as choices
from shell.recipes.rl.config import (
    Arithmetic,
    Episodes,
    Groups,
    GuessNumber,
    Learning,
    Math,
    Pace,
    ReasoningGym,
    Shorter,
)
from shell.recipes.rl.recipes import (
    RECIPE_NAMES,
    RLChoice,
    dataset_builder,
    rl_config,
    run_description,
)
from shell.recipes.rl.workers import Workers
from shell.rollouts import FailFast, MinViableGroup, RetryOnFailure
from shell.training import KLReference
from tests.shell.recipes.rl import slow_graders

HAS_GYM = importlib.util.find_spec("reasoning_gym") is not None
RECIPES = [
    Arithmetic(groups=Groups(groups_per_batch=3, group_size=2)),
    GuessNumber(groups=Groups(groups_per_batch=3, group_size=2)),
    Math(groups=Groups(groups_per_batch=7, group_size=2)),
    pytest.param(
        ReasoningGym(groups=Groups(groups_per_batch=3, group_size=2), num_problems=7, num_test=2),
        marks=pytest.mark.skipif(not HAS_GYM, reason="needs the extra `reasoning-gym`"),
    ),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_directory):
    return load_tokenizer(tiny_model_directory)


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return get_renderer("chatml", tokenizer)


@pytest.fixture(scope="module")
def workers():
    with Workers(size=1) as workers:
        yield workers


@pytest.fixture
def build(renderer, workers):
    def build(recipe):
        return asyncio.run(dataset_builder(recipe, renderer=renderer, workers=workers)())

    return build


@pytest.fixture
def prompts(tokenizer):
    """The first prompt of every environment of a batch, as text."""

    async def prompts_of(builders):
        envs = [env for builder in builders for env in await builder.make_envs()]
        return [tokenizer.decode((await env.initial_observation())[0]) for env in envs]

    return lambda builders: asyncio.run(prompts_of(builders))


@pytest.fixture
def play(tokenizer, renderer):
    """Plays the first environment of a group: the steps that some answers lead to."""

    async def steps(builder, answers):
        env, *_ = await builder.make_envs()
        await env.initial_observation()
        stop = list(renderer.get_stop_sequences())
        return [
            await env.step(tokenizer.encode(answer, add_special_tokens=False) + stop)
            for answer in answers
        ]

    return lambda builder, *answers: asyncio.run(steps(builder, answers))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_is_a_function_of_seed_and_index(build, prompts, recipe):
    train, test = build(recipe)
    again, again_test = build(recipe)
    last = len(train) - 1
    for index in (0, last):
        first = prompts(train.with_epoch(5).get_batch(index))
        prompts(train.get_batch(0))
        assert prompts(again.with_epoch(5).get_batch(index)) == first
        assert len(first) <= 2 * recipe.groups.groups_per_batch
        assert first[0::2] == first[1::2]
    assert len(test) == 1
    assert prompts(test.get_batch(0)) == prompts(again_test.get_batch(0))


@pytest.mark.parametrize("recipe", [RECIPES[0], *RECIPES[2:]])
def test_another_epoch_has_other_batches(build, prompts, recipe):
    train, _ = build(recipe)
    batches = [prompts(train.with_epoch(seed).get_batch(0)) for seed in (5, 6)]
    assert batches[0] != batches[1]


@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_listed_problems_come_once_in_an_epoch_and_none_is_tested_on(build, prompts, recipe):
    train, test = build(recipe)
    epoch = train.with_epoch(3)
    of_groups = [epoch.get_batch(index) for index in range(len(epoch))]
    seen = [builder for builders in of_groups for builder in builders]
    if isinstance(recipe, GuessNumber):
        numbers = [builder.problem.secret for builder in seen]
        tested = [builder.problem.secret for builder in test.get_batch(0)]
        assert sorted(numbers + tested) == list(range(1, recipe.largest + 1))
        return
    asked = prompts(seen)[0::2]
    assert len(set(asked)) == len(asked)
    assert not set(asked) & set(prompts(test.get_batch(0)))


def test_arithmetic_asks_for_a_sum_after_an_example(build, prompts):
    train, _ = build(Arithmetic(groups=Groups(groups_per_batch=50, group_size=1)))
    asked = prompts(train.get_batch(0))
    assert all("What is 4 + 5?" in prompt and "9" in prompt for prompt in asked)
    train, _ = build(Arithmetic(fewshot=False, largest=1))
    assert {p.split("What is ")[1].split("?")[0] for p in prompts(train.get_batch(0))} <= {
        f"{x} + {y}" for x in (0, 1) for y in (0, 1)
    }


@pytest.mark.parametrize(
    ("answer", "reward"),
    [("{}", 1.0), ("It is {}.", 1.0), ("{} or 1000", 0.0), ("no idea", 0.0), ("0{}", 1.0)],
)
def test_the_last_integer_earns_the_reward(build, play, answer, reward):
    train, _ = build(Arithmetic(groups=Groups(groups_per_batch=1, group_size=1)))
    (builder,) = train.get_batch(0)
    right = asyncio.run(builder.make_envs())[0].get_reference_answer()
    (result,) = play(builder, answer.format(right))
    assert result.reward == pytest.approx(reward)
    assert result.episode_done


def test_an_answer_cut_off_costs_the_format(build, tokenizer):
    train, _ = build(Arithmetic(format_coef=0.25))
    builder = train.get_batch(0)[0]
    (env, *_) = asyncio.run(builder.make_envs())
    right = env.get_reference_answer()
    result = asyncio.run(env.step(tokenizer.encode(right, add_special_tokens=False)))
    assert result.reward == pytest.approx(0.75)


def test_a_number_is_found_by_its_hints(build, play):
    train, _ = build(GuessNumber(largest=10, guesses=4, format_coef=0.25))
    builder = next(b for b in train.get_batch(0) if 3 < b.problem.secret < 9)
    secret = builder.problem.secret
    low, what, high, found = play(
        builder, str(secret - 1), "hm", f"It is {secret + 1}.", str(secret)
    )
    assert [step.reward for step in (low, what, high, found)] == [0.0, -0.25, 0.0, 1.0]
    assert [step.episode_done for step in (low, what, high, found)] == [False, False, False, True]
    assert (found.metrics["found"], found.metrics["stop/completed"]) == (1.0, 1.0)


def test_a_game_ends_when_the_guesses_are_used_up(build, play, tokenizer):
    train, _ = build(GuessNumber(largest=10, guesses=2))
    builder = train.get_batch(0)[0]
    wrong = str(builder.problem.secret + 1)
    first, last = play(builder, wrong, wrong)
    assert "Too high." in tokenizer.decode(first.next_observation)
    assert (first.episode_done, last.episode_done, last.reward) == (False, True, 0.0)
    assert last.metrics["stop/max_turns"] == 1.0


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("2 + 3 = 5\n#### 5", 1.0),
        ("\\boxed{10/2}", 1.0),
        ("#### 6", 0.0),
        ("5", -0.1),
    ],
)
def test_a_solution_is_graded_by_its_answer(build, play, tmp_path, answer, reward):
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"q": "What is 2 + 3?", "a": "Two and three.\n#### 5"}) + "\n")
    recipe = Math(data=str(data), question_field="q", answer_field="a")
    train, test = build(recipe)
    assert test is None
    (result,) = play(train.get_batch(0)[0], answer)
    assert result.reward == pytest.approx(reward)
    assert result.metrics["grading_failed"] == 0.0


def test_problems_come_from_other_files_too_and_their_order_is_kept_in_tests(
    build, prompts, tmp_path
):
    rows = [{"question": f"Question {n}?", "answer": n} for n in range(3)]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    (tmp_path / "test.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)))
    recipe = Math(data=str(tmp_path / "mine.json"), eval_data=str(tmp_path / "test.jsonl"))
    train, test = build(recipe)
    assert len(train) == 1
    asked = prompts(test.get_batch(0))
    assert ["Question 0?" in asked[0], "Question 2?" in asked[2]] == [True, True]


@pytest.mark.parametrize("grader", ["always", "never_ending", "dying"])
def test_a_grader_of_ones_own_may_be_slow_or_die(build, play, grader):
    place = f"{slow_graders.__name__}:{grader}"
    train, _ = build(Math(grader=place, grading_seconds=0.3))
    (result,) = play(train.get_batch(0)[0], "#### 1")
    failed = grader != "always"
    assert (result.metrics["grading_failed"], result.metrics["correct"]) == (failed, not failed)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"question": "a"}', "answer are wanted, got question"),
        ("[1]", "got list"),
        ('{"question": "a", "answer": ""}', "empty"),
        ('{"question": "a"', "line 1"),
        ("", "no problem"),
    ],
)
def test_damaged_problems_are_named(build, tmp_path, text, wanted):
    data = tmp_path / "mine.jsonl"
    data.write_text(text)
    with pytest.raises(DataError, match=wanted):
        build(Math(data=str(data)))


def test_a_missing_file_and_a_missing_grader_are_named(build, tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read"):
        build(Math(data=str(tmp_path / "none.jsonl")))
    with pytest.raises(ConfigurationError, match="a grader should be at"):
        build(Math(grader="tests.nowhere:grade"))


def test_the_word_problems_add_up():
    folder = Path(choices.__file__).parent / "word_problems"
    rows = [
        json.loads(line)
        for name, count in (("train.jsonl", 60), ("test.jsonl", 20))
        for line in _lines(folder / name, count)
    ]
    assert len({row["question"] for row in rows}) == 80
    for row in rows:
        working, _, answer = row["answer"].partition("\n#### ")
        results = []
        for equation in working.rstrip(".").split(". "):
            left, _, right = equation.partition(" = ")
            # Four operations on whole numbers, written here.
            assert eval(left, {"__builtins__": {}}) == int(right), row
            results.append(right)
        assert results[-1] == answer


def _lines(path: Path, count: int) -> list[str]:
    lines = path.read_text().splitlines()
    assert len(lines) == count
    return lines


@pytest.mark.skipif(not HAS_GYM, reason="needs the extra `reasoning-gym`")
def test_reasoning_gym_scores_in_its_own_way(build, play):
    recipe = ReasoningGym(task="leg_counting", task_config='{"max_animals": 3}', num_problems=4)
    train, _ = build(recipe)
    builder = train.get_batch(0)[0]
    right = asyncio.run(builder.make_envs())[0].get_reference_answer()
    for answer, reward in [
        (f"So <answer>{right}</answer>", 1.0),
        ("<answer>-1</answer>", 0.0),
        (right, 0.9),
    ]:
        (result,) = play(builder, answer)
        assert result.reward == pytest.approx(reward)
    assert builder.logging_tags() == ["leg_counting"]


@pytest.mark.skipif(not HAS_GYM, reason="needs the extra `reasoning-gym`")
@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("nothing_of_that_name", "{}"),
        ("leg_counting", "{"),
        ("leg_counting", "[]"),
        ("leg_counting", '{"seed": 1}'),
        ("leg_counting", '{"max_animals": 0}'),
        ("leg_counting", '{"wings": 2}'),
    ],
)
def test_tasks_that_are_none_are_refused(build, task, settings):
    with pytest.raises(ConfigurationError, match=r"reasoning-gym does not|task_config"):
        build(ReasoningGym(task=task, task_config=settings))


@pytest.mark.skipif(HAS_GYM, reason="reasoning-gym is installed")
def test_without_reasoning_gym_it_says_how_to_get_it(build):
    with pytest.raises(ConfigurationError, match=r'pip install "cookbook-fx\[reasoning-gym\]"'):
        build(ReasoningGym())


@pytest.mark.parametrize(
    "settings",
    [
        (Groups, {"group_size": 0}),
        (Arithmetic, {"largest": 0}),
        (Arithmetic, {"num_batches": 0}),
        (GuessNumber, {"guesses": 0}),
        (Math, {"grading_seconds": 0.0}),
        (ReasoningGym, {"num_problems": 0}),
    ],
)
def test_numbers_out_of_range_are_refused(settings):
    kind, wrong = settings
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        kind(**wrong)


def test_names_spelled_out_for_speed_are_the_real_ones():
    assert {*get_args(choices.PolicyLossName), "cross_entropy"} == set(LOSS_DEFAULTS)
    for name in get_args(choices.AdvantageEstimatorName):
        assert Objective(advantages=name).advantages == name


def test_choices_become_the_loops_configuration():
    choice = RLChoice(
        recipe=Arithmetic(max_tokens=5),
        learning=Learning(loss="ppo", loss_config=("clip_high_threshold=1.3",)),
        pace=Pace(max_steps_off_policy=2, num_minibatches=2),
        episodes=Episodes(on_failure="min_viable", max_turns=3),
    )
    config = rl_config(choice, context_window=100)
    assert config.objective.loss_spec.config == {"clip_high_threshold": 1.3}
    assert (config.sampling.max_tokens, config.sampling.context_window) == (5, 100)
    assert (config.max_steps_off_policy, config.num_minibatches) == (2, 2)
    assert config.rollout.strategy == MinViableGroup(max_retries=3)
    assert config.rollout.limits.turns == 3
    assert config.kl_references == ()
    with pytest.raises(ConfigurationError, match="name=value"):
        rl_config(RLChoice(learning=Learning(loss_config=("clip",))), context_window=None)


@pytest.mark.parametrize(
    ("named", "reference"),
    [
        (None, KLReference()),
        ("other-model", KLReference(base_model="other-model")),
        ("tinker://a/b", KLReference(load_checkpoint="tinker://a/b")),
    ],
)
def test_a_kl_penalty_has_a_reference(named, reference):
    learning = Learning(kl_penalty_coef=0.1, kl_reference=named)
    config = rl_config(RLChoice(learning=learning), context_window=None)
    assert config.kl_references == (reference,)


@pytest.mark.parametrize(
    ("name", "strategy"), [("fail_fast", FailFast()), ("retry", RetryOnFailure(max_retries=3))]
)
def test_what_happens_on_failure_is_chosen_by_name(name, strategy):
    choice = RLChoice(episodes=Episodes(on_failure=name))
    assert rl_config(choice, context_window=None).rollout.strategy == strategy


def test_a_run_is_described_by_all_that_decides_its_result(tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text('{"question": "a", "answer": "1"}\n')
    described = run_description(RLChoice(recipe=Math(data=str(data))), base_url=None)
    json.dumps(described)
    names = {field.name for field in dataclasses.fields(RLChoice)}
    assert names <= set(described)
    before = described["recipe"]["data_sha256"]
    data.write_text('{"question": "b", "answer": "1"}\n')
    after = run_description(RLChoice(recipe=Math(data=str(data))), base_url=None)
    assert after["recipe"]["data_sha256"] != before
    assert set(RECIPE_NAMES) == {Arithmetic, GuessNumber, Math, ReasoningGym, Shorter}
