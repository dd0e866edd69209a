"""The layout of a batch, against one made token by token."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.errors import DataError
from cookbook_fx.rl import (
    BLOCK,
    PARSE_ERROR_MASKED,
    Trajectory,
    TrajectoryBatch,
    TrajectoryGroup,
    Transition,
    trajectory_batch,
)
from cookbook_fx.tokens import TokensWithLogprobs
from tests.rl_strategies import GROUPS, episode, group_of, with_arrays

few = settings(max_examples=40)


class Token(NamedTuple):
    id: int
    trained_on: bool
    logprob: float


class Row(NamedTuple):
    trajectory: int
    tokens: list[Token]


def rows_of(batch: TrajectoryBatch) -> list[Row]:
    """What stands in each row, and nothing but padding elsewhere."""
    rows = []
    is_padding = np.ones(len(batch.tokens), bool)
    for start, length, trajectory in zip(
        batch.row_starts.tolist(),
        batch.row_lengths.tolist(),
        batch.row_trajectory.tolist(),
        strict=True,
    ):
        here = slice(start, start + length)
        assert is_padding[here].all(), "rows overlap"
        is_padding[here] = False
        columns = (batch.tokens[here], batch.mask[here], batch.sampling_logprobs[here])
        tokens = map(Token, *(column.tolist() for column in columns))
        rows.append(Row(trajectory, list(tokens)))
    for column in (batch.tokens, batch.mask, batch.sampling_logprobs):
        assert not column[is_padding].any()
    return rows


def reference_rows(
    groups: list[TrajectoryGroup], *, remove_constant_reward_groups: bool = False
) -> list[Row]:
    """Token by token: merge while the whole sequence so far comes again, else begin anew."""
    rows = []
    number = 0
    for group in groups:
        totals = group.get_total_rewards()
        constant = all(total == totals[0] for total in totals)
        for trajectory in group.trajectories_G:
            if not (constant and remove_constant_reward_groups):
                rows += [Row(number, row) for row in reference_sequences(trajectory)]
            number += 1
    return rows


def reference_sequences(trajectory: Trajectory) -> list[list[Token]]:
    sequences: list[list[Token]] = [[]]
    for turn in trajectory.transitions:
        ob = list(turn.ob)
        before = [token.id for token in sequences[-1]]
        if ob[: len(before)] == before:
            ob = ob[len(before) :]
        else:
            sequences.append([])
        sequences[-1] += [Token(int(token), False, 0.0) for token in ob]
        for token, logprob in zip(turn.ac.tokens, turn.ac.logprobs, strict=True):
            if turn.metrics.get(PARSE_ERROR_MASKED) == 1 or not sequences[-1]:
                sequences[-1].append(Token(int(token), False, 0.0))
            else:
                sequences[-1].append(Token(int(token), True, float(logprob)))
    return [sequence for sequence in sequences if len(sequence) >= 2]


def ids(batch: TrajectoryBatch) -> list[list[int]]:
    return [row.tolist() for row in batch.sequences()]


def trained_on(batch: TrajectoryBatch) -> list[list[int]]:
    return [[token.id for token in row.tokens if token.trained_on] for row in rows_of(batch)]


def assert_same(left: TrajectoryBatch, right: TrajectoryBatch) -> None:
    for name in TrajectoryBatch.__dataclass_fields__:
        one, other = getattr(left, name), getattr(right, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)


class TestRows:
    def test_a_turn_that_goes_on_adds_only_what_is_new(self):
        batch = trajectory_batch([group_of(episode(([1, 2], [3]), ([1, 2, 3, 4], [5, 6])))])
        assert ids(batch) == [[1, 2, 3, 4, 5, 6]]
        assert trained_on(batch) == [[3, 5, 6]]
        assert batch.sampling_logprobs[:6].tolist() == [0, 0, -3 / 8, 0, -5 / 8, -6 / 8]

    @pytest.mark.parametrize(
        "second",
        [
            pytest.param([1, 2, 9, 4], id="another action"),
            pytest.param([9, 2, 3, 4], id="another observation"),
            pytest.param([1, 2, 9], id="as long but not the same"),
            pytest.param([1, 2], id="the first observation again"),
            pytest.param([2], id="its end"),
        ],
    )
    def test_a_turn_that_does_not_go_on_begins_a_row(self, second):
        batch = trajectory_batch([group_of(episode(([1, 2], [3]), (second, [5])))])
        assert ids(batch) == [[1, 2, 3], [*second, 5]]
        assert trained_on(batch) == [[3], [5]]
        assert batch.row_trajectory.tolist() == [0, 0]

    def test_after_a_break_the_row_that_began_goes_on(self):
        turns = (([1], [2]), ([8], [9]), ([8, 9, 7], [6]), ([1, 2], [3]))
        batch = trajectory_batch([group_of(episode(*turns))])
        assert ids(batch) == [[1, 2], [8, 9, 7, 6], [1, 2, 3]]

    def test_all_that_was_there_and_no_more_goes_on_too(self):
        batch = trajectory_batch([group_of(episode(([1, 2], [3]), ([1, 2, 3], [4])))])
        assert ids(batch) == [[1, 2, 3, 4]]
        assert trained_on(batch) == [[3, 4]]

    def test_an_empty_action_leaves_only_an_observation(self):
        batch = trajectory_batch([group_of(episode(([1, 2], []), ([1, 2, 3], [4])))])
        assert ids(batch) == [[1, 2, 3, 4]]
        assert trained_on(batch) == [[4]]

    def test_a_row_with_nothing_sampled_is_still_a_row(self):
        batch = trajectory_batch([group_of(episode(([1, 2], [])))])
        assert ids(batch) == [[1, 2]]
        assert not batch.mask.any()

    def test_an_empty_observation_after_a_turn_begins_a_row(self):
        batch = trajectory_batch([group_of(episode(([1, 2], [3]), ([], [5, 6])))])
        assert ids(batch) == [[1, 2, 3], [5, 6]]

    def test_nothing_precedes_the_first_token_so_it_is_never_trained_on(self):
        batch = trajectory_batch([group_of(episode(([], [5, 6])))])
        assert trained_on(batch) == [[6]]
        assert batch.sampling_logprobs[:2].tolist() == [0, -6 / 8]

    def test_a_turn_of_nothing_changes_nothing(self):
        batch = trajectory_batch([group_of(episode(([], []), ([1, 2], [3]), ([], [])))])
        assert ids(batch) == [[1, 2, 3]]

    def test_a_masked_turn_is_read_and_not_trained_on(self):
        turns = (([1], [2]), ([1, 2, 3], [4]), ([1, 2, 3, 4, 5], [6]))
        batch = trajectory_batch([group_of(episode(*turns, masked=(1,)))])
        assert ids(batch) == [[1, 2, 3, 4, 5, 6]]
        assert trained_on(batch) == [[2, 6]]
        assert batch.sampling_logprobs[3] == 0

    def test_a_masked_turn_needs_no_logprobs(self):
        turn = Transition(
            ob=[1],
            ac=TokensWithLogprobs(tokens=[2]),
            reward=0,
            episode_done=True,
            metrics={PARSE_ERROR_MASKED: 1},
        )
        batch = trajectory_batch([group_of(Trajectory(transitions=[turn], final_ob=[]))])
        assert ids(batch) == [[1, 2]]

    @pytest.mark.parametrize("turns", [(), (([], []),), (([1], []),), (([], [1]),)])
    def test_what_has_nothing_to_predict_gives_no_row_but_its_reward_counts(self, turns):
        turnless = group_of(episode(*turns), episode(([1], [2])), final_rewards=[3, 0])
        batch = trajectory_batch([turnless])
        assert ids(batch) == [[1, 2]]
        assert batch.rewards.tolist() == [3, 0]
        assert batch.row_trajectory.tolist() == [1]
        assert batch.group_sizes.tolist() == [2]

    @settings(deadline=None)
    @given(groups=GROUPS, remove=st.booleans())
    def test_as_made_token_by_token(self, groups, remove):
        batch = trajectory_batch(groups, remove_constant_reward_groups=remove)
        assert rows_of(batch) == reference_rows(groups, remove_constant_reward_groups=remove)

    @few
    @given(groups=GROUPS)
    def test_every_turn_can_be_read_back(self, groups):
        batch = trajectory_batch(groups)
        rows = {number: [] for number in range(len(batch.rewards))}
        for row in rows_of(batch):
            rows[row.trajectory].append(row.tokens)
        members = [member for group in groups for member in group.trajectories_G]
        for number, member in enumerate(members):
            read = [(row, []) for row in [*rows[number], []]]
            place, before = 0, []
            for turn in member.transitions:
                ob, ac = list(turn.ob), list(turn.ac.tokens)
                # A row is over where the next observation is not what it goes on with.
                if len(before) >= 2 and ob[: len(before)] != before:
                    place += 1
                before = ob + ac
                if len(before) < 2:
                    continue
                row, _ = read[place]
                assert [token.id for token in row[: len(ob)]] == ob
                sampled = row[len(ob) : len(before)]
                assert [token.id for token in sampled] == ac
                for at, token in enumerate(sampled, len(ob)):
                    trained = at > 0 and turn.metrics.get(PARSE_ERROR_MASKED) != 1
                    assert token.trained_on == trained
                    assert token.logprob == (turn.ac.logprobs[at - len(ob)] if trained else 0)
            assert place <= len(rows[number])

    def test_what_was_there_is_compared_and_not_copied_again(self):
        ob = CountedReads([*range(100), 7, 8, 9])
        batch = trajectory_batch([group_of(episode((list(range(100)), [7, 8]), (ob, [5])))])
        assert ids(batch) == [[*range(100), 7, 8, 9, 5]]
        assert ob.reads == len(ob)


class CountedReads(Sequence):
    """Tokens that know how many of them were read."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.reads = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index):
        part = self.tokens[index]
        self.reads += len(part) if isinstance(index, slice) else 1
        return part


