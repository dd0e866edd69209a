"""Off-policy distillation over a real engine: a teacher's opinion as targets of the SFT loop."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.distillation import OwnPrompt, TaughtExample, soft_target_datum, taught_examples
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import get_renderer
from cookbook_fx.supervised import SupervisedDataset
from shell.clients import connect
from shell.hub import load_tokenizer
from shell.training.sft import SFTData
from shell.training.soft_targets import soft_target_data
from tests.shell.training.conftest import conversations


def told(engine, model, examples, **options):
    async def ask():
        async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
            teacher = await service.sampler(base_model=str(model))
            return await soft_target_data(examples, teacher, **options)

    return asyncio.run(ask())


def scored(engine, model, tokens):
    async def ask():
        async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
            return await (await service.sampler(base_model=str(model))).score(tokens)

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def renderer(tiny_model_directory):
    return get_renderer("chatml", load_tokenizer(tiny_model_directory))


def test_targets_are_the_whole_opinion_of_the_teacher(engine, tiny_model_directory, renderer):
    (example,) = taught_examples(conversations(1), renderer=renderer)
    (datum,) = told(engine, tiny_model_directory, [example], top_k=300, renormalized=False)
    assert datum.target_tokens.shape == (len(example.tokens) - 1, 300)
    counts = example.weights[1:] > 0
    np.testing.assert_allclose(datum.weights.sum(axis=1), counts, atol=1e-4)
    # Of the token that stands there, the share is what scoring says.
    logprobs = scored(engine, tiny_model_directory, example.tokens)
    for place in np.flatnonzero(counts):
        at = datum.target_tokens[place] == example.tokens[place + 1]
        assert np.log(datum.weights[place][at]) == pytest.approx(logprobs[place + 1], abs=1e-3)


def test_a_model_taught_by_itself_with_the_answer_shown_learns_in_the_supervised_loop(
    engine, tiny_model_directory, renderer, runner, tmp_path
):
    def with_answer(conversation):
        shown = Message(role="system", content=f"the answer is {conversation[-1].text}")
        return (shown, *conversation[:-1])

    examples = taught_examples(conversations(8), renderer=renderer, teacher_prompt=with_answer)
    datums = told(engine, tiny_model_directory, examples, top_k=5)
    (datum, example) = (datums[0], examples[0])
    np.testing.assert_allclose(datum.weights.sum(axis=1), example.weights[1:], atol=1e-5)
    data = SFTData(train=SupervisedDataset(datums=datums, batch_size=4))
    taught = replace(runner, data=data)
    assert taught(tmp_path / "run").finished


def test_places_are_those_behind_the_prompts():
    prompt = OwnPrompt(student=np.array([1, 2]), teacher=np.array([7]))
    example = TaughtExample(
        tokens=np.array([1, 2, 5, 6]), weights=np.array([0, 0, 1, 0.5], np.float32), prompt=prompt
    )
    ids = np.array([[0, 0], [5, 3], [6, 4]])
    logprobs = np.log(np.array([[np.nan, np.nan], [0.75, 0.25], [0.5, 0.25]]))
    datum = soft_target_datum(example, ids, logprobs, renormalized=False)
    assert datum.target_tokens.tolist() == [[0, 0], [5, 3], [6, 4]]
    np.testing.assert_allclose(datum.weights, [[0, 0], [0.75, 0.25], [0.25, 0.125]])


def test_what_cannot_be_taught_is_refused(renderer):
    asked = (Message(role="user", content="hello"),)
    with pytest.raises(DataError, match="end with a message of the assistant"):
        taught_examples([asked], renderer=renderer)
    with pytest.raises(DataError, match="leaves nothing"):
        taught_examples(conversations(1), renderer=renderer, max_length=3)
    example = TaughtExample(tokens=np.array([1, 2]), weights=np.ones(2, np.float32))
    nothing = np.full((2, 1), np.nan)
    with pytest.raises(DataError, match="no candidate"):
        soft_target_datum(example, np.zeros((2, 1), int), nothing)
    with pytest.raises(DataError, match="shown 2 tokens"):
        soft_target_datum(example, np.zeros((3, 1), int), np.zeros((3, 1)))
    with pytest.raises(ConfigurationError, match="top_k"):
        asyncio.run(soft_target_data([example], None, top_k=0))
