"""Several data sets mixed into one, by weight.

Each group has a place in a line that the weights and the seed determine: source i offers its
groups at the times (j + φᵢ) / wᵢ, j = 0, 1, ..., with a phase φᵢ in [0, 1) by chance, and the line
is everything in order of time. So every stretch of it has the sources in proportion, give or take
a group or two of each, and a longer run begins as a shorter one.
"""

import asyncio
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from jaxtyping import Int

from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.runs import derived_seed
from shell.rollouts.env import EnvGroupBuilder, RLDataset, RLDatasetBuilder


class InterleavedRLDataset(RLDataset):
    """Batches of groups from several data sets, so many of each as its weight says.

    A source is read in its own order, batch by batch, and each of its batches is fetched once on
    the way through. Each pass over a source is an epoch of its own, with a seed that follows from
    this one's.

    Args:
        sources: what to mix. All batches of one but the last have as many groups.
        weights: share of each, in any unit.
        groups_per_batch: groups in a mixed batch.
        total_batches: batches in all; sources that are used up begin anew. None is as many as
            come before the first source would begin anew, give or take a group.
        seed: of the order.

    Raises:
        ConfigurationError: there are no sources or not a positive weight for each, or a number is
            too small.
        DataError: a source is empty, or its last batch is longer than the first.
    """

    def __init__(
        self,
        sources: Sequence[RLDataset],
        weights: Sequence[float],
        *,
        groups_per_batch: int,
        total_batches: int | None = None,
        seed: int = 0,
    ) -> None:
        _check_weights(weights, len(sources))
        for name, value, least in (
            ("groups_per_batch", groups_per_batch, 1),
            ("total_batches", 1 if total_batches is None else total_batches, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ConfigurationError(f"`{name}` must be at least {least}, got {value}")
        self._sources = tuple(_Source(source, number) for number, source in enumerate(sources))
        self._shares = tuple(weight / math.fsum(weights) for weight in weights)
        self._groups_per_batch = groups_per_batch
        self._num_batches = total_batches or self._batches_before_repeating()
        self._seed = seed
        self._epoch: tuple[int, ...] = (seed,)
        self._line = self._line_up()

    def __len__(self) -> int:
        """Number of mixed batches."""
        return self._num_batches

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The groups of one mixed batch; always the same for the same index.

        Raises:
            ConfigurationError: there is no such batch.
            DataError: a batch of a source has too few groups.
        """
        _check_index(index, len(self))
        begin = index * self._groups_per_batch
        places = self._line[begin : begin + self._groups_per_batch].tolist()
        return [self._group(source, turn) for source, turn in places]

    def with_epoch(self, seed: int) -> "InterleavedRLDataset":
        """The same sources in the order of the epoch with this seed."""
        other = copy(self)
        other._epoch = (self._seed, seed)
        other._line = other._line_up()
        return other

    def _group(self, number: int, turn: int) -> EnvGroupBuilder:
        source = self._sources[number]
        epoch, position = divmod(turn, source.num_groups)
        return source.group(derived_seed(*self._epoch, number, epoch), position)

    def _batches_before_repeating(self) -> int:
        batches = (
            source.num_groups / (share * self._groups_per_batch)
            for source, share in zip(self._sources, self._shares, strict=True)
        )
        return max(1, math.floor(min(batches)))

    def _line_up(self) -> Int[np.ndarray, "group 2"]:
        """For each place, which source it is and how many groups of it came before."""
        size = self._num_batches * self._groups_per_batch
        phases = np.random.default_rng([*self._epoch, 0]).random(len(self._shares))
        offers = []
        for number, (share, phase) in enumerate(zip(self._shares, phases, strict=True)):
            # By the time size + number of sources, all together have offered `size` groups.
            turns = np.arange(math.ceil((size + len(self._shares)) * share))
            offers.append((np.full(len(turns), number), turns, (turns + phase) / share))
        numbers, turns, times = map(np.concatenate, zip(*offers, strict=True))
        return np.stack([numbers, turns], axis=1)[np.argsort(times, kind="stable")[:size]]


class _Source:
    """One data set, group by group."""

    def __init__(self, dataset: RLDataset, number: int) -> None:
        if len(dataset) == 0:
            raise DataError(f"source {number} of a mix has no batches; leave it out")
        last = len(dataset) - 1
        self._batch_size, rest = (len(dataset.get_batch(index)) for index in (0, last))
        if not 1 <= rest <= self._batch_size:
            raise DataError(
                f"all batches of source {number} of a mix must have at least one group and as many "
                f"as the first, the last one at most; the first has {self._batch_size}, the last "
                f"{rest}"
            )
        self.num_groups = last * self._batch_size + rest
        self._dataset, self._number = dataset, number
        # The groups of one batch go to several mixed batches.
        self._batch = lru_cache(maxsize=2)(self._fetched)

    def group(self, epoch_seed: int, position: int) -> EnvGroupBuilder:
        """A group of an epoch.

        Raises:
            DataError: its batch has too few groups.
        """
        index, within = divmod(position, self._batch_size)
        batch = self._batch(epoch_seed, index)
        if within >= len(batch):
            raise DataError(
                f"batch {index} of source {self._number} of a mix should have at least "
                f"{within + 1} groups, as others led to expect, and has {len(batch)}"
            )
        return batch[within]

    def _fetched(self, epoch_seed: int, index: int) -> Sequence[EnvGroupBuilder]:
        return self._dataset.with_epoch(epoch_seed).get_batch(index)


def _check_index(index: int, num_batches: int) -> None:
    if not 0 <= index < num_batches:
        raise ConfigurationError(f"batches go from 0 to {num_batches - 1}, got {index}")


def _check_weights(weights: Sequence[float], num_sources: int) -> None:
    if not num_sources or len(weights) != num_sources:
        raise ConfigurationError(
            f"a mix needs at least one source and a weight for each, got {num_sources} sources "
            f"and {len(weights)} weights"
        )
    if not all(0 < weight < math.inf for weight in weights):
        raise ConfigurationError(
            f"each weight must be a number above 0, got {list(weights)}; leave out a source that "
            "shall not be used"
        )


@dataclass(frozen=True, slots=True)
class _Joined(RLDataset):
    """One data set after another."""

    parts: tuple[RLDataset, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        _check_index(index, len(self))
        ends = np.cumsum([len(part) for part in self.parts])
        number = int(np.searchsorted(ends, index, side="right"))
        part = self.parts[number]
        return part.get_batch(index - int(ends[number]) + len(part))

    def with_epoch(self, seed: int) -> "_Joined":
        return _Joined(tuple(part.with_epoch(seed) for part in self.parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class InterleavedRLDatasetBuilder(RLDatasetBuilder):
    """Makes several data sets at once and mixes what they train on; see `InterleavedRLDataset`.

    The test set is those of the sources one after another, None where none has any. The groups'
    tags tell them apart in what is reported.

    Args:
        sources: what makes the data sets.
        weights: share of each, in any unit.
        groups_per_batch: groups in a mixed batch.
        total_batches: batches in all; None is as many as come before a source would begin anew.
        seed: of the order.
    """

    sources: Sequence[RLDatasetBuilder]
    weights: Sequence[float]
    groups_per_batch: int
    total_batches: int | None = None
    seed: int = 0

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """The mix, and the test sets."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_made(source)) for source in self.sources]
        made = [task.result() for task in tasks]
        mix = partial(
            InterleavedRLDataset,
            [train for train, _ in made],
            self.weights,
            groups_per_batch=self.groups_per_batch,
            total_batches=self.total_batches,
            seed=self.seed,
        )
        tests = tuple(test for _, test in made if test is not None)
        return await asyncio.to_thread(mix), _Joined(tests) if tests else None


async def _made(source: RLDatasetBuilder) -> tuple[RLDataset, RLDataset | None]:
    return await source()