class TestIndices:
    def test_groups_of_any_size(self):
        one = episode(([1], [2]), reward=1)
        two = episode(([1], [2]), ([3], [4]), reward=2)
        batch = trajectory_batch([group_of(one, two), group_of(), group_of(two)])
        assert batch.group_sizes.tolist() == [2, 0, 1]
        assert batch.trajectory_group.tolist() == [0, 0, 2]
        assert batch.row_trajectory.tolist() == [0, 1, 1, 2, 2]
        assert batch.row_group.tolist() == [0, 0, 0, 2, 2]
        assert batch.rewards.tolist() == [1, 2, 2]

    @pytest.mark.parametrize("groups", [[], [group_of()], [group_of(), group_of(episode())]])
    def test_without_rows_every_array_is_still_there(self, groups):
        batch = trajectory_batch(groups)
        assert batch.sequences() == []
        assert len(batch.group_sizes) == len(groups)
        assert batch.row_starts.shape == batch.row_lengths.shape == batch.row_group.shape == (0,)
        assert batch.tokens.shape == batch.mask.shape == batch.sampling_logprobs.shape
        assert len(batch.tokens) % BLOCK == 0
        assert not batch.block_starts.any()
        assert not batch.column([]).any()

    @few
    @given(groups=GROUPS, order=st.randoms(use_true_random=False))
    def test_permuting_groups_permutes_their_rows(self, groups, order):
        places = list(range(len(groups)))
        order.shuffle(places)
        batch, permuted = (
            trajectory_batch(groups),
            trajectory_batch([groups[place] for place in places]),
        )
        for here, place in enumerate(places):
            assert by_group(permuted, here) == by_group(batch, place)

    @few
    @given(groups=GROUPS, others=GROUPS)
    def test_together_as_apart(self, groups, others):
        first, second = trajectory_batch(groups), trajectory_batch(others)
        both = trajectory_batch([*groups, *others])
        moved = [Row(row.trajectory + len(first.rewards), row.tokens) for row in rows_of(second)]
        assert rows_of(both) == rows_of(first) + moved
        assert both.rewards.tolist() == first.rewards.tolist() + second.rewards.tolist()
        assert both.group_sizes.tolist() == first.group_sizes.tolist() + second.group_sizes.tolist()

    @few
    @given(groups=GROUPS)
    def test_counts(self, groups):
        batch = trajectory_batch(groups)
        members = [member for group in groups for member in group.trajectories_G]
        turns = [turn for member in members for turn in member.transitions]
        sampled = sum(
            len(turn.ac.tokens) for turn in turns if not turn.metrics.get(PARSE_ERROR_MASKED)
        )
        first_sampled = sum(1 for turn in turns if len(turn.ob) == 0)
        assert sampled - first_sampled <= batch.mask.sum() <= sampled
        assert len(batch.rewards) == len(members) == batch.group_sizes.sum()
        assert (batch.row_lengths >= 2).all()
        assert np.bincount(batch.trajectory_group, minlength=len(groups)).tolist() == [
            len(group.trajectories_G) for group in groups
        ]


