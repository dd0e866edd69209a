"""Preferences from a user's own files and from Hugging Face datasets."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cookbook_fx.data import Datum
from cookbook_fx.errors import DataError
from cookbook_fx.preference import (
    ComparisonDataset,
    ComparisonRendererFromChatRenderer,
    LabeledComparison,
    PairPreparation,
    PreferenceDataset,
    PreferencePair,
    Ties,
    labeled_comparison_from_dict,
    prepare_comparisons,
    prepare_pairs,
)
from cookbook_fx.renderers import Renderer
from shell.hub.conversations import read_records
from shell.hub.datasets import open_dataset


def load_comparisons(source: str, *, split: str = "train") -> tuple[LabeledComparison, ...]:
    """Reads preferences, each row as `labeled_comparison_from_dict` takes it.

    Args:
        source: a JSONL file; or what `open_dataset` opens, owner/name on the hub, a JSON or Parquet
            file, or a folder.
        split: of what `open_dataset` opens.

    Raises:
        DataError: there is no such file or dataset, or a row cannot be read; with its number.
    """
    if Path(source).suffix == ".jsonl":
        return read_records(
            Path(source).expanduser(), labeled_comparison_from_dict, what="preference"
        )
    return _converted(open_dataset(source, split=split), source)


def _converted(rows: Iterable[Mapping[str, Any]], source: str) -> tuple[LabeledComparison, ...]:
    comparisons = []
    for number, row in enumerate(rows):
        try:
            comparisons.append(labeled_comparison_from_dict(row))
        except DataError as error:
            raise DataError(f"row {number} of {source}: {error}") from error
    if not comparisons:
        raise DataError(f"{source} holds no preference")
    return tuple(comparisons)


class LabeledComparisons(NamedTuple):
    """Preferences to train and, where there are any, to measure on."""

    train: tuple[LabeledComparison, ...]
    test: tuple[LabeledComparison, ...] | None


class ComparisonDatasetBuilder(ABC):
    """A data set of preferences: where its rows are, and what one of them means."""

    @abstractmethod
    def get_train_and_test_datasets(
        self,
    ) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
        """The rows to train and, where there are any, to measure on."""

    @abstractmethod
    def example_to_labeled_comparison(self, example: Mapping[str, Any]) -> LabeledComparison | None:
        """What a row means; None passes it over."""

    def get_labeled_comparisons(self) -> LabeledComparisons:
        """All rows, in their order, but for those passed over."""
        train, test = self.get_train_and_test_datasets()
        return LabeledComparisons(
            self._labeled(train), None if test is None else self._labeled(test)
        )

    def _labeled(self, rows: Sequence[Mapping[str, Any]]) -> tuple[LabeledComparison, ...]:
        meanings = map(self.example_to_labeled_comparison, rows)
        return tuple(meaning for meaning in meanings if meaning is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonBuilderFromJsonl(ComparisonDatasetBuilder):
    """Preferences from JSONL files, in any form that `labeled_comparison_from_dict` reads.

    Args:
        train_path: to train on.
        test_path: to measure on.
    """

    train_path: str
    test_path: str | None = None

    def get_train_and_test_datasets(
        self,
    ) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
        """The files' rows; DataError where a file cannot be read."""
        return _rows(self.train_path), None if self.test_path is None else _rows(self.test_path)

    def example_to_labeled_comparison(self, example: Mapping[str, Any]) -> LabeledComparison:
        """What a row means; DataError where that cannot be told."""
        return labeled_comparison_from_dict(example)


