"""What the tests of records and of their files share: odd groups, and what it is to be equal."""

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from cookbook_fx.rl import BatchRecord, RolloutError, Trajectory, TrajectoryGroup, Transition
from cookbook_fx.tokens import TokensWithLogprobs
from tests.rl_strategies import TOKENS, observations

# Any float32 at all: subnormal, infinite, nan of every kind, minus zero.
FLOAT32 = st.floats(width=32) | st.integers(0, 2**32 - 1).map(
    lambda bits: float(np.array(bits, np.uint32).view(np.float32))
)
NUMBERS = st.integers() | st.floats() | st.booleans() | st.floats(width=32).map(np.float32)
METRICS = st.dictionaries(st.text(max_size=4), NUMBERS, max_size=2)
LOGS = st.dictionaries(
    st.text(max_size=4), st.text(max_size=8) | st.integers() | st.none(), max_size=2
)
ERRORS = st.builds(RolloutError, error_type=st.text(max_size=4), error_message=st.text())


@st.composite
def odd_trajectories(draw) -> Trajectory:
    """Turns that go on or not, with any numbers that floats, rewards and metrics can be."""
    turns: list[Transition] = []
    sequence: list[int] = []
    for _ in range(draw(st.integers(0, 3))):
        ob, ac = draw(observations(earlier=sequence)), draw(TOKENS)
        logprobs = draw(st.none() | st.lists(FLOAT32, min_size=len(ac), max_size=len(ac)))
        turns.append(
            Transition(
                ob=draw(st.sampled_from([list, np.array]))(ob) if ob else [],
                ac=TokensWithLogprobs(
                    tokens=ac,
                    maybe_logprobs=None if logprobs is None else np.array(logprobs, np.float32),
                    stop_reason=draw(st.sampled_from(["stop", "length"])),
                ),
                reward=draw(NUMBERS),
                episode_done=draw(st.booleans()),
                metrics=draw(METRICS),
                logs=draw(LOGS),
            )
        )
        sequence = [*ob, *ac]
    return Trajectory(
        transitions=turns,
        final_ob=draw(observations(earlier=sequence)),
        stop_reason=draw(st.none() | st.sampled_from(["completed", "an own word"])),
    )


@st.composite
def odd_groups(draw) -> TrajectoryGroup:
    """Of any size, with failures, or with nothing at all."""
    members = draw(st.lists(odd_trajectories(), max_size=3))
    count = len(members)
    return TrajectoryGroup(
        trajectories_G=members,
        final_rewards_G=draw(st.lists(NUMBERS, min_size=count, max_size=count)),
        metrics_G=draw(st.lists(METRICS, min_size=count, max_size=count)),
        rollout_errors=draw(st.lists(ERRORS, max_size=2)),
    )


def same_group(found: TrajectoryGroup, wanted: TrajectoryGroup) -> bool:
    """Whether two groups are equal, log-probabilities bit for bit."""
    return (
        len(found.trajectories_G) == len(wanted.trajectories_G)
        and all(map(_same_trajectory, found.trajectories_G, wanted.trajectories_G))
        and all(map(_same_number, found.final_rewards_G, wanted.final_rewards_G))
        and all(map(_same_metrics, found.metrics_G, wanted.metrics_G))
        and list(found.rollout_errors) == list(wanted.rollout_errors)
    )


def _same_trajectory(found: Trajectory, wanted: Trajectory) -> bool:
    return (
        len(found.transitions) == len(wanted.transitions)
        and all(map(_same_turn, found.transitions, wanted.transitions))
        and list(found.final_ob) == list(wanted.final_ob)
        and found.stop_reason == wanted.stop_reason
    )


def _same_turn(found: Transition, wanted: Transition) -> bool:
    return (
        list(found.ob) == list(wanted.ob)
        and list(found.ac.tokens) == list(wanted.ac.tokens)
        and _same_floats(found.ac.maybe_logprobs, wanted.ac.maybe_logprobs)
        and found.ac.stop_reason == wanted.ac.stop_reason
        and _same_number(found.reward, wanted.reward)
        and found.episode_done == wanted.episode_done
        and _same_metrics(found.metrics, wanted.metrics)
        and found.logs == wanted.logs
    )


def _same_floats(found: Sequence | None, wanted: Sequence | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    one, other = np.array(found, np.float32), np.array(wanted, np.float32)
    # A nan is a nan, whatever else its bits say.
    return np.array_equal(np.isnan(one), np.isnan(other)) and bool(
        ((one.view(np.int32) == other.view(np.int32)) | np.isnan(one)).all()
    )


def _same_number(found: object, wanted: object) -> bool:
    if isinstance(wanted, np.generic):
        wanted = wanted.item()
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(found, float) and math.isnan(found)
    return type(found) is type(wanted) and repr(found) == repr(wanted)


def _same_metrics(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(
        _same_number(found[name], wanted[name]) for name in wanted
    )


def batch_record(*, step: int = 0, substep: int = 0, minibatch: int = 0, **fields) -> BatchRecord:
    """A batch of one datum."""
    return BatchRecord(
        step=step,
        substep=substep,
        minibatch=minibatch,
        **{
            "groups": (0, 2),
            "objective": {"loss": "ppo", "loss_config": {"clip_low_threshold": 0.9}},
            "learning_rate": 1e-4,
            "digest": "ab",
            "num_datums": 1,
            "num_tokens": 3,
            "datum_digests": ("0.1.2",),
        }
        | fields,
    )