def by_group(batch: TrajectoryBatch, group: int) -> tuple:
    """All that a batch says of one group, trajectories counted from its own first."""
    first = int(batch.group_sizes[:group].sum())
    rows = [
        Row(row.trajectory - first, row.tokens)
        for row in rows_of(batch)
        if batch.trajectory_group[row.trajectory] == group
    ]
    return rows, batch.rewards[first : first + batch.group_sizes[group]].tolist()


class TestConstantGroups:
    mixed = group_of(episode(([1], [2])), episode(([1], [3])), final_rewards=[0, 1])
    constant = group_of(episode(([1], [4])), episode(([1], [5])), final_rewards=[1, 1.0])
    alone = group_of(episode(([1], [6])), final_rewards=[1])

    def test_their_rows_go_and_everything_else_stays(self):
        groups = [self.constant, self.mixed, self.alone, group_of()]
        batch = trajectory_batch(groups, remove_constant_reward_groups=True)
        assert ids(batch) == [[1, 2], [1, 3]]
        assert batch.row_trajectory.tolist() == [2, 3]
        assert batch.row_group.tolist() == [1, 1]
        assert batch.group_sizes.tolist() == [2, 2, 1, 0]
        assert batch.trajectory_group.tolist() == [0, 0, 1, 1, 2]
        assert batch.rewards.tolist() == [1, 1, 0, 1, 1]

    def test_all_constant_is_no_rows(self):
        batch = trajectory_batch([self.constant, self.alone], remove_constant_reward_groups=True)
        assert batch.sequences() == []
        assert batch.rewards.tolist() == [1, 1, 1]

    def test_they_stay_unless_asked(self):
        assert len(trajectory_batch([self.constant, self.alone]).sequences()) == 3

    def test_the_least_difference_is_one(self):
        above = group_of(
            episode(([1], [2])), episode(([1], [3])), final_rewards=[1, np.nextafter(1, 2)]
        )
        assert len(trajectory_batch([above], remove_constant_reward_groups=True).sequences()) == 2


