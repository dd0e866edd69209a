"""How episodes are run: one value for a loop, an evaluator and a user to pass on."""

from dataclasses import dataclass, field

from shell.rollouts.limits import ParseErrorPolicy, RolloutLimits, TerminationRewardPolicy
from shell.rollouts.strategies import FailFast, MinViableGroup, RolloutStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutOptions:
    """How far episodes may go, what they earn when stopped, what happens when they fail.

    Args:
        limits: how far an episode may go.
        strategy: what becomes of a group in which one fails.
        termination: what episodes earn that a limit stopped.
        parse_errors: what environments do where they cannot read a response; None leaves it to
            them.
    """

    limits: RolloutLimits = field(default_factory=RolloutLimits)
    strategy: RolloutStrategy = field(default_factory=FailFast)
    termination: TerminationRewardPolicy = field(default_factory=TerminationRewardPolicy)
    parse_errors: ParseErrorPolicy | None = None


DEFAULT_OPTIONS = RolloutOptions()


def simple() -> RolloutOptions:
    """As little as possible: nothing but time is bounded, and the first failure ends the run."""
    return DEFAULT_OPTIONS


def agentic() -> RolloutOptions:
    """For agents that call tools over many turns.

    A long tail of episodes that go in circles is cut off, and being cut off never pays. A tool
    call that cannot be read is answered twice, as an agent's harness would. Tools fail for
    reasons of their own, so a group may lose a quarter of its episodes.
    """
    return RolloutOptions(
        limits=RolloutLimits(turns=10, trajectory_tokens=65536, tool_calls=30),
        strategy=MinViableGroup(),
        termination=TerminationRewardPolicy(
            zero_reward_on_limit=True, skip_grading_on_timeout=True, grader_timeout_seconds=900.0
        ),
        parse_errors=ParseErrorPolicy(max_consecutive=2),
    )
