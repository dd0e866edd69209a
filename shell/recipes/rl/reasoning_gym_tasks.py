"""The tasks of the package reasoning-gym, each with its own scoring."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.names import imported
from cookbook_fx.renderers import Renderer
from shell.recipes.rl.config import ReasoningGym
from shell.recipes.rl.problems import ListedProblems, held_out
from shell.recipes.rl.workers import TimeLimitExceeded, WorkerDied, Workers
from shell.rollouts import Action, ActionExtra, RLDataset, RLDatasetBuilder, StepResult
from shell.rollouts.problem_env import ProblemEnv, ProblemGroupBuilder

Entry = dict[str, Any]
"""What reasoning-gym calls a problem: `question`, `answer` and the task's own `metadata`."""


class ReasoningGymEnv(ProblemEnv):
    """One problem of a task, answered once.

    What stands in the last <answer> and </answer> is scored, or the whole response where there are
    none. Scoring that takes too long, or ends the process it is done in, scores nothing and is
    counted by the metric `grading_failed`.

    Args:
        entry: the problem.
        choice: the recipe's settings.
        score: the task's scoring.
        renderer: the chat format.
        workers: the processes that answers are scored in.
    """

    def __init__(
        self,
        entry: Entry,
        *,
        choice: ReasoningGym,
        score: Callable[..., float],
        renderer: Renderer,
        workers: Workers,
    ) -> None:
        super().__init__(renderer, format_coef=choice.format_coef)
        self._entry = entry
        self._choice = choice
        self._score = score
        self._workers = workers
        self._grading_failed = False

    def get_question(self) -> str:
        """The question and the instruction."""
        return f"{self._entry['question'].strip()}\n{self._choice.instruction}".strip()

    async def check_answer(self, sample_str: str) -> float:
        """The task's own score, from 0 to 1."""
        answer = tagged_answer(sample_str)
        try:
            return await self._workers.call(
                self._score,
                self._choice.task,
                self._choice.task_config,
                sample_str.strip() if answer is None else answer,
                self._entry,
                limit_seconds=self._choice.grading_seconds,
            )
        except (TimeLimitExceeded, WorkerDied):
            self._grading_failed = True
            return 0.0

    async def check_format(self, sample_str: str) -> bool:
        """Whether the answer stands between the tags."""
        return tagged_answer(sample_str) is not None

    def get_reference_answer(self) -> str:
        """An answer that is right; there may be others."""
        return str(self._entry["answer"])

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """Scores the answer, and says whether that could be done."""
        result = await super().step(action, extra=extra)
        counted = {"grading_failed": float(self._grading_failed)}
        return replace(result, metrics={**result.metrics, **counted})


def tagged_answer(text: str) -> str | None:
    """What stands in the last <answer> and </answer>; None if nothing does."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningGymDatasetBuilder(RLDatasetBuilder):
    """Problems of a task to learn from and others to test on.

    Args:
        choice: the recipe's settings.
        renderer: the chat format.
        workers: the processes that answers are scored in.
    """

    choice: ReasoningGym
    renderer: Renderer
    workers: Workers

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """The problems are made when they are asked for.

        Raises:
            ConfigurationError: reasoning-gym is not installed, has no such task, or does not take
                its settings.
        """
        choice = self.choice
        if find_spec("reasoning_gym") is None:
            raise ConfigurationError(
                "this recipe needs the package reasoning-gym; install it with "
                '`pip install "cookbook-fx[reasoning-gym]"`'
            )
        score = imported(
            "shell.recipes.rl.reasoning_gym_scores:score", what="the scoring of reasoning-gym"
        )
        train = ListedProblems(
            problems=_task(choice, size=choice.num_problems, seed=choice.problem_seed),
            attempts=partial(self._attempts, score, num_envs=choice.groups.group_size),
            groups_per_batch=choice.groups.groups_per_batch,
        )
        if not choice.num_test:
            return train, None
        # A task makes problem i of seed s from s + i, so that these are none of those above.
        tests = _task(choice, size=choice.num_test, seed=choice.problem_seed + choice.num_problems)
        return train, held_out(tests, partial(self._attempts, score, num_envs=1))

    def _attempts(
        self, score: Callable[..., float], entry: Entry, *, num_envs: int
    ) -> ProblemGroupBuilder:
        env = partial(
            ReasoningGymEnv,
            entry,
            choice=self.choice,
            score=score,
            renderer=self.renderer,
            workers=self.workers,
        )
        return ProblemGroupBuilder(env, num_envs, dataset_name=self.choice.task)


def _task(choice: ReasoningGym, *, size: int, seed: int) -> Sequence[Entry]:
    """The problems of a task, by their index.

    Raises:
        ConfigurationError: there is no such task, or its settings are others.
    """
    try:
        settings = json.loads(choice.task_config)
    except ValueError as error:
        raise ConfigurationError(
            f"`task_config` must be a JSON object, got {choice.task_config!r}: {error}"
        ) from error
    if not isinstance(settings, dict) or {"seed", "size"} & set(settings):
        raise ConfigurationError(
            "`task_config` must be a JSON object without seed and size, which have options of "
            f"their own; got {choice.task_config!r}"
        )
    create = imported("reasoning_gym:create_dataset", what="reasoning-gym")
    try:
        return create(choice.task, seed=seed, size=size, **settings)
    # Each task checks its settings in its own way, with assertions too.
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigurationError(
            f"reasoning-gym does not make the task {choice.task!r} of {choice.task_config}: {error}"
        ) from error
