"""What a run on preferences is told: small frozen records, quick to import."""

from dataclasses import dataclass, field
from typing import Literal

from cookbook_fx.errors import ConfigurationError
from shell.training.config import Adam, Cadence, ModelChoice, Schedule

PreferenceLossName = Literal["dpo", "hinge", "ipo", "kto", "orpo", "robust_dpo", "simpo"]
"""The names of `PREFERENCE_LOSSES`, spelled out here to be quick to import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceData:
    """What preferences it is trained and measured on.

    Args:
        data: a JSONL file, each line {"prompt": ..., "chosen": ..., "rejected": ...}, or a dataset
            on the Hugging Face hub; None is the starter set that comes with the library.
        eval_data: such a file or dataset to measure on before, during and after training; None is
            the starter set's own, or for your data those held out by --test-size.
        test_size: without --eval-data, so many comparisons of --data are held out, by chance.
        batch_size: pairs in one step.
        max_length: tokens to keep of prompt and completion, at most as many as the model can read.
        ties: comparisons without a preference are left out (drop), or pull both completions
            together (half).
    """

    data: str | None = None
    eval_data: str | None = None
    test_size: int = 0
    batch_size: int = 8
    max_length: int | None = 1024
    ties: Literal["drop", "half"] = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceChoice:
    """What is learned from a preference.

    Args:
        loss: which one; simpo and orpo need no reference model.
        beta: how strongly the policy is held to the reference; None is the loss's own.
        label_smoothing: of dpo and robust_dpo: the share of preferences taken to be the wrong way
            round; None is the loss's own.
        gamma: of simpo: the margin asked for; None is the loss's own.
        reference_model_name: what the policy is compared with for the whole run: a base model of
            the engine or a tinker:// path. None is what training starts from.
    """

    loss: PreferenceLossName = "dpo"
    beta: float | None = None
    label_smoothing: float | None = None
    gamma: float | None = None
    reference_model_name: str | None = None

    @property
    def settings(self) -> dict[str, float]:
        """The settings given, by the loss's names for them."""
        given = {"beta": self.beta, "label_smoothing": self.label_smoothing, "gamma": self.gamma}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOConfig:
    """Everything the loop over preferences is told.

    Args:
        model: what is trained.
        preference: what is learned from a preference, and against which reference.
        schedule: how long and how fast.
        adam: the optimizer.
        cadence: what is done how often; `submit_ahead` is so many batches' reference
            log-probabilities.
        seed: of the initial LoRA weights and of the order of the data.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    preference: PreferenceChoice = field(default_factory=PreferenceChoice)
    schedule: Schedule = field(default_factory=lambda: Schedule(learning_rate=1e-5))
    adam: Adam = field(default_factory=Adam)
    cadence: Cadence = field(default_factory=Cadence)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigurationError(f"`seed` must be 0 or more, got {self.seed}")

    @property
    def reference(self) -> str:
        """The base model or tinker:// path that the policy is compared with, resumed or not."""
        return (
            self.preference.reference_model_name or self.model.load_checkpoint or self.model.model
        )
