"""The answers of an evaluation on disk: to be looked at, and not to be sampled again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cookbook_fx.chat import (
    Conversation,
    Message,
    conversation_from_dict,
    conversation_to_dict,
    message_from_dict,
    message_to_dict,
)
from cookbook_fx.errors import DataError
from cookbook_fx.reports import Scores
from shell.stores.files import storing
from shell.stores.lines import append_lines, keep_lines, parsed, read_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedAnswer:
    """One answer to an example.

    Args:
        message: what the model said; None where it could not be asked.
        scores: how good it is; empty where it could not be graded.
        stop_reason: "stop" or "length", as the engine says; "context" where the prompt left no
            room to answer in.
        num_tokens: sampled.
        error: why there is no answer, or no score.
    """

    message: Message | None
    scores: Scores
    stop_reason: str
    num_tokens: int
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRecord:
    """An example with its answers, as a line of the file.

    Args:
        example: its place in the data set.
        key: stands for all that decides the answers; what has another key was asked otherwise.
        prompt: what was asked.
        reference: what the grader knew.
        answers: what came of it.
    """

    example: int
    key: str
    prompt: Conversation
    reference: Any
    answers: tuple[GradedAnswer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersFile:
    """A JSONL file of example records; of those with one key the last counts.

    Several evaluations may share a file: their keys differ.
    """

    path: Path

    def latest(self) -> dict[str, ExampleRecord]:
        """The records by key; a line torn by a crash is taken out of the file.

        Raises:
            DataError: a line is no such record.
            StorageError: the file cannot be mended.
        """
        keep_lines(self.path, lambda: read_lines(self.path, _HEAD), what="the answers")
        found = (
            parsed(self.path, line, _record_from_dict) for line in read_lines(self.path, _HEAD)
        )
        return {record.key: record for record in found}

    def append(self, record: ExampleRecord) -> None:
        """Adds a record, which is on the disk before this returns.

        Raises:
            StorageError: it cannot be written.
        """
        with storing(self.path, what="the answers"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        append_lines(self.path, [_record_to_dict(record)], what="the answers")


_HEAD = ("example",)


def _record_to_dict(record: ExampleRecord) -> dict[str, Any]:
    return {
        "example": record.example,
        "key": record.key,
        "prompt": conversation_to_dict(record.prompt)["messages"],
        "reference": record.reference,
        "answers": [
            {
                "message": None if each.message is None else message_to_dict(each.message),
                "scores": dict(each.scores),
                "stop_reason": each.stop_reason,
                "num_tokens": each.num_tokens,
                "error": each.error,
            }
            for each in record.answers
        ],
    }


def _record_from_dict(row: Any) -> ExampleRecord:
    match row:
        case {
            "example": int(example),
            "key": str(key),
            "prompt": list(prompt),
            "answers": list(answers),
        }:
            return ExampleRecord(
                example=example,
                key=key,
                prompt=conversation_from_dict({"messages": prompt}),
                reference=row.get("reference"),
                answers=tuple(map(_answer_from_dict, answers)),
            )
        case _:
            raise DataError("expected an example with its key, prompt and answers")


def _answer_from_dict(row: Any) -> GradedAnswer:
    match row:
        case {
            "message": message,
            "scores": dict(scores),
            "stop_reason": str(stop_reason),
            "num_tokens": int(num_tokens),
        } if isinstance(message, Mapping | None):
            return GradedAnswer(
                message=None if message is None else message_from_dict(message),
                scores=scores,
                stop_reason=stop_reason,
                num_tokens=num_tokens,
                error=row.get("error"),
            )
        case _:
            raise DataError("expected an answer with its message, scores and stop_reason")


def mean_length(answers: Sequence[GradedAnswer]) -> float:
    """Tokens in an answer, on average."""
    return sum(answer.num_tokens for answer in answers) / len(answers)
