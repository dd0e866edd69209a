"""Questions with right answers: from JSONL files and data sets."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from cookbook_fx.chat import Message, conversation_from_dict
from cookbook_fx.errors import DataError
from shell.evaluation import EvaluationExample
from shell.hub import open_dataset
from shell.hub.conversations import read_records

_PROMPTS = ("prompt", "question", "input", "messages")
_REFERENCES = ("reference", "answer", "target", "output")


def load_questions(source: str, *, limit: int | None = None) -> tuple[EvaluationExample, ...]:
    """Reads questions, each row as `example_from_dict` takes it.

    Args:
        source: a JSONL file, or what `open_dataset` opens, of which the split `test` is taken.
        limit: rows at most.

    Raises:
        DataError: there is no such file or data set, or a row is none; with its number.
    """
    path = Path(source).expanduser()
    if path.suffix == ".jsonl":
        return read_records(path, example_from_dict, what="question")[:limit]
    is_file = path.is_file()
    rows: Iterable[Mapping[str, Any]] = open_dataset(source, split="train" if is_file else "test")
    found = []
    for row_number, row in enumerate(itertools.islice(rows, limit)):
        try:
            found.append(example_from_dict(row))
        except DataError as error:
            raise DataError(f"row {row_number} of {source}: {error}") from error
    if not found:
        raise DataError(f"{source} holds no question")
    return tuple(found)


def example_from_dict(row: Mapping[str, Any]) -> EvaluationExample:
    """Reads one question.

    Args:
        row: the prompt, a text or a list of messages, under prompt, question, input or messages;
            the right answer under reference, answer, target or output, a text, a number or a list
            of all that are right. With `choices` those are listed under the prompt as A), B) and
            so on, and the reference is a letter, a place from 0, or the choice itself.

    Raises:
        DataError: one is missing or of the wrong kind.

    Example:
        >>> row = {"question": "Where?", "choices": ["Rome", "Oslo"], "answer": 1}
        >>> example_from_dict(row).prompt[0].text, example_from_dict(row).reference
        ('Where?\\nA) Rome\\nB) Oslo', 'B')
    """
    prompt, reference = _first(row, _PROMPTS), _first(row, _REFERENCES)
    if isinstance(reference, bool) or not isinstance(reference, str | int | float | list):
        raise DataError(
            "the right answer must be a text, a number or a list of them, got "
            f"{type(reference).__name__}"
        )
    if isinstance(prompt, list):
        return EvaluationExample(
            prompt=conversation_from_dict({**row, "messages": prompt}), reference=reference
        )
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"the prompt must be a text or a list of messages, got {prompt!r}")
    if row.get("choices") is not None:
        prompt, reference = _with_choices(prompt, row["choices"], reference)
    return EvaluationExample(prompt=(Message(role="user", content=prompt),), reference=reference)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    found = [row[name] for name in names if row.get(name) is not None]
    if not found:
        raise DataError(f"one of {', '.join(names)} is wanted, got {', '.join(row) or 'nothing'}")
    return found[0]


def _with_choices(prompt: str, choices: Any, reference: Any) -> tuple[str, str]:
    is_list = isinstance(choices, list) and 2 <= len(choices) <= len(ascii_uppercase)
    if not is_list or not all(isinstance(each, str) for each in choices):
        raise DataError(f"`choices` must be a list of 2 to 26 texts, got {choices!r}")
    letters = ascii_uppercase[: len(choices)]
    lines = [f"{letter}) {text}" for letter, text in zip(letters, choices, strict=True)]
    if reference in choices:
        letter = letters[choices.index(reference)]
    elif isinstance(reference, int) and 0 <= reference < len(choices):
        letter = letters[reference]
    elif isinstance(reference, str) and reference.strip().upper() in list(letters):
        letter = reference.strip().upper()
    else:
        raise DataError(
            f"the right answer must be a letter up to {letters[-1]}, a place from 0 to "
            f"{len(choices) - 1}, or one of the choices; got {reference!r}"
        )
    return "\n".join([prompt, *lines]), letter
