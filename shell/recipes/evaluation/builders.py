"""From chosen tasks to evaluators."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.names import imported
from cookbook_fx.renderers import Renderer, TrainOnWhat, get_renderer
from cookbook_fx.supervised import prepare_conversations
from cookbook_fx.tokens import byte_lengths
from shell.clients import Service
from shell.evaluation import (
    AnswersFile,
    CustomEvaluator,
    EvaluationContext,
    EvaluationExample,
    Evaluator,
    ExampleRecord,
    GradingFailed,
    Matches,
    RLTestSetEvaluator,
    SamplerNLLEvaluator,
    WinRateEvaluator,
    sampler_of,
)
from shell.hub import load_tokenizer, read_conversations, resolve_model
from shell.hub.models import canonical_name
from shell.hub.weights import context_length
from shell.recipes.chat_sft import chosen_renderer
from shell.recipes.evaluation.config import Answering, RecipeName, Tasks
from shell.recipes.evaluation.graders import get_grader, graded_text
from shell.recipes.evaluation.questions import load_questions
from shell.recipes.prompts import STARTER, read_prompts
from shell.recipes.rl.recipes import RECIPE_NAMES, dataset_builder
from shell.recipes.rl.shorter import prefer_shorter
from shell.recipes.rl.workers import TimeLimitExceeded, WorkerDied, Workers
from shell.rollouts import PreferenceModel, PreferenceModelFromChatRenderer
from shell.training import ModelChoice

_GRADING_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskBuilder:
    """Makes the evaluators of chosen tasks.

    Args:
        tasks: which.
        answering: how they are answered.
        workers: the processes that answers are graded in, where they can be killed.
        folder: where answers and Inspect's logs are kept; None keeps none.
        weights: stands for the weights in the files of answers; None uses none found there.
        observe: told of every question, after the name of its set, when its answers are graded.

    Raises:
        ConfigurationError: two tasks would go by one name.
    """

    tasks: Tasks
    answering: Answering
    workers: Workers
    folder: Path | None = None
    weights: str | None = None
    observe: Callable[[str, ExampleRecord], None] | None = None

    def __post_init__(self) -> None:
        names = [*map(_stem, self.tasks.questions), *(path.stem for path in self.tasks.nll)]
        names += self.tasks.rl
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(
                    f"two tasks would be called {name}; rename one of the files"
                )

    async def __call__(self, context: EvaluationContext) -> tuple[Evaluator, ...]:
        """The evaluators, in the order of `Tasks`.

        Raises:
            DataError: a file cannot be read or has a bad line.
            ConfigurationError: there is no such grader, task or judge, or a package is missing.
            ServiceError: the engine does not have the other model.
        """
        tasks = self.tasks
        evaluators: list[Evaluator] = [
            self._questions(source, context) for source in tasks.questions
        ]
        evaluators += [self._nll(path, context) for path in tasks.nll]
        evaluators += [await self._rl(name, context) for name in tasks.rl]
        if tasks.inspect:
            evaluators.append(self._inspect(context))
        if tasks.against is not None:
            evaluators.append(await self._against(tasks.against, context))
        return tuple(evaluators)

    def _questions(self, source: str, context: EvaluationContext) -> CustomEvaluator:
        answering, name = self.answering, _stem(source)
        grader = get_grader(self.tasks.question_grader)

        async def grade(message: Message, example: EvaluationExample) -> object:
            try:
                return await self.workers.call(
                    graded_text,
                    grader,
                    message.text,
                    example.reference,
                    limit_seconds=_GRADING_SECONDS,
                )
            except (TimeLimitExceeded, WorkerDied) as error:
                raise GradingFailed(
                    f"the grader {self.tasks.question_grader} failed: {error}"
                ) from error

        return CustomEvaluator(
            dataset=load_questions(source, limit=answering.limit),
            grader=grade,
            # The workers have a limit of their own, which begins when one of them is free.
            grading_seconds=None,
            renderer=context.renderer,
            max_tokens=answering.max_tokens,
            temperature=answering.temperature,
            top_p=answering.top_p,
            num_samples=answering.num_samples,
            context_window=context.context_window,
            name=name,
            answers=(
                None
                if self.folder is None
                else AnswersFile(path=self.folder / f"answers-{name}.jsonl")
            ),
            model=self.weights,
            observe=None if self.observe is None else partial(self.observe, name),
        )

    def _nll(self, path: Path, context: EvaluationContext) -> SamplerNLLEvaluator:
        prepared = prepare_conversations(
            read_conversations(path)[: self.answering.limit],
            renderer=context.renderer,
            max_length=context.context_window,
            train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        )
        if not prepared.datums:
            raise DataError(f"{path} has nothing to measure: no message of the assistant is left")
        return SamplerNLLEvaluator(
            data=prepared.datums, byte_lengths=byte_lengths(context.tokenizer), name=path.stem
        )

    async def _rl(self, name: RecipeName, context: EvaluationContext) -> RLTestSetEvaluator:
        recipe = next(kind for kind, known in RECIPE_NAMES.items() if known == name)()
        builder = dataset_builder(recipe, renderer=context.renderer, workers=self.workers)
        _, test = await builder()
        if test is None:
            raise ConfigurationError(f"the recipe {name} has no test set")
        return RLTestSetEvaluator(
            dataset=test,
            max_tokens=recipe.max_tokens,
            temperature=self.answering.temperature,
            context_window=context.context_window,
            limit=self.answering.limit,
            name=name,
        )

    def _inspect(self, context: EvaluationContext) -> Evaluator:
        if find_spec("inspect_ai") is None:
            raise ConfigurationError(
                'Inspect tasks need a package that is missing: pip install "cookbook-fx[inspect]"'
            )
        # An optional extra, and slow to import.
        from shell.evaluation.inspect_tasks import InspectEvaluator  # noqa: PLC0415

        answering = self.answering
        return InspectEvaluator(
            tasks=self.tasks.inspect,
            renderer=context.renderer,
            tokenizer=context.tokenizer,
            model_name=Path(context.model).name,
            max_tokens=answering.max_tokens,
            temperature=answering.temperature,
            top_p=answering.top_p,
            epochs=answering.num_samples if answering.num_samples > 1 else None,
            context_window=context.context_window,
            limit=answering.limit,
            log_dir=None if self.folder is None else self.folder / "inspect",
        )

    async def _against(self, other: str, context: EvaluationContext) -> WinRateEvaluator:
        opponent = await sampler_of(context.service, canonical_name(other))
        prompts = read_prompts(STARTER, test=None, num_test=self.answering.limit or 48, seed=0).test
        matches = Matches(
            prompts=[(Message(role="user", content=text),) for text in prompts],
            renderer=context.renderer,
            judge=await self._judge(context),
            max_tokens=self.answering.max_tokens,
            temperature=self.answering.temperature,
        )
        return WinRateEvaluator(matches=matches, opponent=opponent, name="against")

    async def _judge(self, context: EvaluationContext) -> PreferenceModel:
        judge = self.tasks.judge
        if judge == "shorter":
            return prefer_shorter
        if judge.startswith("tinker://"):
            sampler = await sampler_of(context.service, judge)
            return PreferenceModelFromChatRenderer(renderer=context.renderer, sampler=sampler)
        if ":" not in judge:
            raise ConfigurationError(
                "a judge is shorter, a tinker:// path or package.module:function, an async one "
                f"that compares two completions; got {judge!r}"
            )
        found: PreferenceModel = imported(judge, what="a judge")
        return found


def chosen(tasks: Tasks) -> bool:
    """Whether there is any task."""
    named: Sequence[object] = (*tasks.questions, *tasks.nll, *tasks.rl, *tasks.inspect)
    return bool(named) or tasks.against is not None


def _stem(source: str) -> str:
    path = Path(source)
    return path.stem if path.suffix in (".jsonl", ".json", ".parquet") else path.name


async def chosen_evaluators(
    tasks: Tasks,
    *,
    service: Service,
    model: ModelChoice,
    workers: Workers,
    renderer: Renderer | None = None,
) -> tuple[Evaluator, ...]:
    """The evaluators that a run has besides its own; greedy, one answer to a question.

    Args:
        tasks: which.
        service: the engine.
        model: what is trained.
        workers: the processes that answers are graded in.
        renderer: the chat format, if it was made already.

    Raises:
        CookbookError: as `TaskBuilder`.
    """
    if not chosen(tasks):
        return ()
    source = await asyncio.to_thread(resolve_model, model.model, with_weights=False)
    tokenizer = load_tokenizer(source.directory)
    context = EvaluationContext(
        service=service,
        model=model.model,
        renderer=renderer or get_renderer(chosen_renderer(model), tokenizer),
        tokenizer=tokenizer,
        context_window=context_length(source.directory),
    )
    return await TaskBuilder(tasks=tasks, answering=Answering(), workers=workers)(context)
