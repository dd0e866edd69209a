"""The environment of an agent that calls tools.

    EnvFromMessageEnv(renderer, ToolEnv([search, price], messages, reward_fn))

is one episode of it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from cookbook_fx.chat import Message, Part, ToolCall, declaring_tools
from cookbook_fx.errors import ConfigurationError, CookbookError, DataError
from cookbook_fx.rl import StopReason
from cookbook_fx.rl.trajectory import Logs, Metrics, Reward
from shell.rollouts.calls import called
from shell.rollouts.limits import ParseErrorPolicy
from shell.rollouts.message_env import (
    AnyMessage,
    MessageEnv,
    MessageStepResult,
    conversation_of,
    correction_of,
    stop_metric,
)
from shell.rollouts.tools import Tool, ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimits:
    """How much a model may use its tools in an episode; None is no bound.

    Args:
        turns: messages of the assistant's. The last may call tools; then the episode ends.
        calls_per_turn: calls made of those in one message. Of others the model is told that they
            were not made.
        calls_per_episode: calls made in all; the episode ends with the first one beyond.
        seconds_per_call: wall-clock time, the wait for a free thread included.

    Raises:
        ConfigurationError: a bound is not above 0.
    """

    turns: int | None = None
    calls_per_turn: int | None = None
    calls_per_episode: int | None = None
    seconds_per_call: float | None = 60.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise ConfigurationError(
                    f"`{name}` must be above 0, or None for no bound; got {bound}"
                )


Graded = Reward | tuple[Reward, Metrics]
RewardFunction = Callable[[Sequence[Message]], Graded | Awaitable[Graded]]


class _Answer(NamedTuple):
    """What a call came to, as the conversation has it."""

    message: Message
    is_error: bool
    should_stop: bool
    metrics: Metrics


class ToolEnv(MessageEnv):
    """An agent that calls tools until it answers without a call.

    Each call is answered by a tool's message. An unknown tool, wrong arguments, an exception, a
    call that takes too long are answered with what is wrong, and so is what looks like a call and
    is none; nothing of it ends the episode. It ends, and is graded, when

        COMPLETED       a message calls nothing
        TOOL_STOPPED    a tool says so
        MAX_TOOL_CALLS  no further call may be made
        MAX_TURNS       no further message may be sent

    Each turn reports as metrics `tool_calls`, those made, and `tool_errors`, those answered with an
    error.

    Args:
        tools: what may be called; declared to the model in the first message.
        initial_messages: the conversation to answer.
        reward_fn: grades the episode at its end, given the whole conversation: the reward, or the
            reward and metrics. Runs in a thread unless it is `async`.
        limits: how much the tools may be used; `ToolLimits()` if None. A rollout's own limit of
            tool calls holds beside.
        execution: make the calls of a message all at once, or each after the one before.

    Raises:
        ConfigurationError: two tools have one name.
        DataError: the initial messages declare tools already.
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        initial_messages: Iterable[AnyMessage],
        reward_fn: RewardFunction,
        *,
        limits: ToolLimits | None = None,
        execution: Literal["parallel", "sequential"] = "parallel",
    ) -> None:
        self._tools: dict[str, Tool] = {}
        for each in tools:
            if each.spec.name in self._tools:
                raise ConfigurationError(
                    f"each tool needs a name of its own, and two are named {each.spec.name}"
                )
            self._tools[each.spec.name] = each
        specs = [each.spec for each in self._tools.values()]
        self._history = [*declaring_tools(conversation_of(initial_messages), specs)]
        self._reward_fn = reward_fn
        self._limits = limits or ToolLimits()
        self._execution = execution
        self._turns = 0
        self._calls = 0

    async def initial_observation(self) -> Sequence[Message]:
        """The initial messages, the tools declared in the first."""
        return tuple(self._history)

    async def add_messages(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Keeps them in the conversation; they count as a turn."""
        self._turns += 1
        self._history += messages
        return tuple(self._history)

    def bound_tool_calls(self, max_tool_calls: int) -> None:
        """Takes the bound if it is lower than its own."""
        own = self._limits.calls_per_episode
        bound = max_tool_calls if own is None else min(own, max_tool_calls)
        self._limits = replace(self._limits, calls_per_episode=bound)

    async def step(self, message: Message) -> MessageStepResult:
        """Makes the calls, and grades the episode if this was its last turn."""
        self._turns += 1
        self._history.append(message)
        allowed = self._allowed(message.tool_calls)
        answers = await self._made(message.tool_calls[:allowed])
        refused = message.tool_calls[allowed:]
        answers += [_failed(call, "no further calls may be made now") for call in refused]
        self._history += [answer.message for answer in answers]
        if message.unparsed_tool_calls:
            correction = correction_of(message, ParseErrorPolicy())
            self._history.append(Message(role="user", content=correction))
        metrics, logs = _metrics(answers, num_made=allowed), _logs(message, answers)
        reason = self._end(message, answers, has_dropped=bool(refused) and self._calls_left() == 0)
        if reason is None:
            return self._went(0.0, metrics, logs, is_over=False)
        reward, graded = _graded(await called(self._reward_fn, tuple(self._history)))
        return self._went(reward, {**metrics, **graded, **stop_metric(reason)}, logs, is_over=True)

    def _went(
        self, reward: Reward, metrics: Metrics, logs: Logs, *, is_over: bool
    ) -> MessageStepResult:
        return MessageStepResult(
            reward=reward,
            episode_done=is_over,
            next_messages=tuple(self._history),
            metrics=metrics,
            logs=logs,
        )

    def _calls_left(self) -> float:
        bound = self._limits.calls_per_episode
        return math.inf if bound is None else max(bound - self._calls, 0)

    def _allowed(self, calls: Sequence[ToolCall]) -> int:
        """How many of a message's calls may be made."""
        in_turn = self._limits.calls_per_turn
        return int(min(len(calls), self._calls_left(), math.inf if in_turn is None else in_turn))

    def _end(
        self, message: Message, answers: Sequence[_Answer], *, has_dropped: bool
    ) -> StopReason | None:
        """Why the episode ends with this message; None if it goes on."""
        if not message.tool_calls and not message.unparsed_tool_calls:
            return StopReason.COMPLETED
        if any(answer.should_stop for answer in answers):
            return StopReason.TOOL_STOPPED
        if has_dropped:
            return StopReason.MAX_TOOL_CALLS
        if self._limits.turns is not None and self._turns >= self._limits.turns:
            return StopReason.MAX_TURNS
        return None

    async def _made(self, calls: Sequence[ToolCall]) -> list[_Answer]:
        """The answers, in the order of the calls."""
        self._calls += len(calls)
        if self._execution == "sequential":
            return [await self._answer(call) for call in calls]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._answer(call)) for call in calls]
        return [task.result() for task in tasks]

    async def _answer(self, call: ToolCall) -> _Answer:
        seconds = self._limits.seconds_per_call
        try:
            async with asyncio.timeout(seconds) as limit:
                result = await self._run(call)
            return _Answer(
                message=_said(call, result.content),
                is_error=False,
                should_stop=result.should_stop,
                metrics=result.metrics,
            )
        # A tool may raise anything; the model is told and the metric counts it.
        except Exception as error:
            if limit.expired():
                return _failed(call, f"it took longer than {seconds} seconds")
            is_ours = isinstance(error, CookbookError)
            return _failed(call, str(error) if is_ours else f"{type(error).__name__}: {error}")

    async def _run(self, call: ToolCall) -> ToolResult:
        if call.name not in self._tools:
            raise DataError(
                f"there is no tool {call.name!r}; there are {', '.join(sorted(self._tools))}"
            )
        arguments = call.parsed_arguments
        if not isinstance(arguments, Mapping):
            raise DataError(f"the arguments of {call.name} must be an object, got {arguments!r}")
        return await self._tools[call.name].run(arguments)


