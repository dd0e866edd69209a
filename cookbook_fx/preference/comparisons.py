"""Comparisons as examples for a model that learns to say which completion is preferred."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.preference.comparison import LabeledComparison
from cookbook_fx.preference.renderer import ComparisonRenderer
from cookbook_fx.supervised import datum_from_tokens_weights, epoch_order


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComparisonDataset:
    """Comparisons in batches for the supervised loop, in an order of the completions that is fair.

    A model must not learn that A is better. So each comparison is shown in both orders, or in one
    that a coin decides: the epoch's seed and the comparison's place give the side it falls on, and
    nothing else does.

    Args:
        forward: an example of each comparison as it is, as from `prepare_comparisons`.
        swapped: an example of each with its completions exchanged.
        batch_size: comparisons in a batch.
        both_orders: show each comparison both ways, one after the other.

    Raises:
        DataError: there are no examples, or not one of each kind for every comparison.
        ConfigurationError: `batch_size` is below 1.
    """

    forward: tuple[Datum, ...]
    swapped: tuple[Datum, ...]
    batch_size: int
    both_orders: bool = False

    def __post_init__(self) -> None:
        if not self.forward or len(self.forward) != len(self.swapped):
            raise DataError(
                "each comparison needs an example in either order, and there must be at least one; "
                f"got {len(self.forward)} and {len(self.swapped)}"
            )
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {self.batch_size}")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.forward) // self.batch_size)

    def get_batch(self, index: int, *, epoch_seed: int | None) -> tuple[Datum, ...]:
        """Batch `index` of the epoch, the same whenever and wherever it is asked for.

        Args:
            index: from 0 to `len(self) - 1`.
            epoch_seed: what order and coins follow from, at least 0; None keeps all as it is.

        Raises:
            ConfigurationError: there is no such batch.
        """
        if not 0 <= index < len(self):
            raise ConfigurationError(f"batches go from 0 to {len(self) - 1}, got {index}")
        begin = index * self.batch_size
        places = epoch_order(len(self.forward), epoch_seed)[begin : begin + self.batch_size]
        if self.both_orders:
            return tuple(d for p in places for d in (self.forward[p], self.swapped[p]))
        coins = _coins(len(self.forward), epoch_seed)
        return tuple((self.swapped if coins[p] else self.forward)[p] for p in places)


def _coins(size: int, epoch_seed: int | None) -> np.ndarray:
    if epoch_seed is None:
        return np.zeros(size, bool)
    # Of a seed of their own, for the order follows from the epoch's.
    return np.random.default_rng([epoch_seed, 1]).random(size) < 0.5


class PreparedComparisons(NamedTuple):
    """Examples of comparisons in either order of the completions.

    Fields:
        forward: an example of each comparison as it is.
        swapped: an example of each with its completions exchanged.
        too_long: comparisons left out for being longer than the limit.
    """

    forward: tuple[Datum, ...]
    swapped: tuple[Datum, ...]
    too_long: int


def prepare_comparisons(
    comparisons: Iterable[LabeledComparison],
    *,
    renderer: ComparisonRenderer,
    max_length: int | None = None,
) -> PreparedComparisons:
    """Renders comparisons both ways.

    One that is longer than the limit is left out: cut off, it would have lost its label.

    Args:
        comparisons: ties too; a model may learn to say Tie.
        renderer: how a comparison is written.
        max_length: the most tokens an example may have; None is no limit.
    """
    both: list[list[Datum]] = []
    too_long = 0
    for labeled in comparisons:
        examples = [renderer.build_supervised_example(way) for way in (labeled, labeled.swap())]
        if max_length is not None and any(len(e.tokens) > max_length for e in examples):
            too_long += 1
        else:
            both.append([datum_from_tokens_weights(e.tokens, e.weights) for e in examples])
    return PreparedComparisons(
        tuple(forward for forward, _ in both), tuple(swapped for _, swapped in both), too_long
    )
