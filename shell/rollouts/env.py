"""What an environment is: a prompt, then for each action an observation and a reward.

The names and meanings are tinker-cookbook's, with token ids where it has `tinker.ModelInput`, so
that its environments need little more than other imports.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from cookbook_fx.distillation import GroupReference
from cookbook_fx.rl import Trajectory
from cookbook_fx.rl.trajectory import Logs, Metrics, Reward
from cookbook_fx.tokens.sampled import TokenIds
from shell.rollouts.limits import ParseErrorPolicy

Observation = TokenIds
"""Token ids of the whole prompt for the next action."""
Action = Sequence[int]
"""Token ids that the policy sampled, the stop included."""
StopCondition = Sequence[str] | Sequence[int]
"""Strings or token ids that end an action."""


class ActionExtra(TypedDict, total=False):
    """What an environment is told about an action besides its tokens.

    Fields:
        stop_reason: "stop" at a stop sequence, "length" where the action was cut off.
        max_tool_calls: calls of tools that the whole episode may make; None is no bound.
        parse_errors: what to do with a response that cannot be read; None leaves it to the
            environment.
    """

    stop_reason: Literal["stop", "length"]
    max_tool_calls: int | None
    parse_errors: ParseErrorPolicy | None


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What an action led to.

    Args:
        reward: earned by the action.
        episode_done: whether that was the last one.
        next_observation: the prompt for the next action, or what there is to see at the end; may
            be empty then.
        next_stop_condition: where the next action stops.
        metrics: numbers to average and report. `stop/<reason>` at 1 on the last turn says why the
            episode ended; `PARSE_ERROR_MASKED` keeps the action from being trained on.
        logs: what to show of this turn; not averaged.
    """

    reward: Reward
    episode_done: bool
    next_observation: Observation
    next_stop_condition: StopCondition
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class InitialObservationOverflow:
    """Returned in place of a prompt that is too long: the episode ends before it began.

    It becomes an episode of one empty turn, which gives nothing to train on but earns its reward
    within the group.

    Args:
        reward: what the episode earns.
        metrics: numbers to average and report; `stop/<reason>` says why, MAX_TOKENS if unsaid.
        logs: what to show; not averaged.
    """

    reward: Reward = 0.0
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)


class Env(ABC):
    """One episode of one agent. Used once: a new episode is a new environment.

    What blocks, such as a grader, belongs in `asyncio.to_thread` or a process of its own: all
    episodes of a step share one event loop.
    """

    @abstractmethod
    async def initial_observation(
        self,
    ) -> tuple[Observation, StopCondition] | InitialObservationOverflow:
        """The prompt for the first action and where it stops."""

    @abstractmethod
    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """Takes one action."""


class EnvGroupBuilder(ABC):
    """Makes environments whose episodes are judged against each other.

    Commonly several attempts at one problem; the agents of one game just as well.
    """

    @abstractmethod
    async def make_envs(self) -> Sequence[Env]:
        """New environments, as many in each call, at least one."""

    async def compute_group_rewards(
        self, trajectory_group: Sequence[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        """What each episode earns on top of its turns' rewards, and numbers to report about it.

        Args:
            trajectory_group: the episodes that did not fail.
            env_group: the environment of each.
        """
        del env_group
        return [(0.0, {}) for _ in trajectory_group]

    async def cleanup(self) -> None:
        """Frees what the environments hold; called once in the end, whatever happened."""
        return None

    def logging_tags(self) -> list[str]:
        """Names under which the group's numbers are reported besides `all`."""
        return []

    def reference(self) -> GroupReference:
        """Which of the run's references judges the group where there is a KL term, and how.

        The same each time. It may render a prompt, and is not called on the event loop.
        """
        return GroupReference()


class RLDataset(ABC):
    """Batches of groups, one batch a step."""

    @abstractmethod
    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The groups of one batch; always the same for the same index."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches."""

    def with_epoch(self, seed: int) -> "RLDataset":
        """The same data in the order of the epoch with this seed; this one stays as it is."""
        del seed
        return self


class RLDatasetBuilder(ABC):
    """Makes the data of a run when it begins."""

    @abstractmethod
    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """The data to train on, and those to test on if there are any."""
