"""Examples answered, graded and averaged; answers kept and used again, whole or torn."""

import asyncio
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import get_renderer
from shell.clients import Sample
from shell.evaluation import AnswersFile, CustomEvaluator, EvaluationExample, GradingFailed
from shell.hub import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_model_directory):
    return load_tokenizer(tiny_model_directory)


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return get_renderer("chatml", tokenizer)


def examples(*words: str) -> tuple[EvaluationExample, ...]:
    return tuple(
        EvaluationExample(prompt=(Message(role="user", content=word),), reference=word)
        for word in words
    )


@dataclass
class Parrot:
    """Says the question again, or in its later answers something else; notes the requests."""

    tokenizer: object
    requests: list = field(default_factory=list)

    async def sample(self, request):
        self.requests.append(request)
        text = self.tokenizer.decode(request.prompt.tolist())
        question = text.rpartition("user\n")[2].partition("<|im_end|>")[0]
        said = [question, *["something else"] * (request.num_samples - 1)]
        return tuple(self._sample(text, request) for text in said)

    def _sample(self, text, request):
        tokens = [*self.tokenizer.encode(text, add_special_tokens=False), 2][: request.max_tokens]
        return Sample(
            tokens=np.array(tokens, np.int32),
            logprobs=np.zeros(len(tokens), np.float32),
            stop_reason="stop" if tokens[-1] == 2 else "length",
        )


def is_right(message, example):
    return message.text == example.reference


def measured(evaluator, sampler, seed=0):
    (report,) = asyncio.run(evaluator(sampler, seed=seed))
    return report.scores


def test_each_example_is_asked_once_for_all_its_answers(tokenizer, renderer):
    evaluator = CustomEvaluator(
        dataset=examples("the cat", "the dog"), grader=is_right, renderer=renderer, num_samples=4,
        temperature=0.5, max_tokens=9, name="pets",
    )  # fmt: skip
    sampler = Parrot(tokenizer)
    scores = measured(evaluator, sampler)
    assert [request.num_samples for request in sampler.requests] == [4, 4]
    assert len({request.seed for request in sampler.requests}) == 2
    assert scores["accuracy"] == 0.25
    assert scores["accuracy_stderr"] == 0
    assert scores["accuracy/pass@2"] == 0.5
    assert scores["accuracy/pass@4"] == 1
    assert scores["num_examples"] == 2
    assert scores["grading_failed"] == scores["frac_cut_off"] - 0.75 == 0


def test_scores_may_have_names_and_a_grader_may_be_async(tokenizer, renderer):
    async def graded(message, example):
        await asyncio.sleep(0)
        return {"same": is_right(message, example), "length": len(message.text)}

    evaluator = CustomEvaluator(dataset=examples("the cat"), grader=graded, renderer=renderer)
    scores = measured(evaluator, Parrot(tokenizer))
    assert (scores["same"], scores["length"]) == (1, 7)
    assert "same_stderr" not in scores


def test_a_grader_that_hangs_or_gives_up_costs_its_answer_alone(tokenizer, renderer):
    main = threading.get_ident()

    def graded(message, example):
        assert threading.get_ident() != main
        if message.text == "hang":
            time.sleep(5)
        if message.text == "give up":
            raise GradingFailed("no idea")
        return 1

    evaluator = CustomEvaluator(
        dataset=examples("hang", "give up", "the cat", "the dog"), grader=graded,
        renderer=renderer, grading_seconds=0.5,
    )  # fmt: skip
    began = time.monotonic()
    scores = measured(evaluator, Parrot(tokenizer))
    assert time.monotonic() - began < 4
    assert scores["accuracy"] == 0.5
    assert scores["grading_failed"] == 2


def test_an_error_of_the_grader_says_where(tokenizer, renderer):
    evaluator = CustomEvaluator(
        dataset=examples("the cat"), grader=lambda message, example: 1 / 0, renderer=renderer,
        name="pets",
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError) as raised:
        measured(evaluator, Parrot(tokenizer))
    assert raised.value.__notes__ == ["while grading an answer to example 0 of pets"]


@pytest.mark.parametrize("score", [float("nan"), "good", None, {}, {"ac_tokens": 1}, {3: 1}])
def test_what_is_no_score_is_refused(tokenizer, renderer, score):
    evaluator = CustomEvaluator(
        dataset=examples("the cat"), grader=lambda message, example: score, renderer=renderer
    )
    with pytest.raises(DataError):
        measured(evaluator, Parrot(tokenizer))


def test_a_prompt_without_room_counts_as_wrong(tokenizer, renderer):
    evaluator = CustomEvaluator(
        dataset=examples("the cat", "the cat " * 200), grader=is_right, renderer=renderer,
        context_window=100,
    )  # fmt: skip
    scores = measured(evaluator, Parrot(tokenizer))
    assert scores["accuracy"] == scores["frac_cut_off"] == 0.5
    assert scores["grading_failed"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"dataset": ()},
        {"max_tokens": 0},
        {"num_samples": 0},
        {"temperature": -1.0},
        # All of them would be the same.
        {"num_samples": 2, "temperature": 0.0},
    ],
)
def test_what_cannot_be_asked_is_refused(renderer, wrong):
    settings = {"dataset": examples("a"), "grader": is_right, "renderer": renderer} | wrong
    with pytest.raises(ConfigurationError):
        CustomEvaluator(**settings)


def test_what_was_answered_is_not_asked_again_but_graded_again(tokenizer, renderer, tmp_path):
    file = AnswersFile(path=tmp_path / "kept" / "answers.jsonl")
    first = CustomEvaluator(
        dataset=examples("the cat", "the dog", "the mat"), grader=is_right, renderer=renderer,
        answers=file, model="tiny",
    )  # fmt: skip
    whole = measured(first, Parrot(tokenizer))
    # Killed in the middle of the last line.
    data = file.path.read_bytes()
    file.path.write_bytes(data[:-30])
    sampler = Parrot(tokenizer)
    assert measured(first, sampler) == whole
    assert len(sampler.requests) == 1
    assert len(file.path.read_bytes()) == len(data)

    sampler = Parrot(tokenizer)
    other = replace(first, grader=lambda message, example: "cat" in message.text)
    assert measured(other, sampler)["accuracy"] == pytest.approx(1 / 3)
    assert not sampler.requests
    assert [record.answers[0].scores["accuracy"] for record in file.latest().values()].count(1) == 1

    for changed in ({"model": "another"}, {"max_tokens": 8}, {"model": None}):
        sampler = Parrot(tokenizer)
        measured(replace(first, **changed), sampler)
        assert len(sampler.requests) == 3
    sampler = Parrot(tokenizer)
    measured(first, sampler, seed=1)
    assert len(sampler.requests) == 3


def test_a_damaged_file_of_answers_is_told(tokenizer, renderer, tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"example":0,"key":5}\n')
    evaluator = CustomEvaluator(
        dataset=examples("a"), grader=is_right, renderer=renderer,
        answers=AnswersFile(path=path), model="tiny",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"answers.jsonl, line 1: expected an example"):
        measured(evaluator, Parrot(tokenizer))
