"""What a reinforcement-learning run is told."""

from dataclasses import dataclass, field

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.rl import Objective
from cookbook_fx.runs import Pacing
from shell.rollouts import RolloutOptions
from shell.training.config import (
    Adam,
    KLReference,
    ModelChoice,
    RLCadence,
    SamplingChoice,
    Schedule,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RLConfig:
    """Everything the reinforcement-learning loop is told.

    Args:
        model: what is trained.
        schedule: how long and how fast; a step is one batch of groups.
        adam: the optimizer.
        cadence: what is done how often.
        sampling: how the policy answers while it learns.
        objective: what a step learns from its groups.
        kl_references: what a KL penalty pulls towards, or the teachers of a distillation; at least
            one is needed with either. A group says which of them is its own, the first if it does
            not.
        num_substeps: optimizer steps of a step, each on its share of the groups.
        num_minibatches: forward and backward passes of a substep. With 1 they wait for all groups
            of the step; with more, each begins when its groups have arrived.
        max_steps_off_policy: how many steps older than a step the weights may be that its
            rollouts begin with; 0 is on-policy.
        rollout: how episodes are run, and what becomes of those that fail.
        compute_post_kl: measure after each step how far it moved the policy; costs one more pass
            over the step's tokens.
        seed: of the initial LoRA weights, of the order of the data and of what is sampled.

    Raises:
        ConfigurationError: a KL penalty has no reference, or a number is out of range.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    schedule: Schedule = field(default_factory=lambda: Schedule(lr_schedule="constant"))
    adam: Adam = field(default_factory=Adam)
    cadence: RLCadence = field(default_factory=RLCadence)
    sampling: SamplingChoice = field(default_factory=SamplingChoice)
    objective: Objective = field(default_factory=Objective)
    kl_references: tuple[KLReference, ...] = ()
    num_substeps: int = 1
    num_minibatches: int = 1
    max_steps_off_policy: int = 0
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    compute_post_kl: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective.kl_penalty_coef > 0 and not self.kl_references:
            raise ConfigurationError(
                f"a KL penalty of {self.objective.kl_penalty_coef:g} needs a policy to stay close "
                "to; give `kl_references`: KLReference() is the base model that is trained"
            )
        if self.seed < 0:
            raise ConfigurationError(f"`seed` must be 0 or more, got {self.seed}")
        _ = self.pacing  # refuses counts that are out of range

    @property
    def pacing(self) -> Pacing:
        """How far sampling runs ahead of training, and how a step is divided: the mode."""
        return Pacing(
            max_steps_off_policy=self.max_steps_off_policy,
            num_minibatches=self.num_minibatches,
            num_substeps=self.num_substeps,
        )

    @property
    def advice(self) -> str | None:
        """What commonly works better than these settings; None if nothing comes to mind."""
        if self.max_steps_off_policy == 0 or self.objective.is_clipped:
            return None
        return (
            f"rollouts may be {self.max_steps_off_policy} steps older than the weights that "
            f"learn from them, and {self.objective.loss} does not bound how much one token may "
            "count; a clipped loss (ppo, cispo) or `truncate_ratios` is safer"
        )
