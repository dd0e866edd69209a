"""Runs on the tiny model: short conversations, a loop that may be made to crash."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

from cookbook_fx.chat import Message
from cookbook_fx.renderers import get_renderer
from cookbook_fx.supervised import SupervisedDataset, prepare_conversations
from cookbook_fx.tokens import byte_lengths
from shell.clients import connect
from shell.engine.checkpoints import CheckpointStore, parse_path
from shell.engine.serve import Endpoint, EngineConfig, embedded_engine
from shell.evaluation import NLLEvaluator
from shell.hub import load_tokenizer
from shell.hub.weights import read_config
from shell.stores import open_run_folder
from shell.training import Cadence, ModelChoice, Schedule, SFTConfig
from shell.training.events import Event, Observer, unobserved
from shell.training.sft import SFTData, SFTResult, train_supervised

NAMES = ["the cat", "the dog", "the mat", "the door", "an assistant", "the other one", "a name"]


def conversations(count: int) -> list[tuple[Message, ...]]:
    return [
        (
            Message(role="user", content=f"where is {NAMES[index % 7]}"),
            Message(role="assistant", content=f"on {NAMES[(3 * index + 1) % 7]}"),
        )
        for index in range(count)
    ]


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Runs the loop against one engine; `config` is for 2 epochs of 4 batches."""

    endpoint: Endpoint
    config: SFTConfig
    data: SFTData
    batches: list[tuple[int, int | None]]

    def __call__(
        self,
        folder: Path,
        *,
        config: SFTConfig | None = None,
        observe: Observer = unobserved,
        stop_when: Callable[[Event], bool] | None = None,
    ) -> SFTResult:
        async def run() -> SFTResult:
            stop = asyncio.Event()

            def watch(event: Event) -> None:
                observe(event)
                if stop_when is not None and stop_when(event):
                    stop.set()

            base_url, api_key = self.endpoint.base_url, self.endpoint.api_key
            with open_run_folder(folder, config={}) as opened:
                async with connect(base_url=base_url, api_key=api_key) as service:
                    return await train_supervised(
                        config or self.config,
                        service=service,
                        data=self.data,
                        folder=opened,
                        observe=watch,
                        stop=stop,
                    )

        return asyncio.run(run())


class RecordedBatches:
    """Batches that note which of them were asked for."""

    def __init__(self, dataset: SupervisedDataset, asked: list[tuple[int, int | None]]) -> None:
        self._dataset = dataset
        self._asked = asked

    def __len__(self) -> int:
        return len(self._dataset)

    def get_batch(self, index: int, *, epoch_seed: int | None):
        self._asked.append((index, epoch_seed))
        return self._dataset.get_batch(index, epoch_seed=epoch_seed)


@pytest.fixture(scope="session")
def prepared(tiny_model_directory: Path):
    tokenizer = load_tokenizer(tiny_model_directory)
    renderer = get_renderer("chatml", tokenizer)
    made = prepare_conversations(conversations(16), renderer=renderer, max_length=128)
    return made.datums, byte_lengths(tokenizer)


@pytest.fixture
def runner(engine: Endpoint, tiny_model_directory: Path, prepared) -> Runner:
    datums, lengths = prepared
    asked: list[tuple[int, int | None]] = []
    dataset = SupervisedDataset(datums=datums[:14], batch_size=4)
    return Runner(
        endpoint=engine,
        config=SFTConfig(
            model=ModelChoice(model=str(tiny_model_directory), lora_rank=4),
            schedule=Schedule(learning_rate=1e-2, num_epochs=2),
            cadence=Cadence(eval_every=3, save_every=3, submit_ahead=1),
            seed=5,
        ),
        data=SFTData(
            train=RecordedBatches(dataset, asked),
            evaluators=(NLLEvaluator(data=datums[14:], byte_lengths=lengths),),
            byte_lengths=lengths,
        ),
        batches=asked,
    )


@pytest.fixture(scope="session")
def engine_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine-state")


@pytest.fixture(scope="session")
def engine(tiny_model_directory: Path, engine_state: Path) -> Iterator[Endpoint]:
    """An engine whose disk the tests know."""
    config = EngineConfig(model=str(tiny_model_directory), state_dir=engine_state)
    with embedded_engine(config) as endpoint:
        yield endpoint


def saved_weights(state_path: str, *, model: Path, state_dir: Path) -> list[np.ndarray]:
    """The arrays of a saved state, read from an engine's disk."""
    store = CheckpointStore(
        state_dir / "checkpoints", config=read_config(model), base_model=str(model)
    )
    state = store.load_state(store.find(parse_path(state_path)))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture
def weights(tiny_model_directory: Path, engine_state: Path):
    def read(state_path: str) -> list[np.ndarray]:
        return saved_weights(state_path, model=tiny_model_directory, state_dir=engine_state)

    return read
