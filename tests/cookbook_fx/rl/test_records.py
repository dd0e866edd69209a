"""Records come back from JSON as they went, bit for bit."""

import json
import math
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cookbook_fx.data import Datum
from cookbook_fx.errors import DataError
from cookbook_fx.rl import (
    RolloutError,
    Trajectory,
    TrajectoryGroup,
    Transition,
    datum_digests,
    group_records,
    groups_of,
    record_from_json,
    record_to_json,
    trajectory_batch,
)
from cookbook_fx.rl.records import batch_from_json, batch_to_json
from cookbook_fx.tokens import TokensWithLogprobs
from tests.rl_records import FLOAT32, batch_record, odd_groups, same_group
from tests.rl_strategies import GROUPS, episode, group_of

few = settings(max_examples=60)


def through_json(records):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    texts = [json.dumps(record_to_json(record)) for record in records]
    return [record_from_json(json.loads(text, parse_constant=refuse)) for text in texts]


def turn_of(**fields) -> Transition:
    action = TokensWithLogprobs(tokens=[3], maybe_logprobs=[-0.5])
    return Transition(**{"ob": [1], "ac": action, "reward": 0, "episode_done": True} | fields)


def record_of(*turns: Transition, **fields):
    trajectory = Trajectory(transitions=turns, final_ob=[])
    group = TrajectoryGroup(
        trajectories_G=[trajectory], **{"final_rewards_G": [0], "metrics_G": [{}]} | fields
    )
    (record,) = group_records(group, step=0, group_index=0, sampler_step=0)
    return record


@few
@given(groups=st.lists(odd_groups(), max_size=3), seed=st.none() | st.integers(0))
def test_groups_come_back_equal_whatever_stands_in_them(groups, seed):
    records = [
        record
        for index, group in enumerate(groups)
        for record in group_records(
            group, step=7, group_index=index, sampler_step=5, tags=["a", "ü"], seed=seed,
            seconds=1.5,
        )
    ]  # fmt: skip
    found = list(groups_of(through_json(records)))
    assert len(found) == len(groups)
    assert all(map(same_group, (one.group for one in found), groups))
    for index, one in enumerate(found):
        assert (one.step, one.index, one.sampler_step) == (7, index, 5)
        assert (one.tags, one.seed, one.seconds) == (("a", "ü"), seed, 1.5)


@few
@given(groups=GROUPS)
def test_what_comes_back_makes_the_same_batch(groups):
    records = [
        record
        for index, group in enumerate(groups)
        for record in group_records(group, step=0, group_index=index, sampler_step=0)
    ]
    found = [one.group for one in groups_of(through_json(records))]
    one, other = trajectory_batch(found), trajectory_batch(groups)
    for name in one.__slots__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@given(values=st.lists(FLOAT32, max_size=20))
def test_log_probabilities_come_back_bit_for_bit(values):
    row = np.array(values, np.float32)
    record = batch_record(base_logprobs=(row,))
    found = batch_from_json(json.loads(json.dumps(batch_to_json(record), allow_nan=False)))
    (other,) = found.base_logprobs
    assert other.dtype == np.float32
    is_nan = np.isnan(row)
    np.testing.assert_array_equal(np.isnan(other), is_nan)
    np.testing.assert_array_equal(other[~is_nan].view(np.int32), row[~is_nan].view(np.int32))


def test_log_probabilities_are_as_short_as_float32_prints():
    rng = np.random.default_rng(0)
    row = -(rng.exponential(1, 2000) ** 3).astype(np.float32)
    row = np.concatenate([row, -np.exp2(-np.arange(1, 20, dtype=np.float32)), [-0.0, 0, -1]])
    written = json.dumps(batch_to_json(batch_record(base_logprobs=(row.astype(np.float32),))))
    numbers = written.split('"base_logprobs": [[')[1].split("]]")[0].split(", ")
    shortest = [len(repr(float(str(value)))) for value in row.astype(np.float32)]
    assert [len(number) for number in numbers] == shortest


def test_a_long_conversation_is_written_once():
    sequence = list(range(100, 150))
    turns = []
    for turn in range(20):
        action = [turn] * 5
        turns.append((list(sequence), action))
        sequence += [*action, 7, 8]
    record = record_of(*episode(*turns).transitions)
    assert len(json.dumps(record_to_json(record)["transitions"])) < 20 * 300
    (found,) = groups_of(through_json([record]))
    assert [list(turn.ob) for turn in found.group.trajectories_G[0].transitions] == [
        ob for ob, _ in turns
    ]


def test_texts_are_those_of_what_is_new():
    group = group_of(episode(([1, 2], [3]), ([1, 2, 3, 4], [5]), ([9], [6])))
    (record,) = group_records(
        group, step=0, group_index=0, sampler_step=0, texts=lambda ids: "".join(map(str, ids))
    )
    wanted = (("12", "3"), ("4", "5"), ("9", "6"))
    assert record.texts == wanted
    (found,) = groups_of(through_json([record]))
    assert found.texts == (wanted,)


