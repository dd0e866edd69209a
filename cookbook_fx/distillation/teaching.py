"""What a teacher is asked of a student's tokens, and how far the two lie apart.

On-policy distillation is reinforcement learning whose advantage is the teacher's opinion of what
the student sampled: Aₜ = -coef (log p_student - log p_teacher). `teaching_objective` says so to
`cookbook_fx.rl`; here is what is particular to teachers: several of them, each for some of the
groups, each shown a prompt of its own where it needs one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.errors import DataError
from cookbook_fx.rl import Objective, TrajectoryBatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnPrompt:
    """What a teacher is shown where the student saw its prompt.

    Its own chat format, say, or the same question with an example answered before. What the student
    sampled comes after it, token for token.

    Args:
        student: the tokens that rows begin with.
        teacher: those that stand in their place.

    Raises:
        DataError: the teacher's prompt is empty, so that it could not judge the first token.

    Example:
        >>> own = OwnPrompt(student=np.array([1, 2]), teacher=np.array([7, 8, 9]))
        >>> own.shown(np.array([1, 2, 5, 6])).tolist()
        [7, 8, 9, 5, 6]
        >>> own.judged(np.array([np.nan, -3, -3, -1, -2]), length=4).tolist()
        [0.0, 0.0, -1.0, -2.0]
    """

    student: Int[np.ndarray, " student"]
    teacher: Int[np.ndarray, " teacher"]

    def __post_init__(self) -> None:
        if not len(self.teacher):
            raise DataError("a teacher's own prompt must have at least one token, got none")

    def shown(self, row: Int[np.ndarray, " token"]) -> Int[np.ndarray, " shown"]:
        """A row with the teacher's prompt in place of the student's.

        Raises:
            DataError: the row does not begin with the student's prompt.
        """
        length = len(self.student)
        if not np.array_equal(row[:length], self.student):
            raise DataError(
                f"a row of {len(row)} tokens does not begin with the {length} tokens of the prompt "
                "that the teacher has its own for; a teacher with a renderer or demonstrations of "
                "its own judges episodes whose observations all go on from their first"
            )
        return np.concatenate([self.teacher, row[length:]])

    def judged(
        self, logprobs: Float[np.ndarray, " shown"], *, length: int
    ) -> Float[np.ndarray, " token"]:
        """The teacher's log-probabilities as values of the row's tokens; 0 at the prompt.

        Args:
            logprobs: of each token of what was shown.
            length: tokens of the row.
        """
        of_row = np.zeros(length, np.float32)
        of_row[len(self.student) :] = logprobs[len(self.teacher) :]
        return of_row


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupReference:
    """Which model's opinion of a group counts, and what that model is shown.

    Args:
        index: which of the run's references: the base policy of a KL penalty, or a teacher.
        prompt: what it is shown in place of the group's prompt; None is the same.
    """

    index: int = 0
    prompt: OwnPrompt | None = None


def teaching_objective(
    *,
    coef: float = 1.0,
    discount: float = 0.0,
    loss: str = "importance_sampling",
    loss_config: Mapping[str, float] | None = None,
    rewards: bool = False,
) -> Objective:
    """The objective of on-policy distillation: the reverse KL to the teacher, and nothing else.

        Aₜ = -coef Σₖ γᵏ (log p_student - log p_teacher)ₜ₊ₖ

    Args:
        coef: weight of a nat.
        discount: γ; charges a token also for what follows it, and 0 for itself alone.
        loss: a policy loss by Tinker's name.
        loss_config: its settings.
        rewards: also count what the environments pay, centered in each group.

    Raises:
        ConfigurationError: a setting is out of range.

    Example:
        >>> objective = teaching_objective(coef=0.5)
        >>> objective.kl_penalty_coef, objective.kl_centered, objective.advantages
        (0.5, False, 'none')

    Reference: Agarwal et al. 2024, On-policy distillation of language models, arXiv:2306.13649; Lu
        et al. 2025, On-policy distillation, thinkingmachines.ai/blog/on-policy-distillation.
    """
    return Objective(
        advantages="group_centered" if rewards else "none",
        loss=loss,
        loss_config=dict(loss_config or {}),
        kl_penalty_coef=coef,
        kl_discount_factor=discount,
        kl_centered=False,
    )


class JudgedBatch(NamedTuple):
    """Rows, and what teachers think of them.

    Fields:
        batch: the rows.
        teacher_logprobs: for each row a value a token.
        references: the index of each group's teacher.
    """

    batch: TrajectoryBatch
    teacher_logprobs: Sequence[Sequence[Any] | np.ndarray]
    references: Sequence[int]


class TeacherKL(NamedTuple):
    """How far the student is from its teachers, in nats a token.

    Fields:
        mean: over all sampled tokens.
        by_reference: over those that each teacher judged, by the teacher's index; a teacher of
            nothing is left out.
    """

    mean: float
    by_reference: Mapping[int, float]


def teacher_kl(judged: Sequence[JudgedBatch]) -> TeacherKL:
    """Means of log p_student - log p_teacher over what the student sampled: KL(student ‖ teacher).

    Args:
        judged: the batches of a step.

    Raises:
        DataError: log-probabilities are missing.

    Example:
        >>> from cookbook_fx import rl
        >>> from cookbook_fx.tokens import TokensWithLogprobs
        >>> def group(*tokens):
        ...     action = TokensWithLogprobs(tokens=tokens, maybe_logprobs=[-1.0] * len(tokens))
        ...     turn = rl.Transition(ob=[1, 2], ac=action, reward=0, episode_done=True)
        ...     return rl.TrajectoryGroup(
        ...         trajectories_G=[rl.Trajectory(transitions=[turn], final_ob=[])],
        ...         final_rewards_G=[0], metrics_G=[{}])
        >>> batch = rl.trajectory_batch([group(5), group(6, 7)])
        >>> opinions = [[None, -9, -1.5], [None, -9, -3, -3]]
        >>> teacher_kl([JudgedBatch(batch, opinions, references=[0, 1])])
        TeacherKL(mean=1.5, by_reference={0: 0.5, 1: 2.0})
    """
    totals: dict[int, float] = {}
    counts: dict[int, int] = {}
    for batch, logprobs, references in judged:
        if not len(batch.row_starts):
            continue
        # Where nothing could be sampled nothing is charged, as in `numerics.kl_penalty`.
        charged = batch.mask & (batch.sampling_logprobs > -np.inf)
        difference = np.zeros(len(batch.mask))
        np.subtract(batch.sampling_logprobs, batch.column(logprobs), out=difference, where=charged)
        of_row = np.add.reduceat(difference, batch.row_starts)
        tokens = np.add.reduceat(batch.mask, batch.row_starts, dtype=np.int64)
        teachers = np.asarray(references)[batch.row_group]
        for index in np.unique(teachers).tolist():
            own = teachers == index
            totals[index] = totals.get(index, 0.0) + float(of_row[own].sum())
            counts[index] = counts.get(index, 0) + int(tokens[own].sum())
    return TeacherKL(
        mean=sum(totals.values()) / max(1, sum(counts.values())),
        by_reference={
            index: totals[index] / counts[index] for index in sorted(totals) if counts[index]
        },
    )
