"""Many clients at once: is every request answered once and in order, and does memory stay flat?

    python -m benchmarks.load --seconds 600 --samplers 256 --trainers 4

Starts `cookbook-fx serve` on a random model of 2 layers (or `--model`), samples from it and trains
on it through the SDK from this process, and prints counts, latencies and the engine's memory,
which is read from /proc: on Linux only.

Another engine, such as SkyRL's, is put under the same load by `--base-url` and `--pid`, the process
whose memory is read, with its `--model` and a key in TINKER_API_KEY.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tinker

from shell.clients import NewLoRA, connect
from shell.clients.sampling import SampleRequest

_PROGRAM = "import sys; from shell.cli.main import main; sys.exit(main())"


@dataclass
class Tally:
    """What was asked, what came, how long it took."""

    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: list[tuple[float, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        self.asked[what] += 1
        began = time.perf_counter()
        yield
        self.answered[what] += 1
        self.seconds.setdefault(what, []).append(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--samplers", type=int, default=256)
    parser.add_argument("--trainers", type=int, default=4)
    parser.add_argument("--model", help="what is served; a random tiny model if left out")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--base-url", help="of an engine that runs already")
    parser.add_argument("--pid", type=int, help="its process")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or str(tiny_model(Path(folder)))
        if given.base_url is not None:
            there = contextlib.nullcontext(
                (given.base_url, os.environ["TINKER_API_KEY"], given.pid or os.getpid())
            )
        else:
            there = served(model, Path(folder))
        with there as (url, key, pid):
            tally = asyncio.run(load(given, model, url, key, pid))
    report(tally)
    sys.exit(1 if tally.wrong or tally.asked != tally.answered else 0)


def tiny_model(folder: Path) -> Path:
    """The model of the tests."""
    from safetensors.numpy import save_file

    from cookbook_fx.lm.config import config_from_hf
    from cookbook_fx.lm.weights import random_tensors
    from tests.conftest import write_tiny_tokenizer

    directory = folder / "tiny"
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": 300, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    save_file(dict(random_tensors(config_from_hf(config))), directory / "model.safetensors")
    write_tiny_tokenizer(directory)
    return directory


@contextlib.contextmanager
def served(model: str, folder: Path) -> Iterator[tuple[str, str, int]]:
    """An engine in a process of its own: where it is, its key, and its process id."""
    key = f"tml-{secrets.token_urlsafe(16)}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = Path(os.environ.get("COOKBOOK_FX_HOME", Path.home() / ".cookbook-fx"))
    mine = folder / "home"
    mine.mkdir()
    # Compiled programs and models are shared; what is saved goes away with the folder.
    for name in ("compiled", "models"):
        if (home / name).is_dir():
            (mine / name).symlink_to(home / name)
    address = ("--port", str(port), "--api-key", key)
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "serve", "--model", model, *address],
        env=os.environ | {"COOKBOOK_FX_HOME": str(mine)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while True:
            assert_runs(process)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", key, process.pid
    finally:
        process.terminate()
        process.wait()


def assert_runs(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        raise SystemExit(f"the engine ended with status {process.returncode}")


async def load(given: argparse.Namespace, model: str, url: str, key: str, pid: int) -> Tally:
    """Everybody at once, for as long as asked."""
    tally = Tally()
    async with connect(base_url=url, api_key=key) as service:
        sampler = await service.sampler(base_model=model)
        trainers = [
            await service.create(NewLoRA(base_model=model, rank=8, seed=number))
            for number in range(given.trainers)
        ]
        ends = time.monotonic() + given.seconds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch(pid, ends, tally))
            for number in range(given.samplers):
                tasks.create_task(sample(sampler, number, ends, tally, given.max_tokens))
            for number, trainer in enumerate(trainers):
                tasks.create_task(train(trainer.sdk, number, ends, tally))
    return tally


async def sample(sampler, number: int, ends: float, tally: Tally, max_tokens: int) -> None:
    """Asks one thing after another; the same question must get the same answer each time."""
    random = np.random.default_rng(number)
    prompt = random.integers(3, 300, int(random.integers(4, 40)))
    first = None
    while time.monotonic() < ends:
        request = SampleRequest(prompt=prompt, max_tokens=max_tokens, stop=(), seed=number)
        with tally.timed("sample"):
            (answer,) = await sampler.sample(request)
        tokens = list(answer.tokens)
        first = first or tokens
        if tokens != first:
            tally.wrong.append(f"sampler {number} got another answer to the same question")


async def train(client: tinker.TrainingClient, number: int, ends: float, tally: Tally) -> None:
    """Step after step; each loss must follow from all the steps before it."""
    random = np.random.default_rng(number)
    tokens = random.integers(3, 300, 33)
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": np.ones(32, np.float32)},
    )
    adam = tinker.AdamParams(learning_rate=1e-3)
    losses: list[float] = []
    for step in itertools.count():
        if time.monotonic() >= ends:
            break
        with tally.timed("step"):
            passed = client.forward_backward([datum], "cross_entropy")
            moved = client.optim_step(adam)
            losses.append((await passed).metrics["loss:sum"])
            await moved
        if step < 20 and step and losses[-1] >= losses[-2]:
            tally.wrong.append(f"trainer {number}: the loss rose at step {step}")


async def watch(pid: int, ends: float, tally: Tally) -> None:
    """Writes down the engine's memory every second."""
    began = time.monotonic()
    while time.monotonic() < ends:
        tally.memory.append((time.monotonic() - began, resident_megabytes(pid)))
        await asyncio.sleep(1)


def resident_megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def report(tally: Tally) -> None:
    """Prints what was found."""
    for what, seconds in tally.seconds.items():
        p50, p99 = np.percentile(seconds, (50, 99))
        print(
            f"{what}: {tally.asked[what]} asked, {tally.answered[what]} answered; "
            f"p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms"
        )
    # The beginning compiles and fills caches, and for five minutes results are kept.
    times, memory = np.array(tally.memory).T
    later = times >= times[-1] * 2 / 3
    slope = np.polyfit(times[later], memory[later], 1)[0] * 60
    print(
        f"engine memory: {memory[0]:.0f} MB at first, {memory[-1]:.0f} MB at last, at most "
        f"{memory.max():.0f} MB; {slope:+.2f} MB a minute over the last third"
    )
    minutes = np.searchsorted(times, np.arange(0, times[-1], 60))
    print("  each minute:", *memory[minutes].round().astype(int))
    print(f"wrong: {len(tally.wrong)}", *tally.wrong[:5], sep="\n  ")


if __name__ == "__main__":
    main()
