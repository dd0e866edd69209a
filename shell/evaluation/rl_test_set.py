"""How a policy does in environments that it is not trained in."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.reports import RolloutEvaluationReport
from cookbook_fx.reports.rollout_tree import group_scope
from cookbook_fx.rl import TrajectoryGroup, compute_trajectory_metrics, count_rollout_errors
from cookbook_fx.rl.metrics import ALL
from cookbook_fx.runs import derived_seed
from cookbook_fx.tokens import Tokenizer
from shell.clients import Sampler
from shell.rollouts import (
    EnvGroupBuilder,
    RLDataset,
    RolloutOptions,
    TinkerTokenCompleter,
    do_batch_rollout,
)
from shell.stores import logtree


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RLTestSetEvaluator:
    """Plays every group of a data set once and sums up the episodes, by tag and together.

    Args:
        dataset: the groups, in batches that mean nothing here.
        max_tokens: longest action.
        name: what the measurements are filed under.
        temperature: of sampling; 0 always takes the likeliest token.
        context_window: tokens that prompt and action may have together; None leaves that to the
            engine.
        options: how the episodes are run, and what becomes of those that fail.
        limit: groups at most; None plays all.
        concurrency: groups under way at a time.
        tokenizer: makes text of episodes for a logtree, where one is written; None tells their
            numbers alone.
        num_groups_to_log: groups shown there, the first ones.

    Raises:
        ConfigurationError: the data set is empty, or a number is out of range.
    """

    dataset: RLDataset
    max_tokens: int
    name: str = "test"
    temperature: float = 1.0
    context_window: int | None = None
    options: RolloutOptions = field(default_factory=RolloutOptions)
    limit: int | None = None
    concurrency: int = 64
    tokenizer: Tokenizer | None = None
    num_groups_to_log: int = 4

    def __post_init__(self) -> None:
        if len(self.dataset) == 0:
            raise ConfigurationError("an evaluation needs at least one batch of groups, got none")
        for name in ("max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(f"`limit` must be at least 1, got {self.limit}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigurationError(
                f"`temperature` must be 0 or more and finite, got {self.temperature}"
            )

    async def __call__(self, sampler: Sampler, *, seed: int) -> tuple[RolloutEvaluationReport]:
        """Plays the groups.

        Args:
            sampler: the weights.
            seed: of all that is sampled; the same one samples the same from the same weights, on
                an engine that keeps the promise.

        Raises:
            Exception: as `do_batch_rollout`, whatever an environment raises where the strategy in
                `options` does not turn it into a value.
        """
        builders = await asyncio.to_thread(self._builders)
        policy = TinkerTokenCompleter(
            sampler,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            context_window=self.context_window,
        )
        groups = await do_batch_rollout(
            builders,
            policy,
            options=self.options,
            seeds=group_seeds(seed, len(builders)),
            concurrency=self.concurrency,
        )
        tags = [builder.logging_tags() for builder in builders]
        if logtree.is_active():
            await asyncio.to_thread(self._log, groups, tags)
        return (self._report(groups, tags),)

    def _log(self, groups: Sequence[TrajectoryGroup], tags: Sequence[Sequence[str]]) -> None:
        for index, group in enumerate(groups[: self.num_groups_to_log]):
            logtree.log(
                group_scope(
                    group,
                    title=f"{self.name}: group {index} of {len(groups)}",
                    tags=tags[index],
                    tokenizer=self.tokenizer,
                )
            )

    def _builders(self) -> list[EnvGroupBuilder]:
        batches = range(len(self.dataset))
        every = (builder for index in batches for builder in self.dataset.get_batch(index))
        return list(islice(every, self.limit))

    def _report(
        self, groups: Sequence[TrajectoryGroup], tags: Sequence[Sequence[str]]
    ) -> RolloutEvaluationReport:
        trajectories = compute_trajectory_metrics(groups, tags)
        is_solved = [any(reward > 0 for reward in group.get_total_rewards()) for group in groups]
        return RolloutEvaluationReport(
            name=self.name,
            trajectories=trajectories,
            solved={
                report.tag: _share(
                    solved
                    for solved, of_group in zip(is_solved, tags, strict=True)
                    if report.tag in (ALL, *of_group)
                )
                for report in trajectories
            },
            errors=count_rollout_errors(groups),
        )


def group_seeds(seed: int, count: int) -> list[int]:
    """A seed for each group, of which none follows from another's.

    Example:
        >>> group_seeds(0, 3) == group_seeds(0, 4)[:3], group_seeds(0, 3) == group_seeds(1, 3)
        (True, False)
    """
    return [derived_seed(seed, group) for group in range(count)]


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)
