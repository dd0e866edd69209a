import json

import pytest

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.reports import (
    EvaluationReport,
    OptimizerReport,
    SupervisedStepReport,
    TimeReport,
    flatten,
)
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
