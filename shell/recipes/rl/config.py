"""What can be learnt by reinforcement, and how: small frozen records, quick to import."""

from dataclasses import dataclass, field
from typing import Literal

from cookbook_fx.errors import ConfigurationError

AdvantageEstimatorName = Literal["group_centered", "group_normalized", "leave_one_out", "max_rl"]
PolicyLossName = Literal["importance_sampling", "ppo", "cispo", "dro", "gspo"]
FailureStrategyName = Literal["fail_fast", "retry", "min_viable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """How many attempts at how many problems a step learns from.

    Args:
        groups_per_batch: problems in a step.
        group_size: attempts at each, judged against one another.
    """

    groups_per_batch: int = 12
    group_size: int = 16

    def __post_init__(self) -> None:
        for name in ("groups_per_batch", "group_size"):
            _check_at_least(1, name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Add two numbers: "What is 37 + 58?". The last integer of the answer counts.

    Args:
        groups: how many attempts at how many problems a step learns from.
        max_tokens: the longest answer, in tokens.
        largest: both numbers are drawn from 0 to this one.
        fewshot: show one question answered before.
        format_coef: what an answer costs that is cut off.
        num_batches: steps in an epoch; each draws problems of its own.
        num_test: problems to test on.
    """

    groups: Groups = field(default_factory=Groups)
    max_tokens: int = 8
    largest: int = 100
    fewshot: bool = True
    format_coef: float = 0.1
    num_batches: int = 100
    num_test: int = 64

    def __post_init__(self) -> None:
        _check_at_least(1, "largest", self.largest)
        _check_at_least(1, "num_batches", self.num_batches)
        _check_at_least(0, "num_test", self.num_test)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessNumber:
    """Find a number in several turns, told each time whether the guess was too high or too low.

    Args:
        groups: how many attempts at how many numbers a step learns from.
        max_tokens: the longest guess, in tokens.
        largest: the number is one from 1 to this one; a tenth of them are kept to test on.
        guesses: guesses in an episode.
        format_coef: what a turn costs that is no guess.
    """

    groups: Groups = field(default_factory=Groups)
    max_tokens: int = 8
    largest: int = 100
    guesses: int = 8
    format_coef: float = 0.1

    def __post_init__(self) -> None:
        _check_at_least(2, "largest", self.largest)
        _check_at_least(1, "guesses", self.guesses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Math:
    """Solve word problems like GSM8K's, graded by the value of the answer after ####.

    Args:
        groups: how many attempts at how many problems a step learns from.
        max_tokens: the longest solution, in tokens.
        data: a JSONL, JSON or Parquet file, or a data set on the Hugging Face hub, such as
            openai/gsm8k; None is the small set that comes with the library.
        data_config: which part of a data set on the hub, where it has several: main.
        eval_data: such a file or data set to test on; None is the small set's own, the test
            split of a data set on the hub, and for a file of yours nothing.
        question_field: where the questions are.
        answer_field: where the answers are: after a last ####, in a last \\boxed{}, or bare.
        instruction: is added to each question.
        fewshot: show one problem solved before.
        format_coef: what a solution costs that names no answer where it should.
        grader: a function of your own, package.module:function, that takes a solution and the
            right answer and says whether it is right; None compares by value.
        grading_seconds: time the grader may take; what takes longer counts as wrong.
        num_test: problems to test on at most.
    """

    groups: Groups = field(default_factory=Groups)
    max_tokens: int = 128
    data: str | None = None
    data_config: str | None = None
    eval_data: str | None = None
    question_field: str = "question"
    answer_field: str = "answer"
    instruction: str = "End with the answer as a number after ####."
    fewshot: bool = True
    format_coef: float = 0.1
    grader: str | None = None
    grading_seconds: float = 2.0
    num_test: int = 64

    def __post_init__(self) -> None:
        _check_at_least(0, "num_test", self.num_test)
        if not self.grading_seconds > 0:
            raise ConfigurationError(
                f"`grading_seconds` must be above 0, got {self.grading_seconds}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningGym:
    """Solve a task of the package reasoning-gym: leg_counting, countdown, sudoku and many more.

    Needs `pip install "cookbook-fx[reasoning-gym]"`.

    Args:
        groups: how many attempts at how many problems a step learns from.
        max_tokens: the longest answer, in tokens.
        task: the task's name in reasoning-gym.
        task_config: its settings as JSON, such as {"max_animals": 3}.
        num_problems: problems in an epoch.
        num_test: problems to test on.
        problem_seed: decides which problems there are, whatever the run's seed is.
        instruction: is added to each question.
        format_coef: what an answer costs that is not between <answer> and </answer>.
        grading_seconds: time that scoring an answer may take; what takes longer counts as wrong.
    """

    groups: Groups = field(default_factory=Groups)
    max_tokens: int = 64
    task: str = "leg_counting"
    task_config: str = "{}"
    num_problems: int = 800
    num_test: int = 64
    problem_seed: int = 0
    instruction: str = "Write the answer between <answer> and </answer>."
    format_coef: float = 0.1
    grading_seconds: float = 10.0

    def __post_init__(self) -> None:
        _check_at_least(1, "num_problems", self.num_problems)
        _check_at_least(0, "num_test", self.num_test)
        if not self.grading_seconds > 0:
            raise ConfigurationError(
                f"`grading_seconds` must be above 0, got {self.grading_seconds}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shorter:
    """Answer in fewer words: of two answers to a prompt the shorter one wins, if it ends well.

    Args:
        groups: how many answers to how many prompts a step learns from.
        max_tokens: the longest answer, in tokens; what is cut off there loses a point.
        data: prompts: a JSONL file, each line {"prompt": ...} or a conversation, or a data set on
            the Hugging Face hub; None is the questions of the starter conversations.
        num_test: prompts to measure the length of answers on.
    """

    groups: Groups = field(default_factory=lambda: Groups(group_size=8))
    max_tokens: int = 96
    data: str | None = None
    num_test: int = 16

    def __post_init__(self) -> None:
        _check_at_least(0, "num_test", self.num_test)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What a step learns from its groups, and how.

    Args:
        advantages: what an attempt is judged by against its group: its reward less the group's
            mean; that in standard deviations; its reward less the mean of the others; or less the
            mean, over the mean.
        loss: Tinker's name of it; ppo and cispo bound how much a token may count.
        loss_config: its settings by Tinker's names, as name=value, such as clip_high_threshold=1.3.
        truncate_ratios: with importance_sampling, the largest ratio between the weights that learn
            and those that sampled; None is no limit.
        remove_constant_reward_groups: leave out groups whose attempts all earned the same.
        kl_penalty_coef: what leaving the base model costs, per nat; 0 is nothing.
        kl_discount_factor: charge a token also for what follows, discounted so; 0 charges each for
            itself.
        kl_reference: stay close to this instead of the base model: another's name, or a tinker://
            path of weights saved for sampling.
        compute_post_kl: measure after each step how far it moved the policy.
    """

    advantages: AdvantageEstimatorName = "group_centered"
    loss: PolicyLossName = "importance_sampling"
    loss_config: tuple[str, ...] = ()
    truncate_ratios: float | None = None
    remove_constant_reward_groups: bool = False
    kl_penalty_coef: float = 0.0
    kl_discount_factor: float = 0.0
    kl_reference: str | None = None
    compute_post_kl: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """In which order the run samples and trains.

    Args:
        max_steps_off_policy: sample so many steps ahead of training: faster, from older weights.
            With 1 or more choose a clipped loss, such as --loss ppo.
        num_minibatches: train on a step's groups in so many parts, each as soon as it is there.
        num_substeps: optimizer steps made of one step's groups.
    """

    max_steps_off_policy: int = 0
    num_minibatches: int = 1
    num_substeps: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the model answers while it learns.

    Args:
        temperature: 1 samples as the model would; what it learns is exact only there.
        top_k: sample from the likeliest so many tokens only; -1 from all.
        top_p: sample from the likeliest tokens that make up this probability only; 1 from all.
    """

    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """How far an episode may go, and what happens where one fails; None is no limit.

    Args:
        on_failure: fail_fast ends the run, retry plays the episode again, min_viable goes on
            without it while three quarters of its group are left.
        max_retries: of a group, all its episodes together.
        max_turns: actions in an episode.
        max_trajectory_tokens: tokens of the longest prompt and the action after it.
        max_sampled_tokens: tokens of all actions.
        rollout_seconds: time an episode may take.
        zero_reward_on_limit: an episode that a limit stopped earns nothing.
    """

    on_failure: FailureStrategyName = "retry"
    max_retries: int = 3
    max_turns: int | None = None
    max_trajectory_tokens: int | None = None
    max_sampled_tokens: int | None = None
    rollout_seconds: float | None = 1800.0
    zero_reward_on_limit: bool = False


def _check_at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ConfigurationError(f"`{name}` must be at least {least}, got {value}")
