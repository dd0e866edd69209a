"""What other models think of the tokens of a step's groups: a KL penalty's base, or teachers."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from cookbook_fx.distillation import GroupReference
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.rl import TrajectoryBatch
from shell.clients import Sampler

Rows = tuple[Float32[np.ndarray, " _"], ...]


class _Asked(NamedTuple):
    sampler: Sampler
    tokens: Int[np.ndarray, " token"]


async def reference_logprobs(
    references: Sequence[Sampler], batch: TrajectoryBatch, groups: Sequence[GroupReference]
) -> Rows:
    """For each row of a batch its tokens' log-probabilities under its group's reference.

    Args:
        references: the models.
        batch: the rows.
        groups: for each group which of them it is, and what that is shown.

    Raises:
        ConfigurationError: a group names a model that there is not.
        DataError: a row does not begin with the prompt that the model has its own for.
        ServiceError: the engine failed.
    """
    rows = batch.sequences()
    judges = [groups[group] for group in batch.row_group.tolist()]
    asked = [_asked(references, judge, row) for judge, row in zip(judges, rows, strict=True)]
    answers = await _all_scores(asked)
    return tuple(
        answer if judge.prompt is None else judge.prompt.judged(answer, length=len(row))
        for answer, judge, row in zip(answers, judges, rows, strict=True)
    )


async def scores(sampler: Sampler, sequences: Sequence[np.ndarray]) -> Rows:
    """The log-probabilities of each sequence's tokens, all asked for at once."""
    return await _all_scores([_Asked(sampler, row) for row in sequences])


def _asked(
    references: Sequence[Sampler], judge: GroupReference, row: Int[np.ndarray, " token"]
) -> _Asked:
    if not 0 <= judge.index < len(references):
        raise ConfigurationError(
            f"a group is to be judged by reference {judge.index}, and the run has "
            f"{len(references)}, counted from 0; give the run a reference for each data set"
        )
    shown = row if judge.prompt is None else judge.prompt.shown(row)
    return _Asked(references[judge.index], shown)


async def _all_scores(asked: Sequence[_Asked]) -> Rows:
    pending = await asyncio.to_thread(lambda: [each.sampler.score(each.tokens) for each in asked])
    return tuple([await answer for answer in pending])
