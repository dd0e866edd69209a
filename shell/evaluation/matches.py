"""Two models answer the same prompts, and a judge says whose answers are better."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cookbook_fx.chat import Conversation, Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.preference import Comparison
from cookbook_fx.renderers import Renderer
from cookbook_fx.reports import ScoreReport
from shell.clients import Sampler, SampleRequest
from shell.evaluation.rl_test_set import group_seeds
from shell.rollouts.attempts import concurrently
from shell.rollouts.preference_model import PreferenceModel


class MatchResults(NamedTuple):
    """How many matches ended how, for the first of two models."""

    wins: int
    losses: int
    ties: int

    @property
    def win_rate(self) -> float:
        """Share of the matches that were won; ties are none."""
        return self.wins / max(1, sum(self))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """One answer of each model to each prompt, every pair judged both ways round.

    Args:
        prompts: what is answered.
        renderer: the chat format of both models.
        judge: a rule or model that compares two answers; one that neither learned from.
        max_tokens: longest answer.
        temperature: of sampling.

    Raises:
        ConfigurationError: there is no prompt.
    """

    prompts: Sequence[Conversation]
    renderer: Renderer
    judge: PreferenceModel
    max_tokens: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise ConfigurationError("a match needs at least one prompt, got none")

    async def __call__(self, one: Sampler, other: Sampler, *, seed: int) -> MatchResults:
        """Plays and judges.

        A judge that takes back what it said when the answers trade places has said nothing: that
        is a tie.

        Args:
            one: whose wins are counted.
            other: what it is compared with.
            seed: of all that is sampled, of the two models unrelated.
        """
        seeds = group_seeds(seed, 2 * len(self.prompts))

        async def played(index: int) -> float:
            prompt = self.prompts[index]
            mine, theirs = await asyncio.gather(
                self._answer(one, prompt, seed=seeds[2 * index]),
                self._answer(other, prompt, seed=seeds[2 * index + 1]),
            )
            return await self._judged(prompt, mine, theirs)

        scores = await concurrently(played, range(len(self.prompts)))
        wins, losses = sum(score > 0 for score in scores), sum(score < 0 for score in scores)
        return MatchResults(wins, losses, len(scores) - wins - losses)

    async def _judged(self, prompt: Conversation, mine: Message, theirs: Message) -> float:
        """Above 0 where mine is better."""
        comparison = Comparison(
            prompt_conversation=prompt, completion_A=(theirs,), completion_B=(mine,)
        )
        return await self.judge(comparison) - await self.judge(comparison.swap())

    async def _answer(self, sampler: Sampler, prompt: Conversation, *, seed: int) -> Message:
        tokens = await asyncio.to_thread(self.renderer.build_generation_prompt, prompt)
        request = SampleRequest(
            prompt=tokens,
            max_tokens=self.max_tokens,
            stop=self.renderer.get_stop_sequences(),
            temperature=self.temperature,
            seed=seed,
        )
        (sample,) = await sampler.sample(request)
        return self.renderer.parse_response(sample.tokens).message


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WinRateEvaluator:
    """How often weights win against others that stay as they are.

    Args:
        matches: what is answered, and who judges.
        opponent: the other weights.
        name: what the measurements are filed under.
    """

    matches: Matches
    opponent: Sampler
    name: str = "test"

    async def __call__(self, sampler: Sampler, *, seed: int) -> tuple[ScoreReport]:
        """Plays: `win_rate`, `loss_rate` and `tie_rate`, and the number of matches."""
        wins, losses, ties = await self.matches(sampler, self.opponent, seed=seed)
        played = wins + losses + ties
        scores = {
            "win_rate": wins / played,
            "loss_rate": losses / played,
            "tie_rate": ties / played,
            "num_matches": played,
        }
        return (ScoreReport(name=self.name, scores=scores),)
