"""Policies: what answers a prompt with tokens, or a conversation with a message."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, DataError, ServiceError
from cookbook_fx.renderers import ParsedResponse, Renderer
from cookbook_fx.tokens import TokensWithLogprobs
from shell.clients import Sample, Sampler, SampleRequest
from shell.rollouts.env import Observation, StopCondition


class ContextOverflow(DataError):
    """A prompt that fills the context, so that nothing can be sampled after it."""


class TokenCompleter(Protocol):
    """Answers a prompt with tokens."""

    async def __call__(
        self,
        prompt: Observation,
        stop: StopCondition,
        *,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> TokensWithLogprobs:
        """One answer.

        Args:
            prompt: token ids.
            stop: strings or token ids that end the answer and are its last part.
            max_tokens: the longest answer, where that is less than the completer's own bound.
            seed: same seed, same answer, where the model can promise that.
        """


@runtime_checkable
class GroupTokenCompleter(TokenCompleter, Protocol):
    """Answers a prompt several times at the cost of reading it once."""

    async def many(
        self,
        prompt: Observation,
        stop: StopCondition,
        *,
        num_samples: int,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> Sequence[TokensWithLogprobs]:
        """`num_samples` independent answers."""


@dataclass(frozen=True, slots=True)
class TinkerTokenCompleter:
    """A model behind an engine; answers with what it samples.

    Args:
        sampler: the weights to sample from.
        max_tokens: longest answer.
        temperature: 0 always takes the likeliest token.
        top_k: sample from the likeliest so many tokens only; -1 from all.
        top_p: sample from the likeliest tokens that make up this probability only; 1 from all.
        context_window: tokens that prompt and answer may have together; None leaves that to the
            engine.

    Raises:
        ConfigurationError: `max_tokens` is below 1.
    """

    sampler: Sampler
    _: KW_ONLY
    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    context_window: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigurationError(f"`max_tokens` must be at least 1, got {self.max_tokens}")

    async def __call__(
        self,
        prompt: Observation,
        stop: StopCondition,
        *,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> TokensWithLogprobs:
        """One answer; see `many`."""
        (answer,) = await self.many(prompt, stop, num_samples=1, max_tokens=max_tokens, seed=seed)
        return answer

    async def many(
        self,
        prompt: Observation,
        stop: StopCondition,
        *,
        num_samples: int,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> tuple[TokensWithLogprobs, ...]:
        """Several answers in one request.

        Raises:
            ContextOverflow: the prompt fills the context window.
            ServiceError: the engine fails, or answers a different number of times.
        """
        request = SampleRequest(
            prompt=np.asarray(prompt),
            max_tokens=self._room(len(prompt), max_tokens),
            stop=stop,
            num_samples=num_samples,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
        )
        samples = await self.sampler.sample(request)
        if len(samples) != num_samples:
            raise ServiceError(
                f"the engine was asked for {num_samples} samples and answered with {len(samples)}; "
                "see the engine's log"
            )
        return tuple(map(_answer, samples))

    def _room(self, prompt_tokens: int, max_tokens: int | None) -> int:
        asked = self.max_tokens if max_tokens is None else min(self.max_tokens, max_tokens)
        if self.context_window is None:
            return asked
        left = self.context_window - prompt_tokens
        if left < 1:
            raise ContextOverflow(
                f"a prompt of {prompt_tokens} tokens leaves no room to sample in a context window "
                f"of {self.context_window}; shorten the prompt, or bound the episode's tokens"
            )
        return min(asked, left)


class MessageCompleter(Protocol):
    """Answers a conversation with a message."""

    async def __call__(self, messages: Sequence[Message]) -> Message:
        """The next message."""


@dataclass(frozen=True, slots=True)
class TinkerMessageCompleter:
    """A model behind an engine that is talked to in a chat format.

    Args:
        sampler: the weights to sample from.
        renderer: the chat format.
        max_tokens: longest message, in tokens.
        stop: what ends a message; the format's own stop if None.
        temperature: 0 always takes the likeliest token.
        top_k: sample from the likeliest so many tokens only; -1 from all.
        top_p: sample from the likeliest tokens that make up this probability only; 1 from all.
        context_window: tokens that conversation and message may have together; None leaves that to
            the engine.
    """

    sampler: Sampler
    _: KW_ONLY
    renderer: Renderer
    max_tokens: int
    stop: StopCondition | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    context_window: int | None = None

    async def __call__(self, messages: Sequence[Message]) -> Message:
        """The message alone; `respond` also says how it ended."""
        return (await self.respond(messages)).message

    async def respond(
        self, messages: Sequence[Message], *, seed: int | None = None
    ) -> ParsedResponse:
        """The message and how it ended, what looks like a tool call and is none included.

        Raises:
            ContextOverflow: the conversation fills the context window.
            ServiceError: the engine fails.
        """
        complete = TinkerTokenCompleter(
            self.sampler,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            context_window=self.context_window,
        )
        stop = self.renderer.get_stop_sequences() if self.stop is None else self.stop
        prompt = self.renderer.build_generation_prompt(messages)
        answer = await complete(prompt, stop, seed=seed)
        return self.renderer.parse_response(answer.tokens)


def _answer(sample: Sample) -> TokensWithLogprobs:
    return TokensWithLogprobs(
        tokens=sample.tokens,
        maybe_logprobs=sample.logprobs,
        stop_reason="length" if sample.stop_reason == "length" else "stop",
    )
