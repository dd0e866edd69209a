"""Several data sets side by side, each with a teacher of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

from cookbook_fx.chat import Conversation
from cookbook_fx.distillation import GroupReference, OwnPrompt
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import Renderer
from cookbook_fx.rl import Trajectory
from cookbook_fx.rl.trajectory import Metrics
from shell.rollouts.env import Env, EnvGroupBuilder, RLDataset


@runtime_checkable
class Prompted(Protocol):
    """A group that knows what it asks, so that a teacher can be asked it in another way."""

    @property
    def conversation(self) -> Conversation:
        """What the student answers."""

    @property
    def renderer(self) -> Renderer:
        """How it is written for the student."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaughtGroupBuilder(EnvGroupBuilder):
    """A group of one data set of several, for the teacher of that data set.

    Args:
        group: what it is without a teacher.
        dataset: the index of the data set, and so of its teacher.
        renderer: the teacher's chat format; None is the student's.
        demonstrations: messages that the teacher sees before the prompt, and the student does not.

    Raises:
        ConfigurationError: the teacher has a way of its own to be asked, and the group does not
            know what it asks.
    """

    group: EnvGroupBuilder
    dataset: int
    renderer: Renderer | None = None
    demonstrations: Conversation = ()

    def __post_init__(self) -> None:
        if self._asks_otherwise and not isinstance(self.group, Prompted):
            raise ConfigurationError(
                "a teacher with a renderer or demonstrations of its own needs groups that say what "
                "they ask, by `conversation` and `renderer`, as PromptOnlyGroupBuilder does; got "
                f"{type(self.group).__name__}"
            )

    @property
    def _asks_otherwise(self) -> bool:
        return self.renderer is not None or bool(self.demonstrations)

    async def make_envs(self) -> Sequence[Env]:
        """The group's own."""
        return await self.group.make_envs()

    async def compute_group_rewards(
        self, trajectory_group: Sequence[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        """The group's own."""
        return await self.group.compute_group_rewards(trajectory_group, env_group)

    async def cleanup(self) -> None:
        """The group's own."""
        await self.group.cleanup()

    def logging_tags(self) -> list[str]:
        """The group's own."""
        return self.group.logging_tags()

    def reference(self) -> GroupReference:
        """The data set's teacher, and the prompt as it is to see it."""
        if not self._asks_otherwise or not isinstance(self.group, Prompted):
            return replace(self.group.reference(), index=self.dataset)
        asked = self.group.conversation
        writes = self.renderer or self.group.renderer
        return GroupReference(
            index=self.dataset,
            prompt=OwnPrompt(
                student=self.group.renderer.build_generation_prompt(asked),
                teacher=writes.build_generation_prompt((*self.demonstrations, *asked)),
            ),
        )


class CompositeBatch(NamedTuple):
    """Groups, and which data set each is of."""

    builders: Sequence[EnvGroupBuilder]
    dataset_indices: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompositeDataset(RLDataset):
    """Batch i is batch i of every data set, one behind the other; as long as the shortest.

    Args:
        datasets: each for the reference of its index.
        renderers: for each the teacher's chat format, or None for the student's; () is None for
            all.
        demonstrations: for each what the teacher sees before the prompt; () is nothing for all.

    Raises:
        ConfigurationError: there is no data set, or not one of the others for each.
    """

    datasets: tuple[RLDataset, ...]
    renderers: tuple[Renderer | None, ...] = ()
    demonstrations: tuple[Conversation, ...] = ()

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigurationError("a composite needs at least one data set, got none")
        for name in ("renderers", "demonstrations"):
            given = len(getattr(self, name))
            if given not in (0, len(self.datasets)):
                raise ConfigurationError(
                    f"`{name}` must be empty or one for each of {len(self.datasets)} data sets, "
                    f"got {given}"
                )

    def __len__(self) -> int:
        return min(map(len, self.datasets))

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The groups of all data sets' batches."""
        return self.batch_with_indices(index).builders

    def batch_with_indices(self, index: int) -> CompositeBatch:
        """The same, and which data set each group is of.

        Raises:
            ConfigurationError: there is no such batch.
        """
        if not 0 <= index < len(self):
            raise ConfigurationError(f"batches go from 0 to {len(self) - 1}, got {index}")
        groups = [
            (self.taught(group, number), number)
            for number, dataset in enumerate(self.datasets)
            for group in dataset.get_batch(index)
        ]
        return CompositeBatch(*map(list, zip(*groups, strict=True)))

    def taught(self, group: EnvGroupBuilder, number: int) -> TaughtGroupBuilder:
        """A group for the teacher of a data set."""
        return TaughtGroupBuilder(
            group=group,
            dataset=number,
            renderer=self.renderers[number] if self.renderers else None,
            demonstrations=self.demonstrations[number] if self.demonstrations else (),
        )

    def with_epoch(self, seed: int) -> "CompositeDataset":
        """The same data sets in the orders of the epoch with this seed."""
        return replace(self, datasets=tuple(each.with_epoch(seed) for each in self.datasets))
