"""Requests and answers that get lost, repeated, delayed, overtaken or refused change nothing."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cookbook_fx.preference import PreferenceDataset
from cookbook_fx.supervised import SupervisedDataset
from shell.engine.serve import Endpoint
from shell.training import (
    Cadence,
    DPOConfig,
    ModelChoice,
    RLCadence,
    SamplingChoice,
    Schedule,
    SFTConfig,
)
from shell.training.dpo import DPOData
from shell.training.rl import RLData
from shell.training.rl_config import RLConfig
from shell.training.sft import SFTData
from tests.rl_runs import Problems, RLRunner, rows
from tests.shell.faults.proxy import Fault, Proxy
from tests.shell.training.conftest import Runner as SFTRunner
from tests.shell.training.test_dpo import Runner as DPORunner

# A batch travels as one request for each example, which the SDK sends at once and out of order.
_ONE_EXAMPLE_A_REQUEST = json.dumps({"fwdbwd_max_chunk_len": 1}).encode()

KINDS = ("sft", "rl", "dpo")
FAULTS: tuple[Fault, ...] = (
    "status before",
    "status after",
    "drop before",
    "drop after",
    "cut",
    "duplicate",
    "late duplicate",
    "slow",
    "slow answer",
)


@pytest.fixture
def runners(engine: Endpoint, tiny_model_directory: Path, prepared, pairs) -> dict:
    """A loop of each kind: 8 steps of fine-tuning, 3 of reinforcement, 8 on preferences."""
    model = ModelChoice(model=str(tiny_model_directory), lora_rank=4)
    schedule = Schedule(learning_rate=1e-2, num_epochs=2)
    cadence = Cadence(eval_every=3, save_every=3, submit_ahead=1)
    datums, lengths = prepared
    return {
        "sft": SFTRunner(
            endpoint=engine,
            config=SFTConfig(model=model, schedule=schedule, cadence=cadence, seed=5),
            data=SFTData(
                train=SupervisedDataset(datums=datums[:14], batch_size=4), byte_lengths=lengths
            ),
            batches=[],
        ),
        "rl": RLRunner(
            endpoint=engine,
            config=RLConfig(
                model=model,
                schedule=Schedule(learning_rate=1e-2, lr_schedule="constant"),
                cadence=RLCadence(eval_every=None, save_every=1),
                sampling=SamplingChoice(max_tokens=4),
                seed=5,
            ),
            data=RLData(train=Problems(count=9)),
        ),
        "dpo": DPORunner(
            endpoint=engine,
            config=DPOConfig(model=model, schedule=schedule, cadence=cadence, seed=5),
            data=DPOData(
                train=PreferenceDataset(pairs=pairs[:14], batch_size=4), held_out=pairs[14:]
            ),
        ),
    }


@pytest.fixture(scope="module")
def calm() -> dict:
    """What each kind of run gives where nothing happens, made by who needs it first."""
    return {}


@pytest.fixture
def same_through(runners, engine, weights, calm, tmp_path) -> Callable[..., Proxy]:
    """Runs a loop through a faulty proxy; it must end as it does through a good one."""

    def run(kind: str, **trouble: object) -> Proxy:
        def through(proxy: Proxy, folder: Path):
            with proxy.running():
                endpoint = Endpoint(base_url=proxy.url, api_key=engine.api_key)
                extra = {"seconds": 240.0} if kind == "rl" else {}
                result = replace(runners[kind], endpoint=endpoint)(folder, **extra)
            assert result.finished
            return rows(folder), weights(result.checkpoint.state_path)

        config = _ONE_EXAMPLE_A_REQUEST
        if kind not in calm:
            good = Proxy(upstream=engine.base_url, client_config=config)
            calm[kind] = through(good, tmp_path / "calm")
        proxy = Proxy(upstream=engine.base_url, client_config=config, **trouble)
        measured, ours = through(proxy, tmp_path / "faulty")
        assert measured == calm[kind][0]
        for one, other in zip(ours, calm[kind][1], strict=True):
            np.testing.assert_array_equal(one, other)
        return proxy

    return run


def test_a_run_through_all_of_it_ends_in_the_same_weights(same_through):
    quick = ("drop after", "cut", "duplicate", "late duplicate", "slow", "slow answer")
    proxy = same_through("sft", faults=quick, rate=0.08, seconds=0.1)
    assert proxy.injected.total() > 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_or_done_twice(same_through, kind, fault):
    injected: Counter[str] = Counter()
    for seed in range(2):
        injected += same_through(kind, faults=(fault,), rate=0.1, seed=seed).injected
    assert injected[fault] > 0
    sys.stdout.write(f"{kind}: {dict(injected)}\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_at_once(same_through, kind):
    proxy = same_through(kind, faults=FAULTS, rate=0.3)
    sys.stdout.write(f"{kind}: {dict(proxy.injected)}\n")
