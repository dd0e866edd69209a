"""What tinker-cookbook's names mean, without its edits in place and its failures."""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx import rl
from cookbook_fx.data import Datum
from cookbook_fx.errors import DataError
from tests.rl_strategies import GROUPS, episode, group_of, trajectories


def rewarded(*rewards: float) -> rl.TrajectoryGroup:
    """A group of one-turn episodes with these rewards."""
    return group_of(*(episode(([1, 2], [3, 4]), reward=reward) for reward in rewards))


def sampled(
    logprobs: list[float], mask: list[int] | None = None, advantages: list[float] | None = None
) -> Datum:
    """A datum with these columns; advantages of 0 if not given."""
    count = len(logprobs)
    return Datum(
        tokens=np.arange(count, dtype=np.int32),
        target_tokens=np.arange(1, count + 1, dtype=np.int32),
        logprobs=np.array(logprobs, np.float32),
        weights=None if mask is None else np.array(mask, np.float32),
        advantages=np.array([0] * count if advantages is None else advantages, np.float32),
    )


def of_data(data: list[Datum], name: str) -> list[list[float]]:
    return [getattr(datum, name).tolist() for datum in data]


def test_advantages_are_centered_group_by_group() -> None:
    groups = [rewarded(1, 0, 0, 3), group_of(), rewarded(7), rewarded(2.0, 4.0)]

    advantages = rl.compute_advantages(groups)

    assert [row.tolist() for row in advantages] == [[0, -1, -1, 2], [], [0], [-1, 1]]
    assert all(row.dtype == np.float32 for row in advantages)
    assert rl.compute_advantages([]) == []


def test_whole_rewards_make_fractional_advantages() -> None:
    # Upstream keeps them integers, whose mean torch refuses to take.
    assert rl.compute_advantages([rewarded(1, 0)])[0].tolist() == [0.5, -0.5]
    assert rl.compute_advantages([rewarded(True, False)])[0].tolist() == [0.5, -0.5]


def test_turns_share_a_datum_while_they_go_on() -> None:
    trajectory = episode(([1], [2, 3]), ([1, 2, 3, 4], [5]), ([9], [8]), masked=(1,))

    data = rl.trajectory_to_data(trajectory, 2.0)

    assert of_data(data, "tokens") == [[1, 2, 3, 4], [9]]
    assert of_data(data, "target_tokens") == [[2, 3, 4, 5], [8]]
    assert of_data(data, "weights") == [[1, 1, 0, 0], [1]]
    assert of_data(data, "advantages") == [[2, 2, 0, 0], [2]]
    assert of_data(data, "logprobs") == [[-0.25, -0.375, 0, 0], [-1]]


@pytest.mark.parametrize("turns", [[], [([], [])], [([5], [])], [([], [5])]])
def test_a_trajectory_in_which_nothing_follows_anything_gives_no_datum(turns: list) -> None:
    assert rl.trajectory_to_data(episode(*turns), 1.0) == []


@given(trajectories(), st.floats(-2, 2, width=32))
@settings(max_examples=50)
def test_assembling_is_converting_one_trajectory_after_the_other(trajectory, advantage) -> None:
    other = episode(([7], [8, 9]))
    groups = [group_of(other), group_of(), group_of(other, trajectory)]
    advantages = [np.array([1.0]), np.array([]), np.array([-1.0, advantage])]

    data, sources = rl.assemble_training_data(groups, advantages)

    alone = [
        (datum, (group, member))
        for group in range(3)
        for member, (trajectory, value) in enumerate(
            zip(groups[group].trajectories_G, advantages[group].tolist(), strict=True)
        )
        for datum in rl.trajectory_to_data(trajectory, value)
    ]
    assert sources == [source for _, source in alone]
    for name in ("tokens", "target_tokens", "weights", "logprobs", "advantages"):
        assert of_data(data, name) == of_data([datum for datum, _ in alone], name)


