"""A model's opinion of two completions: the probabilities of its labels, by few requests."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.lm import AdamParams
from cookbook_fx.preference import (
    Comparison,
    ComparisonRendererFromChatRenderer,
    LabeledComparison,
    prepare_comparisons,
)
from cookbook_fx.renderers import get_renderer
from shell.clients import NewLoRA, Sampler, connect
from shell.hub import load_tokenizer
from shell.rollouts.preference_model import PreferenceModel, PreferenceModelFromChatRenderer


@dataclass(frozen=True, kw_only=True)
class CountingSampler(Sampler):
    """The real one, which notes what it is asked."""

    asked: list[str] = field(default_factory=list)

    def score(self, tokens):
        self.asked.append("score")
        return super().score(tokens)

    def next_tokens(self, prompt, *, top_k):
        self.asked.append("next_tokens")
        return super().next_tokens(prompt, top_k=top_k)


def comparison(first: str = "on the mat", second: str = "a dog") -> Comparison:
    def said(text: str) -> tuple[Message, ...]:
        return (Message(role="assistant", content=text),)

    return Comparison(
        prompt_conversation=(Message(role="user", content="where is the cat"),),
        completion_A=said(first),
        completion_B=said(second),
    )


@pytest.fixture(scope="module")
def renderer(tiny_model_directory):
    return get_renderer("chatml", load_tokenizer(tiny_model_directory))


def asking(engine, directory, use, *, path=None):
    """Runs `use` on a sampler of the tiny model, or of what was saved at a path."""

    async def run():
        async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
            base = None if path else str(directory)
            sampler = await service.sampler(base_model=base, path=path)
            counting = CountingSampler(sdk=sampler.sdk)
            return await use(counting), counting.asked

    return asyncio.run(run())


async def by_scoring(sampler: Sampler, renderer, compared: Comparison) -> np.ndarray:
    """The probabilities of the labels by the definition: three whole sequences scored."""
    comparisons = ComparisonRendererFromChatRenderer(renderer=renderer)
    logprobs = []
    for label in ("A", "B", "Tie"):
        example = comparisons.build_supervised_example(
            LabeledComparison(comparison=compared, label=label)
        )
        scored = await sampler.score(example.tokens)
        logprobs.append(scored[example.weights == 1].sum())
    shares = np.exp(logprobs)
    return shares / shares.sum()


def test_labels_that_an_untrained_model_would_not_say_are_asked_for_one_by_one(
    tiny_engine, tiny_model_directory, renderer
):
    async def use(sampler):
        model = PreferenceModelFromChatRenderer(renderer=renderer, sampler=sampler)
        assert isinstance(model, PreferenceModel)
        found = await model.label_probabilities(comparison())
        asked = list(sampler.asked)
        assert found.score == await model(comparison())
        return found, await by_scoring(sampler, renderer, comparison()), asked

    (found, expected, asked), _ = asking(tiny_engine, tiny_model_directory, use)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert asked[0] == "next_tokens"


@pytest.fixture(scope="module")
def trained(tiny_engine, tiny_model_directory, renderer) -> str:
    """A judge that has seen A preferred three times out of four."""
    labels = ("A", "A", "A", "B")
    labeled = [LabeledComparison(comparison=comparison(), label=label) for label in labels]
    comparisons = ComparisonRendererFromChatRenderer(renderer=renderer)
    examples = prepare_comparisons(labeled, renderer=comparisons).forward

    async def run() -> str:
        async with connect(base_url=tiny_engine.base_url, api_key=tiny_engine.api_key) as service:
            lora = NewLoRA(base_model=str(tiny_model_directory), rank=4, seed=0)
            trainer = await service.create(lora)
            for _ in range(20):
                trainer.forward_backward(examples)
                trainer.optim_step(AdamParams(learning_rate=2e-2))
            return await trainer.save_for_sampling("judge")

    return asyncio.run(run())


def test_a_trained_judge_is_asked_once_and_its_whole_opinion_counts(
    tiny_engine, tiny_model_directory, renderer, trained
):
    async def use(sampler):
        model = PreferenceModelFromChatRenderer(renderer=renderer, sampler=sampler)
        found = await model.label_probabilities(comparison())
        return found, list(sampler.asked), await by_scoring(sampler, renderer, comparison())

    (found, asked, expected), _ = asking(tiny_engine, tiny_model_directory, use, path=trained)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert asked[0] == "next_tokens"
    assert len(asked) <= 2  # A tie was never seen and may be unlikely.
    # The likeliest label alone, as upstream takes it, would be a score of -1.
    assert found.score == pytest.approx(-0.5, abs=0.15)


def test_labels_of_several_tokens_are_scored_whole(tiny_engine, tiny_model_directory, renderer):
    spelled: Mapping[str, tuple[int, ...]] = MappingProxyType(
        {"A": (40, 41), "B": (40, 42), "Tie": (40, 43)}
    )

    async def use(sampler):
        model = PreferenceModelFromChatRenderer(renderer=renderer, sampler=sampler)
        object.__setattr__(model._comparisons, "label_tokens", spelled)
        found = await model.label_probabilities(comparison())
        prompt = model._comparisons.build_generation_prompt(comparison())
        logprobs = [
            (await sampler.score(np.append(prompt, label)))[-2:].sum() for label in spelled.values()
        ]
        return found, np.exp(logprobs) / np.exp(logprobs).sum(), sampler.asked[:3]

    (found, expected, asked), _ = asking(tiny_engine, tiny_model_directory, use)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert asked == ["score"] * 3