def test_numbers_of_numpy_become_plain_and_logs_become_text_where_they_must():
    logs = {
        "array": np.arange(2), "nan": math.nan, "object": {1, }, "pair": (np.float32(0.5), b"x"),
        "deep": {3: [None, True]},
    }  # fmt: skip
    turn = turn_of(
        reward=np.float32(0.5), metrics={"a": np.int64(3), "b": np.bool(True)}, logs=logs
    )
    value = record_to_json(
        record_of(
            turn,
            final_rewards_G=np.array(
                [
                    1,
                ]
            ),
            metrics_G=[{"c": Fraction(1, 2)}],
        )
    )
    (found,) = value["transitions"]
    assert found["reward"] == 0.5
    assert found["metrics"] == {"a": 3, "b": True}
    assert found["logs"] == {
        "array": [0, 1], "nan": "nan", "object": "{1}", "pair": [0.5, "b'x'"],
        "deep": {"3": [None, True]},
    }  # fmt: skip
    assert value["final_reward"] == 1
    assert value["metrics"] == {"c": 0.5}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (record_of(turn_of(metrics={"m": "high"})), "the metric 'm' must be a number, got 'high'"),
        (record_of(turn_of(), final_rewards_G=["1"]), "the final reward must be a number"),
        (record_of(turn_of(), metrics_G=[{"m": None}]), "the metric 'm'"),
        (record_of(turn_of(ob=[0.5])), "token ids must be integers"),
        (record_of(turn_of(ob=[2**31])), "token ids must be below 2³¹, got 2147483648"),
    ],
)
def test_what_cannot_be_written_is_named(record, message):
    with pytest.raises(DataError, match=message):
        record_to_json(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": None}, "cannot be read"),
        ({"final_reward": "much"}, "'much' is no number"),
        ({"transitions": [{"ob_known": 0}]}, "needs 'ob'"),
        ({"transitions": 3}, "cannot be read"),
        ({"metrics": []}, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(change, message):
    value = record_to_json(record_of(turn_of())) | change
    with pytest.raises(DataError, match=message):
        record_from_json(value)


@pytest.mark.parametrize("value", [None, 3, [], "x", {}])
def test_no_record_at_all_is_refused(value):
    with pytest.raises(DataError, match="an episode's record"):
        record_from_json(value)
    with pytest.raises(DataError, match="a batch's record"):
        batch_from_json(value)


def test_a_group_that_is_not_all_there_is_refused():
    group = group_of(episode(([1], [2])), episode(([1], [3])))
    first, second = group_records(group, step=4, group_index=1, sampler_step=4)
    for records, members in (([first], r"\[0\]"), ([second, first], r"\[1, 0\]")):
        with pytest.raises(DataError, match=f"group 1 of step 4 has 2 episodes.*{members}"):
            list(groups_of(records))


def test_groups_are_read_no_further_than_asked_for():
    group = group_of(episode(([1], [2])))

    def records():
        for index in range(3):
            if index == 2:
                raise AssertionError("read too far")
            yield from group_records(group, step=0, group_index=index, sampler_step=0)

    assert next(groups_of(records())).index == 0


def test_failures_come_last_and_an_empty_group_is_known_to_be_done():
    error = RolloutError(error_type="OSError", error_message="gone")
    group = TrajectoryGroup(
        trajectories_G=[], final_rewards_G=[], metrics_G=[], rollout_errors=[error]
    )
    (record,) = group_records(group, step=0, group_index=0, sampler_step=0)
    assert (record.group_size, record.error) == (1, error)
    (empty,) = group_records(group_of(), step=0, group_index=0, sampler_step=0)
    assert (empty.group_size, empty.error, empty.trajectory) == (0, None, None)
    (found,) = groups_of(through_json([empty]))
    assert found.group.trajectories_G == []


def test_batches_come_back():
    record = batch_record(
        training_logprobs=(np.array([-1.5, -0.1], np.float32), np.zeros(0, np.float32))
    )
    found = batch_from_json(json.loads(json.dumps(batch_to_json(record))))
    (one, other), found = found.training_logprobs, replace(found, training_logprobs=None)
    np.testing.assert_array_equal(one, record.training_logprobs[0])
    assert other.shape == (0,)
    assert asdict(found) == asdict(replace(record, training_logprobs=None))


def test_digests_say_which_column_of_which_datum_differs():
    ids = np.array([5, 6], np.int32)
    zeros = np.zeros(2, np.float32)
    data = [Datum(tokens=ids, target_tokens=ids, weights=zeros, advantages=zeros)] * 2
    changed = [data[0], replace(data[1], advantages=np.array([0, 1e-45], np.float32))]
    (first, second), (same, other) = datum_digests(data), datum_digests(changed)
    assert first == second == same
    pairs = zip(second.split("."), other.split("."), strict=True)
    assert [one == another for one, another in pairs] == [True, True, True, True, False, True]
