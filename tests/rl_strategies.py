"""Episodes as Hypothesis makes them: turns that go on, break off, repeat, are empty or masked."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from cookbook_fx.rl import PARSE_ERROR_MASKED, Trajectory, TrajectoryGroup, Transition
from cookbook_fx.tokens import TokensWithLogprobs

# Few tokens, so that sequences often begin alike; few rewards, so that groups are often constant.
TOKENS = st.lists(st.integers(0, 3), max_size=5)
REWARDS = st.sampled_from([0, 1, 2, 0.5, -1.25, True])
# Exact in float32, so that what comes back can be compared for equality.
LOGPROBS = st.integers(-64, 0).map(lambda eighths: eighths / 8)


@st.composite
def actions(draw, *, tokens: st.SearchStrategy[list[int]] = TOKENS) -> TokensWithLogprobs:
    """Some sampled tokens, none perhaps, each with a log-probability."""
    sampled = draw(tokens)
    logprobs = draw(st.lists(LOGPROBS, min_size=len(sampled), max_size=len(sampled)))
    stop_reason = draw(st.sampled_from(["stop", "length"]))
    return TokensWithLogprobs(tokens=sampled, maybe_logprobs=logprobs, stop_reason=stop_reason)


@st.composite
def transitions(
    draw, *, ob: list[int], ac: st.SearchStrategy[TokensWithLogprobs] | None = None
) -> Transition:
    """A turn after the observation given; one in a few is masked for a parse error."""
    masked = draw(st.sampled_from([None, None, 0.0, 1.0]))
    return Transition(
        ob=ob,
        ac=draw(actions() if ac is None else ac),
        reward=draw(REWARDS),
        episode_done=False,
        metrics={} if masked is None else {PARSE_ERROR_MASKED: masked},
    )


@st.composite
def observations(draw, *, earlier: list[int]) -> list[int]:
    """What may follow a sequence: all of it and more, a part of it, it with a change, another."""
    new = draw(TOKENS)
    kind = draw(st.sampled_from(["goes on", "goes on", "goes on", "part", "change", "other"]))
    if kind == "goes on" or not earlier:
        return earlier + new
    if kind == "other":
        return new
    at = draw(st.integers(0, len(earlier) - 1))
    if kind == "part":
        return earlier[:at]
    return [*earlier[:at], earlier[at] + 1, *earlier[at + 1 :], *new]


@st.composite
def trajectories(draw, *, max_turns: int = 4) -> Trajectory:
    """An episode of 0 turns or more."""
    turns: list[Transition] = []
    sequence: list[int] = []
    for _ in range(draw(st.integers(0, max_turns))):
        turn = draw(transitions(ob=draw(observations(earlier=sequence))))
        sequence = [*turn.ob, *turn.ac.tokens]
        turns.append(turn)
    return Trajectory(
        transitions=turns,
        final_ob=draw(TOKENS),
        stop_reason=draw(st.sampled_from([None, "completed"])),
    )


@st.composite
def trajectory_groups(draw, *, max_trajectories: int = 3) -> TrajectoryGroup:
    """A group of 0 trajectories or more."""
    members = draw(st.lists(trajectories(), max_size=max_trajectories))
    count = len(members)
    return TrajectoryGroup(
        trajectories_G=members,
        final_rewards_G=draw(st.lists(REWARDS, min_size=count, max_size=count)),
        metrics_G=[{} for _ in members],
    )


GROUPS = st.lists(trajectory_groups(), max_size=3)


def episode(
    *turns: tuple[list[int], list[int]], reward: float = 0, masked: tuple[int, ...] = ()
) -> Trajectory:
    """An episode of the (observation, action) pairs; token t was sampled at -t/8.

    Args:
        turns: token ids.
        reward: of the last turn, the others earn nothing.
        masked: numbers of the turns masked for a parse error.
    """
    last = len(turns) - 1
    return Trajectory(
        transitions=[
            Transition(
                ob=ob,
                ac=TokensWithLogprobs(tokens=ac, maybe_logprobs=[-token / 8 for token in ac]),
                reward=reward if turn == last else 0,
                episode_done=turn == last,
                metrics={PARSE_ERROR_MASKED: 1.0} if turn in masked else {},
            )
            for turn, (ob, ac) in enumerate(turns)
        ],
        final_ob=[],
    )


def group_of(*members: Trajectory, final_rewards: list[Any] | None = None) -> TrajectoryGroup:
    """The episodes as a group; without final rewards they get 0."""
    return TrajectoryGroup(
        trajectories_G=members,
        final_rewards_G=[0] * len(members) if final_rewards is None else final_rewards,
        metrics_G=[{} for _ in members],
    )


def with_arrays(groups: list[TrajectoryGroup], *, token_type: type = np.int32) -> list:
    """The same groups with NumPy arrays in place of lists of tokens and log-probabilities."""

    def of_turn(turn: Transition) -> Transition:
        return Transition(
            ob=np.array(turn.ob, token_type),
            ac=TokensWithLogprobs(
                tokens=np.array(turn.ac.tokens, token_type),
                maybe_logprobs=np.array(turn.ac.logprobs, np.float32),
                stop_reason=turn.ac.stop_reason,
            ),
            reward=turn.reward,
            episode_done=turn.episode_done,
            metrics=turn.metrics,
        )

    return [
        TrajectoryGroup(
            trajectories_G=[
                Trajectory(
                    transitions=[of_turn(turn) for turn in member.transitions],
                    final_ob=np.array(member.final_ob, token_type),
                    stop_reason=member.stop_reason,
                )
                for member in group.trajectories_G
            ],
            final_rewards_G=group.final_rewards_G,
            metrics_G=group.metrics_G,
        )
        for group in groups
    ]