class TestLayout:
    def test_rows_begin_at_blocks(self):
        lengths = [2, BLOCK - 1, BLOCK, BLOCK + 1, 3]
        members = [episode((list(range(length - 1)), [7])) for length in lengths]
        batch = trajectory_batch([group_of(*members)])
        assert batch.row_lengths.tolist() == lengths
        assert (batch.row_starts // BLOCK).tolist() == [0, 1, 2, 3, 5]
        assert (batch.row_starts % BLOCK == 0).all()
        assert np.flatnonzero(batch.block_starts).tolist() == [0, 1, 2, 3, 5]
        assert len(batch.block_starts) == len(batch.tokens) // BLOCK

    def test_a_run_of_varying_size_meets_few_sizes_and_little_padding(self):
        """200 steps: a batch of 16 to 64 trajectories whose typical length drifts threefold."""
        random = np.random.default_rng(0)
        tokens, logprobs = np.zeros(4096, np.int32), np.zeros(4096, np.float32)
        sizes, padded, used = set(), 0, 0
        for step in range(200):
            typical = 250 * 3 ** (step / 200)
            members = []
            for _ in range(random.integers(16, 65)):
                length = int(typical * random.uniform(0.5, 1.5))
                action = TokensWithLogprobs(
                    tokens=tokens[:length], maybe_logprobs=logprobs[:length]
                )
                turn = Transition(ob=tokens[:64], ac=action, reward=0, episode_done=True)
                members.append(Trajectory(transitions=[turn], final_ob=[]))
            batch = trajectory_batch([group_of(*members)])
            sizes.add(len(batch.tokens))
            padded += len(batch.tokens)
            used += int(batch.row_lengths.sum())
        assert len(sizes) <= 12
        assert padded <= 1.2 * used

    @pytest.mark.parametrize("name", ["tokens", "mask", "sampling_logprobs"])
    def test_flat_arrays_lie_where_they_can_be_used_without_a_copy(self, name):
        for members in (1, 2, 3):
            batch = trajectory_batch([group_of(*[episode(([1], [2]))] * members)])
            assert getattr(batch, name).ctypes.data % 64 == 0

    def test_sequences_are_views(self):
        batch = trajectory_batch([group_of(episode(([1], [2])))])
        assert all(np.shares_memory(row, batch.tokens) for row in batch.sequences())


class TestArrays:
    @few
    @given(groups=GROUPS, token_type=st.sampled_from([np.int32, np.int64, np.uint16]))
    def test_as_lists(self, groups, token_type):
        arrays = with_arrays(groups, token_type=token_type)
        assert_same(trajectory_batch(arrays), trajectory_batch(groups))

    @pytest.mark.parametrize(
        "of_kind", [tuple, np.array, lambda ids: np.repeat(ids, 2)[::2], lambda ids: ids]
    )
    def test_observations_go_on_from_sequences_of_another_kind(self, of_kind):
        for second in ([1, 2, 3, 4], [1, 9, 3, 4]):
            mixed = episode(([1, 2], [3]), (of_kind(second), (5,)))
            plain = episode(([1, 2], [3]), (second, [5]))
            assert_same(trajectory_batch([group_of(mixed)]), trajectory_batch([group_of(plain)]))

    def test_numpy_numbers_in_lists(self):
        action = TokensWithLogprobs(
            tokens=[np.int64(3), np.uint8(4)], maybe_logprobs=[np.float32(-0.5), -1]
        )
        turn = Transition(ob=[np.int16(1)], ac=action, reward=0, episode_done=True)
        batch = trajectory_batch([group_of(Trajectory(transitions=[turn], final_ob=[]))])
        assert ids(batch) == [[1, 3, 4]]
        assert batch.sampling_logprobs[:3].tolist() == [0, -0.5, -1]

    def test_the_largest_token_and_the_least_logprob(self):
        for kind in (list, np.array):
            action = TokensWithLogprobs(tokens=kind([2**31 - 1]), maybe_logprobs=kind([-np.inf]))
            turn = Transition(ob=[0], ac=action, reward=0, episode_done=True)
            batch = trajectory_batch([group_of(Trajectory(transitions=[turn], final_ob=[]))])
            assert batch.tokens[1] == 2**31 - 1
            assert batch.sampling_logprobs[1] == -np.inf


class TestRefused:
    """Beside good groups, the second turn of the second trajectory of the second group is bad."""

    def batch_with(self, ob=(1, 2, 3), tokens=(4, 5), logprobs=(-1.0, -1.0)) -> TrajectoryBatch:
        def turn(ob, tokens, logprobs):
            action = TokensWithLogprobs(tokens=tokens, maybe_logprobs=logprobs)
            return Transition(ob=ob, ac=action, reward=0, episode_done=False)

        bad = Trajectory(
            transitions=[turn([1], [2], [-1.0]), turn(ob, tokens, logprobs)], final_ob=[]
        )
        good = episode(([1], [2]))
        return trajectory_batch([group_of(good), group_of(good, bad, good), group_of(good)])

    def test_not_as_it_is(self):
        assert ids(self.batch_with())[2] == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize("kind", [list, np.array], ids=["list", "array"])
    @pytest.mark.parametrize("place", ["ob", "tokens"])
    @pytest.mark.parametrize(
        ("wrong", "got"),
        [
            (-1, "-1"),
            (2**31, "2147483648"),
            (2**40, "1099511627776"),
            (-(2**40), "-1099511627776"),
            (1.5, "1.5|float64"),
        ],
    )
    def test_tokens_that_are_none(self, kind, place, wrong, got):
        ob, tokens = ([1, 2, wrong], [4, 5]) if place == "ob" else ([1, 2, 3], [wrong, 5])
        with pytest.raises(DataError, match=r"group 1, trajectory 1, turn 1: .*integer") as error:
            self.batch_with(ob=kind(ob), tokens=kind(tokens))
        assert any(number in str(error.value) for number in got.split("|"))

    @pytest.mark.parametrize("wrong", [None, "7", [7]])
    def test_tokens_that_are_no_numbers(self, wrong):
        with pytest.raises(DataError, match=r"group 1, trajectory 1, turn 1: .* at position 1"):
            self.batch_with(tokens=[4, wrong])

    def test_positions_count_what_was_known(self):
        with pytest.raises(DataError, match=r"turn 1: .* got None at position 3"):
            self.batch_with(ob=[1, 2, 3, None])

    def test_tokens_in_a_matrix(self):
        with pytest.raises(DataError, match=r"turn 1: .*one dimension, got .* shape \(2, 1\)"):
            self.batch_with(tokens=np.array([[4], [5]]))

    def test_no_logprobs(self):
        message = r"group 1, trajectory 1, turn 1: .* ask for them when sampling"
        with pytest.raises(DataError, match=message):
            self.batch_with(logprobs=None)

    @pytest.mark.parametrize("wrong", [None, "-1.0", 10**400])
    def test_logprobs_that_are_no_numbers(self, wrong):
        with pytest.raises(DataError, match=r"group 1, trajectory 1, turn 1: .* at position 1"):
            self.batch_with(logprobs=[-1.0, wrong])

    @pytest.mark.parametrize("kind", [list, np.array], ids=["list", "array"])
    @pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e39])
    def test_logprobs_that_say_nothing(self, kind, wrong):
        with pytest.raises(DataError, match=r"group 1, trajectory 1, turn 1: .* got (nan|inf)"):
            self.batch_with(logprobs=kind([-1.0, wrong]))

    def test_logprobs_of_another_kind(self):
        with pytest.raises(DataError, match=r"group 1, trajectory 1, turn 1: .* got an array of"):
            self.batch_with(logprobs=np.array([-1.0, None]))

    @pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf, np.float32(np.nan)])
    def test_rewards_that_would_spoil_their_group(self, reward):
        good = group_of(episode(([1], [2])))
        for bad in (
            group_of(episode(), episode(([1], [2]), reward=reward)),
            group_of(episode(), episode(), final_rewards=[0, reward]),
        ):
            message = f"group 1, trajectory 1: a total reward must be finite, got {reward}"
            with pytest.raises(DataError, match=message):
                trajectory_batch([good, bad], remove_constant_reward_groups=True)

    def test_a_reward_beyond_floats(self):
        with pytest.raises(DataError, match="group 0, trajectory 0: a total reward must be finite"):
            trajectory_batch([group_of(episode(), final_rewards=[10**400])])


