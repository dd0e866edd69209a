"""What environments, graders and policies may return; anything else is told by name."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Int

from cookbook_fx.errors import DataError
from cookbook_fx.rl.trajectory import Metrics, Reward
from cookbook_fx.tokens import TokensWithLogprobs
from shell.rollouts.env import Observation, StopCondition

_INT32_MAX = np.iinfo(np.int32).max


def checked_answer(answer: object, policy: object) -> TokensWithLogprobs:
    """What a policy returned; DataError if it is no answer."""
    if not isinstance(answer, TokensWithLogprobs):
        raise DataError(
            f"the policy {type(policy).__name__} must answer with TokensWithLogprobs, got "
            f"{kind(answer)}"
        )
    return answer


def checked_reward(reward: object, *, where: str) -> Reward:
    """A reward; DataError if it is no finite number."""
    # By type, as math.isfinite would read numbers out of one-element arrays.
    if not isinstance(reward, (Real, np.bool_)) or not math.isfinite(reward):
        raise DataError(f"{where} must give a finite number as the reward, got {reward!r}")
    return reward


def checked_metrics(metrics: object, *, where: str) -> Metrics:
    """Metrics; DataError if they are not numbers by name."""
    for name, value in checked_mapping(metrics, where=where).items():
        if not isinstance(value, (Real, np.bool_)):
            raise DataError(
                f"{where} must give numbers as metrics, got {value!r} for {name!r}; put anything "
                "else into the logs"
            )
    return checked_mapping(metrics, where=where)


def checked_mapping(values: object, *, where: str) -> Mapping[str, Any]:
    """Metrics or logs; DataError if they are no mapping."""
    if not isinstance(values, Mapping):
        raise DataError(f"{where} must give metrics and logs as mappings, got {kind(values)}")
    return values


def token_ids(values: Observation, *, where: str) -> Int[np.ndarray, " token"]:
    """An observation; DataError if it is none.

    A copy, as an environment may go on writing into its list.
    """
    if not isinstance(values, (Sequence, np.ndarray)) or isinstance(values, (str, bytes)):
        raise DataError(
            f"{where} must give token ids as the observation, an array or a list; got "
            f"{kind(values)}"
        )
    ids = np.asarray(values)
    if ids.size and (ids.dtype.kind not in "iu" or ids.ndim != 1):
        raise DataError(
            f"{where} must give integers in one dimension as the observation, got an array of "
            f"{ids.dtype} of shape {ids.shape}"
        )
    if ids.size and not (0 <= ids.min() and ids.max() <= _INT32_MAX):
        raise DataError(
            f"{where} must give token ids from 0 to {_INT32_MAX}, got {ids.min()} to {ids.max()}"
        )
    return np.array(ids, np.int32)


def checked_stop(stop: object, *, where: str) -> StopCondition:
    """A stop condition; DataError if it is none."""
    if not isinstance(stop, Sequence) or isinstance(stop, (str, bytes)):
        raise DataError(
            f"{where} must give the stop condition as a sequence of strings or of token ids, got "
            f"{stop!r}"
        )
    return tuple(stop)


def kind(value: object) -> str:
    """What a value is, for an error."""
    return "None" if value is None else f"a {type(value).__name__}"
