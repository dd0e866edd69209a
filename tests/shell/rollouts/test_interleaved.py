import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from cookbook_fx.errors import ConfigurationError, DataError
from shell.rollouts import EnvGroupBuilder, RLDataset, RLDatasetBuilder
from shell.rollouts.interleaved import InterleavedRLDataset, InterleavedRLDatasetBuilder


@dataclass(frozen=True)
class Group(EnvGroupBuilder):
    source: str
    epoch: int | None
    number: int

    async def make_envs(self):
        return []


@dataclass(frozen=True)
class Numbered(RLDataset):
    """Groups 0 ... size - 1, in batches; shuffled in an epoch with a seed."""

    name: str
    size: int
    batch_size: int
    epoch: int | None = None
    fetched: list = field(default_factory=list)

    def __len__(self):
        return -(-self.size // self.batch_size)

    def get_batch(self, index):
        assert 0 <= index < len(self)
        self.fetched.append((self.epoch, index))
        order = np.arange(self.size)
        if self.epoch is not None:
            order = np.random.default_rng(self.epoch).permutation(self.size)
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        return [Group(self.name, self.epoch, int(number)) for number in chosen]

    def with_epoch(self, seed):
        return replace(self, epoch=seed)


def sources():
    return [Numbered("a", 60, 8), Numbered("b", 25, 4), Numbered("c", 7, 7)]


def mix(seed=0, total_batches=40, weights=(5, 3, 2)):
    return InterleavedRLDataset(
        sources(), weights, groups_per_batch=8, total_batches=total_batches, seed=seed
    )


def batches(dataset):
    return [list(dataset.get_batch(index)) for index in range(len(dataset))]


def test_every_batch_has_the_sources_in_proportion():
    mixed = batches(mix())
    assert [len(batch) for batch in mixed] == [8] * 40
    totals = Counter(group.source for batch in mixed for group in batch)
    for source, share in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
        assert abs(totals[source] - 320 * share) < 2
        for batch in mixed:
            held = sum(group.source == source for group in batch)
            assert abs(held - 8 * share) < 2


def test_a_batch_follows_from_seed_and_index_alone():
    wanted = batches(mix(seed=3))
    for index in (39, 0, 17, 17, 38):
        assert list(mix(seed=3).get_batch(index)) == wanted[index]
    assert batches(mix(seed=4)) != wanted
    assert batches(mix(seed=3, total_batches=15)) == wanted[:15]


def test_each_pass_over_a_source_has_every_group_once_in_an_order_of_its_own():
    drawn = [group for batch in batches(mix()) for group in batch if group.source == "c"]
    passes = [drawn[begin : begin + 7] for begin in range(0, len(drawn) - 6, 7)]
    assert len(passes) >= 8
    assert all({group.number for group in each} == set(range(7)) for each in passes)
    assert len({each[0].epoch for each in passes}) == len(passes)
    assert len({tuple(group.number for group in each) for each in passes}) > 1


def test_each_batch_of_a_source_is_fetched_once():
    given = sources()
    mixed = InterleavedRLDataset(given, [5, 3, 2], groups_per_batch=8, total_batches=40)
    for source in given:
        source.fetched.clear()
    batches(mixed)
    for source in given:
        assert max(Counter(source.fetched).values()) == 1


def test_the_length_is_that_of_the_source_used_up_first():
    mixed = InterleavedRLDataset(sources(), [1, 1, 1], groups_per_batch=3)
    assert len(mixed) == 7
    assert len(InterleavedRLDataset(sources(), [1, 1, 1], groups_per_batch=300)) == 1
    only = InterleavedRLDataset(sources()[:1], [0.1], groups_per_batch=4)
    assert len(only) == 15
    assert {group.number for batch in batches(only) for group in batch} == set(range(60))


def test_epochs_differ_and_the_data_set_stays_as_it_is():
    mixed = mix()
    before = batches(mixed)
    first, second = mixed.with_epoch(1), mixed.with_epoch(2)
    assert batches(first) != batches(second) != before
    assert batches(first.with_epoch(2)) == batches(second) == batches(mix().with_epoch(2))
    assert batches(mixed) == before
    assert batches(mix(seed=1).with_epoch(1)) != batches(first)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ConfigurationError, match="0 sources and 0 weights"):
        InterleavedRLDataset([], [], groups_per_batch=1)
    with pytest.raises(ConfigurationError, match="3 sources and 2 weights"):
        mix(weights=(1, 2))
    for weight in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="above 0"):
            mix(weights=(1, 2, weight))
    with pytest.raises(ConfigurationError, match="total_batches"):
        mix(total_batches=0)
    with pytest.raises(ConfigurationError, match="groups_per_batch"):
        InterleavedRLDataset(sources(), [1, 1, 1], groups_per_batch=0)
    with pytest.raises(ConfigurationError, match="seed"):
        mix(seed=-1)
    for index in (-1, 40):
        with pytest.raises(ConfigurationError, match="from 0 to 39"):
            mix().get_batch(index)
    with pytest.raises(DataError, match="no batches"):
        InterleavedRLDataset([Numbered("a", 0, 2)], [1], groups_per_batch=1)


def test_sources_with_batches_of_odd_sizes_are_refused():
    @dataclass(frozen=True)
    class Sized(RLDataset):
        sizes: tuple

        def __len__(self):
            return len(self.sizes)

        def get_batch(self, index):
            return [Group("odd", None, number) for number in range(self.sizes[index])]

    for sizes in ((2, 2, 3), (2, 2, 0), (0,)):
        with pytest.raises(DataError, match="the last"):
            InterleavedRLDataset([Sized(sizes)], [1], groups_per_batch=1)
    odd = InterleavedRLDataset([Sized((3, 1, 3))], [1], groups_per_batch=1, total_batches=9)
    assert len(odd.get_batch(3)) == 1
    with pytest.raises(DataError, match="batch 1 of source 0"):
        odd.get_batch(4)


def test_builders_are_called_at_once_and_their_tests_kept():
    @dataclass(frozen=True)
    class Builder(RLDatasetBuilder):
        train: RLDataset
        test: RLDataset | None
        everyone: asyncio.Barrier

        async def __call__(self):
            async with asyncio.timeout(5), self.everyone:
                pass
            return self.train, self.test

    def built(*tests):
        everyone = asyncio.Barrier(len(tests))
        made = [
            Builder(train, test, everyone) for train, test in zip(sources(), tests, strict=True)
        ]
        builder = InterleavedRLDatasetBuilder(
            sources=made, weights=[5, 3, 2], groups_per_batch=8, total_batches=40
        )
        return asyncio.run(builder())

    train, test = built(None, Numbered("b", 3, 2), Numbered("c", 2, 2))
    assert batches(train) == batches(mix())
    assert [[group.source for group in batch] for batch in batches(test)] == [
        ["b", "b"], ["b"], ["c", "c"]
    ]  # fmt: skip
    assert {group.epoch for batch in batches(test.with_epoch(7)) for group in batch} == {7}
    for index in (-1, 3):
        with pytest.raises(ConfigurationError, match=f"from 0 to 2, got {index}"):
            test.get_batch(index)
    assert built(None, None, None)[1] is None
