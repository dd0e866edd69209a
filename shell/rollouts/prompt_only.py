"""Prompts and nothing else: what a student answers for its teachers to judge."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cookbook_fx.chat import Conversation, Message
from cookbook_fx.distillation import truncated_text
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import Renderer
from cookbook_fx.tokens import Tokenizer
from shell import hub
from shell.rollouts.env import (
    Action,
    ActionExtra,
    Env,
    EnvGroupBuilder,
    Observation,
    RLDataset,
    RLDatasetBuilder,
    StepResult,
    StopCondition,
)
from shell.rollouts.message_env import conversation_of


class PromptOnlyEnv(Env):
    """One prompt, answered once. Pays nothing: what the answer is worth is for others to say.

    Args:
        prompt: what the user says, or a whole conversation.
        renderer: the chat format.
        convo_prefix: messages before it, such as examples.
    """

    def __init__(
        self,
        prompt: str | Sequence[Message | Mapping[str, Any]],
        renderer: Renderer,
        convo_prefix: Sequence[Message | Mapping[str, Any]] | None = None,
    ) -> None:
        asked = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        self.conversation = (*conversation_of(convo_prefix or ()), *conversation_of(asked))
        self.renderer = renderer

    @property
    def stop_condition(self) -> StopCondition:
        """Where the answer stops."""
        return self.renderer.get_stop_sequences()

    async def initial_observation(self) -> tuple[Observation, StopCondition]:
        """The conversation, rendered."""
        prompt = await asyncio.to_thread(self.renderer.build_generation_prompt, self.conversation)
        return prompt, self.stop_condition

    async def step(self, action: Action, *, extra: ActionExtra | None = None) -> StepResult:
        """Takes the answer."""
        del action, extra
        return StepResult(
            reward=0.0,
            episode_done=True,
            next_observation=(),
            next_stop_condition=self.stop_condition,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptOnlyGroupBuilder(EnvGroupBuilder):
    """Several answers to one prompt.

    Args:
        conversation: the prompt.
        renderer: the student's chat format.
        num_envs: answers.
        dataset_name: what the group's numbers are reported under.

    Raises:
        ConfigurationError: there is fewer than one answer.
    """

    conversation: Conversation
    renderer: Renderer
    num_envs: int
    dataset_name: str = "prompts"

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ConfigurationError(f"`num_envs` must be at least 1, got {self.num_envs}")

    async def make_envs(self) -> Sequence[Env]:
        """`num_envs` new environments."""
        return [PromptOnlyEnv(self.conversation, self.renderer) for _ in range(self.num_envs)]

    def logging_tags(self) -> list[str]:
        """The name of the data set."""
        return [self.dataset_name]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptOnlyDataset(RLDataset):
    """Prompts in batches, in an order that the epoch's seed gives.

    Args:
        prompts: what the user says.
        batch_size: prompts in a batch; the last batch may have fewer.
        group_size: answers to each.
        renderer: the student's chat format.
        tokenizer: counts tokens.
        max_prompt_tokens: tokens to keep of each prompt's text; None keeps all.
        convo_prefix: messages before each.
        dataset_name: what the numbers are reported under.
        seed: of the order; None is that of `prompts`.

    Raises:
        DataError: there is no prompt.
        ConfigurationError: a number is below 1.
    """

    prompts: Sequence[str]
    batch_size: int
    group_size: int
    renderer: Renderer
    tokenizer: Tokenizer
    max_prompt_tokens: int | None = None
    convo_prefix: Conversation = ()
    dataset_name: str = "prompts"
    seed: int | None = None

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise DataError("there is no prompt to answer; at least one is needed")
        for name in ("batch_size", "group_size", "max_prompt_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {value}")

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
        return [self._group(place) for place in order[begin : begin + self.batch_size].tolist()]

    def with_epoch(self, seed: int) -> "PromptOnlyDataset":
        """The same prompts in another order."""
        return replace(self, seed=seed)

    def _group(self, place: int) -> PromptOnlyGroupBuilder:
        text = self.prompts[place]
        if self.max_prompt_tokens is not None:
            text = truncated_text(text, tokenizer=self.tokenizer, max_tokens=self.max_prompt_tokens)
        return PromptOnlyGroupBuilder(
            conversation=(*self.convo_prefix, Message(role="user", content=text)),
            renderer=self.renderer,
            num_envs=self.group_size,
            dataset_name=self.dataset_name,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptOnlyDatasetBuilder(RLDatasetBuilder):
    """Makes a data set of prompts from a file or from the hub.

    Args:
        dataset_name: deepmath or tulu3, or another source that `load_prompts` reads.
        groups_per_batch: prompts in a batch.
        group_size: answers to each.
        renderer: the student's chat format.
        tokenizer: the student's.
        convo_prefix: messages before each prompt.
        max_prompt_tokens: tokens to keep of each prompt's text; None keeps all.
        test_source: prompts to test on, likewise; None is no test.
        split: of a data set.
    """

    dataset_name: str
    groups_per_batch: int
    group_size: int
    renderer: Renderer
    tokenizer: Tokenizer
    convo_prefix: Conversation = ()
    max_prompt_tokens: int | None = 1024
    test_source: str | None = None
    split: str = "train"

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """Reads the prompts.

        Raises:
            DataError: they cannot be read, or there are none.
        """
        train = await asyncio.to_thread(hub.load_prompts, self.dataset_name, split=self.split)
        if self.test_source is None:
            return self._dataset(train), None
        test = await asyncio.to_thread(hub.load_prompts, self.test_source)
        return self._dataset(train), replace(self._dataset(test), group_size=1)

    def _dataset(self, prompts: Sequence[str]) -> PromptOnlyDataset:
        return PromptOnlyDataset(
            prompts=prompts,
            batch_size=self.groups_per_batch,
            group_size=self.group_size,
            renderer=self.renderer,
            tokenizer=self.tokenizer,
            max_prompt_tokens=self.max_prompt_tokens,
            convo_prefix=self.convo_prefix,
            dataset_name=self.dataset_name,
        )
