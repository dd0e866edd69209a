"""What a step of reinforcement learning takes on a distant engine, here and in tinker-cookbook.

    python -m benchmarks.rl_overlap [--steps 10] [--groups 8] [--episodes 4] [--sampling 2]
        [--training 1] [--jitter 0.2] [--samplers any one] [--modes NAME ...] [--sides ours peer]

The engine is a tiny model behind `benchmarks.latency`: each sequence is there 2 s after it was
asked for and a step is trained in 1 s, each +-20 %. Both sides run the whole loop that a user runs,
through the Tinker SDK, on the same engine, one after the other: one-turn episodes whose reward
counts their tokens. Evaluations and periodic checkpoints are left out on both sides.

`samplers` says how much the engine samples at a time: `any` number of sequences, so that the
rollouts of several steps take no longer than those of one, or `one` batch, so that a step can take
no less than max(sampling, training).

A row says how long a step took, in seconds and as a multiple of max(sampling, training): the time
from the first request for a sequence to the end of the last optimizer step, filling the pipeline
and all, divided by the number of steps; the same for all steps but the first, from its end on; how
many sequences were sampled for each that was trained on; and how long the run took with all that
comes before and after.

A batch waits for the last of its sequences, which with a jitter of 20 % takes 2.4 s and not 2 s: a
synchronous step cannot take less than 3.4 s.

Without tinker-cookbook (to be installed as benchmarks/rl_batches.py says) only our side runs.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks import timing
from benchmarks.latency import VOCABULARY, Distant, Latency, distant_engine
from shell.clients import connect
from shell.rollouts import Env, EnvGroupBuilder, RLDataset, StepResult
from shell.stores import open_run_folder
from shell.training import ModelChoice, RLCadence, SamplingChoice, Schedule
from shell.training.rl import RLData, train_rl
from shell.training.rl_config import RLConfig

_MAX_TOKENS = 16
_STOP = [2]
_LEARNING_RATE = 1e-4
_RANK = 8


class Mode(NamedTuple):
    """How sampling and training are interleaved; both sides know these settings."""

    name: str
    num_minibatches: int
    max_steps_off_policy: int


class Size(NamedTuple):
    """Of a run."""

    steps: int
    groups: int
    episodes: int


_MODES = (
    Mode("sync", 1, 0),
    Mode("stream", 4, 0),
    Mode("async-1", 1, 1),
    Mode("async-2", 1, 2),
)
Side = Callable[[Distant, Size, Mode, Path], None]


def main() -> None:
    """Prints a row for each kind of engine, mode and side."""
    arguments = _arguments()
    timing.settle(arguments.cores)
    os.environ["TINKER_TELEMETRY"] = "0"
    warnings.simplefilter("ignore")
    size = Size(arguments.steps, arguments.groups, arguments.episodes)
    modes = [mode for mode in _MODES if mode.name in arguments.modes]
    sides: dict[str, Side] = {"ours": _ours}
    if importlib.util.find_spec("tinker_cookbook") is None:
        print("tinker-cookbook is not installed; only our side runs")
    else:
        sides["peer"] = _peer
    sides = {name: side for name, side in sides.items() if name in arguments.sides}
    with distant_engine() as engine:
        _compile(engine, size, modes, sides)
        print(
            f"{'samplers':>8} {'mode':>8} {'side':>5} | {'a step':>13} | {'a later step':>13} |"
            f" {'sequences':>9} | {'in all':>7}"
        )
        for samplers in arguments.samplers:
            for mode in modes:
                for name, side in sides.items():
                    latency = Latency(
                        sampling=arguments.sampling,
                        training=arguments.training,
                        jitter=arguments.jitter,
                        batch=size.groups * size.episodes,
                        slots=size.groups * size.episodes if samplers == "one" else 0,
                    )
                    row = _row(engine, latency, size, mode, side)
                    print(f"{samplers:>8} {mode.name:>8} {name:>5} | {row}", flush=True)


def _compile(engine: Distant, size: Size, modes: Sequence[Mode], sides: dict[str, Side]) -> None:
    """Runs two steps of each mode without latency: programs are compiled, modules imported."""
    engine.become(Latency(batch=size.groups * size.episodes))
    for mode in modes:
        for side in sides.values():
            _run(engine, size._replace(steps=2), mode, side)


def _row(engine: Distant, latency: Latency, size: Size, mode: Mode, side: Side) -> str:
    engine.become(latency)
    began = time.perf_counter()
    _run(engine, size, mode, side)
    in_all = time.perf_counter() - began
    record = engine.record()
    first, last = record.steps[0], record.steps[-1]
    seconds = (last - record.began) / len(record.steps)
    later = (last - first) / (len(record.steps) - 1)
    sampled = record.sequences / (len(record.steps) * size.groups * size.episodes)
    at_least = max(latency.sampling, latency.training)
    return (
        f"{seconds:6.2f} {seconds / at_least:5.2f}x | {later:6.2f} {later / at_least:5.2f}x |"
        f" {sampled:8.2f}x | {in_all:5.1f} s"
    )


def _run(engine: Distant, size: Size, mode: Mode, side: Side) -> None:
    with tempfile.TemporaryDirectory() as folder:
        side(engine, size, mode, Path(folder) / "run")


def _prompt(number: int) -> list[int]:
    return [1, 60 + number % 200, 61]


def _reward(action: Sequence[int]) -> float:
    """Differs within a group, so that every group has something to teach."""
    return sum(token < VOCABULARY // 2 for token in action) + sum(action) / 1e6


class _Episode(Env):
    """One turn."""

    def __init__(self, number: int) -> None:
        self._number = number

    async def initial_observation(self):
        return _prompt(self._number), _STOP

    async def step(self, action, *, extra=None):
        return StepResult(
            reward=_reward(action), episode_done=True, next_observation=[], next_stop_condition=[]
        )


@dataclass(frozen=True, eq=False)
class _Group(EnvGroupBuilder):
    number: int
    size: int

    async def make_envs(self):
        return [_Episode(self.number) for _ in range(self.size)]


@dataclass(frozen=True, eq=False)
class _Batches(RLDataset):
    size: Size

    def __len__(self):
        return self.size.steps

    def get_batch(self, index):
        first = index * self.size.groups
        return [_Group(first + group, self.size.episodes) for group in range(self.size.groups)]


def _ours(engine: Distant, size: Size, mode: Mode, folder: Path) -> None:
    config = RLConfig(
        model=ModelChoice(model=engine.model, lora_rank=_RANK),
        schedule=Schedule(learning_rate=_LEARNING_RATE, lr_schedule="constant"),
        cadence=RLCadence(eval_every=None, save_every=None),
        sampling=SamplingChoice(max_tokens=_MAX_TOKENS),
        num_minibatches=mode.num_minibatches,
        max_steps_off_policy=mode.max_steps_off_policy,
    )

    async def run() -> None:
        with open_run_folder(folder, config={}) as opened:
            async with connect(base_url=engine.base_url, api_key=engine.api_key) as service:
                data = RLData(train=_Batches(size))
                await train_rl(config, service=service, data=data, folder=opened)

    asyncio.run(run())


def _peer(engine: Distant, size: Size, mode: Mode, folder: Path) -> None:
    import chz
    import tinker
    from tinker_cookbook.rl import train, types

    class Episode(types.Env):
        def __init__(self, number: int) -> None:
            self._number = number

        async def initial_observation(self):
            return tinker.ModelInput.from_ints(_prompt(self._number)), _STOP

        async def step(self, action, *, extra=None):
            return types.StepResult(
                reward=_reward(action),
                episode_done=True,
                next_observation=tinker.ModelInput.empty(),
                next_stop_condition=[],
            )

    @dataclass(frozen=True, eq=False)
    class Group(types.EnvGroupBuilder):
        number: int
        size: int

        async def make_envs(self):
            return [Episode(self.number) for _ in range(self.size)]

    class Batches(types.RLDataset):
        def __len__(self):
            return size.steps

        def get_batch(self, index):
            first = index * size.groups
            return [Group(first + group, size.episodes) for group in range(size.groups)]

    @chz.chz
    class Builder(types.RLDatasetBuilder):
        async def __call__(self):
            return Batches(), None

    config = train.Config(
        recipe_name="overlap",
        learning_rate=_LEARNING_RATE,
        dataset_builder=Builder(),
        model_name=engine.model,
        max_tokens=_MAX_TOKENS,
        log_path=str(folder),
        lora_rank=_RANK,
        eval_every=0,
        save_every=0,
        base_url=engine.base_url,
        stream_minibatch_config=(
            train.StreamMinibatchConfig(
                groups_per_batch=size.groups, num_minibatches=mode.num_minibatches
            )
            if mode.num_minibatches > 1
            else None
        ),
        async_config=(
            train.AsyncConfig(
                max_steps_off_policy=mode.max_steps_off_policy, groups_per_batch=size.groups
            )
            if mode.max_steps_off_policy
            else None
        ),
    )
    os.environ["TINKER_API_KEY"] = engine.api_key
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        asyncio.run(train.main(config))
    logging.disable(logging.NOTSET)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--sampling", type=float, default=2.0, help="seconds for a sequence")
    parser.add_argument("--training", type=float, default=1.0, help="seconds for a step")
    parser.add_argument("--jitter", type=float, default=0.2, help="share of them, either way")
    parser.add_argument("--samplers", nargs="+", choices=("any", "one"), default=["any", "one"])
    names = [mode.name for mode in _MODES]
    parser.add_argument("--modes", nargs="+", choices=names, default=names)
    parser.add_argument("--sides", nargs="+", choices=("ours", "peer"), default=["ours", "peer"])
    parser.add_argument("--cores", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
