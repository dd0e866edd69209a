import json

import jax.numpy as jnp
import numpy as np
import pytest

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.numerics import PolicyDiagnostics, SampleTrainKL
from cookbook_fx.reports import (
    EvaluationReport,
    OptimizerReport,
    PolicyReport,
    ReinforcementStepReport,
    RolloutReport,
    SupervisedStepReport,
    TimeReport,
    flatten,
)
from cookbook_fx.rl import RolloutErrorCounts, TrajectoryReport
from cookbook_fx.runs import RunPlan
from cookbook_fx.supervised import LikelihoodReport, Preparation


def likelihood(bits_per_byte=0.5):
    return LikelihoodReport(
        num_sequences=4,
        num_tokens=100,
        num_loss_tokens=40,
        mean_nll=1.25,
        bits_per_byte=bits_per_byte,
    )


def step_report(**options):
    step = RunPlan(num_batches=4, num_epochs=2).step(6)
    return SupervisedStepReport(step=step, learning_rate=1e-4, batch=likelihood(**options))


def test_a_supervised_step_has_the_names_dashboards_know():
    metrics = flatten(
        step_report(),
        EvaluationReport(likelihood=likelihood()),
        OptimizerReport(metrics={"optim/grad_norm": 2.0}),
        TimeReport(seconds={"total": 3.0}),
    )
    assert metrics == {
        "epoch": 1,
        "progress": 0.75,
        "learning_rate": 1e-4,
        "num_sequences": 4,
        "num_tokens": 100,
        "num_loss_tokens": 40,
        "train_mean_nll": 1.25,
        "train_mean_bpb": 0.5,
        "test/nll": 1.25,
        "test/bpb": 0.5,
        "optim/grad_norm": 2.0,
        "time/total": 3.0,
    }
    assert json.loads(json.dumps(metrics)) == metrics


def test_what_is_not_known_has_no_name():
    unknown = EvaluationReport(name="dev", likelihood=likelihood(None))
    assert flatten(unknown) == {"dev/nll": 1.25}
    assert "train_mean_bpb" not in flatten(step_report(bits_per_byte=None))


def test_one_name_twice_is_refused():
    with pytest.raises(ConfigurationError, match="'test/nll'"):
        flatten(*[EvaluationReport(likelihood=likelihood())] * 2)


def test_the_account_of_the_data_is_named_whole():
    metrics = flatten(Preparation(conversations=3, datums=2, cut_off=1))
    assert metrics["data/conversations"] == 3
    assert metrics["data/cut_off"] == 1
    assert len(metrics) == 8


def trajectories(tag="all", **metrics):
    return TrajectoryReport(
        tag=tag,
        ac_tokens_per_turn=2.5,
        ob_tokens_per_turn=5.0,
        turns_per_episode=2.0,
        total_episodes=2,
        total_turns=4,
        total_ac_tokens=10,
        total_ob_tokens=20,
        mean_total_reward=0.75,
        frac_mixed=0.5,
        frac_all_good=0.25,
        frac_all_bad=0.125,
        metrics=metrics,
    )


def test_episodes_have_the_names_dashboards_know():
    metrics = flatten(trajectories(**{"stop/completed": 0.5}))
    assert metrics == {
        "env/all/ac_tokens_per_turn": 2.5,
        "env/all/ob_tokens_per_turn": 5.0,
        "env/all/turns_per_episode": 2.0,
        "env/all/total_episodes": 2,
        "env/all/total_turns": 4,
        "env/all/total_ac_tokens": 10,
        "env/all/total_ob_tokens": 20,
        "env/all/reward/total": 0.75,
        "env/all/by_group/frac_mixed": 0.5,
        "env/all/by_group/frac_all_good": 0.25,
        "env/all/by_group/frac_all_bad": 0.125,
        "env/all/stop/completed": 0.5,
    }
    assert json.loads(json.dumps(metrics)) == metrics


def test_each_tag_has_its_own_names():
    metrics = flatten(trajectories("math", correct=1.0), trajectories("all", correct=0.5))
    assert (metrics["env/math/correct"], metrics["env/all/correct"]) == (1.0, 0.5)
    assert len(metrics) == 24


