"""Rendered conversations as datums: truncated, shifted by one, their weights reduced."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from cookbook_fx.chat import Message
from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, DataError
from cookbook_fx.renderers import Renderer, TrainOnWhat

Reduction = Literal["none", "mean"]


def datum_from_tokens_weights(
    tokens: Int[np.ndarray, " token"],
    weights: Float[np.ndarray, " token"],
    max_length: int | None = None,
    reduction: Reduction = "none",
) -> Datum:
    """The datum that predicts `tokens[1:]` from `tokens[:-1]`.

    Args:
        tokens: a rendered conversation.
        weights: loss weight of predicting each token; the first one's is not used, for
            nothing comes before it.
        max_length: tokens to keep; the rest is cut off on the right. None keeps all.
        reduction: `mean` divides the weights by their sum, so that a loss that adds up weighted
            tokens is the example's mean over tokens; `none` leaves them as they are. Weights that
            add up to 0 are left in either case.

    Returns:
        A datum of one token fewer than kept, int32 and float32.

    Raises:
        DataError: fewer than two tokens are left, or not one weight came for each token.
        ConfigurationError: an unknown reduction, or a `max_length` below 2.

    Example:
        >>> import numpy as np
        >>> tokens, weights = np.array([5, 6, 7, 8]), np.array([0.0, 0.0, 1.0, 1.0])
        >>> datum = datum_from_tokens_weights(tokens, weights, reduction="mean")
        >>> datum.tokens.tolist(), datum.target_tokens.tolist(), datum.weights.tolist()
        ([5, 6, 7], [6, 7, 8], [0.0, 0.5, 0.5])
    """
    if reduction not in ("none", "mean"):
        raise ConfigurationError(f"`reduction` must be none or mean, got {reduction!r}")
    if max_length is not None and max_length < 2:
        raise ConfigurationError(f"`max_length` must be at least 2 tokens, got {max_length}")
    if len(tokens) != len(weights):
        raise DataError(f"each token needs a weight, got {len(tokens)} and {len(weights)}")
    kept = np.asarray(tokens[:max_length], np.int32)
    if len(kept) < 2:
        raise DataError(
            f"an example needs at least 2 tokens, one to predict from the other; got {len(kept)} "
            f"(of {len(tokens)}, with `max_length` {max_length})"
        )
    target_weights = np.asarray(weights[1 : len(kept)], np.float32)
    total = target_weights.sum(dtype=np.float64)
    if reduction == "mean" and total != 0:
        target_weights = (target_weights / total).astype(np.float32)
    return Datum(tokens=kept[:-1], target_tokens=kept[1:], weights=target_weights)


def conversation_to_datum(
    conversation: Sequence[Message],
    renderer: Renderer,
    max_length: int | None,
    train_on_what: TrainOnWhat = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    reduction: Reduction = "mean",
) -> Datum:
    """A conversation as one datum; `prepare_conversations` counts what this passes over.

    Args:
        conversation: the messages.
        renderer: the chat format.
        max_length: tokens to keep; the rest is cut off on the right. None keeps all.
        train_on_what: which messages to train on.
        reduction: as in `datum_from_tokens_weights`.

    Raises:
        DataError: no messages, or fewer than two tokens.
        ConfigurationError: an unknown reduction, or messages that do not fit `train_on_what`.
    """
    example = renderer.build_supervised_example(conversation, train_on_what)
    return datum_from_tokens_weights(example.tokens, example.weights, max_length, reduction)
