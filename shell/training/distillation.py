"""On-policy distillation: what the reinforcement-learning loop is told to learn from teachers.

There is no loop here. A teacher is the reference of a KL term that is not centered and stands alone
(`cookbook_fx.distillation.teaching_objective`), and a data set says which teacher is its own.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from cookbook_fx.chat import Conversation
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import get_renderer
from cookbook_fx.tokens import Tokenizer
from shell.rollouts import (
    CompositeDataset,
    EnvGroupBuilder,
    InterleavedRLDataset,
    RLDataset,
    RLDatasetBuilder,
)
from shell.training.config import KLReference


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfig:
    """A model to learn from, with the student's vocabulary.

    Args:
        base_model: by the engine's name for it.
        load_checkpoint_path: weights saved for sampling, a tinker:// path; None is the base model.
        renderer: the chat format it is asked in; None is the student's. What the student sampled,
            its end of turn included, is judged after that prompt, token for token.
        demonstrations: messages that it sees before each prompt, and the student does not.
    """

    base_model: str
    load_checkpoint_path: str | None = None
    renderer: str | None = None
    demonstrations: Conversation = ()

    @property
    def reference(self) -> KLReference:
        """The same as the loop is told of it."""
        if self.load_checkpoint_path is not None:
            return KLReference(load_checkpoint=self.load_checkpoint_path)
        return KLReference(base_model=self.base_model)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DistillationDatasetConfig:
    """Data, who teaches it, and how much of a step it is.

    Args:
        dataset_builder: makes the data; its own batches mean nothing here.
        teacher_config: the teacher.
        groups_per_batch: groups of this data in a step.
    """

    dataset_builder: RLDatasetBuilder
    teacher_config: TeacherConfig
    groups_per_batch: int


class DistillationData(NamedTuple):
    """What a run learns from.

    Fields:
        train: a step's groups, each with its teacher.
        test: groups of the test sets, each with its teacher; may be none.
        teachers: for `RLConfig.kl_references`.
    """

    train: CompositeDataset
    test: tuple[EnvGroupBuilder, ...]
    teachers: tuple[KLReference, ...]


async def distillation_data(
    configs: Sequence[DistillationDatasetConfig], *, tokenizer: Tokenizer
) -> DistillationData:
    """Makes all data sets at once and puts them side by side.

    Args:
        configs: at least one; the place of each numbers its teacher in `teacher_kl/dataset_<i>`.
        tokenizer: the student's, and so the teachers'.

    Raises:
        ConfigurationError: there is no data set, or a setting cannot work.
        DataError: a data set cannot be made.
    """
    if not configs:
        raise ConfigurationError("distillation needs at least one data set, got none")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_made(config)) for config in configs]
    made = [task.result() for task in tasks]
    teachers = [config.teacher_config for config in configs]
    train = CompositeDataset(
        datasets=tuple(train for train, _ in made),
        renderers=tuple(
            None if teacher.renderer is None else get_renderer(teacher.renderer, tokenizer)
            for teacher in teachers
        ),
        demonstrations=tuple(teacher.demonstrations for teacher in teachers),
    )
    test = tuple(
        train.taught(builder, number)
        for number, (_, dataset) in enumerate(made)
        if dataset is not None
        for index in range(len(dataset))
        for builder in dataset.get_batch(index)
    )
    return DistillationData(train, test, tuple(teacher.reference for teacher in teachers))


async def _made(config: DistillationDatasetConfig) -> tuple[RLDataset, RLDataset | None]:
    train, test = await config.dataset_builder()
    # Whatever batches it has, in batches of the size asked for: a mix of one.
    regrouped = partial(
        InterleavedRLDataset, [train], [1.0], groups_per_batch=config.groups_per_batch
    )
    return await asyncio.to_thread(regrouped), test
