"""What evaluators are, and how several of them measure the same weights side by side."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import Renderer
from cookbook_fx.reports import Report
from cookbook_fx.tokens import Tokenizer
from shell.clients import Sampler, Service, Trainer
from shell.rollouts.attempts import concurrently

Submitted = TypeVar("Submitted")


@runtime_checkable
class TrainingClientEvaluator(Protocol[Submitted]):
    """Measures the weights in training by passes over data, in two parts.

    Because an engine does one trainer's operations in the order of their submission, what is
    submitted now measures the weights as of now, and training goes on meanwhile.
    """

    def submit(self, trainer: Trainer) -> Submitted:
        """Sends the passes, without waiting."""

    async def measure(self, submitted: Submitted) -> Report:
        """Waits for the answers, and says what was measured."""


class SamplingClientEvaluator(Protocol):
    """Measures weights by what is sampled from them, or by how likely they find text."""

    async def __call__(self, sampler: Sampler, *, seed: int) -> Sequence[Report]:
        """What was measured.

        Args:
            sampler: the weights.
            seed: the same one measures the same, where samples and environments do not vary.
        """


Evaluator = TrainingClientEvaluator[Any] | SamplingClientEvaluator


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationContext:
    """What an evaluator of a model may be made from.

    Args:
        service: the engine, for other models that take part.
        model: the base model's name.
        renderer: the model's chat format.
        tokenizer: the model's own.
        context_window: tokens the model can read, if known.
    """

    service: Service
    model: str
    renderer: Renderer
    tokenizer: Tokenizer
    context_window: int | None = None


EvaluatorBuilder = Callable[[EvaluationContext], Awaitable[Evaluator]]
"""Makes an evaluator once the engine and the chat format are known; a value that can wait."""


class SubmittedEvaluations(NamedTuple):
    """Evaluations under way.

    Fields:
        passes: what each evaluator that trains' client has sent; None for the others.
        sampler: the weights for the others; None if there are none.
    """

    passes: tuple[Any, ...]
    sampler: Awaitable[Sampler] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluations:
    """Evaluators that measure the same weights side by side.

    Args:
        evaluators: of both kinds, in any order.
        seed: given to all, each time the same, so that what differs is the weights.
        concurrency: evaluators at work at a time.

    Raises:
        ConfigurationError: `concurrency` is below 1.
    """

    evaluators: Sequence[Evaluator]
    seed: int = 0
    concurrency: int = 4

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ConfigurationError(f"`concurrency` must be at least 1, got {self.concurrency}")

    def submit(
        self, trainer: Trainer, sampler: Awaitable[Sampler] | None = None
    ) -> SubmittedEvaluations:
        """Fixes the weights that are measured to those of now, without waiting.

        Args:
            trainer: holds the weights.
            sampler: the same weights to sample from, if somebody has them; asked for if not.
        """
        passes = tuple(
            each.submit(trainer) if isinstance(each, TrainingClientEvaluator) else None
            for each in self.evaluators
        )
        are_all = all(isinstance(each, TrainingClientEvaluator) for each in self.evaluators)
        return SubmittedEvaluations(passes, None if are_all else sampler or trainer.snapshot())

    async def measure(self, submitted: SubmittedEvaluations) -> list[Report]:
        """Waits for what was submitted; what was measured, in the order of the evaluators.

        Raises:
            Exception: as the first evaluator that fails; the others are given up.
        """
        sampler = None if submitted.sampler is None else await submitted.sampler
        return await self._side_by_side(submitted.passes, sampler)

    async def of_sampler(self, sampler: Sampler) -> list[Report]:
        """Measures weights that are not in training.

        Raises:
            ConfigurationError: an evaluator wants weights in training.
            Exception: as the first evaluator that fails; the others are given up.
        """
        for each in self.evaluators:
            if isinstance(each, TrainingClientEvaluator):
                raise ConfigurationError(
                    f"{type(each).__name__} measures weights in training, and these are only "
                    "sampled from; choose an evaluator that samples"
                )
        return await self._side_by_side([None] * len(self.evaluators), sampler)

    async def _side_by_side(
        self, passes: Sequence[object], sampler: Sampler | None
    ) -> list[Report]:
        places = asyncio.Semaphore(self.concurrency)

        async def one(pair: tuple[Evaluator, object]) -> list[Report]:
            evaluator, submitted = pair
            async with places:
                if isinstance(evaluator, TrainingClientEvaluator):
                    return [await evaluator.measure(submitted)]
                return list(await evaluator(sampler, seed=self.seed))

        found = await concurrently(one, zip(self.evaluators, passes, strict=True))
        return [report for reports in found for report in reports]
