"""Inspect AI: our models as its models, and its tasks as evaluators. Needs the extra `inspect`.

Nothing is evaluated when this is imported. Inspect runs on the caller's event loop, one evaluation
at a time, as it keeps its state in globals.
"""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from inspect_ai import Task, eval_async
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    Content,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    modelapi,
)
from inspect_ai.tool import ToolCall as InspectToolCall
from inspect_ai.tool import ToolChoice, ToolInfo

# Private there, and the only way to keep Inspect from drawing over what a run shows.
from inspect_ai.util._display import display_type_initialized, init_display_type

from cookbook_fx.chat import (
    Conversation,
    ImagePart,
    Message,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    content_of,
    declaring_tools,
)
from cookbook_fx.errors import ConfigurationError, CookbookError, DataError
from cookbook_fx.renderers import Renderer
from cookbook_fx.reports import ScoreReport
from cookbook_fx.runs import derived_seed
from cookbook_fx.tokens import Tokenizer, text_codec
from shell.clients import Sample, Sampler, SampleRequest

# What would change the answers and no engine of ours does.
_REFUSED_SETTINGS = (
    "best_of",
    "frequency_penalty",
    "logit_bias",
    "presence_penalty",
    "prompt_logprobs",
    "response_schema",
    "top_logprobs",
)
_ONE_AT_A_TIME: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


class InspectFailed(CookbookError, RuntimeError):
    """An Inspect evaluation that did not come to its end."""


