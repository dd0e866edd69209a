from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.supervised import SupervisedDataset


def dataset(size, batch_size):
    datums = tuple(
        Datum(tokens=np.array([i], np.int32), target_tokens=np.array([i], np.int32))
        for i in range(size)
    )
    return SupervisedDataset(datums=datums, batch_size=batch_size)


def numbers(batch):
    return [int(datum.tokens[0]) for datum in batch]


@given(st.integers(1, 30), st.integers(1, 12), st.none() | st.integers(0, 2**63))
def test_an_epoch_holds_every_datum_once_in_full_batches_and_a_tail(size, batch_size, seed):
    data = dataset(size, batch_size)
    epoch = [numbers(data.get_batch(i, epoch_seed=seed)) for i in range(len(data))]
    assert sorted(chain.from_iterable(epoch)) == list(range(size))
    assert all(len(batch) == batch_size for batch in epoch[:-1])
    assert 1 <= len(epoch[-1]) <= batch_size


def test_a_batch_depends_on_its_index_and_the_epochs_seed_alone():
    data, again = dataset(50, 8), dataset(50, 8)
    for index in (3, 0, 6, 3):
        batch = numbers(data.get_batch(index, epoch_seed=1))
        data.get_batch(2, epoch_seed=9)
        assert numbers(again.get_batch(index, epoch_seed=1)) == batch
    assert numbers(data.get_batch(0, epoch_seed=1)) != numbers(data.get_batch(0, epoch_seed=2))


def test_the_order_of_a_seed_does_not_change_with_releases():
    assert numbers(dataset(8, 8).get_batch(0, epoch_seed=0)) == [2, 4, 3, 6, 5, 0, 1, 7]


def test_without_a_seed_the_data_keep_their_order():
    data = dataset(5, 2)
    assert [numbers(data.get_batch(i, epoch_seed=None)) for i in range(3)] == [[0, 1], [2, 3], [4]]


def test_what_cannot_be_batched_is_refused():
    with pytest.raises(DataError, match="at least one example"):
        SupervisedDataset(datums=(), batch_size=1)
    with pytest.raises(ConfigurationError, match="`batch_size` must be at least 1"):
        dataset(3, 0)
    for index in (-1, 2):
        with pytest.raises(ConfigurationError, match=f"0 to 1, got {index}"):
            dataset(3, 2).get_batch(index, epoch_seed=0)
