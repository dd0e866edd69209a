"""From what was chosen to what the loop takes: data, configuration, the run's description."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import Renderer
from cookbook_fx.rl import Objective
from cookbook_fx.tokens import Tokenizer
from shell.evaluation import RLTestSetEvaluator
from shell.hub import canonical_name
from shell.recipes.chat_sft import chosen_renderer, file_digest
from shell.recipes.rl.arithmetic import ArithmeticDatasetBuilder
from shell.recipes.rl.config import (
    Arithmetic,
    Episodes,
    GuessNumber,
    Learning,
    Math,
    Pace,
    ReasoningGym,
    Sampling,
    Shorter,
)
from shell.recipes.rl.guess_number import GuessNumberDatasetBuilder
from shell.recipes.rl.math_problems import MathDatasetBuilder, problem_sources
from shell.recipes.rl.reasoning_gym_tasks import ReasoningGymDatasetBuilder
from shell.recipes.rl.shorter import ShorterDatasetBuilder
from shell.recipes.rl.workers import Workers
from shell.rollouts import (
    FailFast,
    MinViableGroup,
    RetryOnFailure,
    RLDatasetBuilder,
    RolloutLimits,
    RolloutOptions,
    RolloutStrategy,
    TerminationRewardPolicy,
)
from shell.stores.run_folder import JSON
from shell.training import (
    Adam,
    KLReference,
    ModelChoice,
    RLCadence,
    SamplingChoice,
    Schedule,
)
from shell.training.rl import RLData
from shell.training.rl_config import RLConfig

# What two runs may differ in and still be the same run: none changes the weights.
MAY_DIFFER = (
    "cadence",
    "recipe.num_test",
    "recipe.data",
    "recipe.eval_data",
    "recipe.eval_data_sha256",
)
WHY_NOT = {"schedule.max_steps": "the learning rate of every step depends on how many there are"}

Recipe = Arithmetic | GuessNumber | Math | ReasoningGym | Shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class RLChoice:
    """Everything that is chosen about a run.

    Args:
        recipe: what is learnt.
        model: what is trained.
        schedule: how long and how fast.
        adam: the optimizer.
        cadence: what is done how often.
        sampling: how the model answers while it learns.
        learning: what a step learns from its groups.
        pace: in which order the run samples and trains.
        episodes: how far they may go.
        seed: of the initial LoRA weights, of the problems' order and of what is sampled.
    """

    recipe: Recipe = field(default_factory=Arithmetic)
    model: ModelChoice = field(default_factory=ModelChoice)
    schedule: Schedule = field(default_factory=Schedule)
    adam: Adam = field(default_factory=Adam)
    cadence: RLCadence = field(default_factory=RLCadence)
    sampling: Sampling = field(default_factory=Sampling)
    learning: Learning = field(default_factory=Learning)
    pace: Pace = field(default_factory=Pace)
    episodes: Episodes = field(default_factory=Episodes)
    seed: int = 0


def dataset_builder(recipe: Recipe, *, renderer: Renderer, workers: Workers) -> RLDatasetBuilder:
    """What makes a recipe's data.

    Args:
        recipe: the recipe's settings.
        renderer: the chat format.
        workers: the processes that answers are graded in, where that may take long.
    """
    match recipe:
        case Arithmetic():
            return ArithmeticDatasetBuilder(choice=recipe, renderer=renderer)
        case GuessNumber():
            return GuessNumberDatasetBuilder(choice=recipe, renderer=renderer)
        case Math():
            return MathDatasetBuilder(choice=recipe, renderer=renderer, workers=workers)
        case ReasoningGym():
            return ReasoningGymDatasetBuilder(choice=recipe, renderer=renderer, workers=workers)
        case Shorter():
            return ShorterDatasetBuilder(choice=recipe, renderer=renderer)


def rl_config(choice: RLChoice, *, context_window: int | None) -> RLConfig:
    """What the loop is told.

    Args:
        choice: of the run.
        context_window: tokens the model can read, if known.

    Raises:
        ConfigurationError: a setting is out of range.
    """
    learning, pace = choice.learning, choice.pace
    return RLConfig(
        model=choice.model,
        schedule=choice.schedule,
        adam=choice.adam,
        cadence=choice.cadence,
        sampling=SamplingChoice(
            max_tokens=choice.recipe.max_tokens,
            context_window=context_window,
            **asdict(choice.sampling),
        ),
        objective=Objective(
            advantages=learning.advantages,
            loss=learning.loss,
            loss_config=loss_settings(learning.loss_config),
            truncate_ratios=learning.truncate_ratios,
            remove_constant_reward_groups=learning.remove_constant_reward_groups,
            kl_penalty_coef=learning.kl_penalty_coef,
            kl_discount_factor=learning.kl_discount_factor,
        ),
        kl_references=_kl_references(choice),
        num_substeps=pace.num_substeps,
        num_minibatches=pace.num_minibatches,
        max_steps_off_policy=pace.max_steps_off_policy,
        rollout=_rollout_options(choice.episodes),
        compute_post_kl=learning.compute_post_kl,
        seed=choice.seed,
    )


async def rl_data(
    choice: RLChoice,
    config: RLConfig,
    *,
    renderer: Renderer,
    tokenizer: Tokenizer,
    workers: Workers,
) -> RLData:
    """What the loop trains and measures on.

    Raises:
        DataError: the problems cannot be read.
        ConfigurationError: a recipe lacks something, or its settings cannot work.
    """
    train, test = await dataset_builder(choice.recipe, renderer=renderer, workers=workers)()
    evaluators = ()
    if test is not None:
        evaluators = (
            RLTestSetEvaluator(
                dataset=test,
                max_tokens=config.sampling.max_tokens,
                context_window=config.sampling.context_window,
                temperature=0.0,
                options=config.rollout,
                tokenizer=tokenizer,
                num_groups_to_log=config.cadence.num_groups_to_log,
            ),
        )
    return RLData(train=train, evaluators=evaluators, tokenizer=tokenizer)


def run_description(choice: RLChoice, *, base_url: str | None) -> dict[str, JSON]:
    """Everything that decides the result of a run, for its `config.json`.

    Files are told by their content, so that one that was edited makes another run and one that was
    moved does not.
    """
    described = asdict(choice)
    model = replace(
        choice.model,
        model=canonical_name(choice.model.model),
        renderer=chosen_renderer(choice.model),
    )
    return {
        "recipe": _described(choice.recipe),
        "engine": base_url or "embedded",
        "seed": choice.seed,
        "model": asdict(model),
        **{name: described[name] for name in described if name not in ("recipe", "seed", "model")},
    }


def _described(recipe: Recipe) -> dict[str, JSON]:
    described = {"name": recipe_name(recipe), **asdict(recipe)}
    if isinstance(recipe, Math):
        sources = problem_sources(recipe)
        for name, source in (("data", sources.train), ("eval_data", sources.test)):
            file = None if source is None else source.file
            described[name] = None if source is None else source.name
            described[f"{name}_sha256"] = None if file is None else file_digest(file)
    if isinstance(recipe, Shorter):
        file = None if recipe.data is None else Path(recipe.data).expanduser()
        is_file = file is not None and file.is_file()
        described["data_sha256"] = file_digest(file) if file is not None and is_file else None
    return described


def recipe_name(recipe: Recipe) -> str:
    """The name that the command line knows a recipe by."""
    return RECIPE_NAMES[type(recipe)]


RECIPE_NAMES = {
    Arithmetic: "arithmetic",
    GuessNumber: "guess-number",
    Math: "math",
    ReasoningGym: "reasoning-gym",
    Shorter: "shorter",
}


def _kl_references(choice: RLChoice) -> tuple[KLReference, ...]:
    if choice.learning.kl_penalty_coef == 0:
        return ()
    named = choice.learning.kl_reference
    if named is not None and named.startswith("tinker://"):
        return (KLReference(load_checkpoint=named),)
    return (KLReference(base_model=named),)


def _rollout_options(episodes: Episodes) -> RolloutOptions:
    return RolloutOptions(
        limits=RolloutLimits(
            turns=episodes.max_turns,
            trajectory_tokens=episodes.max_trajectory_tokens,
            sampled_tokens=episodes.max_sampled_tokens,
            rollout_seconds=episodes.rollout_seconds,
        ),
        strategy=_strategy(episodes),
        termination=TerminationRewardPolicy(zero_reward_on_limit=episodes.zero_reward_on_limit),
    )


def _strategy(episodes: Episodes) -> RolloutStrategy:
    match episodes.on_failure:
        case "fail_fast":
            return FailFast()
        case "retry":
            return RetryOnFailure(max_retries=episodes.max_retries)
        case "min_viable":
            return MinViableGroup(max_retries=episodes.max_retries)


def loss_settings(pairs: Sequence[str]) -> dict[str, float]:
    """A loss's settings, each written as name=value.

    Raises:
        ConfigurationError: one is not.
    """
    settings = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            settings[name.strip()] = float(value)
        except ValueError as error:
            raise ConfigurationError(
                f"`loss_config` takes name=value, such as clip_high_threshold=1.3; got {pair!r}"
            ) from error
    return settings
