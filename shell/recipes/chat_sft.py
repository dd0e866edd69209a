"""Fine-tuning on conversations: from files on disk to what the supervised loop takes."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cookbook_fx.chat import Conversation
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import Renderer, TrainOnWhat
from cookbook_fx.supervised import Preparation, Prepared, SupervisedDataset, prepare_conversations
from cookbook_fx.tokens import Tokenizer, byte_lengths
from shell.evaluation import NLLEvaluator
from shell.hub import canonical_name, read_conversations, recommended_renderer
from shell.stores.run_folder import JSON
from shell.training import ChatData, ModelChoice, SFTConfig
from shell.training.sft import SFTData

Item = TypeVar("Item")

# What two runs may differ in and still be the same run: neither changes the weights.
MAY_DIFFER = ("cadence", "data.data", "data.eval_data")
WHY_NOT = {"schedule.max_steps": "the learning rate of every step depends on how many there are"}


class LoadedData(NamedTuple):
    """Conversations made ready, and an account of what became of them.

    Fields:
        data: for the loop.
        train: what became of the training conversations.
        held_out: what became of the held-out ones; None if there are none.
    """

    data: SFTData
    train: Preparation
    held_out: Preparation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFiles:
    """Which files a run reads; the starter set's where the user names none."""

    train: Path
    held_out: Path | None


def data_files(choice: ChatData) -> DataFiles:
    """The files that a choice of data means.

    Raises:
        ConfigurationError: conversations are to be held out and a held-out file is given.
    """
    if choice.test_size < 0:
        raise ConfigurationError(f"`test_size` must be 0 or more, got {choice.test_size}")
    if choice.test_size and choice.eval_data is not None:
        raise ConfigurationError(
            "give --eval-data or --test-size, not both: held-out conversations come from a file "
            "of their own or from --data"
        )
    if choice.data is not None:
        return DataFiles(train=choice.data, held_out=choice.eval_data)
    starter = Path(str(resources.files("shell.recipes") / "starter"))
    held_out = None if choice.test_size else starter / "heldout.jsonl"
    return DataFiles(train=starter / "train.jsonl", held_out=choice.eval_data or held_out)


def load_data(
    choice: ChatData,
    *,
    renderer: Renderer,
    tokenizer: Tokenizer,
    context_length: int | None,
    seed: int,
) -> LoadedData:
    """Reads and renders the conversations of a run.

    Args:
        choice: which data, and how it is cut into batches.
        renderer: how conversations are written for the model.
        tokenizer: of the same model.
        context_length: tokens the model can read, if known; no conversation is left longer.
        seed: decides which conversations `test_size` holds out.

    Raises:
        DataError: a file is missing or damaged, or has nothing to train on.
        ConfigurationError: a setting is out of range, or the messages do not fit `train_on_what`.
    """
    files = data_files(choice)
    train = read_conversations(files.train)
    held_out = () if files.held_out is None else read_conversations(files.held_out)
    if choice.test_size:
        train, held_out = split_off(train, choice.test_size, seed=seed)
    limits = [limit for limit in (choice.max_length, context_length) if limit is not None]
    choice = replace(choice, max_length=min(limits, default=None))
    prepared = _prepare(train, choice, renderer)
    if not prepared.datums:
        raise DataError(f"{files.train} has nothing to train on: {account(prepared.preparation)}")
    lengths = byte_lengths(tokenizer)
    tests = _prepare(held_out, choice, renderer)
    if held_out and not tests.datums:
        raise DataError(
            f"the held-out conversations have nothing to measure: {account(tests.preparation)}"
        )
    evaluators = (NLLEvaluator(data=tests.datums, byte_lengths=lengths),) if tests.datums else ()
    return LoadedData(
        data=SFTData(
            train=SupervisedDataset(datums=prepared.datums, batch_size=choice.batch_size),
            evaluators=evaluators,
            byte_lengths=lengths,
            preparation=prepared.preparation,
        ),
        train=prepared.preparation,
        held_out=tests.preparation if held_out else None,
    )


def account(preparation: Preparation) -> str:
    """What became of a set of conversations, in words; nothing left out goes unsaid."""
    parts = [
        f"{preparation.conversations} conversations",
        f"{preparation.tokens} tokens, {preparation.loss_tokens} of them to learn from",
    ]
    notable = {
        "lost their end because they are longer than the limit": preparation.truncated,
        "left out because the limit cut off all there was to learn": preparation.cut_off,
        "left out because they have nothing to learn": preparation.nothing_to_train,
        "left out because they have fewer than two tokens": preparation.too_short,
    }
    return "; ".join(parts + [f"{count} {what}" for what, count in notable.items() if count])


def chosen_renderer(choice: ModelChoice) -> str:
    """The name of the renderer a choice of model means."""
    return choice.renderer or recommended_renderer(choice.model)


def run_description(
    config: SFTConfig, choice: ChatData, *, base_url: str | None
) -> dict[str, JSON]:
    """Everything that decides the result of a run, for its `config.json`.

    The data is told by its content, so that a file that was edited makes another run and one that
    was moved does not.
    """
    files = data_files(choice)
    named = {name: value for name, value in asdict(choice).items() if name not in _FILE_FIELDS}
    model = replace(
        config.model,
        model=canonical_name(config.model.model),
        renderer=chosen_renderer(config.model),
    )
    return {
        "recipe": "chat_sft",
        "engine": base_url or "embedded",
        "seed": config.seed,
        "model": asdict(model),
        "data": {
            "data": str(files.train),
            "data_sha256": file_digest(files.train),
            "eval_data": None if files.held_out is None else str(files.held_out),
            "eval_data_sha256": None if files.held_out is None else file_digest(files.held_out),
            **named,
        },
        "schedule": asdict(config.schedule),
        "adam": asdict(config.adam),
        "cadence": asdict(config.cadence),
    }


_FILE_FIELDS = ("data", "eval_data")


def _prepare(
    conversations: Sequence[Conversation], choice: ChatData, renderer: Renderer
) -> Prepared:
    return prepare_conversations(
        conversations,
        renderer=renderer,
        max_length=choice.max_length,
        train_on_what=TrainOnWhat(choice.train_on_what),
        reduction=choice.reduction,
    )


def split_off(
    items: Sequence[Item], test_size: int, *, seed: int
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Holds out `test_size` of a data set's records by chance; the rest stay in order."""
    if test_size >= len(items):
        raise ConfigurationError(
            f"--test-size {test_size} leaves nothing to train on: there are {len(items)} records"
        )
    held_out = set(np.random.default_rng(seed).permutation(len(items))[:test_size])
    numbered = list(enumerate(items))
    return (
        tuple(item for index, item in numbered if index not in held_out),
        tuple(item for index, item in numbered if index in held_out),
    )


def file_digest(path: Path) -> str:
    """SHA-256 of what a file holds.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
