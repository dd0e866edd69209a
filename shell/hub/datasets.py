"""Conversations from Hugging Face datasets, held in memory or streamed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

from cookbook_fx.chat import Conversation, conversation_from_dict
from cookbook_fx.errors import ConfigurationError, DataError
from shell.hub.reach import why_unavailable

ToConversation = Callable[[Mapping[str, Any]], Conversation]


def open_dataset(
    name_or_path: str,
    *,
    split: str = "train",
    config: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Opens one split of a dataset.

    Args:
        name_or_path: owner/name on the hub, or a local folder, JSON, JSONL or Parquet file.
        split: its name; slices such as "train[:1000]" work where nothing is streamed.
        config: which part of a dataset on the hub, where it has several.
        streaming: rows are read as they are used, rather than downloaded and indexed first.

    Raises:
        DataError: there is no such dataset or split, or the hub cannot be reached.
    """
    path = Path(name_or_path).expanduser()
    builder, files = name_or_path, None
    if path.is_file():
        builder, config, files = _builder(path), None, str(path)
    elif not path.is_dir():
        unavailable = why_unavailable(name_or_path, kind="dataset")
        if unavailable is not None:
            raise DataError(
                f"cannot open the dataset {name_or_path!r}: it is no local file or folder, and "
                f"from the hub it cannot come: {unavailable}"
            )
    try:
        return load_dataset(builder, config, data_files=files, split=split, streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"cannot open {split!r} of {name_or_path!r}: {error}") from error


def _builder(path: Path) -> str:
    builders = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    if path.suffix not in builders:
        raise DataError(f"{path} must end in one of {', '.join(builders)}")
    return builders[path.suffix]


def conversations_from_dataset(
    dataset: Dataset, *, to_conversation: ToConversation = conversation_from_dict
) -> tuple[Conversation, ...]:
    """All rows of a dataset, in its order.

    Raises:
        DataError: `to_conversation` refuses a row; with the row's number, from 0.
    """
    return tuple(_converted(dataset, to_conversation))


def stream_conversations(
    dataset: IterableDataset,
    *,
    epoch_seed: int,
    shuffle_buffer: int = 10_000,
    to_conversation: ToConversation = conversation_from_dict,
) -> Iterator[Conversation]:
    """The rows of a dataset once, forwards only, shuffled within a buffer.

    The order is a function of the dataset, `epoch_seed` and `shuffle_buffer`, so that a resumed
    run comes back to its place by passing over what it has used.

    Args:
        dataset: opened for streaming.
        epoch_seed: another seed gives another order.
        shuffle_buffer: rows held at once, from which the next is drawn; 1 keeps the order.
        to_conversation: what to make of a row.

    Raises:
        DataError: `to_conversation` refuses a row; with its place in the stream, from 0.
    """
    if shuffle_buffer < 1:
        raise ConfigurationError(f"shuffle_buffer must be at least 1, got {shuffle_buffer}")
    if shuffle_buffer > 1:
        dataset = dataset.shuffle(seed=epoch_seed, buffer_size=shuffle_buffer)
    return _converted(dataset, to_conversation)


def _converted(
    rows: Iterable[Mapping[str, Any]], to_conversation: ToConversation
) -> Iterator[Conversation]:
    for number, row in enumerate(rows):
        try:
            yield to_conversation(row)
        except DataError as error:
            raise DataError(f"row {number} of the dataset: {error}") from error