@pytest.mark.parametrize("key", ["reward/total", "total_turns", "by_group/frac_mixed"])
def test_an_environment_cannot_hide_a_number_of_ours(key):
    with pytest.raises(ConfigurationError, match=f"'env/all/{key}' twice"):
        flatten(trajectories(**{key: 1.0}))


KL = SampleTrainKL(kl_v1=0.25, kl_v2=0.5, kl_v3=0.75, entropy=1.5)


def diagnostics():
    return PolicyDiagnostics(
        ratio_mean=1.0,
        ratio_min=0.5,
        ratio_max=2.0,
        clip_fraction_low=0.125,
        clip_fraction_high=0.0625,
        effective_sample_size=0.875,
        kl_v1=0.25,
        kl_v2=0.5,
        kl_v3=0.75,
        entropy=1.5,
    )


def test_divergences_have_the_names_dashboards_know():
    metrics = flatten(PolicyReport(sample_train=KL, pre_post=KL, kl_policy_base=0.0))
    assert metrics == {
        "optim/kl_sample_train_v1": 0.25,
        "optim/kl_sample_train_v2": 0.5,
        "optim/kl_sample_train_v3": 0.75,
        "optim/entropy": 1.5,
        "kl_pre_post_v1": 0.25,
        "kl_pre_post_v2": 0.5,
        "kl_pre_post_v3": 0.75,
        "kl_policy_base": 0.0,
    }


def test_diagnostics_name_the_same_divergences_and_more():
    metrics = flatten(PolicyReport(sample_train=diagnostics()))
    assert metrics == flatten(PolicyReport(sample_train=KL)) | {
        "optim/ratio_mean": 1.0,
        "optim/ratio_min": 0.5,
        "optim/ratio_max": 2.0,
        "optim/clip_fraction_low": 0.125,
        "optim/clip_fraction_high": 0.0625,
        "optim/effective_sample_size": 0.875,
    }
    assert len(metrics) == len(PolicyDiagnostics._fields)


def test_a_policy_nobody_measured_has_no_numbers():
    assert flatten(PolicyReport()) == {}
    assert flatten(PolicyReport(kl_policy_base=0.5)) == {"kl_policy_base": 0.5}


@pytest.mark.parametrize("scalar", [jnp.asarray, np.asarray, np.float32])
def test_numbers_of_any_kind_come_out_plain(scalar):
    kl = SampleTrainKL(*map(scalar, KL))
    metrics = flatten(PolicyReport(sample_train=kl, kl_policy_base=scalar(0.125)))
    assert {type(value) for value in metrics.values()} == {float}
    assert metrics == flatten(PolicyReport(sample_train=KL, kl_policy_base=0.125))
    json.dumps(metrics)


def test_a_reinforcement_step_has_the_names_dashboards_know():
    step = ReinforcementStepReport(
        step=RunPlan(num_batches=4, num_epochs=2).step(5),
        total_steps=8,
        learning_rate=1e-4,
        num_groups=3,
        num_datums=10,
        num_tokens=100,
        num_updates=2,
        mean_reward=0.5,
    )
    rollouts = RolloutReport(
        errors=RolloutErrorCounts(by_type={"OSError": 2, "ValueError": 1}, groups_skipped=1),
        sampler_steps=(5, 3, 4),
        seconds=(1.0, 2.0, 6.0),
    )
    assert flatten(step, rollouts) == {
        "progress/epoch": 1,
        "progress/batch": 5,
        "progress/done_frac": 0.75,
        "optim/lr": 1e-4,
        "optim/num_updates": 2,
        "train/num_groups": 3,
        "train/num_datums": 10,
        "train/num_tokens": 100,
        "rollout_errors/OSError": 2,
        "rollout_errors/ValueError": 1,
        "rollout_errors/total": 3,
        "rollout_errors/groups_skipped": 1,
        "sampling_client/step_max": 5,
        "sampling_client/step_min": 3,
        "sampling_client/step_mean": 4.0,
        "time/sampling_time_max": 6.0,
        "time/sampling_time_min": 1.0,
        "time/sampling_time_mean": 3.0,
    }


def test_rollouts_without_a_group_have_no_spread():
    nothing = RolloutReport(errors=RolloutErrorCounts(by_type={}, groups_skipped=0))
    assert flatten(nothing) == {"rollout_errors/total": 0, "rollout_errors/groups_skipped": 0}
