"""Tools: typed functions that a model may call, and the environment in which it does.

@tool
async def search(query: Annotated[str, "what to look for"], limit: int = 5) -> str:
    \"\"\"Searches the archive.\"\"\"
    ...

env = EnvFromMessageEnv(renderer, ToolEnv([search], messages, reward_fn))
"""

import asyncio
import inspect
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, Protocol, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from cookbook_fx.chat import Message, Part, ToolCall, ToolSpec, declaring_tools
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


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call came to.

    Args:
        content: what the model is told.
        should_stop: end the episode.
        metrics: numbers to report, as `<tool>/<name>`; those of a turn's calls are added up.
    """

    content: str | tuple[Part, ...]
    _: KW_ONLY
    should_stop: bool = False
    metrics: Metrics = field(default_factory=dict)


class Tool(Protocol):
    """What a model may call."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told of it."""

    async def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        """One call. Whatever it raises, the model is told and the episode goes on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FunctionTool:
    """A function as a tool; made by `tool`, and still to be called as the function it is.

    Args:
        spec: what the model is told of it.
        function: what is called; plain functions run in a thread.
        arguments: reads a call's arguments and checks them.
    """

    spec: ToolSpec
    function: Callable[..., Any]
    arguments: type[BaseModel]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Calls the function."""
        return self.function(*arguments, **keywords)

    def __get__(self, instance: object, owner: type | None = None) -> "FunctionTool":
        """The tool of one object, where the function is a method."""
        if instance is None:
            return self
        return replace(self, function=self.function.__get__(instance, owner))

    async def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Checks the arguments and calls the function.

        Raises:
            DataError: the arguments are not what the function takes, or its result cannot be
                written as JSON.
        """
        try:
            read = self.arguments.model_validate(arguments)
        except ValidationError as error:
            raise DataError(_complaint(self.spec.name, error)) from error
        names = {key: held.alias or key for key, held in self.arguments.model_fields.items()}
        given = {name: getattr(read, key) for key, name in names.items()}
        return _result(await called(self.function, **given))


def tool(function: Callable[..., Any]) -> FunctionTool:
    """Makes a tool of a function or a method, `async` or not.

    Its name and docstring tell the model what it is; its parameters' types become the JSON Schema
    of the arguments, by which each call is checked. A parameter is described by a string in its
    `Annotated`, by pydantic's `Field` there, or under `Args:` in the docstring. It returns text,
    anything that JSON can hold, or a `ToolResult`.

    Raises:
        ConfigurationError: a parameter has no type, or one that JSON Schema has no words for, or
            cannot be given by name.

    Example:
        >>> @tool
        ... def weather(city: Annotated[str, "of a town"], days: int = 1) -> str:
        ...     '''The weather to come.'''
        ...     return f"Rain in {city}."
        >>> weather.spec.description, weather.spec.parameters["required"]
        ('The weather to come.', ['city'])
        >>> weather.spec.parameters["properties"]["city"]
        {'description': 'of a town', 'type': 'string'}
        >>> asyncio.run(weather.run({"city": "Oslo"})).content
        'Rain in Oslo.'
    """
    name = function.__name__
    description, about = _documented(inspect.getdoc(function) or "")
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    parameters = inspect.signature(function).parameters
    for number, parameter in enumerate(parameters.values()):
        if number == 0 and parameter.name == "self":
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"a tool's parameters are given by name, and `{parameter}` of {name} cannot be"
            )
        if parameter.name not in hints:
            raise ConfigurationError(
                f"a tool's parameters need types, and `{parameter.name}` of {name} has none; "
                f"write `{parameter.name}: str`, or whatever it is"
            )
        # Under names of its own, because pydantic has taken some, `json` and `copy` among them.
        fields[f"argument_{number}"] = _field(
            parameter, hints[parameter.name], about.get(parameter.name)
        )
    try:
        arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        schema = arguments.model_json_schema()
    except PydanticUserError as error:
        raise ConfigurationError(
            f"the parameters of {name} cannot be told in JSON Schema: {error}"
        ) from error
    spec = ToolSpec(name=name, description=description, parameters=_untitled(schema))
    return FunctionTool(spec=spec, function=function, arguments=arguments)


def _field(parameter: inspect.Parameter, hint: Any, about: str | None) -> tuple[Any, Any]:
    """A parameter as pydantic has it: its type and its default."""
    noted = getattr(hint, "__metadata__", ())
    said = next((note for note in noted if isinstance(note, str)), None)
    if said is None and not any(isinstance(n, FieldInfo) and n.description for n in noted):
        said = about
    described: dict[str, Any] = {} if said is None else {"description": said}
    default = ... if parameter.default is parameter.empty else parameter.default
    return Annotated[hint, Field(alias=parameter.name, **described)], default


_SECTION = re.compile(r"^(Args|Arguments|Parameters):\s*\n((?:[ \t]+.*(?:\n|$)|\s*\n)*)", re.M)
_ENTRY = re.compile(r"^(\w+)(?: *\(.*?\))?: *(.*)$")


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each parameter."""
    section = _SECTION.search(text)
    if section is None:
        return text.strip(), {}
    about: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(section[2]).splitlines():
        entry = _ENTRY.match(line)
        if entry is not None:
            name, about[entry[1]] = entry[1], entry[2]
        elif name:
            about[name] = f"{about[name]} {line.strip()}".strip()
    rest = text[: section.start()].rstrip() + "\n\n" + text[section.end() :].lstrip()
    return rest.strip(), about


_LITERAL_KEYS = ("const", "default", "enum", "examples")


def _untitled(schema: Any) -> Any:
    """A schema without the titles pydantic gives everything: names spelled with capitals."""
    match schema:
        case dict():
            return {
                key: _each_untitled(value) if key in ("properties", "$defs")
                else value if key in _LITERAL_KEYS
                else _untitled(value)
                for key, value in schema.items()
                if key != "title"
            }  # fmt: skip
        case list():
            return [_untitled(item) for item in schema]
        case _:
            return schema


def _each_untitled(schemas: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _untitled(schema) for name, schema in schemas.items()}


def _complaint(name: str, error: ValidationError) -> str:
    """What is wrong with a call's arguments, for the model to read."""
    wrong = (
        f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    )
    return f"the arguments do not fit {name}: {'; '.join(wrong)}"


def _result(returned: Any) -> ToolResult:
    if isinstance(returned, ToolResult):
        return returned
    if isinstance(returned, str):
        return ToolResult(returned)
    try:
        return ToolResult(json.dumps(to_jsonable_python(returned), ensure_ascii=False))
    except ValueError as error:
        raise DataError(
            f"a tool returns text, what JSON can hold, or a ToolResult; got {error}"
        ) from error


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
