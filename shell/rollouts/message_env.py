"""Environments that are talked to in messages, and what makes token environments of them."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cookbook_fx.chat import Conversation, Message, message_from_dict
from cookbook_fx.renderers import (
    ParsedResponse,
    ParseFailure,
    ParseFailureKind,
    Renderer,
    classify_parse_failure,
)
from cookbook_fx.rl import PARSE_ERROR_MASKED, StopReason
from cookbook_fx.rl.trajectory import Logs, Metrics, Reward
from shell.rollouts.env import (
    Action,
    ActionExtra,
    Env,
    InitialObservationOverflow,
    Observation,
    StepResult,
    StopCondition,
)
from shell.rollouts.limits import ParseErrorPolicy

AnyMessage = Message | Mapping[str, Any]
"""A message, or the dictionary that `message_from_dict` reads."""


def conversation_of(messages: Iterable[AnyMessage]) -> Conversation:
    """Messages, those given as dictionaries read.

    Raises:
        DataError: a dictionary is no message.

    Example:
        >>> conversation_of([{"role": "user", "content": "Hi"}])[0].text
        'Hi'
    """
    return tuple(
        message if isinstance(message, Message) else message_from_dict(message)
        for message in messages
    )


def stop_metric(reason: str) -> dict[str, float]:
    """The metric with which the last turn says why the episode ended."""
    return {f"stop/{reason}": 1.0}


def correction_of(message: Message, policy: ParseErrorPolicy) -> str:
    """What is answered to a message that could not be read, which the conversation quotes."""
    errors = [call.error for call in message.unparsed_tool_calls]
    return policy.retry_message("\n".join(errors) or "It did not end as a message should.")


@dataclass(frozen=True, slots=True, eq=False)
class MessageStepResult:
    """What a message led to.

    Args:
        reward: earned by the message.
        episode_done: whether that was the last one.
        next_messages: the whole conversation to answer next; does not matter at the end.
        metrics: numbers to average and report. `stop/<reason>` at 1 on the last turn says why the
            episode ended.
        logs: what to show of this turn; not averaged.
        next_stop_condition: where the next message stops; None is the chat format's own stop.
    """

    reward: Reward
    episode_done: bool
    next_messages: Sequence[AnyMessage]
    metrics: Metrics = field(default_factory=dict)
    logs: Logs = field(default_factory=dict)
    next_stop_condition: StopCondition | None = None


class MessageEnv(ABC):
    """One episode of one agent, in messages. Used once."""

    @abstractmethod
    async def initial_observation(self) -> Sequence[AnyMessage]:
        """The conversation to answer first."""

    @abstractmethod
    async def step(self, message: Message) -> MessageStepResult:
        """Takes one message of the assistant's."""

    async def add_messages(self, messages: Sequence[Message]) -> Sequence[AnyMessage] | None:
        """Hears of messages that were said without a step, to keep them in its conversation.

        A response that could not be read or was cut off, and what was answered to it.

        Returns:
            The whole conversation with them; None where none is kept, which leaves them out of it
            from the next step on.
        """
        del messages
        return None

    def bound_tool_calls(self, max_tool_calls: int) -> None:
        """Hears before each step how many tools the episode may call at most."""
        del max_tool_calls


class _Verdict(NamedTuple):
    """What becomes of a response that cannot be read; no correction ends the episode."""

    reward: float
    correction: str | None
    is_masked: bool


