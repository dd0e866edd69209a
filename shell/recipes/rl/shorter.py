"""Brevity: of two answers the shorter one wins. The smallest task whose reward is a comparison."""

import asyncio
from dataclasses import dataclass, replace

from cookbook_fx.chat import Message
from cookbook_fx.preference import Comparison
from cookbook_fx.renderers import Renderer
from shell.recipes.prompts import STARTER, read_prompts
from shell.recipes.rl.config import Shorter
from shell.rollouts import RLDataset, RLDatasetBuilder
from shell.rollouts.preference_env import PairwisePreferenceDataset

_HELD_OUT_SEED = 0


async def prefer_shorter(comparison: Comparison) -> float:
    """-1 where A is shorter, 1 where B is, in characters; 0 where they are as long.

    Example:
        >>> short, long = ((Message(role="assistant", content=text),) for text in ("4", "four"))
        >>> asyncio.run(prefer_shorter(
        ...     Comparison(prompt_conversation=(), completion_A=short, completion_B=long)))
        -1.0
    """
    first, second = (
        sum(len(message.text) for message in completion)
        for completion in (comparison.completion_A, comparison.completion_B)
    )
    return float((first > second) - (first < second))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShorterDatasetBuilder(RLDatasetBuilder):
    """Prompts whose answers compete.

    Args:
        choice: the recipe's settings.
        renderer: the chat format.
    """

    choice: Shorter
    renderer: Renderer

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """Reads the prompts; on those to test on, lengths are measured and nothing is compared."""
        choice = self.choice
        train, test = await asyncio.to_thread(
            read_prompts,
            choice.data or STARTER,
            test=None,
            num_test=choice.num_test,
            seed=_HELD_OUT_SEED,
        )
        dataset = PairwisePreferenceDataset(
            prompts=[(Message(role="user", content=text),) for text in train],
            renderer=self.renderer,
            batch_size=choice.groups.groups_per_batch,
            preference_model=prefer_shorter,
            group_size=choice.groups.group_size,
        )
        if not test:
            return dataset, None
        prompts = [(Message(role="user", content=text),) for text in test]
        return dataset, replace(dataset, prompts=prompts, group_size=1)
