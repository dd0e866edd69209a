"""A number to be found in several turns: the smallest task in which turns build on each other."""

import re
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cookbook_fx.chat import Message
from cookbook_fx.renderers import Renderer
from cookbook_fx.rl import StopReason
from shell.recipes.rl.config import GuessNumber
from shell.recipes.rl.problems import ListedProblems, held_out
from shell.rollouts import RLDataset, RLDatasetBuilder
from shell.rollouts.message_env import EnvFromMessageEnv
from shell.rollouts.pure_env import Ask, Done, PureGroupBuilder

_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """A game under way.

    Args:
        secret: the number to find.
        largest: the largest it may be.
        guesses_left: guesses that may still be made.
        format_coef: what a turn costs that is no guess.
    """

    secret: int
    largest: int
    guesses_left: int
    format_coef: float


def begin(game: Game) -> Ask[Game]:
    """The rules."""
    return Ask(
        game,
        f"I am thinking of a number from 1 to {game.largest}. Guess it: answer with a number and "
        "nothing else. I will say whether it is too high or too low.",
    )


def step(game: Game, message: Message) -> Ask[Game] | Done:
    """What a guess leads to: 1 for the number, 0 for another, -format_coef for no guess."""
    guess = _guess(message.text)
    logs = {"guess": message.text, "secret": game.secret}
    metrics = {"format": float(guess is not None)}
    cost = 0.0 if guess is not None else -game.format_coef
    if guess == game.secret:
        return Done(1.0, metrics=metrics | {"found": 1.0}, logs=logs)
    if game.guesses_left == 1:
        return Done(
            cost, metrics=metrics | {"found": 0.0}, logs=logs, stop_reason=StopReason.MAX_TURNS
        )
    return Ask(
        replace(game, guesses_left=game.guesses_left - 1),
        _hint(guess, game.secret),
        reward=cost,
        metrics=metrics,
        logs=logs,
    )


def _guess(text: str) -> int | None:
    found = re.fullmatch(r"\D{0,40}?(\d{1,9})\D{0,3}", text)
    return int(found.group(1)) if found else None


def _hint(guess: int | None, secret: int) -> str:
    if guess is None:
        return "That is no guess. Answer with a number and nothing else."
    return "Too low." if guess < secret else "Too high."


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessNumberDatasetBuilder(RLDatasetBuilder):
    """Numbers to find, and others to test on.

    Args:
        choice: the recipe's settings.
        renderer: the chat format.
    """

    choice: GuessNumber
    renderer: Renderer

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """The same tenth of the numbers is kept to test on, whatever the run's seed is."""
        choice = self.choice
        numbers = (np.random.default_rng(_SPLIT_SEED).permutation(choice.largest) + 1).tolist()
        num_test = choice.largest // 10
        train = ListedProblems(
            problems=sorted(numbers[num_test:]),
            attempts=partial(self._attempts, num_envs=choice.groups.group_size),
            groups_per_batch=choice.groups.groups_per_batch,
        )
        tests = held_out(sorted(numbers[:num_test]), partial(self._attempts, num_envs=1))
        return train, tests

    def _attempts(self, secret: int, *, num_envs: int) -> PureGroupBuilder:
        choice = self.choice
        game = Game(
            secret=secret,
            largest=choice.largest,
            guesses_left=choice.guesses,
            format_coef=choice.format_coef,
        )
        return PureGroupBuilder(
            begin,
            step,
            game,
            num_envs=num_envs,
            renderer=self.renderer,
            dataset_name="guess_number",
            adapter=partial(
                EnvFromMessageEnv,
                failed_parse_reward=-choice.format_coef,
                context_overflow_reward=-choice.format_coef,
            ),
        )
