"""Asking a model one question."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from cookbook_fx.chat import Message
from cookbook_fx.renderers import Renderer
from shell.clients import Sampler, SampleRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How an answer is sampled.

    Args:
        max_tokens: longest answer.
        temperature: 0 always takes the likeliest token.
        top_p: sample from the likeliest tokens that make up this probability only.
        num_samples: independent answers.
        seed: same seed, same answers.
    """

    max_tokens: int = 160
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    seed: int = 0


def question_prompt(question: str, renderer: Renderer) -> Int[np.ndarray, " token"]:
    """What a model reads when it is asked a question."""
    return renderer.build_generation_prompt((Message(role="user", content=question),))


async def answers(
    sampler: Sampler, question: str, *, renderer: Renderer, manner: Manner
) -> tuple[str, ...]:
    """What a model says to a question; an answer cut off by `max_tokens` ends in an ellipsis."""
    request = SampleRequest(
        prompt=question_prompt(question, renderer),
        max_tokens=manner.max_tokens,
        stop=renderer.get_stop_sequences(),
        num_samples=manner.num_samples,
        temperature=manner.temperature,
        top_p=manner.top_p,
        seed=manner.seed,
    )
    parsed = [renderer.parse_response(sample.tokens) for sample in await sampler.sample(request)]
    return tuple(
        response.message.text + ("" if response.termination.is_clean else " …")
        for response in parsed
    )
