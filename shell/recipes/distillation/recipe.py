"""From what was chosen to what the loop takes: prompts, teachers, the run's description."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from cookbook_fx.distillation import check_same_vocabulary, teaching_objective
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import Renderer
from cookbook_fx.tokens import Tokenizer
from shell.clients import Sampler, Service
from shell.evaluation import TeacherKLEvaluator
from shell.hub import canonical_name, load_tokenizer, resolve_model
from shell.recipes.chat_sft import chosen_renderer
from shell.recipes.distillation.config import Lessons, Teaching
from shell.recipes.prompts import STARTER, PromptSplit, prompts_digest, read_prompts
from shell.recipes.rl.config import Pace
from shell.recipes.rl.recipes import loss_settings
from shell.rollouts import (
    PromptOnlyDataset,
    RetryOnFailure,
    RLDataset,
    RLDatasetBuilder,
    RolloutOptions,
)
from shell.stores.run_folder import JSON
from shell.training import Adam, ModelChoice, RLCadence, SamplingChoice, Schedule
from shell.training.distillation import (
    DistillationData,
    DistillationDatasetConfig,
    TeacherConfig,
    distillation_data,
)
from shell.training.rl import RLData
from shell.training.rl_config import RLConfig

MAY_DIFFER = ("cadence", "lessons.eval_data", "lessons.num_test", "lessons.eval_prompts_sha256")
WHY_NOT = {"schedule.max_steps": "the learning rate of every step depends on how many there are"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationChoice:
    """Everything that is chosen about a run.

    Args:
        lessons: teachers and prompts.
        model: the student.
        schedule: how long and how fast.
        adam: the optimizer.
        cadence: what is done how often.
        teaching: what a step learns from its teachers.
        pace: in which order the run samples and trains.
        seed: of the initial LoRA weights, of the prompts' order and of what is sampled.
    """

    lessons: Lessons = field(default_factory=Lessons)
    model: ModelChoice = field(default_factory=ModelChoice)
    schedule: Schedule = field(default_factory=Schedule)
    adam: Adam = field(default_factory=Adam)
    cadence: RLCadence = field(default_factory=RLCadence)
    teaching: Teaching = field(default_factory=Teaching)
    pace: Pace = field(default_factory=Pace)
    seed: int = 0


def read_lessons(choice: DistillationChoice) -> tuple[PromptSplit, ...]:
    """Reads every teacher's prompts.

    Raises:
        ConfigurationError: no teacher is named, or too many prompts are to be held out.
        DataError: prompts cannot be read.
    """
    lessons = choice.lessons
    if not lessons.teacher:
        raise ConfigurationError(
            "there is no teacher: name one with --teacher, weights saved for sampling such as "
            "`cookbook-fx sft` prints at its end (tinker://...), or a base model's name"
        )
    sources = lessons.data or (STARTER,) * len(lessons.teacher)
    tests: Sequence[str | None] = lessons.eval_data or (None,) * len(lessons.teacher)
    return tuple(
        read_prompts(source, test=test, num_test=lessons.num_test, seed=choice.seed)
        for source, test in zip(sources, tests, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _GivenPrompts(RLDatasetBuilder):
    """Prompts that have been read already."""

    train: PromptOnlyDataset
    test: PromptOnlyDataset | None

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        return self.train, self.test


async def lesson_data(
    choice: DistillationChoice,
    prompts: Sequence[PromptSplit],
    *,
    renderer: Renderer,
    tokenizer: Tokenizer,
) -> DistillationData:
    """What a step is made of, and who teaches it.

    Args:
        choice: of the run.
        prompts: of `read_lessons`.
        renderer: the student's chat format.
        tokenizer: the student's.

    Raises:
        ConfigurationError: a setting cannot work.
    """
    lessons = choice.lessons
    counts = lessons.groups_per_batch
    if len(counts) == 1:
        counts = counts * len(prompts)
    configs = []
    for number, (found, count) in enumerate(zip(prompts, counts, strict=True)):
        train = PromptOnlyDataset(
            prompts=found.train,
            batch_size=count,
            group_size=lessons.group_size,
            renderer=renderer,
            tokenizer=tokenizer,
            max_prompt_tokens=lessons.max_prompt_tokens,
            dataset_name=f"dataset_{number}",
        )
        test = replace(train, prompts=found.test, group_size=1) if found.test else None
        configs.append(
            DistillationDatasetConfig(
                dataset_builder=_GivenPrompts(train=train, test=test),
                teacher_config=_teacher(choice, number),
                groups_per_batch=count,
            )
        )
    return await distillation_data(configs, tokenizer=tokenizer)


def _teacher(choice: DistillationChoice, number: int) -> TeacherConfig:
    named = choice.lessons.teacher[number]
    renderers = choice.lessons.teacher_renderer
    is_saved = named.startswith("tinker://")
    return TeacherConfig(
        base_model=choice.model.model if is_saved else named,
        load_checkpoint_path=named if is_saved else None,
        renderer=renderers[number] if renderers else None,
    )


def distillation_config(
    choice: DistillationChoice, data: DistillationData, *, context_window: int | None
) -> RLConfig:
    """What the loop is told.

    Args:
        choice: of the run.
        data: of `lesson_data`.
        context_window: tokens the student can read, if known.

    Raises:
        ConfigurationError: a setting is out of range.
    """
    teaching, pace = choice.teaching, choice.pace
    return RLConfig(
        model=choice.model,
        schedule=choice.schedule,
        adam=choice.adam,
        cadence=choice.cadence,
        sampling=SamplingChoice(
            max_tokens=choice.lessons.max_tokens, context_window=context_window
        ),
        objective=teaching_objective(
            coef=teaching.kl_penalty_coef,
            discount=teaching.kl_discount_factor,
            loss=teaching.loss,
            loss_config=loss_settings(teaching.loss_config),
        ),
        kl_references=data.teachers,
        num_substeps=pace.num_substeps,
        num_minibatches=pace.num_minibatches,
        max_steps_off_policy=pace.max_steps_off_policy,
        rollout=RolloutOptions(strategy=RetryOnFailure()),
        seed=choice.seed,
    )


async def evaluated(
    data: DistillationData,
    config: RLConfig,
    *,
    service: Service,
    tokenizer: Tokenizer,
) -> RLData:
    """What the loop trains and measures on, the teachers looked at first.

    Raises:
        ConfigurationError: a teacher has another vocabulary than the student.
        ServiceError: the engine has not such a teacher.
    """
    teachers = [
        await service.sampler(path=each.load_checkpoint)
        if each.load_checkpoint is not None
        else await service.sampler(base_model=each.base_model)
        for each in data.teachers
    ]
    for teacher in teachers:
        await asyncio.to_thread(_check_vocabulary, teacher, config.model.model, tokenizer)
    evaluators = ()
    if data.test:
        evaluators = (
            TeacherKLEvaluator(
                groups=data.test,
                teachers=teachers,
                max_tokens=config.sampling.max_tokens,
                context_window=config.sampling.context_window,
                options=config.rollout,
            ),
        )
    return RLData(train=data.train, evaluators=evaluators, tokenizer=tokenizer)


def _check_vocabulary(teacher: Sampler, student: str, tokenizer: Tokenizer) -> None:
    name = teacher.base_model
    if canonical_name(name) == canonical_name(student):
        return
    source = resolve_model(name, with_weights=False)
    check_same_vocabulary(
        tokenizer, load_tokenizer(source.directory), student_name=student, teacher_name=name
    )


def run_description(
    choice: DistillationChoice, prompts: Sequence[PromptSplit], *, base_url: str | None
) -> dict[str, JSON]:
    """Everything that decides the result of a run, for its `config.json`.

    Prompts are told by what they are, so that a file that was edited makes another run.
    """
    described = asdict(choice)
    model = replace(
        choice.model,
        model=canonical_name(choice.model.model),
        renderer=chosen_renderer(choice.model),
    )
    return {
        "recipe": "distillation",
        "engine": base_url or "embedded",
        **described,
        "lessons": {
            **described["lessons"],
            "prompts_sha256": prompts_digest([found.train for found in prompts]),
            "eval_prompts_sha256": prompts_digest([found.test for found in prompts]),
        },
        "model": asdict(model),
    }
