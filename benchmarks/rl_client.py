"""What a step of reinforcement learning costs the client's processor, here and in tinker-cookbook.

    python -m benchmarks.rl_client [--sizes 64x16x1024 256x16x1024] [--cores 2] [--repeats 5]
        [--peer-repeats 1]

A size is groups x episodes x mean tokens of an episode. The way is from samples in hand, as the SDK
has decoded them, to bytes on the wire: the rollouts of all groups with a sampler that answers at
once, advantages, the penalty for leaving the base model, whose log-probabilities are in hand as
the SDK's lists, and `forward_backward` of the SDK's training client. A process of its own takes the
request in and answers that it was received. Each side does this with the functions that its own
loop calls. What is counted is the processor time of the client's process with all its threads, of
the best of the repeats, which take turns. Before them the garbage collector sets apart, for both
sides, what the process holds by then: made-up episodes, millions of numbers in lists that no client
holds and that it would walk through again and again.

Below each ratio are the parts of both sides. Rollouts are all that `do_group_rollout` does, with an
environment that does nothing; the SDK's request is the SDK's own work on both sides. What only our
loop does, writing every episode with its tokens to rollouts.jsonl, has a line of its own and is in
no sum.

Needs tinker-cookbook, to be installed as benchmarks/rl_batches.py says.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tinker
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker.proto import tinker_public_pb2

from benchmarks import episodes, timing
from benchmarks.episodes import Work
from cookbook_fx import rl
from cookbook_fx.rl.records import group_records
from shell.clients import Sampler, connect
from shell.clients.convert import from_sdk_logprobs, to_sdk_data
from shell.clients.service import NewLoRA
from shell.rollouts import (
    Env,
    EnvGroupBuilder,
    StepResult,
    TinkerTokenCompleter,
    do_group_rollout,
)
from shell.stores import RolloutsFile

_PREFIX = "/api/v1"
_NO_KEY = "tml-none"


class Way(NamedTuple):
    """What is done to the advantages, and what share of the peer's time we mean to take."""

    name: str
    coef: float
    gamma: float
    wanted: str


_WAYS = (
    Way("no penalty", 0.0, 0.0, "1/4"),
    Way("KL", 0.1, 0.0, "1/50"),
    Way("KL, discounted", 0.1, 0.999, "1/50"),
)
Parts = dict[str, float]


def main() -> None:
    """Prints a row for each size and way, and the parts of each side."""
    arguments = _arguments()
    timing.settle(arguments.cores)
    os.environ["TINKER_TELEMETRY"] = "0"
    warnings.simplefilter("ignore")
    with _sink() as url, asyncio.Runner() as runner:
        runner.run(_compare(arguments, url))


async def _compare(arguments: argparse.Namespace, url: str) -> None:
    async with connect(base_url=url, api_key=_NO_KEY) as service:
        trainer = await service.create(NewLoRA(base_model="sink"))
        peer = _peer(trainer.sdk, arguments.cores)
        for size in arguments.sizes:
            work = episodes.make_work(*(int(part) for part in size.split("x")), turns=1)
            print(f"{size}: {work.tokens} tokens", flush=True)
            gc.collect()
            gc.freeze()
            for way in _WAYS:
                mine, peers = [], []
                for repeat in range(arguments.repeats):
                    mine.append(await _ours(work, way, trainer.sdk))
                    if repeat < arguments.peer_repeats:
                        peers.append(await peer(work, way))
                _print_row(way, _best(mine), _best(peers))
            print(f"    rollouts.jsonl besides: {_recording(work):.3f} s", flush=True)
            gc.unfreeze()


def _best(runs: Sequence[Parts]) -> Parts:
    return min(runs, key=lambda parts: sum(parts.values()))


