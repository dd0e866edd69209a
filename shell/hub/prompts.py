"""Prompts without answers: from JSONL files and from Hugging Face datasets."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cookbook_fx.distillation import prompt_from_dict
from cookbook_fx.errors import DataError
from shell.hub.conversations import read_records
from shell.hub.datasets import open_dataset

PROMPT_DATASETS: Mapping[str, str] = MappingProxyType(
    {"deepmath": "zwhe99/DeepMath-103K", "tulu3": "allenai/tulu-3-sft-mixture"}
)
"""Data sets on the hub by the names tinker-cookbook has for them."""


def load_prompts(source: str, *, split: str = "train") -> tuple[str, ...]:
    """Reads what to ask, each row as `prompt_from_dict` takes it.

    Rows in which no user says anything are passed over.

    Args:
        source: deepmath or tulu3, fetched from the hub; a JSONL file; or what `open_dataset` opens.
        split: of a data set; "train[:1000]" takes its beginning.

    Raises:
        DataError: there is no such file or data set, it cannot be reached, or it holds no prompt.
    """
    if Path(source).suffix == ".jsonl":
        path = Path(source).expanduser()
        found: Iterable[str | None] = read_records(path, prompt_from_dict, what="prompt")
    elif source in PROMPT_DATASETS:
        try:
            rows = open_dataset(PROMPT_DATASETS[source], split=split)
        except DataError as error:
            raise DataError(
                f"{error}; prompts of your own can stand in: a JSONL file, each line "
                '{"prompt": "..."}'
            ) from error
        found = _converted(rows, source)
    else:
        found = _converted(open_dataset(source, split=split), source)
    prompts = tuple(prompt for prompt in found if prompt is not None)
    if not prompts:
        raise DataError(f"{source} holds no prompt")
    return prompts


def _converted(rows: Iterable[Mapping[str, Any]], source: str) -> Iterable[str | None]:
    for number, row in enumerate(rows):
        try:
            yield prompt_from_dict(row)
        except DataError as error:
            raise DataError(f"row {number} of {source}: {error}") from error
