"""Asking a model one question."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cookbook_fx.chat import Message
from cookbook_fx.renderers import Renderer
from shell.clients import Sample, Sampler, SampleRequest


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


class Answer(NamedTuple):
    """What a model said, and the tokens it said it in."""

    text: str
    sampled: Sample


async def answers(
    sampler: Sampler, question: str, *, renderer: Renderer, manner: Manner
) -> tuple[str, ...]:
    """The texts of what a model says to a question, as of `sampled_answers`."""
    sampled = await sampled_answers(sampler, question, renderer=renderer, manner=manner)
    return tuple(answer.text for answer in sampled)


async def sampled_answers(
    sampler: Sampler, question: str, *, renderer: Renderer, manner: Manner
) -> tuple[Answer, ...]:
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
    samples = await sampler.sample(request)
    parsed = [renderer.parse_response(sample.tokens) for sample in samples]
    return tuple(
        Answer(response.message.text + ("" if response.termination.is_clean else " …"), sample)
        for response, sample in zip(parsed, samples, strict=True)
    )