def _print_row(way: Way, ours: Parts, peer: Parts) -> None:
    mine, its = sum(ours.values()), sum(peer.values())
    after = (its - peer["rollouts"]) / (mine - ours["rollouts"])
    print(
        f"  {way.name:>14}: ours {mine:7.3f} s, peer {its:8.3f} s, ratio 1/{its / mine:.1f}, "
        f"without rollouts 1/{after:.1f} (wanted {way.wanted})"
    )
    for name, parts in (("ours", ours), ("peer", peer)):
        listed = ", ".join(f"{part} {seconds:.3f}" for part, seconds in parts.items())
        print(f"  {name:>14}: {listed}", flush=True)


class _Laps:
    """Processor time between calls, by name."""

    def __init__(self) -> None:
        self.parts: Parts = {}
        self._since = time.process_time()

    def __call__(self, name: str) -> None:
        now = time.process_time()
        self.parts[name] = now - self._since
        self._since = now


def _responses(group: Sequence[episodes.Episode], at_once: int) -> list[tinker.SampleResponse]:
    """What the SDK returns for a group's requests, fresh: it keeps the lists it makes of arrays."""
    sequences = [
        tinker.SampledSequence(
            stop_reason="stop",
            sequence_id="",
            tokens_np=np.array(episode.turns[0].action, np.int32),
            logprobs_np=np.array(episode.turns[0].logprobs, np.float32),
        )
        for episode in group
    ]
    return [
        tinker.SampleResponse(sequences=sequences[begin : begin + at_once])
        for begin in range(0, len(sequences), at_once)
    ]