@given(GROUPS)
@settings(max_examples=50)
def test_the_transitions_can_be_read_back_from_what_was_assembled(groups: list) -> None:
    data, sources = rl.assemble_training_data(groups, rl.compute_advantages(groups))
    sequences = rl.full_sequences(data)

    for group, member in {(source.group_idx, source.traj_idx) for source in sources}:
        mine = [
            sequence.tolist()
            for sequence, source in zip(sequences, sources, strict=True)
            if source == (group, member)
        ]
        for turn in groups[group].trajectories_G[member].transitions:
            whole = [*turn.ob, *turn.ac.tokens]
            assert len(whole) < 2 or any(row[: len(whole)] == whole for row in mine)


@pytest.mark.parametrize(
    ("advantages", "message"),
    [
        ([np.zeros(2)], "for each of 2 groups, got 1"),
        ([np.zeros(2), np.zeros(2)], r"group 1 has 3 trajectories .*got shape \(2,\)"),
        ([np.zeros(2), np.zeros((3, 1))], r"group 1 has 3 trajectories .*got shape \(3, 1\)"),
        ([np.zeros(2), np.array([0, np.inf, 0])], "trajectory 3 is inf"),
    ],
)
def test_advantages_that_do_not_fit_are_refused(advantages: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rl.assemble_training_data([rewarded(1, 2), rewarded(1, 2, 3)], advantages)


def test_constant_groups_go_and_one_stays_where_all_are() -> None:
    constant, whole, mixed = rewarded(1, 1), rewarded(1, 1.0, True), rewarded(0, 1)

    assert rl.remove_constant_reward_groups([constant, mixed, whole, mixed]) == [mixed, mixed]
    assert rl.remove_constant_reward_groups([whole, constant]) == [whole]
    assert rl.remove_constant_reward_groups([rewarded(3), group_of(), mixed]) == [mixed]
    assert rl.remove_constant_reward_groups([]) == []


@given(GROUPS)
@settings(max_examples=50)
def test_the_batch_drops_the_rows_of_the_same_groups(groups: list) -> None:
    kept = rl.remove_constant_reward_groups(groups)
    data, _ = rl.assemble_training_data(kept, rl.compute_advantages(kept))
    batch = rl.trajectory_batch(groups, remove_constant_reward_groups=True)
    flat = rl.token_advantages(batch, rl.group_advantages(batch))

    if any(len(set(group.get_total_rewards())) > 1 for group in groups):
        same = rl.batch_data(batch, flat)
        assert of_data(same, "tokens") == of_data(data, "tokens")
        assert of_data(same, "advantages") == of_data(data, "advantages")


def test_sampling_against_training_by_hand() -> None:
    data = [sampled([-1.0, -2.0, -3.0], mask=[0, 1, 1]), sampled([-4.0])]
    training = [np.array([9.0, -2.5, -3.0], np.float32), np.array([-5.0], np.float32)]

    scores = rl.compute_kl_sample_train(data, training)

    # Differences 0.5, 0 and 1.
    assert scores.kl_v1 == pytest.approx(0.5)
    assert scores.kl_v2 == pytest.approx(1.25 / 6)
    assert scores.kl_v3 == pytest.approx((np.exp(-0.5) - 0.5 + np.exp(-1) + 0) / 3)
    assert scores.entropy == pytest.approx(3)
    whole = [[None, 9.0, -2.5, -3.0], [np.nan, -5.0]]
    assert rl.compute_post_kl(data, whole) == scores


@pytest.mark.parametrize("data", [[], [sampled([-1.0, -2.0], mask=[0, 0])]])
def test_nothing_sampled_is_nothing_apart(data: list[Datum]) -> None:
    # Upstream fails here, after the step was taken, when every group of a batch was constant.
    training = [np.full(datum.length, -1.0) for datum in data]
    whole = [[None, *row] for row in training]

    assert rl.compute_kl_sample_train(data, training) == (0, 0, 0, 0)
    assert rl.compute_post_kl(data, whole) == (0, 0, 0, 0)
    penalized, mean = rl.incorporate_kl_penalty(data, whole, coef=1.0, gamma=0.9)
    assert mean == 0
    assert of_data(penalized, "advantages") == of_data(data, "advantages")


def test_a_penalty_by_hand_and_in_new_data() -> None:
    data = [
        sampled([0.0, -1.0, 0.0, -2.0], mask=[0, 1, 0, 1], advantages=[0, 3, 0, 3]),
        sampled([-1.0], advantages=[-1]),
    ]
    base = [[None, -7.0, -4.0, -7.0, -2.0], [None, -1.0]]

    plain = rl.incorporate_kl_penalty(data, base, coef=2.0)
    ahead = rl.incorporate_kl_penalty(data, base, coef=2.0, gamma=0.5)

    # δ is 3, 0 and 0, so that 2 (δ̄ - δ) is -4, 2 and 2.
    assert plain.kl_policy_base == ahead.kl_policy_base == 1
    assert of_data(plain.data, "advantages") == [[0, -1, 0, 5], [1]]
    # Upstream gives the prompt -1.75 and what was observed in between 1.
    assert of_data(ahead.data, "advantages") == [[0, -0.5, 0, 5], [1]]
    assert of_data(data, "advantages") == [[0, 3, 0, 3], [-1]]
    for new, old in zip(ahead.data, data, strict=True):
        for name in {field.name for field in fields(Datum)} - {"advantages"}:
            assert getattr(new, name) is getattr(old, name)


@given(GROUPS, st.sampled_from([0.0, 0.9, 1.0]), st.integers(0, 99))
@settings(max_examples=40)
def test_datums_are_penalized_as_the_batch_is(groups: list, gamma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = rl.trajectory_batch(groups)
    base = [[None, *-rng.exponential(size=n - 1)] for n in batch.row_lengths]
    flat = rl.token_advantages(batch, rl.group_advantages(batch))
    shaped = rl.kl_shaped(batch, flat, batch.column(base), coef=0.3, gamma=gamma)

    data, _ = rl.assemble_training_data(groups, rl.compute_advantages(groups))
    penalized, mean = rl.incorporate_kl_penalty(data, base, coef=0.3, gamma=gamma)

    assert mean == shaped.mean_kl
    assert of_data(penalized, "advantages") == of_data(
        rl.batch_data(batch, shaped.advantages), "advantages"
    )


def needs_logprobs(data: list[Datum]) -> None:
    rl.compute_kl_sample_train(data, [np.zeros(datum.length) for datum in data])


def penalize(data: list[Datum]) -> None:
    rl.incorporate_kl_penalty(data, [[0.0] * (datum.length + 1) for datum in data], coef=1.0)


IDS = np.arange(2, dtype=np.int32)
ZEROS = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("function", "datum", "message"),
    [
        (needs_logprobs, Datum(tokens=IDS, target_tokens=IDS), "datum 1 has no logprobs"),
        (
            penalize,
            Datum(tokens=IDS, target_tokens=IDS, logprobs=ZEROS),
            "datum 1 has no advantages",
        ),
        (
            penalize,
            Datum(tokens=IDS, target_tokens=np.zeros((2, 3), np.int32), logprobs=ZEROS),
            "datum 1 has 3 candidates a token",
        ),
    ],
)
def test_datums_that_were_not_sampled_are_refused(
    function: Callable, datum: Datum, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        function([sampled([-1.0]), datum])


def test_logprobs_of_other_tokens_are_refused() -> None:
    data = [sampled([-1.0, -2.0])]
    with pytest.raises(DataError, match="each of 1 datums, got 0"):
        rl.compute_kl_sample_train(data, [])
    with pytest.raises(DataError, match=r"datum 0 has 2 targets .* got shape \(3,\)"):
        rl.compute_kl_sample_train(data, [np.zeros(3)])
    with pytest.raises(DataError, match="3 tokens and needs as many values, got 2"):
        rl.compute_post_kl(data, [[0.0, 0.0]])
    with pytest.raises(DataError, match=r"row 0: .*nan"):
        rl.incorporate_kl_penalty(data, [[None, np.nan, 0.0]], coef=1.0)
    with pytest.raises(DataError, match=r"token 2 of row 0 is -inf"):
        rl.incorporate_kl_penalty(data, [[None, -1.0, -np.inf]], coef=1.0)
