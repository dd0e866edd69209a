"""Word problems with an answer that can be checked, graded in a process under a time limit."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from cookbook_fx.errors import DataError
from cookbook_fx.names import imported
from cookbook_fx.renderers import Renderer
from shell.hub import open_dataset
from shell.recipes.rl.config import Math
from shell.recipes.rl.grading import final_answer, solves
from shell.recipes.rl.problems import ListedProblems, held_out
from shell.recipes.rl.workers import TimeLimitExceeded, WorkerDied, Workers
from shell.rollouts import Action, ActionExtra, RLDataset, RLDatasetBuilder, StepResult
from shell.rollouts.problem_env import ProblemEnv, ProblemGroupBuilder

Grader = Callable[[str, str], Any]
"""From a solution and the right answer to whether it is right, or how right from 0 to 1."""

_EXAMPLE = Path(str(resources.files("shell.recipes.rl") / "word_problems"))
_FEWSHOT_QUESTION = "Ann has 3 bags with 4 apples each and eats 2 apples. How many are left?"
_FEWSHOT_ANSWER = "3 bags with 4 apples are 3 * 4 = 12 apples. 12 - 2 = 10.\n#### 10"


class WordProblem(NamedTuple):
    """A question and its right answer."""

    question: str
    answer: str


class MathEnv(ProblemEnv):
    """One word problem, solved once.

    A solution whose grading takes too long, or ends the process it is done in, counts as wrong and
    is counted by the metric `grading_failed`. What a grader raises is an error of the grader and
    makes the episode fail.

    Args:
        problem: what is asked.
        choice: the recipe's settings.
        grader: says whether a solution is right.
        renderer: the chat format.
        workers: the processes that solutions are graded in.
    """

    def __init__(
        self,
        problem: WordProblem,
        *,
        choice: Math,
        grader: Grader,
        renderer: Renderer,
        workers: Workers,
    ) -> None:
        super().__init__(renderer, convo_prefix=_examples(choice), format_coef=choice.format_coef)
        self._problem = problem
        self._choice = choice
        self._grader = grader
        self._workers = workers
        self._grading_failed = False

    def get_question(self) -> str:
        """The question and the instruction."""
        return _asked(self._problem.question, self._choice)

    async def check_answer(self, sample_str: str) -> float:
        """What the grader says."""
        try:
            return await self._workers.call(
                self._grader,
                sample_str,
                self._problem.answer,
                limit_seconds=self._choice.grading_seconds,
            )
        except (TimeLimitExceeded, WorkerDied):
            self._grading_failed = True
            return 0.0

    async def check_format(self, sample_str: str) -> bool:
        """Whether the answer is where an answer should be."""
        return final_answer(sample_str) is not None

    def get_reference_answer(self) -> str:
        """The right answer."""
        return self._problem.answer

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """Grades the solution, and says whether that could be done."""
        result = await super().step(action, extra=extra)
        counted = {"grading_failed": float(self._grading_failed)}
        return replace(result, metrics={**result.metrics, **counted})


@dataclass(frozen=True, slots=True, kw_only=True)
class MathDatasetBuilder(RLDatasetBuilder):
    """Word problems to learn from and others to test on.

    Args:
        choice: the recipe's settings.
        renderer: the chat format.
        workers: the processes that solutions are graded in.
    """

    choice: Math
    renderer: Renderer
    workers: Workers

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """Reads the problems.

        Raises:
            DataError: they cannot be read, or have other fields.
            ConfigurationError: there is no such grader.
        """
        choice = self.choice
        grader = solves if choice.grader is None else imported(choice.grader, what="a grader")
        sources = problem_sources(choice)
        train = ListedProblems(
            problems=_problems(sources.train, choice),
            attempts=partial(self._attempts, grader, num_envs=choice.groups.group_size),
            groups_per_batch=choice.groups.groups_per_batch,
        )
        tests = () if sources.test is None else _problems(sources.test, choice)
        return train, held_out(
            tests[: choice.num_test], partial(self._attempts, grader, num_envs=1)
        )

    def _attempts(
        self, grader: Grader, problem: WordProblem, *, num_envs: int
    ) -> ProblemGroupBuilder:
        env = partial(
            MathEnv,
            problem,
            choice=self.choice,
            grader=grader,
            renderer=self.renderer,
            workers=self.workers,
        )
        return ProblemGroupBuilder(env, num_envs, dataset_name="math")


class Source(NamedTuple):
    """A file, or a split of a data set on the hub."""

    name: str
    split: str = "train"

    @property
    def file(self) -> Path | None:
        """The file; None for a data set that has splits."""
        path = Path(self.name).expanduser()
        is_file = path.is_file() or path.suffix in (".jsonl", ".json", ".parquet")
        return path if is_file else None


class Sources(NamedTuple):
    """Where the problems are; `test` is None where there are none to test on."""

    train: Source
    test: Source | None


def problem_sources(choice: Math) -> Sources:
    """The files or data sets that a choice means; none to test on where there shall be no test."""
    sources = _sources(choice)
    return sources if choice.num_test else sources._replace(test=None)


def _sources(choice: Math) -> Sources:
    if choice.data is None:
        train, test = Source(str(_EXAMPLE / "train.jsonl")), Source(str(_EXAMPLE / "test.jsonl"))
    else:
        train = Source(choice.data)
        test = None if train.file else Source(choice.data, split="test")
    if choice.eval_data is not None:
        given = Source(choice.eval_data)
        test = given if given.file else Source(choice.eval_data, split="test")
    return Sources(train, test)


def _problems(source: Source, choice: Math) -> tuple[WordProblem, ...]:
    file = source.file
    if file is not None and file.suffix == ".jsonl":
        rows: Iterable[Mapping[str, Any]] = _json_lines(file)
    else:
        rows = open_dataset(source.name, split=source.split, config=choice.data_config)
    return tuple(
        _problem(row, choice, where=f"row {number} of {source.name}")
        for number, row in enumerate(rows)
    )


def _json_lines(file: Path) -> list[Mapping[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not a JSON object on one line") from error
    return rows


def _problem(row: object, choice: Math, *, where: str) -> WordProblem:
    fields = [choice.question_field, choice.answer_field]
    if not isinstance(row, Mapping) or not all(name in row for name in fields):
        got = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(
            f"{where}: the fields {' and '.join(fields)} are wanted, got {got}; say where they are "
            "with --question-field and --answer-field"
        )
    question, solution = (str(row[name]).strip() for name in fields)
    answer = final_answer(solution)
    if not question or not solution:
        raise DataError(f"{where}: the question or the answer is empty")
    return WordProblem(question=question, answer=solution if answer is None else answer)


def _examples(choice: Math) -> Sequence[Mapping[str, str]]:
    if not choice.fewshot:
        return ()
    return (
        {"role": "user", "content": _asked(_FEWSHOT_QUESTION, choice)},
        {"role": "assistant", "content": _FEWSHOT_ANSWER},
    )


def _asked(question: str, choice: Math) -> str:
    return f"{question} {choice.instruction}".strip()
