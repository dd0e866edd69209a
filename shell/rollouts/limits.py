"""How far an episode may go, and what becomes of one that went too far or cannot be read.

An environment ends its episodes itself; these are the bounds around it. Before each turn they are
looked at in this order, and the first that is reached names the stop:

1. `rollout_seconds`, which also holds during a turn: ROLLOUT_TIMEOUT
2. `turns`: MAX_TURNS
3. `trajectory_tokens`: MAX_TOKENS
4. `sampled_tokens`: MAX_SAMPLED_TOKENS

The turn may then sample as many tokens as `turn_tokens` says and 3 and 4 leave. `tool_calls` is the
environment's to count, which alone knows what a tool call is: MAX_TOOL_CALLS.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.rl import StopReason

_LEAST_USEFUL_TOKENS = 2


class Progress(NamedTuple):
    """How far an episode is before its next turn.

    Fields:
        turns: turns done.
        observed_tokens: length of the observation to sample after, all earlier turns included.
        sampled_tokens: tokens sampled in all turns.
    """

    turns: int
    observed_tokens: int
    sampled_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutLimits:
    """Bounds of one episode; None is no bound.

    What runs into one is kept with the turns it has, marked by its stop reason. Only a single
    request that takes too long is an error: it leaves nothing to keep.

    Args:
        turns: actions sampled.
        trajectory_tokens: tokens of the last observation and the action after it.
        sampled_tokens: tokens of all actions.
        tool_calls: calls of tools, counted by environments that have any.
        turn_tokens: tokens of one action. An action cut off there does not end the episode, unless
            the environment says so.
        rollout_seconds: wall-clock time of an episode once the episodes of its group have their
            first prompts. Making the environments of a group, a first prompt, and cleaning up may
            each take as long.
        sample_seconds: wall-clock time of one request to the policy.

    Raises:
        ConfigurationError: a bound is not above 0.

    Example:
        >>> limits = RolloutLimits(turns=3, trajectory_tokens=100, turn_tokens=50)
        >>> progress = Progress(turns=1, observed_tokens=70, sampled_tokens=20)
        >>> limits.stop_before(progress), limits.budget(progress)
        (None, 30)
        >>> limits.stop_before(progress._replace(turns=3)).value
        'max_turns'
    """

    turns: int | None = None
    trajectory_tokens: int | None = None
    sampled_tokens: int | None = None
    tool_calls: int | None = None
    turn_tokens: int | None = None
    rollout_seconds: float | None = 1800.0
    sample_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise ConfigurationError(
                    f"`{name}` must be above 0, or None for no bound; got {bound}"
                )

    def stop_before(self, progress: Progress) -> StopReason | None:
        """Why there may be no further turn; None if there may.

        One token left counts as none: an action of one token says nothing.
        """
        if self.turns is not None and progress.turns >= self.turns:
            return StopReason.MAX_TURNS
        left = self._tokens_left(progress)
        if left.trajectory < _LEAST_USEFUL_TOKENS:
            return StopReason.MAX_TOKENS
        if left.sampled < _LEAST_USEFUL_TOKENS:
            return StopReason.MAX_SAMPLED_TOKENS
        return None

    def budget(self, progress: Progress) -> int | None:
        """The most tokens the next action may have; None if nothing bounds them."""
        turn = math.inf if self.turn_tokens is None else self.turn_tokens
        least = min(turn, *self._tokens_left(progress))
        return None if least == math.inf else int(least)

    def _tokens_left(self, progress: Progress) -> "_TokensLeft":
        return _TokensLeft(
            trajectory=_left(self.trajectory_tokens, progress.observed_tokens),
            sampled=_left(self.sampled_tokens, progress.sampled_tokens),
        )


class _TokensLeft(NamedTuple):
    trajectory: float
    sampled: float


def _left(bound: int | None, used: int) -> float:
    return math.inf if bound is None else bound - used


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseErrorPolicy:
    """What an environment does where it cannot read what the model wrote.

    A response that does not end as it should ends the episode: a conversation cannot go on from
    it. One that ended well but holds a tool call that is none is answered with what is wrong, so
    that the model may try again. The environment hears of the policy in `ActionExtra`.

    Args:
        max_consecutive: unreadable tool calls in a row that are answered; one more ends the
            episode. A turn that can be read begins the count anew.
        retry_message_template: the answer, a user's message; `{details}` becomes what is wrong.
        penalty_per_error: what each answered turn loses.
        terminal_reward: what the turn earns that ends the episode.
        mask_error_turns: do not train on turns that cannot be read; marks them as
            `PARSE_ERROR_MASKED`.

    Raises:
        ConfigurationError: a count or penalty is below 0, or the template has no `{details}`.
    """

    max_consecutive: int = 0
    retry_message_template: str = "The last message could not be read.\nError: {details}"
    penalty_per_error: float = 0.0
    terminal_reward: float = 0.0
    mask_error_turns: bool = False

    def __post_init__(self) -> None:
        for name in ("max_consecutive", "penalty_per_error"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        if "{details}" not in self.retry_message_template:
            raise ConfigurationError(
                "`retry_message_template` must say where the error goes, with {details}; got "
                f"{self.retry_message_template!r}"
            )

    def retry_message(self, details: str) -> str:
        """The answer to a response that could not be read.

        Example:
            >>> ParseErrorPolicy(retry_message_template="No: {details}").retry_message("not {JSON}")
            'No: not {JSON}'
        """
        return self.retry_message_template.replace("{details}", details)


LIMIT_STOP_REASONS = frozenset(
    {
        StopReason.MAX_TOKENS,
        StopReason.MAX_SAMPLED_TOKENS,
        StopReason.MAX_TURNS,
        StopReason.MAX_TOOL_CALLS,
        StopReason.ROLLOUT_TIMEOUT,
    }
)
"""Stops that a limit made, not the agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminationRewardPolicy:
    """What an episode may earn that a limit stopped.

    It is graded like any other; its total is then lowered to 0 where it is above. So running into
    a limit never pays, and what failed worse still earns less.

    Args:
        zero_reward_on_limit: lower the totals.
        limit_stop_reasons: the stops that count as a limit's.
        skip_grading_on_timeout: do not grade a group all of whose episodes timed out and would
            have their totals lowered; their group rewards are 0.
        grader_timeout_seconds: wall-clock time that grading a group may take; None is no bound.

    Raises:
        ConfigurationError: the time is not above 0.
    """

    zero_reward_on_limit: bool = False
    limit_stop_reasons: frozenset[str] = LIMIT_STOP_REASONS
    skip_grading_on_timeout: bool = False
    grader_timeout_seconds: float | None = 1800.0

    def __post_init__(self) -> None:
        seconds = self.grader_timeout_seconds
        if seconds is not None and not seconds > 0:
            raise ConfigurationError(
                f"`grader_timeout_seconds` must be above 0, or None for no bound; got {seconds}"
            )

    def lowers(self, stop_reason: str | None) -> bool:
        """Whether an episode that stopped so may earn nothing above 0."""
        return self.zero_reward_on_limit and stop_reason in self.limit_stop_reasons
