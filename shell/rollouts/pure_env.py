"""Environments written as two pure functions.

    init(problem)        -> Ask                 what the model is asked first
    step(state, message) -> Ask | Done          what its answer leads to

An `Ask` holds the state of the episode, a value of any kind, and what is said to the model next;
`Done` holds what the episode earns. Nothing is changed and nothing awaited, so an episode can be
tested by calling functions, and replayed from its messages. A game in a few lines:

>>> from typing import NamedTuple
>>> from cookbook_fx.chat import Message
>>> class Game(NamedTuple):
...     secret: int
...     guesses_left: int = 7
>>> def init(secret):
...     return Ask(Game(secret), "I am thinking of a number from 1 to 100. Guess it.")
>>> def step(game, message):
...     guess = int(message.text) if message.text.isdecimal() else 0
...     if guess == game.secret:
...         return Done(1.0)
...     if game.guesses_left == 1:
...         return Done(0.0, stop_reason="no_guesses_left")
...     hint = "Higher." if guess < game.secret else "Lower."
...     return Ask(game._replace(guesses_left=game.guesses_left - 1), hint)

>>> first = init(42)
>>> second = step(first.state, Message(role="assistant", content="50"))
>>> second.say, second.state
('Lower.', Game(secret=42, guesses_left=6))
>>> step(second.state, Message(role="assistant", content="42"))
Done(reward=1.0, metrics={}, logs={}, stop_reason=<StopReason.COMPLETED: 'completed'>)

`PureGroupBuilder(init, step, 42, num_envs=8, renderer=renderer)` is eight attempts at it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Generic, TypeVar

from cookbook_fx.chat import Conversation, Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import Renderer
from cookbook_fx.rl import StopReason
from cookbook_fx.rl.trajectory import Logs, Metrics, Reward
from cookbook_fx.tokens.sampled import TokenIds
from shell.rollouts.calls import called
from shell.rollouts.env import (
    Action,
    ActionExtra,
    Env,
    EnvGroupBuilder,
    Observation,
    StepResult,
    StopCondition,
)
from shell.rollouts.message_env import (
    AnyMessage,
    EnvFromMessageEnv,
    MessageEnv,
    MessageStepResult,
    conversation_of,
    stop_metric,
)

Problem = TypeVar("Problem")
State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Ask(Generic[State]):
    """The episode goes on: what is said to the model, and what to remember meanwhile.

    Args:
        state: what the next step is given; frozen, or never changed.
        say: what is added to the conversation: text, which the user says, a message or several.
            In a `PureTokenEnv`, the token ids that are added to the prompt.
        reward: earned by the answer this replies to.
        metrics: numbers to average and report.
        logs: what to show of the turn; not averaged.
    """

    state: State
    say: str | AnyMessage | Sequence[AnyMessage] | TokenIds
    _: KW_ONLY
    reward: Reward = 0.0
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """The episode is over.

    Args:
        reward: earned by the answer that ended it.
        metrics: numbers to average and report.
        logs: what to show of the turn; not averaged.
        stop_reason: why it ended, a `StopReason` or a word of your own.
    """

    reward: Reward
    _: KW_ONLY
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)
    stop_reason: str = StopReason.COMPLETED


Init = Callable[[Problem], Ask[State] | Awaitable[Ask[State]]]
Step = Callable[[State, Message], Ask[State] | Done | Awaitable[Ask[State] | Done]]
TokenStep = Callable[[State, Action], Ask[State] | Done | Awaitable[Ask[State] | Done]]


class PureMessageEnv(MessageEnv, Generic[State]):
    """One episode of an environment in messages; keeps the state and the conversation.

    Args:
        first: what the model is asked first.
        step: what an answer leads to. Runs in a thread, or is awaited where it is `async`.

    Raises:
        ConfigurationError: what is asked first earns a reward or reports something.
    """

    def __init__(self, first: Ask[State], step: Step[State]) -> None:
        _check_first(first)
        self._state = first.state
        self._conversation = _messages(first.say)
        self._step = step

    async def initial_observation(self) -> Conversation:
        """What is asked first."""
        return self._conversation

    async def add_messages(self, messages: Sequence[Message]) -> Conversation:
        """Keeps them in the conversation, without a step."""
        self._conversation = (*self._conversation, *messages)
        return self._conversation

    async def step(self, message: Message) -> MessageStepResult:
        """Takes the step that the function says."""
        answer: Ask[State] | Done = await called(self._step, self._state, message)
        said = () if isinstance(answer, Done) else _messages(answer.say)
        self._conversation = (*self._conversation, message, *said)
        if isinstance(answer, Ask):
            self._state = answer.state
        return MessageStepResult(
            reward=answer.reward,
            episode_done=isinstance(answer, Done),
            next_messages=self._conversation,
            metrics=_metrics(answer),
            logs=answer.logs,
        )


class PureTokenEnv(Env, Generic[State]):
    """One episode of an environment in token ids; keeps the state and the tokens so far.

    What is said is added after the action, so each prompt extends the one before.

    Args:
        first: what the model is asked first.
        step: what an action leads to. Runs in a thread, or is awaited where it is `async`.
        stop: where each action stops.

    Raises:
        ConfigurationError: what is asked first earns a reward or reports something.

    Example:
        >>> def step(state, action):
        ...     return Done(float(action[0] == 7))
        >>> env = PureTokenEnv(Ask(None, [5, 6]), step, stop=[0])
        >>> import asyncio
        >>> asyncio.run(env.step([7, 0])).reward
        1.0
    """

    def __init__(self, first: Ask[State], step: TokenStep[State], *, stop: StopCondition) -> None:
        _check_first(first)
        self._state = first.state
        self._tokens = _tokens(first.say)
        self._step = step
        self._stop = stop

    async def initial_observation(self) -> tuple[Observation, StopCondition]:
        """What is asked first."""
        return tuple(self._tokens), self._stop

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """Takes the step that the function says."""
        del extra
        answer: Ask[State] | Done = await called(self._step, self._state, action)
        self._tokens += action
        if isinstance(answer, Ask):
            self._state = answer.state
            self._tokens += _tokens(answer.say)
        return StepResult(
            reward=answer.reward,
            episode_done=isinstance(answer, Done),
            next_observation=tuple(self._tokens),
            next_stop_condition=self._stop,
            metrics=_metrics(answer),
            logs=answer.logs,
        )


@dataclass(frozen=True, slots=True, eq=False)
class PureGroupBuilder(EnvGroupBuilder, Generic[Problem, State]):
    """Several attempts at one problem, in an environment of two functions.

    Args:
        init: what the model is asked first; called once for all attempts. Runs in a thread, or is
            awaited where it is `async`; so does `step`.
        step: what an answer leads to.
        problem: what `init` is given, such as a record or a seed.
        num_envs: attempts.
        renderer: the chat format.
        dataset_name: what the group's numbers are reported under.
        adapter: makes the token environment; give a `partial` of `EnvFromMessageEnv` to set what
            becomes of responses that cannot be read or are too long.

    Raises:
        ConfigurationError: there are fewer than one attempt.
    """

    init: Init[Problem, State]
    step: Step[State]
    problem: Problem
    _: KW_ONLY
    num_envs: int
    renderer: Renderer
    dataset_name: str = "problems"
    adapter: Callable[[Renderer, MessageEnv], Env] = EnvFromMessageEnv

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ConfigurationError(f"`num_envs` must be at least 1, got {self.num_envs}")

    async def make_envs(self) -> Sequence[Env]:
        """`num_envs` new environments, all of which ask the same first."""
        first: Ask[State] = await called(self.init, self.problem)
        return [
            self.adapter(self.renderer, PureMessageEnv(first, self.step))
            for _ in range(self.num_envs)
        ]

    def logging_tags(self) -> list[str]:
        """The name of the data set."""
        return [self.dataset_name]


def _check_first(first: Ask[Any]) -> None:
    if first.reward or first.metrics or first.logs:
        raise ConfigurationError(
            "what is asked first answers nothing yet, so it can neither earn a reward nor report "
            f"metrics or logs; got {first!r}"
        )


def _messages(said: Any) -> Conversation:
    if isinstance(said, str):
        return (Message(role="user", content=said),)
    return conversation_of([said] if isinstance(said, Message | Mapping) else said)


def _tokens(said: Any) -> list[int]:
    return [int(token) for token in said]


def _metrics(answer: Ask[Any] | Done) -> Metrics:
    if isinstance(answer, Ask):
        return answer.metrics
    return {**answer.metrics, **stop_metric(answer.stop_reason)}
