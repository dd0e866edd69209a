"""Families: every sequence in one, and only what is the same is shared."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.data.families import Family, find_families
from cookbook_fx.data.packing import pack

SEQUENCE = st.lists(st.integers(0, 1), min_size=1, max_size=60)
SEQUENCES = st.lists(SEQUENCE, min_size=1, max_size=12)
STEMS = st.tuples(SEQUENCE, SEQUENCES).map(lambda drawn: [drawn[0] + end for end in drawn[1]])


def column(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, np.int32)[:, None]


@given(SEQUENCES | STEMS)
def test_every_sequence_is_in_one_family_whose_beginning_it_has(sequences: list[list[int]]) -> None:
    lengths = [len(tokens) + 1 for tokens in sequences]
    families = find_families([column(s) for s in sequences], lengths, max_tokens=200)

    assert sorted(i for family in families for i in family.members) == list(range(len(sequences)))
    for family in families:
        assert len({tuple(sequences[i][: family.shared]) for i in family.members}) == 1
        assert len(family.members) == 1 or (family.shared and family.size(lengths) <= 200)


@given(SEQUENCES | STEMS)
def test_packed_families_hold_every_sequence(sequences: list[list[int]]) -> None:
    lengths = [len(tokens) for tokens in sequences]
    flat = np.concatenate([column(s) for s in sequences])
    families = find_families([column(s) for s in sequences], lengths, max_tokens=200)
    back = np.full_like(flat, -1)
    placed = 0
    for rows in pack(lengths, families=families):
        rows.put(back, rows.take(flat, fill=0.0))
        placed += rows.real.sum()
        own = rows.beginnings == rows.segments
        assert (rows.positions[rows.real & ~own] > 0).all()

    assert np.array_equal(back, flat)
    assert placed == sum(family.size(lengths) for family in families) <= len(flat)


def test_a_group_that_shares_its_prompt_is_laid_out_once() -> None:
    prompt = list(range(50))
    sequences = [column([*prompt, 90 + i]) for i in range(8)]
    families = find_families(sequences, [55] * 8, max_tokens=2048)

    assert families == (Family(members=tuple(range(8)), shared=50),)
    (rows,) = pack([55] * 8, families=families)
    assert rows.source.shape == (1, 128)
    assert rows.real.sum() == 50 + 8 * 5


def test_groups_with_prompts_that_begin_alike_stay_families_of_their_own() -> None:
    sequences = [column([*range(30), *[100 + group] * 20]) for group in (0, 1) for _ in range(8)]
    families = find_families(sequences, [55] * 16, max_tokens=2048)

    assert [(len(family.members), family.shared) for family in families] == [(8, 50), (8, 50)]
