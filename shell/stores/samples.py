"""`samples.jsonl`: texts of a run that are kept to be looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cookbook_fx.errors import DataError
from cookbook_fx.reports.samples import ShownText
from shell.stores.files import write_atomically
from shell.stores.lines import json_lines, parsed, read_lines

SAMPLES = "samples.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesFile:
    """Texts of a run, one a line."""

    path: Path

    def texts(self) -> tuple[ShownText, ...]:
        """The texts in order; none where there is no file.

        Raises:
            DataError: the file is damaged.
        """
        return tuple(parsed(self.path, line, _from_json) for line in read_lines(self.path, ()))

    def replace(self, texts: Sequence[ShownText]) -> None:
        """Puts texts in the place of those of the same titles, behind all others.

        Raises:
            DataError: the file is damaged.
            StorageError: it cannot be written; it is unchanged.
        """
        titles = {text.title for text in texts}
        kept = [text for text in self.texts() if text.title not in titles]
        lines = json_lines(map(_to_json, [*kept, *texts]))
        write_atomically(self.path, lines, what="the samples")


def _to_json(text: ShownText) -> dict[str, Any]:
    return {
        "title": text.title,
        "heading": text.heading,
        "prompt": np.asarray(text.prompt, np.int64).tolist(),
        "tokens": np.asarray(text.tokens, np.int64).tolist(),
        "logprobs": _numbers(text.logprobs),
        "weights": _numbers(text.weights),
    }


def _numbers(values: Any) -> list[float] | None:
    # What is not a number colors nothing.
    return None if values is None else np.nan_to_num(np.asarray(values, np.float64)).tolist()


def _from_json(value: Any) -> ShownText:
    try:
        return ShownText(
            title=str(value["title"]),
            heading=str(value["heading"]),
            prompt=[int(token) for token in value["prompt"]],
            tokens=[int(token) for token in value["tokens"]],
            logprobs=_floats(value["logprobs"]),
            weights=_floats(value["weights"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"no text to look at: {error!r}") from error


def _floats(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
