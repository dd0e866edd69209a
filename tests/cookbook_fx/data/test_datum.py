"""What a Datum refuses, by the name of the column."""

import numpy as np
import pytest

from cookbook_fx.data import Datum
from cookbook_fx.errors import DataError

IDS = np.array([3, 4, 5], np.int32)


@pytest.mark.parametrize(
    "column",
    [
        {"weights": np.ones(2, np.float32)},
        {"logprobs": np.zeros(2, np.float32)},
        {"advantages": np.zeros((3, 1), np.float32)},
        {"sequence_ratio_mask": np.ones(2, bool)},
    ],
)
def test_columns_of_another_shape_are_named(column: dict) -> None:
    with pytest.raises(DataError, match=f"{next(iter(column))} must have"):
        Datum(tokens=IDS, target_tokens=IDS, **column)


@pytest.mark.parametrize("tokens", [IDS[:0], IDS[None]])
def test_tokens_are_one_row_of_some(tokens: np.ndarray) -> None:
    with pytest.raises(DataError, match="at least one token in one dimension"):
        Datum(tokens=tokens, target_tokens=tokens)


def test_targets_are_as_many_as_tokens() -> None:
    with pytest.raises(DataError, match=r"target_tokens must have shape \(3,\) or \(3, K\)"):
        Datum(tokens=IDS, target_tokens=IDS[:2])
    with pytest.raises(DataError, match="at least one target per token"):
        Datum(tokens=IDS, target_tokens=np.zeros((3, 0), np.int32))
