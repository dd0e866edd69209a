"""An engine as far away as a hosted service: a tiny model whose results are held back.

A proxy in a process of its own speaks the engine's protocol to any client. It passes every request
on at once, so that the engine does its work, and keeps the results until they would be there:

    a sampled sequence    `sampling` seconds after it was asked for, or after a slot is free for it
    a training operation  after those before it and its share of `training` seconds

each with a jitter. Nine tenths of `training` are the forward and backward passes over a whole
batch, a tenth is the optimizer step. Saving weights takes no time of its own.
"""

import asyncio
import contextlib
import heapq
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shell.engine import wire

VOCABULARY = 300
_OPTIMIZER_SHARE = 0.1
_PREFIX = "/api/v1"
_NOT_PASSED_ON = {"host", "content-length", "connection", "accept-encoding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long results take.

    Args:
        sampling: seconds for a sequence.
        training: seconds for a batch, optimizer step included.
        jitter: of each, as a share of it, either way.
        batch: sequences of a batch.
        slots: sequences that are sampled at a time; 0 is any number.
        seed: of the jitter.
    """

    sampling: float = 0.0
    training: float = 0.0
    jitter: float = 0.0
    batch: int = 1
    slots: int = 0
    seed: int = 0


class Record(NamedTuple):
    """What was asked for since the latency was set.

    Fields:
        began: when the first sequence was asked for, in seconds on one clock.
        steps: when each optimizer step was done, on the same clock.
        sequences: how many sequences were sampled.
    """

    began: float
    steps: list[float]
    sequences: int


class Distant(NamedTuple):
    """Where one answers; its model is a folder that both sides can read the tokenizer from."""

    base_url: str
    api_key: str
    model: str

    def become(self, latency: Latency) -> None:
        """Sets how long results take from now on, and forgets what was asked for so far."""
        httpx.post(f"{self.base_url}/latency", json=asdict(latency)).raise_for_status()

    def record(self) -> Record:
        """What was asked for since `become`."""
        return Record(**httpx.get(f"{self.base_url}/latency").json())


@contextlib.contextmanager
def distant_engine() -> Iterator[Distant]:
    """Starts one in a process of its own, and ends it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_serve, args=(theirs, Path(folder)), daemon=True)
        process.start()
        theirs.close()
        try:
            yield Distant(*ours.recv())
        finally:
            process.terminate()
            process.join()


@dataclass(slots=True, eq=False)
class _Clock:
    """When each result is there."""

    latency: Latency = field(default_factory=Latency)
    trained: float = 0.0
    free: list[float] = field(default_factory=list)
    began: float = 0.0
    sequences: int = 0
    steps: list[float] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=np.random.default_rng)

    def become(self, latency: Latency) -> None:
        self.latency = latency
        self.trained = 0.0
        self.free = [0.0] * latency.slots
        self.sequences = 0
        self.steps = []
        self.random = np.random.default_rng(latency.seed)

    def sampled(self, sequences: int) -> float:
        """When the last of so many sequences is there."""
        if not self.sequences:
            self.began = time.perf_counter()
        self.sequences += sequences
        return max(self._sequence() for _ in range(sequences))

    def _sequence(self) -> float:
        now = time.perf_counter()
        if not self.latency.slots:
            return now + self._taking(self.latency.sampling)
        done = max(now, self.free[0]) + self._taking(self.latency.sampling)
        heapq.heapreplace(self.free, done)
        return done

    def passed(self, datums: int) -> float:
        """When a forward and backward pass over so many is done."""
        share = (1 - _OPTIMIZER_SHARE) * datums / self.latency.batch
        return self._trained(share * self.latency.training)

    def stepped(self) -> float:
        """When an optimizer step is done."""
        self.steps.append(self._trained(_OPTIMIZER_SHARE * self.latency.training))
        return self.trained

    def saved(self) -> float:
        """When what is saved now can be used."""
        return self.trained

    def _trained(self, seconds: float) -> float:
        self.trained = max(time.perf_counter(), self.trained) + self._taking(seconds)
        return self.trained

    def _taking(self, seconds: float) -> float:
        return seconds * (1 + self.latency.jitter * self.random.uniform(-1, 1))


def _serve(parent: Connection, folder: Path) -> None:
    from shell.engine.serve import EngineConfig, embedded_engine

    model = tiny_model(folder / "tiny")
    with embedded_engine(EngineConfig(model=str(model), state_dir=folder)) as endpoint:
        app = Starlette(
            routes=[
                Route("/latency", _latency, methods=["GET", "POST"]),
                Route("/{path:path}", _pass_on, methods=["GET", "POST", "PUT", "DELETE"]),
            ]
        )
        app.state.clock = _Clock()
        app.state.due = {}
        app.state.client = httpx.AsyncClient(
            base_url=endpoint.base_url,
            timeout=None,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            parent.send((f"http://127.0.0.1:{port}", endpoint.api_key, str(model)))
            server.run(sockets=[listener])


async def _latency(request: Request) -> Response:
    clock: _Clock = request.app.state.clock
    if request.method == "POST":
        clock.become(Latency(**await request.json()))
    return JSONResponse(Record(clock.began, clock.steps, clock.sequences)._asdict())


async def _pass_on(request: Request) -> Response:
    state, path = request.app.state, request.url.path.removeprefix(_PREFIX)
    body = await request.body()
    due = _due(state.clock, path, body, request.headers)
    if path == "/retrieve_future":
        await _until(state.due.get(json.loads(body)["request_id"], 0.0))
    headers = {name: value for name, value in request.headers.items() if name not in _NOT_PASSED_ON}
    answer = await state.client.request(
        request.method, str(request.url.path), content=body, headers=headers
    )
    if due is not None and answer.is_success:
        state.due[answer.json()["request_id"]] = due
    return Response(
        answer.content,
        status_code=answer.status_code,
        headers={
            name: value for name, value in answer.headers.items() if name.startswith("content-type")
        },
    )


def _due(clock: _Clock, path: str, body: bytes, headers: Headers) -> float | None:
    """When the result of a request is there; None if it has none to wait for."""
    match path:
        case "/asample":
            return clock.sampled(wire.sample_request(body).num_samples)
        case "/forward_backward":
            encoding = headers.get("content-encoding", "")
            submission = wire.forward_backward(body, content_encoding=encoding)
            return clock.passed(len(submission.operation.datums))
        case "/optim_step":
            return clock.stepped()
        case "/save_weights" | "/save_weights_for_sampler":
            return clock.saved()
    return None


async def _until(due: float) -> None:
    await asyncio.sleep(max(0.0, due - time.perf_counter()))


def tiny_model(directory: Path) -> Path:
    """A random Llama of two narrow layers with a tokenizer of bytes, as Hugging Face keeps them."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from cookbook_fx.lm.config import config_from_hf
    from cookbook_fx.lm.weights import random_tensors

    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    save_file(dict(random_tensors(config_from_hf(config))), directory / "model.safetensors")
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spare = [f"<|{index}|>" for index in range(VOCABULARY - len(names) - len(letters))]
    vocabulary = {name: index for index, name in enumerate([*names, *letters, *spare])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": names[1],
                "eos_token": names[2],
                "pad_token": names[2],
                "clean_up_tokenization_spaces": False,
            }
        )
    )
    return directory