class TestColumn:
    batch = trajectory_batch([group_of(episode(([1, 2], [3])), episode(([1] * BLOCK, [2])))])
    later = tuple(-(i + 1) / 8 for i in range(BLOCK))

    @pytest.mark.parametrize("first", [None, float("nan"), 0.0])
    @pytest.mark.parametrize("kind", [list, tuple, lambda row: np.array(row, np.float32)])
    def test_a_value_for_every_token(self, first, kind):
        flat = self.batch.column([kind([first, -1.0, -2.0]), kind([first, *self.later])])
        assert flat.dtype == np.float32
        assert flat.shape == self.batch.tokens.shape
        assert flat[:3].tolist() == [0, -1, -2]
        assert flat[BLOCK : 2 * BLOCK + 1].tolist() == [0, *self.later]
        assert not flat[3:BLOCK].any()
        assert not flat[2 * BLOCK + 1 :].any()
        assert flat.ctypes.data % 64 == 0

    def test_a_first_value_that_is_known_stays(self):
        assert self.batch.column([[7, 1, 2], np.ones(BLOCK + 1)])[[0, BLOCK]].tolist() == [7, 1]

    @few
    @given(groups=GROUPS)
    def test_tokens_come_back_as_they_are(self, groups):
        batch = trajectory_batch(groups)
        sequences = batch.sequences()
        expected = batch.tokens.astype(np.float32)
        np.testing.assert_array_equal(batch.column(sequences), expected)
        lists = [row.tolist() for row in sequences]
        np.testing.assert_array_equal(batch.column(lists), expected)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([[None, -1.0, -2.0]], "each of the 2 rows of the batch, got 1"),
            ([[None, -1.0], None], "row 0 has 3 tokens and needs as many values, got 2"),
            ([[None, -1.0, None], None], "row 0: .* got None at position 2"),
            ([["", -1.0, -1.0], None], "row 0: .* got '' at position 0"),
            ([[None, -1.0, -2.0], [None, np.nan, *later[1:]]], "row 1: .* of token 1 is nan"),
            ([[None, -1.0, -2.0], np.array([None, *later])], "row 1: .* array of object"),
        ],
    )
    def test_refused(self, rows, message):
        rows = [[None, *self.later] if row is None else row for row in rows]
        with pytest.raises(DataError, match=message):
            self.batch.column(rows)
