"""What logging costs a run: fine-tuning for 100 steps with every logger that is installed.

Timed are the calls that the loop waits for, as a share of the wall time of the run that makes
them, and the run itself beside one that logs nothing, in turns. Trackers work offline; they are
sent to from threads of their own, which shows in the second comparison only.

    python -m benchmarks.logging_cost                   # a tiny model: steps of milliseconds
    python -m benchmarks.logging_cost --model smollm2-135m-instruct --steps 10 --repeats 1
"""

import argparse
import asyncio
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from benchmarks.latency import tiny_model
from cookbook_fx.chat import Message
from cookbook_fx.renderers import get_renderer
from cookbook_fx.supervised import SupervisedDataset, prepare_conversations
from shell.cli.progress import Watcher
from shell.clients import connect
from shell.engine.serve import Endpoint, EngineConfig, embedded_engine
from shell.hub import load_tokenizer, resolve_model
from shell.stores import open_run_folder
from shell.stores.loggers import LoggerName, setup_logging
from shell.training import Cadence, ModelChoice, Schedule, SFTConfig
from shell.training.sft import SFTData, train_supervised

_PACKAGES: dict[LoggerName, str] = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
}


@dataclass
class Clock:
    """Seconds spent in calls."""

    seconds: float = 0.0

    def timed(self, call: Callable[..., None]) -> Callable[..., None]:
        """The call, which is timed."""

        def run(*arguments: object) -> None:
            began = time.perf_counter()
            call(*arguments)
            self.seconds += time.perf_counter() - began

        return run


@dataclass(frozen=True, kw_only=True)
class TimedMetrics:
    """What the loop asks of its file of measurements."""

    append: Callable[..., None]
    keep_before: Callable[..., None]


class Run(NamedTuple):
    """Seconds of a run, those of it in logging calls, and those after it for what was unsent."""

    seconds: float
    logging: float
    ending: float


class Bench(NamedTuple):
    """What every run shares."""

    endpoint: Endpoint
    config: SFTConfig
    data: SFTData

    def run(self, loggers: Sequence[LoggerName] | None) -> Run:
        """A run with loggers besides its file and the terminal; None logs nothing at all."""
        clock = Clock()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            path = Path(scratch) / "run"
            console = Console(file=(Path(scratch) / "said").open("w"))
            with ExitStack() as stack:
                folder = stack.enter_context(open_run_folder(path, config={}))
                observe: Callable[..., None] = Watcher(console)
                keep_before, append = folder.metrics.keep_before, folder.metrics.append
                if loggers is None:
                    append = observe = _nothing
                else:
                    log = stack.enter_context(
                        setup_logging(path, loggers=loggers, console=console, project="benchmark")
                    )
                    keep_before = log.metrics.keep_before
                    append, observe = clock.timed(log.metrics.append), clock.timed(observe)
                metrics = TimedMetrics(append=append, keep_before=keep_before)
                seconds = asyncio.run(self._train(replace(folder, metrics=metrics), observe))
                ended = time.perf_counter()
            console.file.close()
            return Run(seconds, clock.seconds, time.perf_counter() - ended)

    async def _train(self, folder: object, observe: Callable[..., None]) -> float:
        address = self.endpoint
        async with connect(base_url=address.base_url, api_key=address.api_key) as service:
            began = time.perf_counter()
            await train_supervised(
                self.config, service=service, data=self.data, folder=folder, observe=observe
            )
            return time.perf_counter() - began


def _nothing(*arguments: object) -> None:
    """Logs nothing."""


def _data(model: Path, *, steps: int, batch_size: int) -> SFTData:
    renderer = get_renderer("chatml", load_tokenizer(model))
    talks = [
        (
            Message(role="user", content=f"what is the name of the other one {index}"),
            Message(role="assistant", content="the cat sat on the mat and the dog ran " * 4),
        )
        for index in range(steps * batch_size)
    ]
    made = prepare_conversations(talks, renderer=renderer, max_length=256)
    return SFTData(train=SupervisedDataset(datums=made.datums, batch_size=batch_size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a name or directory instead of the tiny model")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {
            "WANDB_MODE": "offline",
            "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db",
            "TRACKIO_DIR": f"{scratch}/trackio",
        }
        if arguments.model is None:
            model = tiny_model(Path(scratch) / "tiny")
        else:
            model = resolve_model(arguments.model, say=print).directory
        config = SFTConfig(
            model=ModelChoice(model=str(model)),
            schedule=Schedule(max_steps=arguments.steps),
            cadence=Cadence(eval_every=None, save_every=None),
        )
        data = _data(model, steps=arguments.steps, batch_size=8)
        installed = [name for name, found in _PACKAGES.items() if importlib.util.find_spec(found)]
        cases: dict[str, list[LoggerName] | None] = {"nothing": None, "file and terminal": []}
        cases |= {f"and {', '.join(installed)}": installed} if installed else {}
        engine = EngineConfig(model=str(model), state_dir=Path(scratch) / "engine")
        with embedded_engine(engine) as endpoint:
            bench = Bench(endpoint, config, data)
            bench.run(None)
            runs = [[bench.run(each) for each in cases.values()] for _ in range(arguments.repeats)]
    print(f"{arguments.steps} steps, medians of {arguments.repeats}")
    for name, found in zip(cases, zip(*runs, strict=True), strict=True):
        seconds = statistics.median(run.seconds for run in found)
        share = statistics.median(run.logging / run.seconds for run in found)
        each = statistics.median(run.logging for run in found) / arguments.steps
        beside = statistics.median(
            run.seconds / turn[0].seconds for run, turn in zip(found, runs, strict=True)
        )
        ending = statistics.median(run.ending for run in found)
        print(
            f"{name}: {seconds:.2f} s, {beside:.3f} times that of nothing; in logging calls "
            f"{1000 * each:.2f} ms a step, {share:.2%} of the run; {ending:.2f} s to end"
        )


if __name__ == "__main__":
    main()
