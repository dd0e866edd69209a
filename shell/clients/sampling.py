"""A model that answers: a base model, or one saved in training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tinker
from jaxtyping import Float, Int

from shell.clients import convert
from shell.clients.convert import NextTokens, Sample, TopTokens
from shell.clients.pending import Pending
from shell.clients.versions import LAST_PLACE_ONLY, awaitable


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """What to complete and how.

    Args:
        prompt: token ids.
        max_tokens: longest completion.
        stop: strings or token ids that end one; the stop itself is part of the completion.
        num_samples: independent completions of the one prompt.
        temperature: 0 always takes the likeliest token.
        top_k: sample from the likeliest so many tokens only; -1 from all.
        top_p: sample from the likeliest tokens that make up this probability only; 1 from all.
        seed: same seed, same completions, on an engine that keeps the promise.
    """

    prompt: Int[np.ndarray, " token"]
    max_tokens: int
    stop: Sequence[str] | Sequence[int]
    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Completes prompts with fixed weights; any number of requests may be under way at once."""

    sdk: tinker.SamplingClient

    def sample(self, request: SampleRequest) -> Pending[tuple[Sample, ...]]:
        """Submits the request; the result has `num_samples` completions."""
        future = self.sdk.sample(
            prompt=convert.to_sdk_prompt(request.prompt),
            num_samples=request.num_samples,
            sampling_params=tinker.SamplingParams(
                max_tokens=request.max_tokens,
                seed=request.seed,
                stop=list(request.stop),
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
            ),
        )
        return Pending(future=awaitable(future), convert=convert.from_sdk_samples, doing="sampling")

    def score(self, tokens: Int[np.ndarray, " token"]) -> Pending[Float[np.ndarray, " token"]]:
        """Submits tokens to be judged: how likely each is after those before it, in nats.

        The first has nothing before it and is nan.
        """
        return Pending(
            future=awaitable(self.sdk.compute_logprobs(convert.to_sdk_prompt(tokens))),
            convert=convert.from_sdk_logprobs,
            doing="scoring",
        )

    def next_tokens(self, prompt: Int[np.ndarray, " token"], *, top_k: int) -> Pending[NextTokens]:
        """Submits a prompt to be told the `top_k` likeliest tokens after it."""
        # What is told of a place does not depend on the token that stands there.
        asked = np.append(prompt, prompt[-1:])
        future = self.sdk.sample(
            prompt=convert.to_sdk_prompt(asked),
            num_samples=1,
            sampling_params=tinker.SamplingParams(max_tokens=1),
            include_prompt_logprobs=True,
            topk_prompt_logprobs=top_k,
            **LAST_PLACE_ONLY,
        )
        return Pending(
            future=awaitable(future), convert=convert.from_sdk_next_tokens, doing="scoring"
        )

    def likeliest(self, tokens: Int[np.ndarray, " token"], *, top_k: int) -> Pending[TopTokens]:
        """Submits tokens to be told, for the place of each, the `top_k` likeliest there."""
        future = self.sdk.sample(
            prompt=convert.to_sdk_prompt(tokens),
            num_samples=1,
            sampling_params=tinker.SamplingParams(max_tokens=1),
            include_prompt_logprobs=True,
            topk_prompt_logprobs=top_k,
        )
        return Pending(
            future=awaitable(future), convert=convert.from_sdk_top_tokens, doing="scoring"
        )

    @property
    def base_model(self) -> str:
        """The name of the base model, as the engine knows it."""
        return self.sdk.get_base_model()
