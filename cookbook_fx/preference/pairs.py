"""Comparisons as pairs of datums: what preference losses learn from."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.preference.comparison import LabeledComparison
from cookbook_fx.renderers import Renderer, TrainOnWhat
from cookbook_fx.supervised import datum_from_tokens_weights, epoch_order

Ties = Literal["drop", "half"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreferencePair:
    """Two completions of one prompt as datums, always both.

    Args:
        chosen: prompt and completion, with weights other than 0 at the completion.
        rejected: the same prompt and the other completion.
        prompt_length: tokens of the prompt.
        is_tie: neither was preferred; chosen and rejected are names only.

    Raises:
        DataError: a datum has no target with a weight.
    """

    chosen: Datum
    rejected: Datum
    prompt_length: int
    is_tie: bool = False

    def __post_init__(self) -> None:
        for name in ("chosen", "rejected"):
            weights = getattr(self, name).weights
            if weights is None or not weights.any():
                raise DataError(f"the {name} completion of a pair needs weights that are not all 0")

    @property
    def datums(self) -> tuple[Datum, Datum]:
        """Chosen and rejected."""
        return self.chosen, self.rejected

    @property
    def num_tokens(self) -> int:
        """Tokens the model reads."""
        return self.chosen.length + self.rejected.length


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPreparation:
    """What became of the comparisons of a data set. Two of them add up.

    Args:
        comparisons: comparisons read.
        pairs: pairs made of them, to be trained on.
        ties: those of `pairs` in which neither completion was preferred.
        dropped_ties: comparisons left out because neither completion was preferred.
        equal: comparisons left out because both completions are the same.
        truncated: those of `pairs` of which a completion lost its end to `max_length`.
        cut_off: comparisons left out because `max_length` cut off all of a completion.
        nothing_to_train: comparisons left out because a completion has no token to train on.
        tokens: tokens the model reads in `pairs`.
        loss_tokens: targets in `pairs` with a weight other than 0.
    """

    comparisons: int = 0
    pairs: int = 0
    ties: int = 0
    dropped_ties: int = 0
    equal: int = 0
    truncated: int = 0
    cut_off: int = 0
    nothing_to_train: int = 0
    tokens: int = 0
    loss_tokens: int = 0

    def __add__(self, other: "PairPreparation") -> "PairPreparation":
        names = [field.name for field in fields(self)]
        return PairPreparation(**{n: getattr(self, n) + getattr(other, n) for n in names})


class PreparedPairs(NamedTuple):
    """Pairs in the order of their comparisons, and the account of them."""

    pairs: tuple[PreferencePair, ...]
    preparation: PairPreparation


def prepare_pairs(
    comparisons: Iterable[LabeledComparison],
    *,
    renderer: Renderer,
    max_length: int | None,
    ties: Ties = "drop",
    train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE,
) -> PreparedPairs:
    """Renders a whole data set, once, leaving out and counting what cannot train anything.

    A comparison becomes one pair or is left out whole: neither half is ever there alone. Weights
    are 1, so that the weighted sum of a datum's log-probabilities is the completion's.

    Args:
        comparisons: the data set.
        renderer: the chat format.
        max_length: tokens to keep of prompt and completion; the rest is cut off on the right. None
            keeps all.
        ties: what becomes of comparisons in which neither completion was preferred: `drop` leaves
            them out; `half` keeps them, with a loss that is the mean of both preferences.
        train_on_what: which messages of a completion count.

    Raises:
        ConfigurationError: `max_length` is below 2, or an unknown way with ties.
        DataError: the renderer cannot write a comparison; with its number, from 0.

    Example: see `PreferenceDataset`.
    """
    if ties not in ("drop", "half"):
        raise ConfigurationError(f"`ties` must be drop or half, got {ties!r}")
    if max_length is not None and max_length < 2:
        raise ConfigurationError(f"`max_length` must be at least 2 tokens, got {max_length}")
    pairs: list[PreferencePair] = []
    account = PairPreparation()
    for index, labeled in enumerate(comparisons):
        try:
            pair, became = _prepared(labeled, renderer, max_length, ties, train_on_what)
        except (ConfigurationError, DataError) as error:
            raise type(error)(f"comparison {index}: {error}") from error
        pairs += [] if pair is None else [pair]
        account += became
    return PreparedPairs(tuple(pairs), account)


def _prepared(
    labeled: LabeledComparison,
    renderer: Renderer,
    max_length: int | None,
    ties: Ties,
    train_on_what: TrainOnWhat,
) -> tuple[PreferencePair | None, PairPreparation]:
    ranked = labeled.ranked
    if labeled.is_tie and ties == "drop":
        return None, PairPreparation(comparisons=1, dropped_ties=1)
    if ranked.chosen == ranked.rejected:
        return None, PairPreparation(comparisons=1, equal=1)
    prompt = labeled.comparison.prompt_conversation
    examples = [
        renderer.build_supervised_example((*prompt, *completion), train_on_what)
        for completion in ranked
    ]
    # The first token is predicted by nothing.
    if not all(example.weights[1:].any() for example in examples):
        return None, PairPreparation(comparisons=1, nothing_to_train=1)
    if not all(example.weights[1:max_length].any() for example in examples):
        return None, PairPreparation(comparisons=1, cut_off=1)
    chosen, rejected = (
        datum_from_tokens_weights(example.tokens, example.weights, max_length)
        for example in examples
    )
    pair = PreferencePair(
        chosen=chosen,
        rejected=rejected,
        prompt_length=len(renderer.build_generation_prompt(prompt)),
        is_tie=labeled.is_tie,
    )
    is_long = max_length is not None and any(len(e.tokens) > max_length for e in examples)
    return pair, PairPreparation(
        comparisons=1,
        pairs=1,
        ties=int(labeled.is_tie),
        truncated=int(is_long),
        tokens=pair.num_tokens,
        loss_tokens=sum(int(np.count_nonzero(e.weights[1:max_length])) for e in examples),
    )


class PairBatch(NamedTuple):
    """Some pairs of a data set and their places in it, from 0."""

    positions: Int[np.ndarray, " pair"]
    pairs: tuple[PreferencePair, ...]

    @property
    def datums(self) -> tuple[Datum, ...]:
        """Chosen, rejected, chosen, rejected, and so on."""
        return tuple(datum for pair in self.pairs for datum in pair.datums)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreferenceDataset:
    """Pairs in batches of `batch_size`, shuffled anew by each epoch's seed.

    Every pair is in one batch of every epoch: where the size does not divide their number, the
    last batch of the epoch is short.

    Args:
        pairs: as from `prepare_pairs`.
        batch_size: pairs in a batch.

    Raises:
        DataError: there are no pairs.
        ConfigurationError: `batch_size` is below 1.

    Example:
        >>> import numpy as np
        >>> ids = np.arange(3, dtype=np.int32)
        >>> datum = Datum(tokens=ids, target_tokens=ids, weights=np.ones(3, np.float32))
        >>> pair = PreferencePair(chosen=datum, rejected=datum, prompt_length=1)
        >>> dataset = PreferenceDataset(pairs=(pair, pair, pair), batch_size=2)
        >>> len(dataset), dataset.get_batch(1, epoch_seed=None).positions.tolist()
        (2, [2])
    """

    pairs: tuple[PreferencePair, ...]
    batch_size: int

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DataError("a data set needs at least one pair to train on, got none")
        if self.batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1, got {self.batch_size}")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.pairs) // self.batch_size)

    def get_batch(self, index: int, *, epoch_seed: int | None) -> PairBatch:
        """Batch `index` of the epoch, the same whenever and wherever it is asked for.

        Args:
            index: from 0 to `len(self) - 1`.
            epoch_seed: what the epoch's order follows from, at least 0; None keeps the data's own.

        Raises:
            ConfigurationError: there is no such batch.
        """
        if not 0 <= index < len(self):
            raise ConfigurationError(f"batches go from 0 to {len(self) - 1}, got {index}")
        begin = index * self.batch_size
        order = epoch_order(len(self.pairs), epoch_seed)[begin : begin + self.batch_size]
        return PairBatch(order, tuple(self.pairs[position] for position in order))
