"""Episodes: what was observed, sampled and earned, turn by turn and group by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from cookbook_fx.errors import DataError
from cookbook_fx.tokens import TokensWithLogprobs
from cookbook_fx.tokens.sampled import TokenIds

PARSE_ERROR_MASKED = "parse_error_masked"
"""The metric with which an environment says that a turn could not be parsed and that its tokens
shall not be trained on (1 or more)."""

# NumPy's scalars come out of vectorized graders; their bool is neither an int nor a number.
Reward = float | int | np.integer | np.floating | np.bool
# Values are open here: metrics come from environments that people write, and who adds them up
# says which one is no number.
Metrics = Mapping[str, Any]
Logs = Mapping[str, Any]


class StopReason(StrEnum):
    """Why an episode ended.

    An environment that knows reports it as the metric `stop/<reason>` of the last turn.
    """

    COMPLETED = "completed"
    """The agent was done."""
    TOOL_STOPPED = "tool_stopped"
    """A tool asked to end."""
    MAX_TURNS = "max_turns"
    """As many turns as allowed."""
    MAX_TOKENS = "max_tokens"
    """As many tokens as allowed, within a turn or before it."""
    MAX_SAMPLED_TOKENS = "max_sampled_tokens"
    """As many tokens as allowed, counting the sampled ones only."""
    MAX_TOOL_CALLS = "max_tool_calls"
    """As many tool calls as allowed."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The conversation no longer fits the context."""
    PARSE_ERROR = "parse_error"
    """What the model wrote could not be parsed."""
    ROLLOUT_TIMEOUT = "rollout_timeout"
    """The episode took too long."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transition:
    """One turn: an observation, the action sampled after it, what it earned.

    Args:
        ob: token ids of the whole prompt that the action was sampled from, earlier turns included.
        ac: the tokens sampled.
        reward: earned by this turn.
        episode_done: whether the episode ended with it.
        metrics: numbers to average and report. `PARSE_ERROR_MASKED` among them, at 1 or more,
            keeps the action from being trained on.
        logs: what to show of this turn; not averaged.

    Example:
        >>> action = TokensWithLogprobs(tokens=[7], maybe_logprobs=[-0.5])
        >>> Transition(ob=[5, 6], ac=action, reward=1, episode_done=True).ac.tokens
        [7]
    """

    ob: TokenIds
    ac: TokensWithLogprobs
    reward: Reward
    episode_done: bool
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """One episode of one agent.

    Args:
        transitions: its turns in order.
        final_ob: token ids observed after the last action; may be empty.
        stop_reason: why it ended, a `StopReason` or an environment's own word; None if unsaid.
    """

    transitions: Sequence[Transition]
    final_ob: TokenIds
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutError:
    """An episode that failed and left no trajectory.

    Args:
        error_type: name of the exception's class.
        error_message: what the exception said.
    """

    error_type: str
    error_message: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectoryGroup:
    """Episodes that are judged against each other, commonly attempts at one problem.

    Args:
        trajectories_G: the episodes.
        final_rewards_G: what each earned on top of its turns' rewards, once the whole group was
            known.
        metrics_G: numbers about each episode as a member of its group.
        rollout_errors: the episodes that failed.

    Raises:
        DataError: there are not as many final rewards or metrics as trajectories.

    Example:
        >>> from cookbook_fx.rl import Trajectory, TrajectoryGroup, Transition
        >>> action = TokensWithLogprobs(tokens=[7], maybe_logprobs=[-0.5])
        >>> turn = Transition(ob=[5, 6], ac=action, reward=1, episode_done=True)
        >>> episode = Trajectory(transitions=[turn], final_ob=[])
        >>> group = TrajectoryGroup(
        ...     trajectories_G=[episode, episode], final_rewards_G=[0, 0.5], metrics_G=[{}, {}]
        ... )
        >>> group.get_total_rewards()
        [1, 1.5]
    """

    trajectories_G: Sequence[Trajectory]
    final_rewards_G: Sequence[Any] | np.ndarray
    metrics_G: Sequence[Metrics]
    rollout_errors: Sequence[RolloutError] = ()

    def __post_init__(self) -> None:
        for name in ("final_rewards_G", "metrics_G"):
            if len(getattr(self, name)) != len(self.trajectories_G):
                raise DataError(
                    f"{name} needs one entry for each of {len(self.trajectories_G)} trajectories, "
                    f"got {len(getattr(self, name))}"
                )

    def get_total_rewards(self) -> list[float | int]:
        """Σ of the turns' rewards + the final reward, for each trajectory.

        Integers are added as integers and stay exact. NumPy's scalars are added as Python's
        numbers, so that neither a narrow type nor the logical `+` of its bool gets in.
        """
        return [
            sum(_number(turn.reward) for turn in trajectory.transitions) + _number(final_reward)
            for trajectory, final_reward in zip(
                self.trajectories_G, self.final_rewards_G, strict=True
            )
        ]


def _number(reward: Reward) -> float | int:
    return reward.item() if isinstance(reward, np.generic) else reward
