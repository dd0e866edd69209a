"""What a model answered, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cookbook_fx.errors import DataError

# What stands in a sequence is open here, so that a wrong token or a missing number is the
# caller's DataError where it is used and not a type error.
TokenIds = Sequence[Any] | np.ndarray
Logprobs = Sequence[Any] | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokensWithLogprobs:
    """Sampled tokens, how likely the sampler found each, and why it stopped.

    Nothing is copied; do not change it afterwards. Lists and NumPy arrays are equally welcome,
    the SDK's `tokens_np` and `logprobs_np` cost least.

    Args:
        tokens: token ids.
        maybe_logprobs: log-probability (nats) of each token when it was sampled; None where the
            sampler was not asked for them.
        stop_reason: "stop" at a stop sequence, "length" at the limit of tokens.

    Raises:
        DataError: there are not as many log-probabilities as tokens.

    Example:
        >>> TokensWithLogprobs(tokens=[5, 6], maybe_logprobs=[-0.5, -1.25]).logprobs
        [-0.5, -1.25]
    """

    tokens: TokenIds
    maybe_logprobs: Logprobs | None = None
    stop_reason: Literal["stop", "length"] = "stop"

    def __post_init__(self) -> None:
        if self.maybe_logprobs is not None and len(self.maybe_logprobs) != len(self.tokens):
            raise DataError(
                f"each sampled token needs one log-probability, got {len(self.maybe_logprobs)} "
                f"for {len(self.tokens)} tokens"
            )

    @property
    def logprobs(self) -> Logprobs:
        """The log-probabilities; DataError where none were recorded."""
        if self.maybe_logprobs is None:
            raise DataError(
                "these tokens have no log-probabilities; ask for them when sampling, they cannot "
                "be had afterwards"
            )
        return self.maybe_logprobs
