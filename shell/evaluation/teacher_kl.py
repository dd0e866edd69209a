"""How far a student is from its teachers on prompts that it is not trained on."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from cookbook_fx.distillation import JudgedBatch, teacher_kl
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.reports import TeacherReport
from cookbook_fx.rl import trajectory_batch
from shell.clients import Sampler
from shell.evaluation.rl_test_set import group_seeds
from shell.rollouts import (
    EnvGroupBuilder,
    RolloutOptions,
    TinkerTokenCompleter,
    do_batch_rollout,
)
from shell.rollouts.references import reference_logprobs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherKLEvaluator:
    """Has the student answer, and its teachers judge each token: KL(student ‖ teacher).

    Args:
        groups: what is answered; each says which teacher is its own.
        teachers: the models.
        max_tokens: longest answer.
        name: what the measurements are filed under.
        context_window: tokens that prompt and answer may have together; None leaves that to the
            engine.
        options: how the answers are had, and what becomes of those that fail.
        concurrency: groups under way at a time.

    Raises:
        ConfigurationError: there are no groups, or a number is below 1.
    """

    groups: Sequence[EnvGroupBuilder]
    teachers: Sequence[Sampler]
    max_tokens: int
    name: str = "test"
    context_window: int | None = None
    options: RolloutOptions = field(default_factory=RolloutOptions)
    concurrency: int = 64

    def __post_init__(self) -> None:
        if not len(self.groups):
            raise ConfigurationError("an evaluation needs at least one group, got none")
        for name in ("max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {getattr(self, name)}")

    async def __call__(self, sampler: Sampler, *, seed: int) -> tuple[TeacherReport]:
        """Samples at temperature 1, where the student is itself, and asks the teachers.

        Args:
            sampler: the student.
            seed: of all that is sampled.

        Raises:
            Exception: as `do_batch_rollout` and `reference_logprobs`.
        """
        policy = TinkerTokenCompleter(
            sampler, max_tokens=self.max_tokens, context_window=self.context_window
        )
        played = await do_batch_rollout(
            self.groups,
            policy,
            options=self.options,
            seeds=group_seeds(seed, len(self.groups)),
            concurrency=self.concurrency,
        )
        batch = await asyncio.to_thread(trajectory_batch, played)
        judges = await asyncio.to_thread(lambda: [each.reference() for each in self.groups])
        logprobs = await reference_logprobs(self.teachers, batch, judges)
        judged = JudgedBatch(batch, logprobs, references=[judge.index for judge in judges])
        return (TeacherReport(name=self.name, kl=teacher_kl([judged])),)
