"""Answers to one prompt, rewarded by comparing them with one another."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cookbook_fx.chat import Conversation, Message
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.preference import (
    Comparison,
    LabeledComparison,
    Match,
    TournamentPattern,
    matchups,
    win_minus_loss,
)
from cookbook_fx.renderers import ParsedResponse, Renderer
from cookbook_fx.rl import Trajectory
from cookbook_fx.rl.trajectory import Metrics
from shell import hub
from shell.rollouts.attempts import concurrently
from shell.rollouts.env import Env, EnvGroupBuilder, RLDataset, RLDatasetBuilder
from shell.rollouts.preference_model import PreferenceModel
from shell.rollouts.prompt_only import PromptOnlyEnv

PreferenceEnv = PromptOnlyEnv
"""One prompt, answered once; what the answer earns is the group's to say."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairwisePreferenceGroupBuilder(EnvGroupBuilder):
    """Several answers to one prompt, each worth what it wins against the others.

        reward = (won - lost) / matches + (format - 1)

    `format` is whether the answer ended with a stop sequence. `win_minus_loss` and `format` are
    reported as metrics. All matches of a group are under way at once.

    Args:
        convo_prefix: the prompt.
        policy_renderer: the policy's chat format.
        preference_model: says which of two answers is better.
        num_envs: answers.
        tournament_pattern: which of them are compared.
        content_preprocessor: is applied to the text of each answer before it is compared.
        matchup_group_size: at most so many are all compared with each other, or one more where one
            would be left over.

    Raises:
        ConfigurationError: `num_envs` is below 1, or `matchup_group_size` below 2.
    """

    convo_prefix: Conversation
    policy_renderer: Renderer
    preference_model: PreferenceModel
    num_envs: int
    tournament_pattern: TournamentPattern = TournamentPattern.ALL_PAIRS_BOTH_WAYS
    content_preprocessor: Callable[[str], str] | None = None
    matchup_group_size: int = 4

    def __post_init__(self) -> None:
        for name, least in (("num_envs", 1), ("matchup_group_size", 2)):
            if getattr(self, name) < least:
                raise ConfigurationError(
                    f"`{name}` must be at least {least}, got {getattr(self, name)}"
                )

    async def make_envs(self) -> Sequence[Env]:
        """`num_envs` new environments."""
        return [
            PreferenceEnv(self.convo_prefix, self.policy_renderer) for _ in range(self.num_envs)
        ]

    async def compute_group_rewards(
        self, trajectory_group: Sequence[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        """Has the answers compared, and adds up.

        Raises:
            DataError: the preference model answered with no number from -1 to 1.
            Exception: whatever the preference model raises; the other matches are cancelled.
        """
        del env_group
        responses = await asyncio.to_thread(self._responses, trajectory_group)
        answers = [self._compared(response.message) for response in responses]
        matches = matchups(
            len(answers), self.tournament_pattern, chunk_size=self.matchup_group_size
        )

        async def played(match: Match) -> float:
            return await self.preference_model(
                Comparison(
                    prompt_conversation=self.convo_prefix,
                    completion_A=(answers[match.first],),
                    completion_B=(answers[match.second],),
                )
            )

        won = win_minus_loss(len(answers), matches, await concurrently(played, matches))
        return [
            (
                wins + (response.termination.is_stop_sequence - 1),
                {"win_minus_loss": wins, "format": float(response.termination.is_stop_sequence)},
            )
            for wins, response in zip(won.tolist(), responses, strict=True)
        ]

    def logging_tags(self) -> list[str]:
        """That it is about preferences."""
        return ["pair_pref"]

    def _responses(self, trajectories: Sequence[Trajectory]) -> list[ParsedResponse]:
        return [
            self.policy_renderer.parse_response(trajectory.transitions[0].ac.tokens)
            for trajectory in trajectories
        ]

    def _compared(self, answer: Message) -> Message:
        if self.content_preprocessor is None:
            return answer
        return replace(answer, content=self.content_preprocessor(answer.text))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairwisePreferenceDataset(RLDataset):
    """Prompts in batches, in an order that the epoch's seed gives, their answers compared.

    Args:
        prompts: what is answered.
        renderer: the policy's chat format.
        batch_size: prompts in a batch; the last batch may have fewer.
        preference_model: says which of two answers is better.
        tournament_pattern: which answers are compared.
        group_size: answers to each prompt.
        content_preprocessor: is applied to the text of each answer before it is compared.
        matchup_group_size: as in `PairwisePreferenceGroupBuilder`.
        seed: of the order; None is that of `prompts`.

    Raises:
        DataError: there is no prompt.
        ConfigurationError: `batch_size` is below 1.
    """

    prompts: Sequence[Conversation]
    renderer: Renderer
    batch_size: int
    preference_model: PreferenceModel
    tournament_pattern: TournamentPattern = TournamentPattern.ALL_PAIRS_BOTH_WAYS
    group_size: int = 4
    content_preprocessor: Callable[[str], str] | None = None
    matchup_group_size: int = 4
    seed: int | None = None

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise DataError("there is no prompt to answer; at least one is needed")
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {self.batch_size}")

    def __len__(self) -> int:
        return -(-len(self.prompts) // self.batch_size)

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The groups of one batch, a function of the seed and the index.

        Raises:
            ConfigurationError: there is no such batch.
        """
        if not 0 <= index < len(self):
            raise ConfigurationError(f"batches go from 0 to {len(self) - 1}, got {index}")
        order = np.arange(len(self.prompts))
        if self.seed is not None:
            order = np.random.default_rng(self.seed).permutation(order)
        begin = index * self.batch_size
        return [
            PairwisePreferenceGroupBuilder(
                convo_prefix=self.prompts[place],
                policy_renderer=self.renderer,
                preference_model=self.preference_model,
                num_envs=self.group_size,
                tournament_pattern=self.tournament_pattern,
                content_preprocessor=self.content_preprocessor,
                matchup_group_size=self.matchup_group_size,
            )
            for place in order[begin : begin + self.batch_size].tolist()
        ]

    def with_epoch(self, seed: int) -> "PairwisePreferenceDataset":
        """The same prompts in another order."""
        return replace(self, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairwisePreferenceRLDatasetBuilder(RLDatasetBuilder):
    """Makes a data set of the prompts of comparisons; what was preferred in them is not looked at.

    Args:
        comparison_builder: the comparisons.
        policy_renderer: the policy's chat format.
        batch_size: prompts in a batch.
        preference_model: says which of two answers is better.
        tournament_pattern: which answers are compared.
        group_size: answers to each prompt.
        content_preprocessor: is applied to the text of each answer before it is compared.
    """

    comparison_builder: "hub.ComparisonDatasetBuilder"
    policy_renderer: Renderer
    batch_size: int
    preference_model: PreferenceModel
    tournament_pattern: TournamentPattern = TournamentPattern.ALL_PAIRS_BOTH_WAYS
    group_size: int = 4
    content_preprocessor: Callable[[str], str] | None = None

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """The prompts of the comparisons to train on, and of those to measure on."""
        found = await asyncio.to_thread(self.comparison_builder.get_labeled_comparisons)
        test = None if found.test is None else self._dataset(found.test)
        return self._dataset(found.train), test

    def _dataset(self, comparisons: Sequence[LabeledComparison]) -> PairwisePreferenceDataset:
        return PairwisePreferenceDataset(
            prompts=[labeled.comparison.prompt_conversation for labeled in comparisons],
            renderer=self.policy_renderer,
            batch_size=self.batch_size,
            preference_model=self.preference_model,
            tournament_pattern=self.tournament_pattern,
            group_size=self.group_size,
            content_preprocessor=self.content_preprocessor,
        )
