"""Typed measurements, and the one place that gives them names.

Names are tinker-cookbook's where the thing is the same, so that dashboards made for it work.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import jax
from jax.typing import ArrayLike

from cookbook_fx.distillation import TeacherKL
from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics import PolicyDiagnostics, SampleTrainKL
from cookbook_fx.preference import PairPreparation, PreferenceReport
from cookbook_fx.reports.scores import ScoreReport
from cookbook_fx.rl import RolloutErrorCounts, TrajectoryReport
from cookbook_fx.rl.metrics import ALL
from cookbook_fx.runs import Step
from cookbook_fx.supervised import LikelihoodReport, Preparation

Metrics = dict[str, float | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedStepReport:
    """One supervised step.

    Args:
        step: which one.
        learning_rate: the optimizer's at this step.
        batch: how likely its targets were before it.
    """

    step: Step
    learning_rate: float
    batch: LikelihoodReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforcementStepReport:
    """One step of reinforcement learning.

    Args:
        step: which one.
        total_steps: steps of the whole run.
        learning_rate: the optimizer's at this step.
        num_groups: groups rolled out.
        num_datums: trained on; 0 where no group had anything to teach.
        num_tokens: tokens of those that the model read.
        num_updates: optimizer steps; 0 where there was no datum.
        mean_reward: over all episodes, those not trained on included.
    """

    step: Step
    total_steps: int
    learning_rate: float
    num_groups: int
    num_datums: int
    num_tokens: int
    num_updates: int
    mean_reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReport:
    """Where a step's episodes come from and what went wrong with them.

    Args:
        errors: what failed.
        sampler_steps: for each group the steps done by the weights it was begun with.
        seconds: for each group how long its episodes took.
    """

    errors: RolloutErrorCounts
    sampler_steps: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutEvaluationReport:
    """How a policy does in held-out environments.

    Args:
        name: the held-out set's; begins the names of its numbers.
        trajectories: by tag and over all, as `compute_trajectory_metrics` sums them up.
        solved: for each of their tags, the share of its groups of which some episode earned more
            than 0: `by_group/frac_any_positive`. A group that failed counts as one that did not.
        errors: what failed.
    """

    name: str = "test"
    trajectories: tuple[TrajectoryReport, ...]
    solved: Mapping[str, float]
    errors: RolloutErrorCounts

    @property
    def score(self) -> float:
        """The share of all groups of which some episode earned more than 0."""
        return self.solved[ALL]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceStepReport:
    """One step on preferences.

    Args:
        step: which one.
        learning_rate: the optimizer's at this step.
        batch: how well its pairs were told apart before it.
    """

    step: Step
    learning_rate: float
    batch: PreferenceReport


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceEvaluationReport:
    """How well held-out pairs are told apart.

    Args:
        name: the held-out set's; begins the names of its numbers.
        preferences: over the whole set.
    """

    name: str = "test"
    preferences: PreferenceReport


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """How likely held-out targets are.

    Args:
        name: the held-out set's; begins the names of its numbers.
        likelihood: over the whole set.
    """

    name: str = "test"
    likelihood: LikelihoodReport


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerReport:
    """What the engine says of its optimizer step.

    Args:
        metrics: numbers under the engine's own names, such as `optim/grad_norm`.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeReport:
    """Where the time of a step went.

    Args:
        seconds: of each part, by name; `total` is the whole step.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyReport:
    """How far the policies of a reinforcement-learning step lie apart; None where not measured.

    Args:
        sample_train: the policy that sampled against the one that is trained, before the update:
            `optim/kl_sample_train_v1`, `_v2`, `_v3` and `optim/entropy`. Diagnostics measure the
            same and more, which is named `optim/` and the field's name.
        pre_post: the policy that sampled against the one after the update: `kl_pre_post_v1`,
            `_v2`, `_v3`. Its entropy is the sampling policy's once more and not repeated.
        kl_policy_base: the KL penalty's mean, sampling against base policy.
    """

    sample_train: SampleTrainKL | PolicyDiagnostics | None = None
    pre_post: SampleTrainKL | None = None
    kl_policy_base: ArrayLike | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherReport:
    """How far a student is from its teachers.

    Args:
        kl: `teacher_kl`, and for each teacher's data set `teacher_kl/dataset_<i>`.
        name: of a held-out set, begins the names; None in training.
    """

    kl: TeacherKL
    name: str | None = None


Report = (
    SupervisedStepReport
    | PreferenceStepReport
    | PreferenceEvaluationReport
    | PairPreparation
    | ReinforcementStepReport
    | RolloutReport
    | RolloutEvaluationReport
    | EvaluationReport
    | ScoreReport
    | OptimizerReport
    | TimeReport
    | Preparation
    | TrajectoryReport
    | PolicyReport
    | TeacherReport
)


def flatten(*reports: Report) -> Metrics:
    """All reports of one step as one flat record, ready for a line of `metrics.jsonl`.

    Raises:
        ConfigurationError: a name is given twice, so one number would hide the other: by two
            reports, or by an environment's metric called like one of `TrajectoryReport`'s own.

    Example:
        >>> flatten(TimeReport(seconds={"total": 1.5}), OptimizerReport(metrics={"optim/lr": 0.1}))
        {'time/total': 1.5, 'optim/lr': 0.1}
    """
    metrics: Metrics = {}
    for name, value in chain.from_iterable(map(_named, reports)):
        if name in metrics:
            raise ConfigurationError(
                f"one step gives the metric {name!r} twice; name one of the two otherwise"
            )
        metrics[name] = value
    return metrics


def _named(report: Report) -> Iterable[tuple[str, float | int]]:  # noqa: C901  # a case a report
    match report:
        case SupervisedStepReport():
            return _supervised_step(report).items()
        case ReinforcementStepReport():
            return _reinforcement_step(report).items()
        case RolloutReport():
            return _rollouts(report).items()
        case RolloutEvaluationReport():
            return _rollout_evaluation(report)
        case PreferenceStepReport():
            return _preference_step(report).items()
        case PreferenceEvaluationReport():
            measured = _preferences(report.preferences)
            return [(f"{report.name}/{name}", value) for name, value in measured.items()]
        case PairPreparation():
            return _pair_preparation(report).items()
        case EvaluationReport():
            return _evaluation(report).items()
        case ScoreReport():
            return [(f"{report.name}/{name}", value) for name, value in report.scores.items()]
        case OptimizerReport():
            return report.metrics.items()
        case TimeReport():
            return [(f"time/{name}", seconds) for name, seconds in report.seconds.items()]
        case Preparation():
            return _preparation(report).items()
        case TrajectoryReport():
            return _trajectories(report)
        case PolicyReport():
            return _policy(report).items()
        case TeacherReport():
            return _teachers(report).items()


def _supervised_step(report: SupervisedStepReport) -> Metrics:
    batch = report.batch
    return {
        "epoch": report.step.epoch,
        "progress": report.step.progress,
        "learning_rate": report.learning_rate,
        "num_sequences": batch.num_sequences,
        "num_tokens": batch.num_tokens,
        "num_loss_tokens": batch.num_loss_tokens,
        "train_mean_nll": batch.mean_nll,
    } | _known("train_mean_bpb", batch.bits_per_byte)


def _reinforcement_step(report: ReinforcementStepReport) -> Metrics:
    return {
        "progress/epoch": report.step.epoch,
        "progress/batch": report.step.index,
        "progress/done_frac": (report.step.index + 1) / report.total_steps,
        "optim/lr": report.learning_rate,
        "optim/num_updates": report.num_updates,
        "train/num_groups": report.num_groups,
        "train/num_datums": report.num_datums,
        "train/num_tokens": report.num_tokens,
    }


def _rollouts(report: RolloutReport) -> Metrics:
    return {
        **_errors(report.errors),
        **_spread("sampling_client/step", report.sampler_steps),
        **_spread("time/sampling_time", report.seconds),
    }


def _errors(counts: RolloutErrorCounts) -> Metrics:
    return {
        **{f"rollout_errors/{kind}": count for kind, count in counts.by_type.items()},
        "rollout_errors/total": sum(counts.by_type.values()),
        "rollout_errors/groups_skipped": counts.groups_skipped,
    }


def _rollout_evaluation(report: RolloutEvaluationReport) -> list[tuple[str, float | int]]:
    solved = {
        f"env/{tag}/by_group/frac_any_positive": share for tag, share in report.solved.items()
    }
    trajectories = chain.from_iterable(map(_trajectories, report.trajectories))
    named = chain(trajectories, solved.items(), _errors(report.errors).items())
    return [(f"{report.name}/{name}", value) for name, value in named]


def _spread(name: str, values: Sequence[float | int]) -> Metrics:
    if not values:
        return {}
    mean = sum(values) / len(values)
    return {f"{name}_max": max(values), f"{name}_min": min(values), f"{name}_mean": mean}


def _preference_step(report: PreferenceStepReport) -> Metrics:
    return {
        "epoch": report.step.epoch,
        "progress": report.step.progress,
        "learning_rate": report.learning_rate,
        "num_tokens": report.batch.num_tokens,
    } | _preferences(report.batch)


def _preferences(report: PreferenceReport) -> Metrics:
    always: Metrics = {
        f"{report.loss_name}_loss": report.loss,
        "num_pairs": report.num_pairs,
        "num_ties": report.num_ties,
    }
    return (
        always
        | _known("accuracy", report.accuracy)
        | _known("margin", report.margin)
        | _known("chosen_reward", report.chosen_reward)
        | _known("rejected_reward", report.rejected_reward)
    )


def _pair_preparation(report: PairPreparation) -> Metrics:
    return {
        "data/comparisons": report.comparisons,
        "data/pairs": report.pairs,
        "data/ties": report.ties,
        "data/dropped_ties": report.dropped_ties,
        "data/equal": report.equal,
        "data/truncated": report.truncated,
        "data/cut_off": report.cut_off,
        "data/nothing_to_train": report.nothing_to_train,
        "data/tokens": report.tokens,
        "data/loss_tokens": report.loss_tokens,
    }


def _evaluation(report: EvaluationReport) -> Metrics:
    nll = {f"{report.name}/nll": report.likelihood.mean_nll}
    return nll | _known(f"{report.name}/bpb", report.likelihood.bits_per_byte)


def _preparation(report: Preparation) -> Metrics:
    return {
        "data/conversations": report.conversations,
        "data/examples": report.datums,
        "data/truncated": report.truncated,
        "data/cut_off": report.cut_off,
        "data/nothing_to_train": report.nothing_to_train,
        "data/too_short": report.too_short,
        "data/tokens": report.tokens,
        "data/loss_tokens": report.loss_tokens,
    }


def _trajectories(report: TrajectoryReport) -> list[tuple[str, float | int]]:
    own = {
        "ac_tokens_per_turn": report.ac_tokens_per_turn,
        "ob_tokens_per_turn": report.ob_tokens_per_turn,
        "turns_per_episode": report.turns_per_episode,
        "total_episodes": report.total_episodes,
        "total_turns": report.total_turns,
        "total_ac_tokens": report.total_ac_tokens,
        "total_ob_tokens": report.total_ob_tokens,
        "reward/total": report.mean_total_reward,
        "by_group/frac_mixed": report.frac_mixed,
        "by_group/frac_all_good": report.frac_all_good,
        "by_group/frac_all_bad": report.frac_all_bad,
    }
    # Not one dict, where an environment's metric would silently replace one of ours.
    named = chain(own.items(), report.metrics.items())
    return [(f"env/{report.tag}/{name}", value) for name, value in named]


def _policy(report: PolicyReport) -> Metrics:
    measured = _sample_train(report.sample_train) | _pre_post(report.pre_post)
    if report.kl_policy_base is not None:
        measured["kl_policy_base"] = report.kl_policy_base
    # In one transfer: the numbers may still be on a device.
    numbers = jax.device_get(list(measured.values()))
    return {name: float(number) for name, number in zip(measured, numbers, strict=True)}


def _teachers(report: TeacherReport) -> Metrics:
    name = "teacher_kl" if report.name is None else f"{report.name}/teacher_kl"
    each = {f"{name}/dataset_{index}": mean for index, mean in report.kl.by_reference.items()}
    return {name: report.kl.mean} | each


def _sample_train(measured: SampleTrainKL | PolicyDiagnostics | None) -> dict[str, ArrayLike]:
    if measured is None:
        return {}
    distances: dict[str, ArrayLike] = {
        "optim/kl_sample_train_v1": measured.kl_v1,
        "optim/kl_sample_train_v2": measured.kl_v2,
        "optim/kl_sample_train_v3": measured.kl_v3,
        "optim/entropy": measured.entropy,
    }
    if isinstance(measured, SampleTrainKL):
        return distances
    return distances | {
        "optim/ratio_mean": measured.ratio_mean,
        "optim/ratio_min": measured.ratio_min,
        "optim/ratio_max": measured.ratio_max,
        "optim/clip_fraction_low": measured.clip_fraction_low,
        "optim/clip_fraction_high": measured.clip_fraction_high,
        "optim/effective_sample_size": measured.effective_sample_size,
    }


def _pre_post(kl: SampleTrainKL | None) -> dict[str, ArrayLike]:
    if kl is None:
        return {}
    return {"kl_pre_post_v1": kl.kl_v1, "kl_pre_post_v2": kl.kl_v2, "kl_pre_post_v3": kl.kl_v3}


def _known(name: str, value: float | None) -> Metrics:
    return {} if value is None else {name: value}
