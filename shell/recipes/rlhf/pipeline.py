"""The three stages one after another; each leaves a run folder and is continued where it stopped.

Reference: Ouyang et al. 2022, Training language models to follow instructions with human feedback,
    arXiv:2203.02155, figure 2.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from cookbook_fx.chat import Conversation, Message
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.renderers import Renderer
from cookbook_fx.rl import Objective
from cookbook_fx.tokens import Tokenizer
from shell.clients import Sampler, Service
from shell.evaluation import NLLEvaluator
from shell.evaluation.matches import Matches, MatchResults
from shell.hub import ComparisonBuilderFromDataset, ComparisonBuilderFromJsonl, canonical_name
from shell.hub.comparisons import ChatDatasetBuilderFromComparisons, ComparisonDatasetBuilder
from shell.recipes.chat_sft import chosen_renderer, data_files, file_digest, load_data
from shell.recipes.prompts import STARTER, PromptSplit, prompts_digest, read_prompts
from shell.recipes.rl.shorter import prefer_shorter
from shell.recipes.rlhf.config import RLHFChoice
from shell.rollouts import RetryOnFailure, RolloutOptions
from shell.rollouts.preference_env import PairwisePreferenceDataset
from shell.rollouts.preference_model import PreferenceModelFromChatRenderer
from shell.stores import RunCheckpoint, RunFolder
from shell.stores.run_folder import JSON
from shell.training import (
    Cadence,
    ChatData,
    KLReference,
    ModelChoice,
    RLCadence,
    SamplingChoice,
    Schedule,
    SFTConfig,
)
from shell.training.events import Observer
from shell.training.rl import RLData, train_rl
from shell.training.rl_config import RLConfig
from shell.training.sft import SFTData, train_supervised


class RLHFResult(NamedTuple):
    """What came of the stages.

    Fields:
        policy: where the reinforced weights are.
        reward_model: where the model of preferences is.
        matches: of the policy against the model that it began as, judged by a rule that none of
            them learned from.
    """

    policy: RunCheckpoint
    reward_model: RunCheckpoint
    matches: MatchResults


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RLHFRun:
    """What all stages need.

    Args:
        choice: of the run.
        service: the engine.
        renderer: the model's chat format.
        tokenizer: the model's.
        context_length: tokens that the model can read, if known.
        opened: opens the folder of a stage, by its name, for the run of a configuration.
        description: as from `run_description`; a stage's folder is that of this run or refused.
        watched: gives an observer for a stage while it goes on, by the stage's name.
        stop: when set, the stage under way is finished in good order and none follows.
    """

    choice: RLHFChoice
    service: Service
    renderer: Renderer
    tokenizer: Tokenizer
    context_length: int | None
    opened: Callable[[str, Mapping[str, JSON]], AbstractContextManager[RunFolder]]
    description: Mapping[str, JSON]
    watched: Callable[[str], Iterator[Observer]]
    stop: asyncio.Event

    async def go(self) -> RLHFResult | None:
        """Does what is left to do; None if stopped before the end.

        Raises:
            DataError: a stage has no data.
            CookbookError: as its loop raises.
        """
        start = None
        if self.choice.stages.sft_steps:
            start = await self._conversations()
            if start is None:
                return None
        reward_model = await self._preferences()
        if reward_model is None:
            return None
        prompts = await asyncio.to_thread(rl_prompts, self.choice)
        policy = await self._reinforcement(start, reward_model, prompts)
        if policy is None:
            return None
        return RLHFResult(policy, reward_model, await self._matches(start, policy, prompts))

    async def _conversations(self) -> RunCheckpoint | None:
        stages = self.choice.stages
        loaded = await asyncio.to_thread(
            load_data,
            ChatData(data=stages.data),
            renderer=self.renderer,
            tokenizer=self.tokenizer,
            context_length=self.context_length,
            seed=self.choice.seed,
        )
        # As many passes as the steps take.
        epochs = -(-stages.sft_steps // len(loaded.data.train))
        schedule = Schedule(
            learning_rate=stages.sft_learning_rate,
            num_epochs=epochs,
            max_steps=stages.sft_steps,
        )
        return await self._supervised("sft", loaded.data, schedule)

    async def _preferences(self) -> RunCheckpoint | None:
        stages = self.choice.stages
        builder = ChatDatasetBuilderFromComparisons(
            comparison_builder=comparison_builder(self.choice),
            renderer=self.renderer,
            batch_size=stages.reward_batch_size,
            max_length=self.context_length,
            swap=True,
        )
        train, test, _ = await asyncio.to_thread(builder)
        evaluators = (NLLEvaluator(data=test),) if test else ()
        schedule = Schedule(
            learning_rate=stages.reward_learning_rate, num_epochs=stages.reward_epochs
        )
        return await self._supervised(
            "reward", SFTData(train=train, evaluators=evaluators), schedule
        )

    async def _supervised(
        self, stage: str, data: SFTData, schedule: Schedule
    ) -> RunCheckpoint | None:
        config = SFTConfig(
            model=self.choice.model,
            schedule=schedule,
            adam=self.choice.adam,
            cadence=Cadence(eval_every=20),
            seed=self.choice.seed,
        )
        with self._folder(stage) as folder, contextmanager(self.watched)(stage) as observe:
            result = await train_supervised(
                config,
                service=self.service,
                data=data,
                folder=folder,
                observe=observe,
                stop=self.stop,
            )
        return result.checkpoint if result.finished else None

    async def _reinforcement(
        self, start: RunCheckpoint | None, reward_model: RunCheckpoint, prompts: PromptSplit
    ) -> RunCheckpoint | None:
        stages = self.choice.stages
        judge = await self.service.sampler(path=reward_model.sampler_path)
        dataset = PairwisePreferenceDataset(
            prompts=conversations_of(prompts.train),
            renderer=self.renderer,
            batch_size=stages.groups_per_batch,
            preference_model=PreferenceModelFromChatRenderer(renderer=self.renderer, sampler=judge),
            group_size=stages.group_size,
        )
        with self._folder("rl") as folder, contextmanager(self.watched)("rl") as observe:
            result = await train_rl(
                self._rl_config(start, num_batches=len(dataset)),
                service=self.service,
                data=RLData(train=dataset, tokenizer=self.tokenizer),
                folder=folder,
                observe=observe,
                stop=self.stop,
            )
        return result.checkpoint if result.finished else None

    def _rl_config(self, start: RunCheckpoint | None, *, num_batches: int) -> RLConfig:
        stages = self.choice.stages
        before = None if start is None else start.sampler_path
        return RLConfig(
            model=_from(self.choice.model, start),
            schedule=Schedule(
                learning_rate=stages.rl_learning_rate,
                lr_schedule="constant",
                num_epochs=-(-stages.rl_steps // num_batches),
                max_steps=stages.rl_steps,
            ),
            adam=self.choice.adam,
            cadence=RLCadence(eval_every=None),
            sampling=SamplingChoice(
                max_tokens=stages.max_tokens, context_window=self.context_length
            ),
            objective=Objective(kl_penalty_coef=stages.kl_penalty_coef),
            kl_references=(KLReference(load_checkpoint=before),),
            rollout=RolloutOptions(strategy=RetryOnFailure()),
            seed=self.choice.seed,
        )

    async def _matches(
        self, start: RunCheckpoint | None, policy: RunCheckpoint, prompts: PromptSplit
    ) -> MatchResults:
        before = await self._sampler(start)
        matches = Matches(
            prompts=conversations_of(prompts.test),
            renderer=self.renderer,
            judge=prefer_shorter,
            max_tokens=self.choice.stages.max_tokens,
        )
        return await matches(await self._sampler(policy), before, seed=self.choice.seed)

    async def _sampler(self, checkpoint: RunCheckpoint | None) -> Sampler:
        if checkpoint is None:
            return await self.service.sampler(base_model=self.choice.model.model)
        return await self.service.sampler(path=checkpoint.sampler_path)

    def _folder(self, stage: str) -> AbstractContextManager[RunFolder]:
        return self.opened(stage, {**self.description, "stage": stage})


def _from(model: ModelChoice, start: RunCheckpoint | None) -> ModelChoice:
    return model if start is None else replace(model, load_checkpoint=start.state_path)


def comparison_builder(choice: RLHFChoice) -> ComparisonDatasetBuilder:
    """The comparisons of the second stage; of the starter pairs some are held out."""
    source = choice.stages.preferences
    if source is None:
        starter = Path(str(resources.files("shell.recipes") / "starter_pairs"))
        return ComparisonBuilderFromJsonl(
            train_path=str(starter / "train.jsonl"), test_path=str(starter / "heldout.jsonl")
        )
    if Path(source).suffix == ".jsonl":
        return ComparisonBuilderFromJsonl(train_path=source)
    return ComparisonBuilderFromDataset(name_or_path=source)


def rl_prompts(choice: RLHFChoice) -> PromptSplit:
    """The prompts of the third stage, and those of the matches."""
    return read_prompts(
        choice.stages.prompts or STARTER,
        test=None,
        num_test=choice.stages.num_test,
        seed=choice.seed,
    )


def conversations_of(prompts: tuple[str, ...]) -> list[Conversation]:
    """What a user asks, each as a conversation."""
    return [(Message(role="user", content=text),) for text in prompts]


def run_description(choice: RLHFChoice, *, base_url: str | None) -> dict[str, JSON]:
    """Everything that decides the result of a run, for its `config.json`.

    Raises:
        ConfigurationError: the model is told to begin from a checkpoint, as the first stage's is.
    """
    if choice.model.load_checkpoint is not None:
        raise ConfigurationError(
            "the stages begin with the base model and go on from one another; leave "
            "--load-checkpoint out"
        )
    described = asdict(choice)
    stages = described["stages"]
    preferences = choice.stages.preferences
    is_file = preferences is not None and Path(preferences).is_file()
    return {
        "recipe": "rlhf",
        "engine": base_url or "embedded",
        **described,
        "stages": {
            **stages,
            "data": str(choice.stages.data) if choice.stages.data else None,
            "data_sha256": file_digest(data_files(ChatData(data=choice.stages.data)).train),
            "preferences_sha256": file_digest(Path(preferences)) if is_file else None,
            "prompts_sha256": prompts_digest([rl_prompts(choice).train]),
        },
        "model": {
            **described["model"],
            "model": canonical_name(choice.model.model),
            "renderer": chosen_renderer(choice.model),
        },
    }
