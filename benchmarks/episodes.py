"""Made-up episodes of very different lengths, as Python lists of Python's numbers.

That is how the SDK shows what was sampled. Each number is an object of its own, as it would be.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from cookbook_fx import rl
from cookbook_fx.tokens import TokensWithLogprobs


class Turn(NamedTuple):
    """The prompt, all that came before included, and what was sampled after it."""

    prompt: list[int]
    action: list[int]
    logprobs: list[float]
    is_masked: bool


class Episode(NamedTuple):
    """The turns, and the reward of the last one."""

    turns: list[Turn]
    reward: float


class Work(NamedTuple):
    """The episodes of each group, and what the base model answers for each row of them."""

    groups: list[list[Episode]]
    base_logprobs: list[list[float | None]]

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(len(row) for row in self.base_logprobs)


def make_work(groups: int, episodes: int, mean_tokens: int, *, turns: int) -> Work:
    """Episodes of very different lengths.

    Every eighth episode of several turns forgets, before its last turn, what it said before, which
    makes a new row; one turn in sixteen of these could not be parsed.
    """
    rng = np.random.default_rng(0)
    made, base = [], []
    for _ in range(groups):
        prompt = rng.integers(0, 150_000, rng.integers(mean_tokens // 16, mean_tokens // 5))
        sampled = rng.gamma(2.0, mean_tokens * 7 / 16, episodes).astype(int)
        group = []
        for budget in np.clip(sampled, 16, 4 * mean_tokens):
            episode, rows = _episode(rng, prompt.tolist(), int(budget), turns)
            group.append(episode)
            base += rows
        made.append(group)
    return Work(made, base)


def _episode(
    rng: np.random.Generator, prompt: list[int], budget: int, turns: int
) -> tuple[Episode, list[list[float | None]]]:
    """An episode, and the base model's log-probabilities of each of its rows."""
    forgets = turns > 1 and rng.random() < 1 / 8
    sampled = budget if turns == 1 else budget * 3 // (4 * turns)
    seen, made, lengths = prompt, [], [0]
    for number in range(turns):
        action = rng.integers(0, 150_000, max(1, sampled)).tolist()
        logprobs = (-rng.exponential(0.5, len(action))).astype(np.float32).tolist()
        made.append(Turn(seen, action, logprobs, turns > 1 and rng.random() < 1 / 16))
        lengths[-1] = len(seen) + len(action)
        answer = rng.integers(0, 150_000, budget // turns - sampled).tolist()
        if forgets and number == turns - 2:
            seen = [*prompt, *answer]
            lengths.append(0)
        else:
            seen = [*seen, *action, *answer]
    rows = [[None, *_base_logprobs(rng, length - 1)] for length in lengths]
    return Episode(made, float(rng.integers(0, 2))), rows


def _base_logprobs(rng: np.random.Generator, count: int) -> list[float]:
    return (-rng.exponential(0.6, count)).astype(np.float32).tolist()


def our_groups(work: Work, *, as_arrays: bool = False) -> list[rl.TrajectoryGroup]:
    """The episodes as rollouts here would have recorded them.

    `shell.rollouts` keeps the arrays that renderers make and that the SDK's answers hold; lists are
    what an answer's `tokens` and `logprobs` make of them, for those who ask.
    """
    ids, floats = (
        partial(np.array, dtype=t) if as_arrays else list for t in (np.int32, np.float32)
    )
    return [
        rl.TrajectoryGroup(
            trajectories_G=[
                rl.Trajectory(
                    transitions=[
                        rl.Transition(
                            ob=ids(turn.prompt),
                            ac=TokensWithLogprobs(
                                tokens=ids(turn.action), maybe_logprobs=floats(turn.logprobs)
                            ),
                            reward=0.0,
                            episode_done=False,
                            metrics=turn_metrics(turn),
                        )
                        for turn in episode.turns
                    ],
                    final_ob=[],
                )
                for episode in group
            ],
            final_rewards_G=[episode.reward for episode in group],
            metrics_G=[{} for _ in group],
        )
        for group in work.groups
    ]


def turn_metrics(turn: Turn) -> dict[str, float]:
    """What an environment reports of a turn that it could not parse; both sides know the name."""
    return {rl.PARSE_ERROR_MASKED: 1.0} if turn.is_masked else {}