@modelapi(name="cookbook-fx")
class InspectModel(ModelAPI):
    """A model behind an engine, as Inspect sees it.

    Args:
        model_name: what logs call it.
        base_url: not used; the sampler knows its engine.
        api_key: not used.
        config: Inspect's settings.
        sampler: the weights.
        renderer: the chat format.
        tokenizer: the model's own.
        max_tokens: the longest answer, where a task does not say.
        context_window: tokens that prompt and answer may have together; None leaves that to the
            engine.
        include_reasoning: keep what the model thinks in its messages.
        seed: of all that is sampled, where a task does not say.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # as Inspect's own
        *,
        sampler: Sampler,
        renderer: Renderer,
        tokenizer: Tokenizer,
        max_tokens: int = 2048,
        context_window: int | None = None,
        include_reasoning: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self._sampler = sampler
        self._renderer = renderer
        self._codec = text_codec(tokenizer)
        self._max_tokens = max_tokens
        self._context_window = context_window
        self._include_reasoning = include_reasoning
        self._seed = seed
        self._asked: Counter[bytes] = Counter()

    def max_connections(self) -> int:
        """Requests at a time; an engine decodes many together."""
        return 512

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Samples an answer, or as many as `num_choices` says.

        Raises:
            ConfigurationError: a setting cannot be honored, such as a tool that must be called.
            DataError: a message is of a kind that cannot be rendered.
            ServiceError: the engine fails.
        """
        _check(config, tools, tool_choice)
        conversation = declaring_tools(
            conversation_from_inspect(input),
            [] if tool_choice == "none" else list(map(_tool_spec, tools)),
        )
        prompt = await asyncio.to_thread(self._renderer.build_generation_prompt, conversation)
        asked = config.max_tokens or self._max_tokens
        window = self._context_window
        room = asked if window is None else min(asked, window - len(prompt))
        if room < 1:
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length")
        samples = await self._sampler.sample(
            SampleRequest(
                prompt=prompt,
                max_tokens=room,
                stop=self._renderer.get_stop_sequences(),
                num_samples=config.num_choices or 1,
                temperature=1.0 if config.temperature is None else config.temperature,
                top_k=-1 if config.top_k is None else config.top_k,
                top_p=1.0 if config.top_p is None else config.top_p,
                seed=self._next_seed(prompt) if config.seed is None else config.seed,
            )
        )
        cut_off: StopReason = "max_tokens" if room == asked else "model_length"
        sampled = sum(len(sample.tokens) for sample in samples)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(sample, config, cut_off=cut_off) for sample in samples],
            usage=ModelUsage(
                input_tokens=len(prompt),
                output_tokens=sampled,
                total_tokens=len(prompt) + sampled,
            ),
            input_context_tokens=len(prompt),
        )

    def _next_seed(self, prompt: np.ndarray) -> int:
        """Another one for each prompt and each time it is asked, whatever comes in between."""
        key = prompt.tobytes()
        self._asked[key] += 1
        return derived_seed(self._seed, self._asked[key], *prompt.tolist())

    def _choice(
        self, sample: Sample, config: GenerateConfig, *, cut_off: StopReason
    ) -> ChatCompletionChoice:
        said = self._renderer.parse_response(sample.tokens).message
        text, is_stopped = _before(said.text, config.stop_seqs or ())
        reason: StopReason = "stop"
        if sample.stop_reason == "length" and not is_stopped:
            reason = cut_off
        calls = [] if is_stopped else _calls(said)
        content: str | list[Content] = text
        if said.thinking and self._include_reasoning:
            content = [ContentReasoning(reasoning=said.thinking), ContentText(text=text)]
        return ChatCompletionChoice(
            message=ChatMessageAssistant(
                content=content, tool_calls=calls or None, model=self.model_name, source="generate"
            ),
            stop_reason="tool_calls" if calls and reason == "stop" else reason,
            logprobs=self._logprobs(sample) if config.logprobs else None,
        )

    def _logprobs(self, sample: Sample) -> Logprobs:
        spelled = self._codec.spelled
        return Logprobs(
            content=[
                Logprob(
                    token=self._codec.decode([token]),
                    logprob=logprob,
                    bytes=None if spelled is None else list(spelled[token]),
                )
                for token, logprob in zip(
                    sample.tokens.tolist(), sample.logprobs.tolist(), strict=True
                )
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InspectEvaluator:
    """Inspect tasks as an evaluator.

    Args:
        tasks: as Inspect names them (`file.py`, `file.py@task`, `package/task`), or the tasks.
        renderer: the model's chat format.
        tokenizer: the model's own.
        model_name: what Inspect's logs call the model.
        max_tokens: the longest answer, where a task does not say.
        temperature: of sampling, where a task does not say.
        top_k: sample from the likeliest so many tokens only; -1 from all.
        top_p: sample from the likeliest tokens that make up this probability only; 1 from all.
        num_choices: answers to each request; tasks as a rule look at the first.
        context_window: tokens that prompt and answer may have together; None leaves that to the
            engine.
        include_reasoning: keep what the model thinks in its messages.
        limit: samples of each task at most; None takes all.
        epochs: how often each sample is asked; None is as the task says.
        log_dir: where Inspect's logs are kept; None keeps none.

    Raises:
        ConfigurationError: there is no task.
    """

    tasks: Sequence[str | Task]
    renderer: Renderer
    tokenizer: Tokenizer
    model_name: str = "model"
    max_tokens: int = 2048
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    num_choices: int = 1
    context_window: int | None = None
    include_reasoning: bool = True
    limit: int | None = None
    epochs: int | None = None
    log_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigurationError("an Inspect evaluation needs at least one task, got none")

    async def __call__(self, sampler: Sampler, *, seed: int) -> tuple[ScoreReport, ...]:
        """Runs the tasks; a report for each, named like the task.

        Its numbers are the task's metrics; where it has several scorers, `scorer/metric`.

        Raises:
            InspectFailed: a task cannot be found or run, or has no scores.
        """
        lock = _ONE_AT_A_TIME.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        async with lock:
            if self.log_dir is not None:
                return await self._run(sampler, seed=seed, log_dir=self.log_dir)
            with tempfile.TemporaryDirectory() as directory:
                return await self._run(sampler, seed=seed, log_dir=Path(directory))

    async def _run(self, sampler: Sampler, *, seed: int, log_dir: Path) -> tuple[ScoreReport, ...]:
        if not display_type_initialized():
            init_display_type("none")
        api = InspectModel(
            self.model_name,
            sampler=sampler,
            renderer=self.renderer,
            tokenizer=self.tokenizer,
            max_tokens=self.max_tokens,
            context_window=self.context_window,
            include_reasoning=self.include_reasoning,
            seed=seed,
        )
        config = GenerateConfig(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            num_choices=self.num_choices,
        )
        try:
            logs = await eval_async(
                list(self.tasks),
                model=Model(api, config),
                limit=self.limit,
                epochs=self.epochs,
                log_dir=str(log_dir),
                log_level="warning",
                # Nobody but the caller is to control this process.
                ctl_server=False,
            )
        # Inspect, and the modules that tasks are in, raise what they like.
        except Exception as error:
            raise InspectFailed(f"Inspect could not run {self._named()}: {error}") from error
        return tuple(map(_report, logs))

    def _named(self) -> str:
        return ", ".join(task if isinstance(task, str) else task.name for task in self.tasks)


def _report(log: EvalLog) -> ScoreReport:
    """What a log says was measured."""
    if log.status == "cancelled":
        raise asyncio.CancelledError
    if log.status != "success" or log.results is None:
        reason = log.error.message if log.error is not None else f"its status is {log.status}"
        raise InspectFailed(f"the Inspect task {log.eval.task} failed: {reason}")
    scorers = log.results.scores
    if not scorers:
        raise InspectFailed(f"the Inspect task {log.eval.task} has no scores; give it a scorer")
    scores = {
        name if len(scorers) == 1 else f"{scorer.name}/{name}": float(metric.value)
        for scorer in scorers
        for name, metric in scorer.metrics.items()
    }
    scores["num_samples"] = log.results.completed_samples
    return ScoreReport(name=log.eval.task.rpartition("/")[2], scores=scores)


def _check(config: GenerateConfig, tools: Sequence[ToolInfo], choice: ToolChoice) -> None:
    for name in _REFUSED_SETTINGS:
        if getattr(config, name):
            raise ConfigurationError(
                f"the task sets `{name}`, which these engines cannot do; leave it out"
            )
    if tools and choice not in ("auto", "none"):
        raise ConfigurationError(
            f"the task wants tool_choice={choice!r}, and a model cannot be made to call a tool; "
            "use auto"
        )


def _before(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first of some stops, and whether there is one."""
    found = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def _calls(said: Message) -> list[InspectToolCall]:
    calls = [_call(call, f"call_{number}") for number, call in enumerate(said.tool_calls)]
    return calls + [
        InspectToolCall(
            id=f"call_{number}",
            function="unparsed",
            arguments={"raw": call.raw_text},
            parse_error=call.error,
        )
        for number, call in enumerate(said.unparsed_tool_calls, start=len(calls))
    ]


def _call(call: ToolCall, identity: str) -> InspectToolCall:
    arguments = call.parsed_arguments
    is_object = isinstance(arguments, dict)
    return InspectToolCall(
        id=call.id or identity,
        function=call.name,
        arguments=arguments if is_object else {},
        parse_error=None if is_object else f"arguments must be an object, got {call.arguments}",
    )


def _tool_spec(tool: ToolInfo) -> ToolSpec:
    return ToolSpec(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters.model_dump(exclude_none=True),
    )


def conversation_from_inspect(messages: Sequence[ChatMessage]) -> Conversation:
    """Inspect's messages as ours.

    Raises:
        DataError: one holds audio, video or documents.
    """
    return tuple(map(_from_inspect, messages))


def _from_inspect(message: ChatMessage) -> Message:
    content: Any = message.content
    if isinstance(message, ChatMessageTool) and message.error is not None:
        content = message.error.message
    if not isinstance(content, str):
        content = content_of(list(map(_part, content)))
    calls = message.tool_calls or () if isinstance(message, ChatMessageAssistant) else ()
    is_tool = isinstance(message, ChatMessageTool)
    return Message(
        role=message.role,
        content=content,
        tool_calls=tuple(
            ToolCall(name=call.function, arguments=json.dumps(call.arguments), id=call.id)
            for call in calls
        ),
        tool_call_id=message.tool_call_id if is_tool else None,
        name=message.function if is_tool else None,
    )


def _part(part: Content) -> TextPart | ThinkingPart | ImagePart:
    match part:
        case ContentText():
            return TextPart(text=part.text)
        case ContentReasoning():
            return ThinkingPart(thinking=part.reasoning)
        case ContentImage():
            return ImagePart(image=part.image)
        case _:
            raise DataError(f"a message holds {part.type}, which cannot be rendered")
