"""Evaluators made of a data set and a grader."""

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cookbook_fx.chat import Conversation, Message, conversation_to_dict
from cookbook_fx.errors import ConfigurationError, CookbookError, DataError
from cookbook_fx.renderers import Renderer
from cookbook_fx.reports import ScoreReport, mean_scores
from shell.clients import Sample, Sampler, SampleRequest
from shell.evaluation.answers import AnswersFile, ExampleRecord, GradedAnswer, mean_length
from shell.evaluation.rl_test_set import group_seeds
from shell.rollouts import TimeLimitExceeded
from shell.rollouts.attempts import concurrently, within
from shell.rollouts.calls import called


class GradingFailed(CookbookError, RuntimeError):
    """An answer that a grader has no score for; it counts as 0, and is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationExample:
    """Something to be answered, and what a grader knows of it.

    Args:
        prompt: the conversation so far.
        reference: the right answer, or whatever else the grader wants; JSON, to be kept in a file.
    """

    prompt: Conversation
    reference: Any = None


Grader = Callable[[Message, EvaluationExample], Any]
"""From an answer and its example to a score, or a mapping of named ones: a pure function.

A plain function runs in a thread, an `async` one on the event loop. A bare score, which may be a
bool, is called `accuracy`.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CustomEvaluator:
    """Has every example answered, graded, and the scores averaged.

    Args:
        dataset: the examples.
        grader: says how good an answer is. One that takes too long, or raises `GradingFailed`,
            gives the answer 0; any other error of it ends the evaluation.
        renderer: the model's chat format.
        max_tokens: the longest answer.
        temperature: of sampling; 0 always takes the likeliest token.
        top_p: sample from the likeliest tokens that make up this probability only; 1 from all.
        num_samples: answers to each example; with several, which need a temperature above 0, there
            is pass@k.
        context_window: tokens that prompt and answer may have together; None leaves that to the
            engine.
        grading_seconds: time the grader may take for an answer; None is no limit.
        concurrency: examples under way at a time.
        name: what the measurements are filed under.
        answers: keeps all answers; what is found there under the same key is not sampled again,
            but graded again.
        model: stands for the weights in those keys. Without it nothing found is used.
        observe: told of every example when its answers are graded.

    Raises:
        ConfigurationError: there is no example, or a number is out of range.
    """

    dataset: Sequence[EvaluationExample]
    grader: Grader
    renderer: Renderer
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    context_window: int | None = None
    grading_seconds: float | None = 10.0
    concurrency: int = 64
    name: str = "test"
    answers: AnswersFile | None = None
    model: str | None = None
    observe: Callable[[ExampleRecord], None] | None = None

    def __post_init__(self) -> None:
        if not len(self.dataset):
            raise ConfigurationError("an evaluation needs at least one example, got none")
        for name in ("max_tokens", "num_samples", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.temperature < math.inf:
            raise ConfigurationError(
                f"`temperature` must be 0 or more and finite, got {self.temperature}"
            )
        if self.num_samples > 1 and self.temperature == 0:
            raise ConfigurationError(
                f"{self.num_samples} answers to an example would be the same one at temperature 0; "
                "set a higher one, such as 1, or ask for one answer"
            )

    async def __call__(self, sampler: Sampler, *, seed: int) -> tuple[ScoreReport]:
        """Asks, grades and sums up.

        Args:
            sampler: the weights.
            seed: of all that is sampled.

        Returns:
            As `mean_scores`, and `ac_tokens` (tokens in an answer), `frac_cut_off` (the share of
            answers that did not come to an end), `grading_failed` and `num_examples`.

        Raises:
            ServiceError: the engine failed.
            DataError: a score is no finite number, or the file of answers is damaged.
            Exception: whatever the grader raises.
        """
        known = await asyncio.to_thread(self._known)
        seeds = group_seeds(seed, len(self.dataset))
        places = asyncio.Semaphore(self.concurrency)

        async def one(index: int) -> ExampleRecord:
            async with places:
                return await self._example(index, sampler, seed=seeds[index], known=known)

        records = await concurrently(one, range(len(self.dataset)))
        return (ScoreReport(name=self.name, scores=_summed_up(records)),)

    def _known(self) -> Mapping[str, ExampleRecord]:
        return {} if self.answers is None or self.model is None else self.answers.latest()

    async def _example(
        self, index: int, sampler: Sampler, *, seed: int, known: Mapping[str, ExampleRecord]
    ) -> ExampleRecord:
        example = self.dataset[index]
        key = self._key(example, seed=seed)
        found = known.get(key)
        said = await self._answers(example, sampler, seed=seed) if found is None else found.answers
        record = ExampleRecord(
            example=index,
            key=key,
            prompt=example.prompt,
            reference=example.reference,
            answers=tuple([await self._graded(answer, example, index) for answer in said]),
        )
        if self.answers is not None and record != found:
            await asyncio.to_thread(self.answers.append, record)
        if self.observe is not None:
            self.observe(record)
        return record

    async def _answers(
        self, example: EvaluationExample, sampler: Sampler, *, seed: int
    ) -> tuple[GradedAnswer, ...]:
        prompt = await asyncio.to_thread(self.renderer.build_generation_prompt, example.prompt)
        window = self.context_window
        max_tokens = (
            self.max_tokens if window is None else min(self.max_tokens, window - len(prompt))
        )
        if max_tokens < 1:
            error = f"a prompt of {len(prompt)} tokens leaves no room to answer in {window}"
            nothing = GradedAnswer(
                message=None, scores={}, stop_reason="context", num_tokens=0, error=error
            )
            return (nothing,) * self.num_samples
        samples = await sampler.sample(
            SampleRequest(
                prompt=prompt,
                max_tokens=max_tokens,
                stop=self.renderer.get_stop_sequences(),
                num_samples=self.num_samples,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=seed,
            )
        )
        return tuple(map(self._parsed, samples))

    def _parsed(self, sample: Sample) -> GradedAnswer:
        return GradedAnswer(
            message=self.renderer.parse_response(sample.tokens).message,
            scores={},
            stop_reason=sample.stop_reason,
            num_tokens=len(sample.tokens),
        )

    async def _graded(
        self, answer: GradedAnswer, example: EvaluationExample, index: int
    ) -> GradedAnswer:
        if answer.message is None:
            return answer
        try:
            given = await within(
                self.grading_seconds,
                called(self.grader, answer.message, example),
                what=f"the grader of {self.name}",
                limit="grading_seconds",
            )
        except (GradingFailed, TimeLimitExceeded) as error:
            return replace(answer, scores={}, error=str(error))
        except Exception as error:
            error.add_note(f"while grading an answer to example {index} of {self.name}")
            raise
        return replace(answer, scores=_checked(given, self.name), error=None)

    def _key(self, example: EvaluationExample, *, seed: int) -> str:
        """Stands for all that decides the answers to an example, on an engine that repeats."""
        decisive = {
            "model": self.model,
            "renderer": self.renderer.name,
            "prompt": conversation_to_dict(example.prompt),
            "sampling": [self.max_tokens, self.temperature, self.top_p, self.num_samples],
            "context_window": self.context_window,
            "seed": seed,
        }
        text = json.dumps(decisive, sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _checked(given: object, name: str) -> dict[str, float]:
    """Scores by name, as floats."""
    scores = given if isinstance(given, Mapping) else {"accuracy": given}
    checked = {}
    for key, value in scores.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not isinstance(key, str) or not math.isfinite(number):
            raise DataError(
                f"the grader of {name} must give a finite number, or several by name; got {given!r}"
            )
        checked[key] = number
    if not checked:
        raise DataError(f"the grader of {name} gave no score; raise GradingFailed if there is none")
    return checked


def _summed_up(records: Sequence[ExampleRecord]) -> dict[str, float]:
    answers = [answer for record in records for answer in record.answers]
    measured = mean_scores([[each.scores for each in record.answers] for record in records])
    own = {
        "ac_tokens": mean_length(answers),
        "frac_cut_off": sum(each.stop_reason != "stop" for each in answers) / len(answers),
        "grading_failed": sum(each.error is not None for each in answers),
        "num_examples": len(records),
    }
    twice = own.keys() & measured.keys()
    if twice:
        raise DataError(f"a score may not be called {', '.join(sorted(twice))}; rename it")
    return measured | own
