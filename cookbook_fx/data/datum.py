"""One training example, as every loss and every engine sees it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from cookbook_fx.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Datum:
    """Tokens in, targets and per-token loss inputs out; position i of `tokens` predicts target i.

    Targets are already shifted, so every column has the length of `tokens`. Arrays are not
    copied; do not change them afterwards.

    Args:
        tokens: model input, token ids, `[token]`.
        target_tokens: what each position should predict, `[token]`; or `[token, K]` for K weighted
            candidates a position (soft targets).
        weights: loss weight of each target (same shape as `target_tokens`); negative and
            fractional weights are allowed. None counts as all ones.
        logprobs: log-probabilities (nats) recorded when the targets were sampled, `[token]`.
        advantages: how much better than expected each sampled target was, `[token]`.
        sequence_ratio_mask: which targets make up the ratio of the whole sequence, which is gspo's,
            `[token]`. None counts as those with a weight other than 0.

    Raises:
        DataError: the tokens are empty, or a column has another length.

    Example:
        >>> import numpy as np
        >>> ids = np.array([5, 6, 7], np.int32)
        >>> Datum(tokens=ids[:-1], target_tokens=ids[1:], weights=np.ones(2, np.float32)).length
        2
    """

    # Shapes are open here, so that a wrong one is the caller's DataError and not a type error.
    tokens: Int[np.ndarray, "..."]
    target_tokens: Int[np.ndarray, "..."]
    weights: Float[np.ndarray, "..."] | None = None
    logprobs: Float[np.ndarray, "..."] | None = None
    advantages: Float[np.ndarray, "..."] | None = None
    sequence_ratio_mask: Bool[np.ndarray, "..."] | None = None

    def __post_init__(self) -> None:
        tokens, targets = self.tokens.shape, self.target_tokens.shape
        if len(tokens) != 1 or tokens == (0,):
            raise DataError(
                f"a Datum needs at least one token in one dimension, got shape {tokens}"
            )
        if len(targets) not in (1, 2) or targets[0] != tokens[0]:
            raise DataError(
                f"target_tokens must have shape ({tokens[0]},) or ({tokens[0]}, K), got {targets}"
            )
        if targets[-1] == 0:
            raise DataError(f"a Datum needs at least one target per token, got shape {targets}")
        if self.weights is not None and self.weights.shape != targets:
            raise DataError(
                f"weights must have the shape of target_tokens {targets}, got {self.weights.shape}"
            )
        for name, column in (
            ("logprobs", self.logprobs),
            ("advantages", self.advantages),
            ("sequence_ratio_mask", self.sequence_ratio_mask),
        ):
            if column is not None and column.shape != tokens:
                raise DataError(f"{name} must have shape {tokens}, got {column.shape}")

    @property
    def length(self) -> int:
        """Number of tokens the model reads."""
        return len(self.tokens)
