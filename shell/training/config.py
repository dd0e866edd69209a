"""What a fine-tuning run is told: small frozen records, quick to import."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cookbook_fx.errors import ConfigurationError

LearningRateSchedule = Literal["constant", "linear", "cosine", "wsd"]
TrainedMessages = Literal[
    "last_assistant_message",
    "last_assistant_turn",
    "all_assistant_messages",
    "all_messages",
    "all_tokens",
    "all_user_and_system_messages",
    "customized",
]
"""The values of `TrainOnWhat`, spelled out here to be quick to import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """What is trained.

    Args:
        model: the base model: a known name (see `cookbook-fx models`), the id of a model on the
            Hugging Face hub, a directory, or a .gguf file.
        renderer: how conversations are written for it; None is what suits the model best, where
            that is known (see `cookbook-fx models`), and chatml else. `template` follows the
            model's own template; package.module:function is a renderer of your own.
        lora_rank: inner dimension of the LoRA matrices; larger learns more and costs more.
        train_mlp: adapt the feed-forward layers.
        train_attn: adapt the attention layers.
        train_unembed: adapt the output layer.
        load_checkpoint: start from these weights, a tinker:// path or the directory of an adapter
            that peft wrote, instead of a new LoRA; rank and trained parts are theirs then.
    """

    model: str = "smollm2-135m-instruct"
    renderer: str | None = None
    lora_rank: int = 32
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True
    load_checkpoint: str | None = None

    def __post_init__(self) -> None:
        if not (self.train_mlp or self.train_attn or self.train_unembed):
            raise ConfigurationError(
                "a LoRA must train at least one of mlp, attn and unembed, got none"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatData:
    """What conversations it is trained and measured on.

    Args:
        data: a JSONL file, each line {"messages": [{"role": ..., "content": ...}, ...]}; None is
            the starter set that comes with the library.
        eval_data: such a file to measure on before, during and after training; None is the
            starter set's own, or for your data those held out by --test-size.
        test_size: without --eval-data, so many conversations of --data are held out, by chance.
        batch_size: conversations in one step.
        max_length: tokens to keep of a conversation, at most as many as the model can read.
        train_on_what: which messages to train on.
        reduction: mean weighs every conversation the same, none every token.
    """

    data: Path | None = None
    eval_data: Path | None = None
    test_size: int = 0
    batch_size: int = 8
    max_length: int | None = 1024
    train_on_what: TrainedMessages = "all_assistant_messages"
    reduction: Literal["mean", "none"] = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long the run is and how fast it learns.

    Args:
        learning_rate: the highest learning rate.
        lr_schedule: how it falls towards the end of the run.
        warmup_steps: steps over which it rises to the highest.
        num_epochs: passes over the data.
        max_steps: end the run after so many steps, if it is not over before. The learning rate
            is spread over the run's steps, so another number makes another run.
    """

    learning_rate: float = 1e-4
    lr_schedule: LearningRateSchedule = "linear"
    warmup_steps: int = 0
    num_epochs: int = 1
    max_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """The optimizer, AdamW.

    Args:
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
        grad_clip_norm: largest norm of the gradients; 0 is no limit.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """What is done how often; changes nothing about the weights a run ends with.

    Args:
        eval_every: evaluate before every so many steps, the first included, besides at the end;
            None is at the end only.
        save_every: save the state after every so many steps, besides at the end; None is at the
            end only.
        ttl_seconds: states saved on the way are deleted after so many seconds, those of a finished
            or stopped run never; None keeps them all.
        submit_ahead: batches sent to the engine ahead of the one being waited for.
    """

    eval_every: int | None = 10
    save_every: int | None = 20
    ttl_seconds: int | None = 30 * 86_400
    submit_ahead: int = 1

    def __post_init__(self) -> None:
        if self.submit_ahead < 0:
            raise ConfigurationError(
                f"`submit_ahead` must be 0 or more batches, got {self.submit_ahead}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RLCadence:
    """What is done how often; changes nothing about the weights a run ends with.

    Args:
        eval_every: evaluate before every so many steps, the first included, besides at the end;
            None is at the end only.
        save_every: save the state after every so many steps, besides at the end; None is at the
            end only.
        ttl_seconds: states saved on the way are deleted after so many seconds, those of a finished
            or stopped run never; None keeps them all.
        logtree_every: tell before every so many steps, the first included, what its episodes and
            those of its evaluation were, in the folder logtree; None does not.
        num_groups_to_log: groups told of there.

    Raises:
        ConfigurationError: a number is out of range.
    """

    eval_every: int | None = 20
    save_every: int | None = 20
    ttl_seconds: int | None = 30 * 86_400
    logtree_every: int | None = 10
    num_groups_to_log: int = 4

    def __post_init__(self) -> None:
        if self.logtree_every is not None and self.logtree_every < 1:
            raise ConfigurationError(
                f"`logtree_every` must be at least 1, or None, got {self.logtree_every}"
            )
        if self.num_groups_to_log < 1:
            raise ConfigurationError(
                f"`num_groups_to_log` must be at least 1, got {self.num_groups_to_log}; "
                "--logtree-every None writes no logtree"
            )

    def logs(self, step: int) -> bool:
        """Whether what happens at a step is told of."""
        return self.logtree_every is not None and step % self.logtree_every == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingChoice:
    """How the policy answers while it learns.

    Args:
        max_tokens: the longest action, in tokens.
        temperature: 0 always takes the likeliest token.
        top_k: sample from the likeliest so many tokens only; -1 from all.
        top_p: sample from the likeliest tokens that make up this probability only; 1 from all.
        context_window: tokens that prompt and action may have together; None leaves that to the
            engine.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    context_window: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigurationError(f"`max_tokens` must be at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigurationError(
                f"`temperature` must be a number from 0 on, got {self.temperature}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class KLReference:
    """A policy that a KL penalty pulls towards, or a teacher.

    Args:
        base_model: a base model by the engine's name for it; None is the one that is trained.
        load_checkpoint: weights saved for sampling, a tinker:// path, instead of a base model.

    Raises:
        ConfigurationError: both are given.
    """

    base_model: str | None = None
    load_checkpoint: str | None = None

    def __post_init__(self) -> None:
        if self.base_model is not None and self.load_checkpoint is not None:
            raise ConfigurationError(
                "the KL reference is a base model or a checkpoint, one of the two; got "
                f"base_model={self.base_model!r}, load_checkpoint={self.load_checkpoint!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig:
    """Everything the supervised loop is told.

    Args:
        model: what is trained.
        schedule: how long and how fast.
        adam: the optimizer.
        cadence: what is done how often.
        seed: of the initial LoRA weights and of the order of the data.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    schedule: Schedule = field(default_factory=Schedule)
    adam: Adam = field(default_factory=Adam)
    cadence: Cadence = field(default_factory=Cadence)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigurationError(f"`seed` must be 0 or more, got {self.seed}")
