"""Many conversations as datums, with an account of what became of each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from cookbook_fx.chat import Conversation
from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import Renderer, SupervisedExample, TrainOnWhat
from cookbook_fx.supervised.datum import Reduction, datum_from_tokens_weights

# Enough for the tokenizer's threads, and few enough to hold their tokens twice.
_RENDERED_TOGETHER = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What became of the conversations of a data set. Two of them add up.

    Args:
        conversations: conversations read.
        datums: examples made of them, to be trained on.
        truncated: those of `datums` that lost their end to `max_length`.
        cut_off: examples left out because `max_length` cut off all there was to train on.
        nothing_to_train: examples left out because they have no token to train on.
        too_short: examples left out because they have fewer than two tokens.
        tokens: tokens the model reads in `datums`.
        loss_tokens: targets in `datums` with a weight other than 0.
    """

    conversations: int = 0
    datums: int = 0
    truncated: int = 0
    cut_off: int = 0
    nothing_to_train: int = 0
    too_short: int = 0
    tokens: int = 0
    loss_tokens: int = 0

    @property
    def left_out(self) -> int:
        """Examples that will not be trained on."""
        return self.cut_off + self.nothing_to_train + self.too_short

    def __add__(self, other: "Preparation") -> "Preparation":
        names = [field.name for field in fields(self)]
        return Preparation(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Prepared(NamedTuple):
    """Datums in the order of their conversations, and the account of them."""

    datums: tuple[Datum, ...]
    preparation: Preparation


def prepare_conversations(
    conversations: Iterable[Conversation],
    *,
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    reduction: Reduction = "mean",
) -> Prepared:
    """Render a whole data set, once, leaving out and counting what cannot train anything.

    A conversation gives one datum, or one for each trained response where the renderer writes
    responses otherwise once the conversation goes on.

    Args:
        conversations: the data set.
        renderer: the chat format.
        max_length: tokens to keep of an example; the rest is cut off on the right. None keeps all.
        train_on_what: which messages to train on.
        reduction: as in `datum_from_tokens_weights`.

    Raises:
        ConfigurationError: an unknown reduction, a `max_length` below 2, or a conversation, told by
            its number from 0, that does not fit `train_on_what`.
        DataError: a conversation without messages.
    """
    each: list[Prepared] = []
    left = iter(conversations)
    while together := list(islice(left, _RENDERED_TOGETHER)):
        ahead = renderer.encoded_ahead(together, train_on_what)
        each += [
            _prepared(conversation, index, ahead, max_length, train_on_what, reduction)
            for index, conversation in enumerate(together, start=len(each))
        ]
    datums = tuple(chain.from_iterable(prepared.datums for prepared in each))
    return Prepared(datums, sum((prepared.preparation for prepared in each), Preparation()))


def stream_batches(
    conversations: Iterable[Conversation],
    *,
    renderer: Renderer,
    batch_size: int,
    max_length: int | None,
    train_on_what: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    reduction: Reduction = "mean",
) -> Iterator[Prepared]:
    """Batches of a data set too large to hold, each with the account of its conversations.

    Order is the iterable's, and every datum is in one batch: all have `batch_size` datums but
    the last, which has what is left. The accounts add up to the whole; the last batch may be
    empty, to account for what was left out after the batch before it.

    Raises:
        ConfigurationError, DataError: `batch_size` is below 1, or as in `prepare_conversations`.
    """
    if batch_size < 1:
        raise ConfigurationError(f"`batch_size` must be at least 1, got {batch_size}")
    waiting: tuple[Datum, ...] = ()
    account = Preparation()
    for index, conversation in enumerate(conversations):
        prepared = _prepared(conversation, index, renderer, max_length, train_on_what, reduction)
        waiting += prepared.datums
        account += prepared.preparation
        while len(waiting) >= batch_size:
            yield Prepared(waiting[:batch_size], account)
            waiting, account = waiting[batch_size:], Preparation()
    if waiting or account.conversations:
        yield Prepared(waiting, account)


def _prepared(
    conversation: Conversation,
    index: int,
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat,
    reduction: Reduction,
) -> Prepared:
    try:
        examples = renderer.build_supervised_examples(conversation, train_on_what)
    except (ConfigurationError, DataError) as error:
        raise type(error)(f"conversation {index}: {error}") from error
    outcomes = [_datum(example, max_length, reduction) for example in examples]
    account = sum((outcome for _, outcome in outcomes), Preparation(conversations=1))
    return Prepared(tuple(datum for datum, _ in outcomes if datum is not None), account)


def _datum(
    example: SupervisedExample, max_length: int | None, reduction: Reduction
) -> tuple[Datum | None, Preparation]:
    length = len(example.tokens)
    is_long = max_length is not None and length > max_length
    if length < 2:
        return None, Preparation(too_short=1)
    if not example.weights[1:].any():
        return None, Preparation(nothing_to_train=1)
    datum = datum_from_tokens_weights(example.tokens, example.weights, max_length, reduction)
    loss_tokens = int(np.count_nonzero(example.weights[1:max_length]))
    if loss_tokens == 0:
        return None, Preparation(cut_off=1)
    return datum, Preparation(
        datums=1, truncated=int(is_long), tokens=datum.length, loss_tokens=loss_tokens
    )
