"""Pairs: whole or not at all, ties as the user says, every batch a function of seed and index."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.chat import Message
from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.preference import (
    Comparison,
    ComparisonDataset,
    LabeledComparison,
    PairPreparation,
    PreferenceDataset,
    PreferencePair,
    prepare_pairs,
)
from cookbook_fx.renderers import get_renderer


@pytest.fixture(scope="module")
def renderer(tiny_model_directory):
    from shell.hub import load_tokenizer

    return get_renderer("chatml", load_tokenizer(tiny_model_directory))


def labeled(first: str, second: str, label: str = "A", asked: str = "where") -> LabeledComparison:
    return LabeledComparison(
        comparison=Comparison(
            prompt_conversation=(Message(role="user", content=asked),),
            completion_A=(Message(role="assistant", content=first),),
            completion_B=(Message(role="assistant", content=second),),
        ),
        label=label,
    )


def completion(datum: Datum) -> list[int]:
    return datum.target_tokens[datum.weights == 1].tolist()


def test_a_pair_is_chosen_and_rejected_with_weights_of_one_at_the_completion(renderer):
    (pair,), account = prepare_pairs(
        [labeled("cat", "the dog", "B")], renderer=renderer, max_length=None
    )
    prompt = renderer.build_generation_prompt((Message(role="user", content="where"),))
    for datum, text in zip(pair.datums, ("the dog", "cat"), strict=True):
        whole = [*datum.tokens.tolist(), int(datum.target_tokens[-1])]
        assert whole[: len(prompt)] == prompt.tolist()
        assert set(datum.weights.tolist()) == {0.0, 1.0}
        message = renderer.parse_response(completion(datum)).message
        assert message.text == text
    assert pair.prompt_length == len(prompt)
    assert account == PairPreparation(
        comparisons=1, pairs=1, tokens=pair.num_tokens,
        loss_tokens=sum(len(completion(datum)) for datum in pair.datums),
    )  # fmt: skip


def test_a_tie_is_dropped_or_kept_as_a_tie_and_never_a_preference(renderer):
    comparisons = [labeled("cat", "dog"), labeled("mat", "door", "Tie")]
    dropped = prepare_pairs(comparisons, renderer=renderer, max_length=None)
    assert [pair.is_tie for pair in dropped.pairs] == [False]
    assert dropped.preparation.dropped_ties == 1
    kept = prepare_pairs(comparisons, renderer=renderer, max_length=None, ties="half")
    assert [pair.is_tie for pair in kept.pairs] == [False, True]
    assert (kept.preparation.ties, kept.preparation.dropped_ties) == (1, 0)


def test_what_cannot_train_is_left_out_whole_and_counted(renderer):
    long = "the cat sat on the mat " * 20
    comparisons = [
        labeled("cat", "dog"),
        labeled("cat", "cat"),
        labeled("cat", long),
        labeled("cat", "dog", asked=long),
        labeled("cat", long, asked=long),
    ]
    pairs, account = prepare_pairs(comparisons, renderer=renderer, max_length=80)
    assert len(pairs) == 2
    assert (account.equal, account.truncated, account.cut_off) == (1, 1, 2)
    assert account.comparisons == account.pairs + account.equal + account.cut_off
    assert max(datum.length for pair in pairs for datum in pair.datums) == 79


def test_half_a_pair_cannot_exist():
    ids = np.arange(3, dtype=np.int32)
    good = Datum(tokens=ids, target_tokens=ids, weights=np.ones(3, np.float32))
    for bad in (
        Datum(tokens=ids, target_tokens=ids),
        Datum(tokens=ids, target_tokens=ids, weights=np.zeros(3, np.float32)),
    ):
        with pytest.raises(DataError, match="rejected"):
            PreferencePair(chosen=good, rejected=bad, prompt_length=1)


@pytest.mark.parametrize(("setting", "value"), [("max_length", 1), ("ties", "keep")])
def test_settings_out_of_range_are_refused(renderer, setting, value):
    settings = {"max_length": None, "ties": "drop"} | {setting: value}
    with pytest.raises((ConfigurationError, TypeError), match=setting):
        prepare_pairs([labeled("cat", "dog")], renderer=renderer, **settings)


def numbered(count: int) -> tuple[Datum, ...]:
    ids = np.arange(count + 2, dtype=np.int32)
    weights = np.ones(2, np.float32)
    return tuple(
        Datum(tokens=ids[i : i + 2], target_tokens=ids[i : i + 2], weights=weights)
        for i in range(count)
    )


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_every_pair_is_in_one_batch_of_every_epoch(count, batch_size, seed):
    pairs = tuple(PreferencePair(chosen=d, rejected=d, prompt_length=1) for d in numbered(count))
    dataset = PreferenceDataset(pairs=pairs, batch_size=batch_size)
    batches = [dataset.get_batch(i, epoch_seed=seed) for i in range(len(dataset))]
    assert sorted(p for batch in batches for p in batch.positions) == list(range(count))
    for batch in batches:
        assert batch.pairs == tuple(pairs[p] for p in batch.positions)
        assert len(batch.datums) == 2 * len(batch.pairs)
    again = dataset.get_batch(len(dataset) - 1, epoch_seed=seed)
    np.testing.assert_array_equal(again.positions, batches[-1].positions)


@pytest.mark.parametrize("both_orders", [False, True])
def test_the_same_index_gives_the_same_comparisons_whenever_it_is_asked_for(both_orders):
    """Upstream throws the coin anew at each access."""
    datums = numbered(40)
    dataset = ComparisonDataset(
        forward=datums[:20], swapped=datums[20:], batch_size=6, both_orders=both_orders
    )
    first = [dataset.get_batch(i, epoch_seed=3) for i in range(len(dataset))]
    again = [dataset.get_batch(i, epoch_seed=3) for i in reversed(range(len(dataset)))]
    assert first == again[::-1]
    shown = [datum for batch in first for datum in batch]
    if both_orders:
        assert sorted(map(id, shown)) == sorted(map(id, datums))
    else:
        swapped = sum(any(d is s for s in datums[20:]) for d in shown)
        assert len(shown) == 20
        assert 4 <= swapped <= 16
        other = [datum for i in range(len(dataset)) for datum in dataset.get_batch(i, epoch_seed=4)]
        assert set(map(id, other)) != set(map(id, shown))


def test_data_sets_without_data_or_with_a_batch_of_none_are_refused():
    datums = numbered(1)
    pair = PreferencePair(chosen=datums[0], rejected=datums[0], prompt_length=1)
    with pytest.raises(DataError):
        PreferenceDataset(pairs=(), batch_size=1)
    with pytest.raises(ConfigurationError):
        PreferenceDataset(pairs=(pair,), batch_size=0)
    with pytest.raises(ConfigurationError):
        PreferenceDataset(pairs=(pair,), batch_size=1).get_batch(1, epoch_seed=0)
    with pytest.raises(DataError):
        ComparisonDataset(forward=datums, swapped=(), batch_size=1)
    with pytest.raises(ConfigurationError):
        ComparisonDataset(forward=datums, swapped=datums, batch_size=0)
    with pytest.raises(ConfigurationError):
        ComparisonDataset(forward=datums, swapped=datums, batch_size=1).get_batch(1, epoch_seed=0)