def _rows(path: str) -> tuple[Mapping[str, Any], ...]:
    return read_records(Path(path).expanduser(), lambda row: row, what="preference")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonBuilderFromDataset(ComparisonDatasetBuilder):
    """Preferences from what `open_dataset` opens.

    Args:
        name_or_path: owner/name on the hub, a JSON or Parquet file, or a folder.
        train_split: to train on.
        test_split: to measure on.
    """

    name_or_path: str
    train_split: str = "train"
    test_split: str | None = None

    def get_train_and_test_datasets(
        self,
    ) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
        """The splits' rows; DataError where there is no such dataset or split."""
        train = list(open_dataset(self.name_or_path, split=self.train_split))
        if self.test_split is None:
            return train, None
        return train, list(open_dataset(self.name_or_path, split=self.test_split))

    def example_to_labeled_comparison(self, example: Mapping[str, Any]) -> LabeledComparison:
        """What a row means; DataError where that cannot be told."""
        return labeled_comparison_from_dict(example)


class ChatDatasets(NamedTuple):
    """What a preference model is trained and measured on, for the supervised loop.

    Fields:
        train: batches of examples.
        test: examples, each comparison in both orders; None where there is nothing to measure on.
        too_long: training comparisons left out for being longer than the limit.
    """

    train: ComparisonDataset
    test: tuple[Datum, ...] | None
    too_long: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChatDatasetBuilderFromComparisons:
    """Comparisons as examples for a model that learns to say which completion is preferred.

    Args:
        comparison_builder: the comparisons.
        renderer: the chat format.
        batch_size: comparisons in a batch.
        max_length: the most tokens of an example; None is no limit.
        swap: show each comparison in both orders, rather than in one that a coin decides.
    """

    comparison_builder: ComparisonDatasetBuilder
    renderer: Renderer
    batch_size: int
    max_length: int | None = None
    swap: bool = False

    def __call__(self) -> ChatDatasets:
        """Reads and renders the comparisons.

        Raises:
            DataError: there is nothing to train on.
        """
        renderer = ComparisonRendererFromChatRenderer(renderer=self.renderer)
        train, test = self.comparison_builder.get_labeled_comparisons()
        prepared = prepare_comparisons(train, renderer=renderer, max_length=self.max_length)
        measured = None
        if test is not None:
            both = prepare_comparisons(test, renderer=renderer, max_length=self.max_length)
            measured = (*both.forward, *both.swapped)
        dataset = ComparisonDataset(
            forward=prepared.forward,
            swapped=prepared.swapped,
            batch_size=self.batch_size,
            both_orders=self.swap,
        )
        return ChatDatasets(dataset, measured, prepared.too_long)


class DPODatasets(NamedTuple):
    """What the loop over preferences is given, and the accounts of it.

    Fields:
        train: batches of pairs.
        test: held-out pairs; None where there are none.
        train_preparation: what became of the training comparisons.
        test_preparation: what became of the held-out ones; None where there are none.
    """

    train: PreferenceDataset
    test: tuple[PreferencePair, ...] | None
    train_preparation: PairPreparation
    test_preparation: PairPreparation | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DPODatasetBuilderFromComparisons:
    """Comparisons as pairs of datums.

    Args:
        comparison_builder: the comparisons.
        renderer: the chat format.
        batch_size: pairs in a batch.
        max_length: tokens to keep of prompt and completion; None keeps all.
        ties: as in `prepare_pairs`.
    """

    comparison_builder: ComparisonDatasetBuilder
    renderer: Renderer
    batch_size: int
    max_length: int | None = None
    ties: Ties = "drop"

    def __call__(self) -> DPODatasets:
        """Reads and renders the comparisons.

        Raises:
            DataError: there is nothing to train on.
        """
        train, test = self.comparison_builder.get_labeled_comparisons()
        prepared = prepare_pairs(
            train, renderer=self.renderer, max_length=self.max_length, ties=self.ties
        )
        dataset = PreferenceDataset(pairs=prepared.pairs, batch_size=self.batch_size)
        if test is None:
            return DPODatasets(dataset, None, prepared.preparation, None)
        # What is measured is whether a preference is told, and a tie is none.
        measured = prepare_pairs(test, renderer=self.renderer, max_length=self.max_length)
        return DPODatasets(dataset, measured.pairs, prepared.preparation, measured.preparation)
