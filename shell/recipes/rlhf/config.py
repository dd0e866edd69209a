"""What the three stages are told: small frozen records, quick to import."""

from dataclasses import dataclass, field
from pathlib import Path

from cookbook_fx.errors import ConfigurationError
from shell.training import Adam, ModelChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What each stage learns from, how long and how fast.

    Args:
        data: conversations of the first stage, a JSONL file; None is the starter set.
        sft_steps: of the first stage; 0 leaves it out, and the base model is what is reinforced.
        sft_learning_rate: of the first stage.
        preferences: comparisons of the second stage, a JSONL file or a data set on the hub; None is
            the starter pairs.
        reward_epochs: passes over them, each pair shown both ways round.
        reward_batch_size: pairs in a step.
        reward_learning_rate: of the second stage.
        prompts: of the third stage, a JSONL file or a data set on the hub; None is the questions of
            the starter conversations.
        rl_steps: of the third stage.
        groups_per_batch: prompts in a step.
        group_size: answers to each, compared with one another.
        max_tokens: the longest answer, in tokens.
        rl_learning_rate: of the third stage.
        kl_penalty_coef: what leaving the model of the first stage costs, per nat.
        num_test: prompts of the matches between the policies of before and after.
    """

    data: Path | None = None
    sft_steps: int = 0
    sft_learning_rate: float = 1e-3
    preferences: str | None = None
    reward_epochs: int = 4
    reward_batch_size: int = 8
    reward_learning_rate: float = 5e-4
    prompts: str | None = None
    rl_steps: int = 20
    groups_per_batch: int = 8
    group_size: int = 4
    max_tokens: int = 64
    rl_learning_rate: float = 5e-4
    kl_penalty_coef: float = 0.0
    num_test: int = 32

    def __post_init__(self) -> None:
        for name, least in (
            ("sft_steps", 0),
            ("reward_epochs", 1),
            ("rl_steps", 1),
            ("group_size", 2),
            ("num_test", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigurationError(
                    f"`{name}` must be at least {least}, got {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class RLHFChoice:
    """Everything that is chosen about a run of three stages.

    Args:
        stages: what each learns from.
        model: what is trained.
        adam: the optimizer of all three.
        seed: of the initial LoRA weights, of the data's order and of what is sampled.
    """

    stages: Stages = field(default_factory=Stages)
    model: ModelChoice = field(default_factory=ModelChoice)
    adam: Adam = field(default_factory=Adam)
    seed: int = 0
