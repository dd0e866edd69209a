"""Sums: the smallest task that a language model visibly learns."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from cookbook_fx.renderers import Renderer
from shell.recipes.rl.config import Arithmetic
from shell.recipes.rl.grading import last_integer
from shell.recipes.rl.problems import DrawnProblems, held_out
from shell.rollouts import RLDataset, RLDatasetBuilder
from shell.rollouts.problem_env import ProblemEnv, ProblemGroupBuilder

FEWSHOT = (
    {"role": "user", "content": "What is 4 + 5?"},
    {"role": "assistant", "content": "9"},
)
_TEST_SEED = 1


class Sum(NamedTuple):
    """Two numbers to add."""

    x: int
    y: int


class ArithmeticEnv(ProblemEnv):
    """One sum, answered once. The last integer of the answer counts.

    Args:
        problem: the numbers to add.
        choice: the recipe's settings.
        renderer: the chat format.
    """

    def __init__(self, problem: Sum, *, choice: Arithmetic, renderer: Renderer) -> None:
        super().__init__(
            renderer,
            convo_prefix=FEWSHOT if choice.fewshot else (),
            format_coef=choice.format_coef,
        )
        self._problem = problem

    def get_question(self) -> str:
        """Asks for the sum."""
        return f"What is {self._problem.x} + {self._problem.y}?"

    async def check_answer(self, sample_str: str) -> bool:
        """Whether the last integer is the sum."""
        return last_integer(sample_str) == sum(self._problem)

    async def check_format(self, sample_str: str) -> bool:
        """Any text will do."""
        del sample_str
        return True

    def get_reference_answer(self) -> str:
        """The sum."""
        return str(sum(self._problem))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticDatasetBuilder(RLDatasetBuilder):
    """Sums to learn from and others to test on.

    Args:
        choice: the recipe's settings.
        renderer: the chat format.
    """

    choice: Arithmetic
    renderer: Renderer

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """The sums of every seed and index are drawn when they are asked for."""
        choice = self.choice
        train = DrawnProblems(
            draw=self._draw,
            attempts=partial(self._attempts, num_envs=choice.groups.group_size),
            groups_per_batch=choice.groups.groups_per_batch,
            num_batches=choice.num_batches,
        )
        chance = np.random.default_rng(_TEST_SEED)
        tests = [self._draw(chance) for _ in range(choice.num_test)]
        return train, held_out(tests, partial(self._attempts, num_envs=1))

    def _draw(self, chance: np.random.Generator) -> Sum:
        x, y = chance.integers(0, self.choice.largest, size=2, endpoint=True).tolist()
        return Sum(x, y)

    def _attempts(self, problem: Sum, *, num_envs: int) -> ProblemGroupBuilder:
        env = partial(ArithmeticEnv, problem, choice=self.choice, renderer=self.renderer)
        return ProblemGroupBuilder(env, num_envs, dataset_name="arithmetic")