class _Ready:
    """Stands in for an SDK's sampling client; has the answers ready, in the order asked."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = iter(answers)

    async def sample(self, **_: object) -> Any:
        return next(self._answers)

    async def sample_async(self, **_: object) -> Any:
        return next(self._answers)

    async def compute_logprobs_async(self, _: tinker.ModelInput) -> Any:
        return next(self._answers)


class _Episode(Env):
    """One turn."""

    def __init__(self, prompt: np.ndarray, reward: float) -> None:
        self._prompt = prompt
        self._reward = reward

    async def initial_observation(self):
        return self._prompt, [2]

    async def step(self, action, *, extra=None):
        return StepResult(
            reward=self._reward, episode_done=True, next_observation=[], next_stop_condition=[]
        )


@dataclass(frozen=True, eq=False)
class _Group(EnvGroupBuilder):
    prompt: np.ndarray
    rewards: Sequence[float]

    async def make_envs(self):
        return [_Episode(self.prompt, reward) for reward in self.rewards]


async def _ours(work: Work, way: Way, sdk: tinker.TrainingClient) -> Parts:
    builders = [
        _Group(np.array(group[0].turns[0].prompt, np.int32), [each.reward for each in group])
        for group in work.groups
    ]
    responses = [_responses(group, len(group)) for group in work.groups]
    objective = rl.Objective(kl_penalty_coef=way.coef, kl_discount_factor=way.gamma)
    gc.collect()
    lap = _Laps()
    policies = [
        TinkerTokenCompleter(Sampler(sdk=_Ready(answers)), max_tokens=4096)  # type: ignore[arg-type]
        for answers in responses
    ]
    groups = await asyncio.gather(*map(do_group_rollout, builders, policies))
    lap("rollouts")
    batch = await asyncio.to_thread(rl.objective_batch, groups, objective)
    base = [from_sdk_logprobs(row) for row in work.base_logprobs] if way.coef else None
    training = await asyncio.to_thread(rl.training_data, batch, objective, base_logprobs=base)
    lap("batch")
    # The two halves of `Trainer.forward_backward`.
    loss = objective.loss_spec.name
    data = await asyncio.to_thread(to_sdk_data, training.data, loss=loss)
    lap("SDK's datums")
    await sdk.forward_backward(data, loss)
    lap("SDK's request")
    return lap.parts


def _peer(sdk: tinker.TrainingClient, cores: int) -> Callable[[Work, Way], Awaitable[Parts]]:
    """The same in tinker-cookbook, with its own functions."""
    try:
        import torch
        from tinker_cookbook.completers import TinkerTokenCompleter as PeerCompleter
        from tinker_cookbook.rl import data_processing, metrics, rollouts, types
        from tinker_cookbook.rl.train import _remove_mask
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}\n\n{__doc__[__doc__.index('Needs tinker') :]}") from error
    torch.set_num_threads(cores)

    class Episode(types.Env):
        def __init__(self, prompt: tinker.ModelInput, reward: float) -> None:
            self._prompt = prompt
            self._reward = reward

        async def initial_observation(self):
            return self._prompt, [2]

        async def step(self, action, *, extra=None):
            return types.StepResult(
                reward=self._reward,
                episode_done=True,
                next_observation=tinker.ModelInput.empty(),
                next_stop_condition=[],
            )

    @dataclass(frozen=True, eq=False)
    class Group(types.EnvGroupBuilder):
        prompt: tinker.ModelInput
        rewards: Sequence[float]

        async def make_envs(self):
            return [Episode(self.prompt, reward) for reward in self.rewards]

    async def run(work: Work, way: Way) -> Parts:
        builders = [
            Group(
                tinker.ModelInput.from_ints(group[0].turns[0].prompt),
                [each.reward for each in group],
            )
            for group in work.groups
        ]
        responses = [_responses(group, 1) for group in work.groups]
        gc.collect()
        lap = _Laps()
        policies = [PeerCompleter(_Ready(answers), max_tokens=4096) for answers in responses]
        groups = await asyncio.gather(*map(rollouts.do_group_rollout, builders, policies))
        lap("rollouts")
        advantages = data_processing.compute_advantages(groups)
        data, _ = data_processing.assemble_training_data(groups, advantages)
        if way.coef:
            await metrics.incorporate_kl_penalty(
                data, _Ready(work.base_logprobs), way.coef, way.gamma
            )
        lap("batch")
        data = [_remove_mask(datum) for datum in data]
        lap("SDK's datums")
        await sdk.forward_backward(data, "importance_sampling")
        lap("SDK's request")
        return lap.parts

    return run


def _recording(work: Work) -> float:
    """Processor time for writing all groups as our loop does, without texts."""
    groups = episodes.our_groups(work)
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        file = RolloutsFile(path=Path(folder) / "rollouts.jsonl")
        began = time.process_time()
        for index, group in enumerate(groups):
            file.append(
                group_records(
                    group, step=0, group_index=index, sampler_step=0, tags=(), seed=0, seconds=0.0
                )
            )
        return time.process_time() - began


@contextlib.contextmanager
def _sink() -> Iterator[str]:
    """The address of what speaks enough of the protocol to take a batch in."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(parent: Connection) -> None:
    answers = {
        "/healthz": {"status": "ok"},
        "/client/config": {
            "fwdbwd_max_chunk_len": 1_000_000,
            "fwdbwd_max_chunk_bytes_count": 1_000_000_000,
            "fwdbwd_dispatch_bytes_semaphore_size": 2_000_000_000,
        },
        "/client/dynamic_config": {"refresh_interval_sec": 86_400},
        "/create_session": {"type": "create_session", "session_id": "sink"},
        "/session_heartbeat": {"type": "session_heartbeat"},
        "/create_model": {"request_id": "model", "model_id": "sink"},
        "/get_info": {
            "type": "get_info",
            "model_id": "sink",
            "model_data": {"arch": "none", "model_name": "sink", "tokenizer_id": "none"},
            "is_lora": True,
            "lora_rank": 32,
            "model_name": "sink",
        },
        "/forward_backward": {"request_id": "batch", "model_id": "sink"},
    }
    model = JSONResponse({"type": "create_model", "model_id": "sink"})
    received = Response(
        tinker_public_pb2.ForwardBackwardOutput(loss_fn_output_type="none").SerializeToString(),
        media_type="application/x-protobuf",
    )

    async def answer(request: Request) -> Response:
        body = await request.body()
        path = request.url.path.removeprefix(_PREFIX)
        if path == "/retrieve_future":
            return model if json.loads(body)["request_id"] == "model" else received
        return JSONResponse(answers.get(path, {}))

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        parent.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.run(sockets=[listener])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["64x16x1024", "256x16x1024"])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-repeats", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
