"""Batches of problems: drawn by chance or taken from a list, the same for the same index."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from cookbook_fx.errors import DataError
from shell.rollouts import EnvGroupBuilder, RLDataset

Problem = TypeVar("Problem")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DrawnProblems(RLDataset, Generic[Problem]):
    """Problems without end: each batch draws its own.

    Args:
        draw: a problem.
        attempts: makes the group of attempts at it.
        groups_per_batch: problems in a batch.
        num_batches: batches in an epoch.
        seed: another seed draws other problems.
    """

    draw: Callable[[np.random.Generator], Problem]
    attempts: Callable[[Problem], EnvGroupBuilder]
    groups_per_batch: int
    num_batches: int
    seed: int = 0

    def __len__(self) -> int:
        return self.num_batches

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The groups of one batch, a function of the seed and the index."""
        chance = np.random.default_rng([self.seed, index])
        return [self.attempts(self.draw(chance)) for _ in range(self.groups_per_batch)]

    def with_epoch(self, seed: int) -> "DrawnProblems[Problem]":
        """Other problems of the same kind."""
        return replace(self, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ListedProblems(RLDataset, Generic[Problem]):
    """Every problem of a list once in an epoch, in an order that the epoch's seed gives.

    Args:
        problems: the list; a problem may be made when it is asked for.
        attempts: makes the group of attempts at one.
        groups_per_batch: problems in a batch; the last batch may have fewer.
        seed: of the order; None is the list's own.

    Raises:
        DataError: there is no problem.
    """

    problems: Sequence[Problem]
    attempts: Callable[[Problem], EnvGroupBuilder]
    groups_per_batch: int
    seed: int | None = None

    def __post_init__(self) -> None:
        if not len(self.problems):
            raise DataError("there is no problem to learn from; at least one is needed")

    def __len__(self) -> int:
        return -(-len(self.problems) // self.groups_per_batch)

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The groups of one batch, a function of the seed and the index."""
        order = np.arange(len(self.problems))
        if self.seed is not None:
            order = np.random.default_rng(self.seed).permutation(order)
        begin = index * self.groups_per_batch
        chosen = order[begin : begin + self.groups_per_batch]
        return [self.attempts(self.problems[place]) for place in chosen.tolist()]

    def with_epoch(self, seed: int) -> "ListedProblems[Problem]":
        """The same problems in another order."""
        return replace(self, seed=seed)


def held_out(
    problems: Sequence[Problem], attempts: Callable[[Problem], EnvGroupBuilder]
) -> ListedProblems[Problem] | None:
    """All problems of a test set in one batch; None if there are none."""
    if not len(problems):
        return None
    return ListedProblems(problems=problems, attempts=attempts, groups_per_batch=len(problems))
