"""Whom a student learns from, and how: small frozen records, quick to import."""

from dataclasses import dataclass

from cookbook_fx.errors import ConfigurationError
from shell.recipes.rl.config import PolicyLossName


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """Teachers, and the prompts that each of them teaches.

    Args:
        teacher: weights saved for sampling, a tinker:// path as `cookbook-fx sft` prints it, or the
            name of a base model that the engine has; several have several sets of prompts, and
            each is answerable for its own.
        data: for each teacher its prompts: a JSONL file, each line {"prompt": ...} or a
            conversation, of which the first question counts; deepmath, tulu3, or another data set
            on the Hugging Face hub; or starter, the questions of the starter conversations. None
            named is starter for each.
        eval_data: for each teacher prompts to test on, likewise. None named holds --num-test of its
            prompts out by chance; of the starter set, others are there.
        teacher_renderer: for each teacher the chat format that it is asked in, where that is not
            the student's.
        groups_per_batch: for each teacher how many of its prompts are in a step; one number is
            every teacher's.
        group_size: answers to each prompt.
        max_tokens: the longest answer, in tokens.
        max_prompt_tokens: tokens to keep of a prompt.
        num_test: prompts to test on, of each teacher.
    """

    teacher: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    eval_data: tuple[str, ...] = ()
    teacher_renderer: tuple[str, ...] = ()
    groups_per_batch: tuple[int, ...] = (16,)
    group_size: int = 2
    max_tokens: int = 32
    max_prompt_tokens: int | None = 512
    num_test: int = 16

    def __post_init__(self) -> None:
        count = len(self.teacher)
        for name in ("data", "eval_data", "teacher_renderer", "groups_per_batch"):
            given = len(getattr(self, name))
            shared = 1 if name == "groups_per_batch" else 0
            if count and given not in (shared, count):
                raise ConfigurationError(
                    f"`{name}` must be given for each teacher or not at all; got {given} for "
                    f"{count} teachers"
                )
        if min(self.groups_per_batch, default=0) < 1:
            raise ConfigurationError(
                f"`groups_per_batch` must be at least 1, got {list(self.groups_per_batch)}"
            )
        for name, least in (("group_size", 1), ("max_tokens", 1), ("num_test", 0)):
            if getattr(self, name) < least:
                raise ConfigurationError(
                    f"`{name}` must be at least {least}, got {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """What a step learns from its teachers.

    Args:
        kl_penalty_coef: weight of a nat by which the student likes a token more than its teacher.
        kl_discount_factor: charge a token also for what follows, discounted so; 0 charges each for
            itself.
        loss: Tinker's name of it; ppo and cispo bound how much a token may count.
        loss_config: its settings by Tinker's names, as name=value, such as clip_high_threshold=1.3.
    """

    kl_penalty_coef: float = 1.0
    kl_discount_factor: float = 0.0
    loss: PolicyLossName = "importance_sampling"
    loss_config: tuple[str, ...] = ()