class EnvFromMessageEnv(Env):
    """Renders what a message environment says into tokens, and reads messages from actions.

    Rendering and parsing happen in threads. Each turn reports as metric `parse_error` whether it
    could be read.

    A response that does not end as the format has it costs `failed_parse_reward` and ends the
    episode, or else is answered with what is wrong, and the conversation goes on from there. Any
    other is the message environment's to answer, unreadable tool calls too. A `ParseErrorPolicy`
    of the rollout overrules all this.

    Args:
        renderer: the chat format.
        message_env: the environment.
        failed_parse_reward: what a response earns that does not end as it should.
        terminate_on_parse_error: whether it ends the episode.
        max_trajectory_tokens: the longest prompt, `max_generation_tokens` included; a longer one
            ends the episode. None is no bound.
        max_generation_tokens: tokens to leave room for.
        context_overflow_reward: what is added to the reward of a turn after which the prompt is
            too long, and what a response earns that was cut off and ends the episode.
        terminate_on_length: a response that was cut off ends the episode; otherwise it stands in
            the conversation as it is and the model speaks again.
    """

    def __init__(
        self,
        renderer: Renderer,
        message_env: MessageEnv,
        failed_parse_reward: float = -1.0,
        *,
        terminate_on_parse_error: bool = True,
        max_trajectory_tokens: int | None = None,
        max_generation_tokens: int | None = None,
        context_overflow_reward: float = -0.1,
        terminate_on_length: bool = True,
    ) -> None:
        self.renderer = renderer
        self.message_env = message_env
        self.failed_parse_reward = failed_parse_reward
        self.terminate_on_parse_error = terminate_on_parse_error
        self.max_trajectory_tokens = max_trajectory_tokens
        self.max_generation_tokens = max_generation_tokens
        self.context_overflow_reward = context_overflow_reward
        self.terminate_on_length = terminate_on_length
        self._conversation: Conversation = ()
        self._failures_in_a_row = 0

    async def initial_observation(
        self,
    ) -> tuple[Observation, StopCondition] | InitialObservationOverflow:
        """The first prompt, or that it is too long."""
        self._conversation = conversation_of(await self.message_env.initial_observation())
        prompt = await self._prompt()
        overflow = self._overflow(prompt)
        if overflow is None:
            return prompt, self.renderer.get_stop_sequences()
        return InitialObservationOverflow(
            reward=self.context_overflow_reward,
            metrics=stop_metric(StopReason.MAX_TOKENS),
            logs={"initial_observation_overflow": overflow},
        )

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """Reads the message and takes a step with it."""
        told = extra or ActionExtra()
        max_tool_calls = told.get("max_tool_calls")
        if max_tool_calls is not None:
            self.message_env.bound_tool_calls(max_tool_calls)
        parsed = await asyncio.to_thread(self.renderer.parse_response, action)
        if told.get("stop_reason") == "length":
            return await self._cut_off(parsed.message)
        failure = classify_parse_failure(parsed)
        verdict = self._verdict(parsed, failure, told.get("parse_errors"))
        if failure is None or verdict is None:
            self._failures_in_a_row = 0
            return await self._answered(parsed.message, parse_error=float(failure is not None))
        return await self._unread(parsed.message, failure, verdict)

    async def _answered(self, message: Message, *, parse_error: float) -> StepResult:
        step = await self.message_env.step(message)
        self._conversation = conversation_of(step.next_messages)
        metrics = {"parse_error": parse_error, **step.metrics}
        if step.episode_done:
            return self._ended(step.reward, metrics, step.logs)
        return await self._continued(
            step.reward, metrics, step.logs, stop_condition=step.next_stop_condition
        )

    async def _cut_off(self, message: Message) -> StepResult:
        metrics = {"parse_error": 0.0}
        if self.terminate_on_length:
            stopped = metrics | stop_metric(StopReason.MAX_TOKENS)
            return self._ended(self.context_overflow_reward, stopped, {})
        await self._extend(message)
        return await self._continued(0.0, metrics, {})

    def _verdict(
        self, parsed: ParsedResponse, failure: ParseFailure | None, policy: ParseErrorPolicy | None
    ) -> _Verdict | None:
        """What becomes of a response that cannot be read; None where a step is taken with it."""
        if failure is None:
            return None
        is_structural = failure.kind is ParseFailureKind.STRUCTURAL
        if not is_structural and (policy is None or parsed.message.tool_calls):
            return None
        if policy is None:
            reason = correction_of(parsed.message, ParseErrorPolicy())
            correction = None if self.terminate_on_parse_error else reason
            return _Verdict(self.failed_parse_reward, correction, is_masked=False)
        self._failures_in_a_row += 1
        if is_structural or self._failures_in_a_row > policy.max_consecutive:
            return _Verdict(policy.terminal_reward, None, policy.mask_error_turns)
        correction = correction_of(parsed.message, policy)
        return _Verdict(-policy.penalty_per_error, correction, policy.mask_error_turns)

    async def _unread(
        self, message: Message, failure: ParseFailure, verdict: _Verdict
    ) -> StepResult:
        metrics = {"parse_error": 1.0}
        if verdict.is_masked:
            metrics[PARSE_ERROR_MASKED] = 1.0
        logs = {
            "parse_failure_kind": failure.kind.value,
            "parse_failure_detail": failure.detail,
        }
        if verdict.correction is None:
            stopped = metrics | stop_metric(StopReason.PARSE_ERROR)
            return self._ended(verdict.reward, stopped, logs)
        await self._extend(message, Message(role="user", content=verdict.correction))
        return await self._continued(verdict.reward, metrics, logs)

    async def _extend(self, *messages: Message) -> None:
        kept = await self.message_env.add_messages(messages)
        added = (*self._conversation, *messages) if kept is None else kept
        self._conversation = conversation_of(added)

    async def _continued(
        self,
        reward: Reward,
        metrics: Metrics,
        logs: Logs,
        *,
        stop_condition: StopCondition | None = None,
    ) -> StepResult:
        prompt = await self._prompt()
        overflow = self._overflow(prompt)
        if overflow is not None:
            stopped = {**metrics, **stop_metric(StopReason.CONTEXT_OVERFLOW)}
            logs = {**logs, "context_overflow": overflow}
            return self._ended(reward + self.context_overflow_reward, stopped, logs)
        stop = self.renderer.get_stop_sequences() if stop_condition is None else stop_condition
        return StepResult(reward, False, prompt, stop, metrics, logs)  # noqa: FBT003

    def _ended(self, reward: Reward, metrics: Metrics, logs: Logs) -> StepResult:
        return StepResult(
            reward=reward,
            episode_done=True,
            next_observation=(),
            next_stop_condition=self.renderer.get_stop_sequences(),
            metrics=metrics,
            logs=logs,
        )

    async def _prompt(self) -> Observation:
        return await asyncio.to_thread(self.renderer.build_generation_prompt, self._conversation)

    def _overflow(self, prompt: Observation) -> str | None:
        """Why a prompt is too long; None if it is not."""
        room = self.max_generation_tokens or 0
        most = self.max_trajectory_tokens
        if most is None or len(prompt) + room <= most:
            return None
        return (
            f"a prompt of {len(prompt)} tokens and {room} to generate are more than the "
            f"{most} that a trajectory may have"
        )
