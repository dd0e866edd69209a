"""What graded answers amount to: means with their standard errors, and pass@k."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np

from cookbook_fx.errors import ConfigurationError, DataError

Scores = Mapping[str, float]
"""How good an answer is, by the name of each score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """What an evaluation came to.

    Args:
        name: of the evaluation; begins the names of its numbers.
        scores: the numbers, by name.
    """

    name: str = "test"
    scores: Mapping[str, float | int]


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that of k answers at least one is right: 1 - C(n - c, k) / C(n, k).

    Unbiased where the n answers are independent. Reference: Chen et al. 2021, arXiv 2107.03374.

    Args:
        num_samples: n, answers there are.
        num_correct: c, those that are right.
        k: answers that are drawn of them.

    Raises:
        ConfigurationError: k or c is not between 0 and n, or k is 0.

    Example:
        >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 4)
        (0.25, 0.5, 1.0)
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ConfigurationError(
            f"pass@k needs 1 ≤ k ≤ n and 0 ≤ c ≤ n, got k={k}, n={num_samples}, c={num_correct}"
        )
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def mean_scores(answers: Sequence[Sequence[Scores]]) -> dict[str, float]:
    """The means of scores over examples, with their standard errors and pass@k.

    The answers to one example are no independent evidence, so the standard error is that of the
    examples' means. Where every score of a name is 0 or 1, and an example has several answers,
    `name/pass@k` is told for k = 1, 2, 4 and so on up to their number.

    Args:
        answers: for each example, the scores of its answers; as many for each. A name that an
            answer lacks is 0 for it: it could not be graded.

    Returns:
        `name` and `name_stderr` for each score; of one example the error is not known and left
        out.

    Raises:
        DataError: there is no example, or they have different numbers of answers, or none.

    Example:
        >>> right, wrong = {"accuracy": 1.0}, {"accuracy": 0.0}
        >>> mean_scores([[right, wrong], [right, right]])
        {'accuracy': 0.75, 'accuracy_stderr': 0.25, 'accuracy/pass@1': 0.75, 'accuracy/pass@2': 1.0}
    """
    counts = {len(scores) for scores in answers}
    if len(counts) != 1 or counts == {0}:
        raise DataError(
            f"each example needs the same number of graded answers, at least 1; got {counts or 0}"
        )
    names = dict.fromkeys(name for scores in answers for each in scores for name in each)
    measured: dict[str, float] = {}
    for name in names:
        values = np.array([[each.get(name, 0.0) for each in scores] for scores in answers])
        measured |= _of_one_name(name, values)
    return measured


def _of_one_name(name: str, values: np.ndarray) -> dict[str, float]:
    """The numbers of one score, given as an array `[example, answer]`."""
    num_examples, num_samples = values.shape
    means = values.mean(axis=1)
    measured = {name: float(means.mean())}
    if num_examples > 1:
        measured[f"{name}_stderr"] = float(means.std(ddof=1) / sqrt(num_examples))
    if num_samples > 1 and np.isin(values, (0.0, 1.0)).all():
        correct = values.sum(axis=1).astype(int).tolist()
        for k in sorted({2**power for power in range(num_samples.bit_length())} | {num_samples}):
            chances = [pass_at_k(num_samples, count, k) for count in correct]
            measured[f"{name}/pass@{k}"] = float(np.mean(chances))
    return measured