def _said(call: ToolCall, content: str | tuple[Part, ...]) -> Message:
    return Message(role="tool", content=content, name=call.name, tool_call_id=call.id)


def _failed(call: ToolCall, why: str) -> _Answer:
    # Half a surrogate pair in what an exception says is no text for a message.
    readable = f"Error: {why}".encode(errors="replace").decode()
    return _Answer(_said(call, readable), is_error=True, should_stop=False, metrics={})


def _metrics(answers: Sequence[_Answer], *, num_made: int) -> dict[str, float]:
    metrics = {
        "tool_calls": float(num_made),
        "tool_errors": float(sum(answer.is_error for answer in answers)),
    }
    for answer in answers:
        for key, value in answer.metrics.items():
            name = f"{answer.message.name}/{key}"
            metrics[name] = metrics.get(name, 0.0) + value
    return metrics


def _logs(message: Message, answers: Sequence[_Answer]) -> dict[str, str]:
    """The calls and what came of each, and what could not be read."""
    logs = {f"unparsed_{i}": call.error for i, call in enumerate(message.unparsed_tool_calls)}
    for i, (call, answer) in enumerate(zip(message.tool_calls, answers, strict=True)):
        logs[f"tool_call_{i}"] = f"{call.name}({call.arguments})"
        logs[f"tool_result_{i}"] = answer.message.text
    return logs


def _graded(grade: Graded) -> tuple[Reward, Metrics]:
    return grade if isinstance(grade, tuple) else (grade, {})
