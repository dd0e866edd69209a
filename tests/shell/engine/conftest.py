"""The engine as its clients meet it: through the SDK, or by plain HTTP where the SDK cannot go."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import tinker
from tinker.proto import tinker_public_pb2 as pb

from shell.engine.serve import Endpoint

Raw = httpx.Client


@pytest.fixture
def client(tiny_engine: Endpoint) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(
        base_url=tiny_engine.base_url, api_key=tiny_engine.api_key
    ) as service:
        yield service


@pytest.fixture(scope="session")
def base_model(tiny_model_directory: Path) -> str:
    return str(tiny_model_directory)


@pytest.fixture
def new_model(
    client: tinker.ServiceClient, base_model: str
) -> Callable[..., tinker.TrainingClient]:
    def create(**lora: object) -> tinker.TrainingClient:
        return client.create_lora_training_client(
            base_model=base_model, **({"rank": 4, "seed": 7} | lora)
        ).result()

    return create


def datum(tokens: Sequence[int], *, weight: float = 1.0) -> tinker.Datum:
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(tokens[:-1])),
        loss_fn_inputs={
            "target_tokens": np.array(tokens[1:], np.int64),
            "weights": np.full(len(tokens) - 1, weight, np.float32),
        },
    )


@pytest.fixture
def batch() -> list[tinker.Datum]:
    rng = np.random.default_rng(0)
    return [datum(rng.integers(3, 300, size).tolist()) for size in (9, 14, 6)]


@pytest.fixture
def make_datum() -> Callable[..., tinker.Datum]:
    return datum


@pytest.fixture
def fit() -> Callable[..., list[float]]:
    """Trains for some steps; the losses."""

    def steps(
        model: tinker.TrainingClient,
        data: list[tinker.Datum],
        count: int,
        *,
        learning_rate: float = 1e-2,
    ) -> list[float]:
        adam = tinker.AdamParams(learning_rate=learning_rate)
        pending = [
            (model.forward_backward(data, "cross_entropy"), model.optim_step(adam))
            for _ in range(count)
        ]
        losses = [passed.result().metrics["loss:sum"] for passed, _ in pending]
        for _, step in pending:
            step.result()
        return losses

    return steps


@pytest.fixture
def logprobs() -> Callable[..., np.ndarray]:
    """What the present weights say of a batch, flat."""

    def scores(model: tinker.TrainingClient, data: list[tinker.Datum]) -> np.ndarray:
        outputs = model.forward(data, "cross_entropy").result().loss_fn_outputs
        return np.concatenate([output["logprobs"].to_numpy() for output in outputs])

    return scores


@pytest.fixture
def raw(tiny_engine: Endpoint) -> Iterator[Raw]:
    with httpx.Client(
        base_url=f"{tiny_engine.base_url}/api/v1/",
        headers={"X-API-Key": tiny_engine.api_key},
        timeout=60,
    ) as http:
        yield http


@pytest.fixture
def raw_model(raw: Raw, base_model: str) -> str:
    """A model made without the SDK, with its own session."""
    session_id = raw.post("create_session", json={}).json()["session_id"]
    promise = raw.post(
        "create_model",
        json={
            "session_id": session_id,
            "model_seq_id": 0,
            "base_model": base_model,
            "lora_config": {"rank": 2},
        },
    ).json()
    assert result(raw, promise).json()["model_id"] == f"{session_id}:train:0"
    return promise["model_id"]


def result(raw: Raw, promise: dict) -> httpx.Response:
    return raw.post("retrieve_future", json={"request_id": promise["request_id"]})


def forward_backward_body(
    model_id: str, seq_id: int, tokens: Sequence[int] = (5, 6, 7, 8), **message: object
) -> bytes:
    targets = pb.Tensor(dense=np.array(tokens[1:], np.int64).tobytes(), dtype=pb.DTYPE_INT64)
    text = pb.EncodedTextChunk(tokens=np.array(tokens[:-1], np.int32).tobytes())
    return pb.ForwardBackwardRequest(
        **{
            "model_id": model_id,
            "seq_id": seq_id,
            "loss_fn": "cross_entropy",
            "data": [
                pb.Datum(
                    model_input=[pb.Chunk(encoded_text=text)],
                    loss_fn_inputs={"target_tokens": targets},
                )
            ],
        }
        | message
    ).SerializeToString()


@pytest.fixture
def wire_body() -> Callable[..., bytes]:
    return forward_backward_body


@pytest.fixture
def fetch(raw: Raw) -> Callable[[dict], httpx.Response]:
    return lambda promise: result(raw, promise)
