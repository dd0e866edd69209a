"""The same run gives the same weights, whatever others ask of the engine meanwhile."""

import asyncio
import threading

import numpy as np
import pytest

from shell.clients import NewLoRA, connect
from shell.clients.sampling import SampleRequest
from shell.training import ModelChoice, RLCadence, SamplingChoice, Schedule
from shell.training.rl import RLData
from shell.training.rl_config import RLConfig
from tests.rl_runs import Problems, RLRunner, rows


@pytest.fixture
def traffic(engine, tiny_model_directory):
    """Samples of all lengths and a model of somebody else's, until the block ends."""
    stop = threading.Event()
    asked: list[int] = []

    async def ask() -> None:
        random = np.random.default_rng()
        async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
            base = await service.sampler(base_model=str(tiny_model_directory))
            trainer = await service.create(
                NewLoRA(base_model=str(tiny_model_directory), rank=4, seed=int(random.integers(99)))
            )
            other = await trainer.snapshot()
            while not stop.is_set():
                requests = [
                    (base if random.random() < 0.5 else other).sample(
                        SampleRequest(
                            prompt=random.integers(3, 300, int(random.integers(1, 40))),
                            max_tokens=int(random.integers(1, 12)),
                            stop=(),
                            num_samples=int(random.integers(1, 4)),
                        )
                    )
                    for _ in range(6)
                ]
                for request in requests:
                    await request
                    asked.append(1)
                # Company, not a siege.
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: asyncio.run(ask()))
    yield thread, asked
    stop.set()
    if thread.ident is not None:
        thread.join()


@pytest.mark.slow
def test_a_run_among_others_is_the_run_alone(
    engine, weights, traffic, tiny_model_directory, tmp_path
):
    runner = RLRunner(
        endpoint=engine,
        config=RLConfig(
            model=ModelChoice(model=str(tiny_model_directory), lora_rank=4),
            schedule=Schedule(learning_rate=1e-2, lr_schedule="constant"),
            cadence=RLCadence(eval_every=None, save_every=2),
            sampling=SamplingChoice(max_tokens=8),
            seed=5,
        ),
        data=RLData(train=Problems(count=9)),
    )
    alone = runner(tmp_path / "alone", seconds=240)
    thread, asked = traffic
    thread.start()
    among = runner(tmp_path / "among", seconds=240)
    assert asked
    assert rows(tmp_path / "among") == rows(tmp_path / "alone")
    paths = (among.checkpoint.state_path, alone.checkpoint.state_path)
    for one, other in zip(*map(weights, paths), strict=True):
        np.testing.assert_array_equal(one, other)
