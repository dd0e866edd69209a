"""Whatever is measured is written as strict JSON or refused by name, never as half of a row."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cookbook_fx.errors import DataError
from shell.stores import MetricsFile

values = st.one_of(
    st.none() | st.booleans() | st.floats() | st.text(),
    st.integers() | st.sampled_from([10**400, -(10**400), 2**64]),
    hnp.scalar_dtypes().flatmap(hnp.from_dtype),
    hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0)),
    st.builds(
        jnp.asarray,
        st.sampled_from([0.0, 2.5, np.nan, np.inf]),
        st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    ),
    st.builds(jnp.asarray, st.booleans() | st.integers(0, 9)),
    st.builds(jnp.zeros, hnp.array_shapes(max_dims=2)),
    st.complex_numbers() | st.binary() | st.dates() | st.lists(st.integers()) | st.builds(object),
)
names = st.one_of(
    st.text(), st.sampled_from(["\ud800", "a\nb", "\u2028", "step", ""]), st.integers(), st.none(),
    st.tuples(st.text()), st.binary(),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(metrics=st.dictionaries(names, values, max_size=4), before=st.booleans())
def test_a_row_is_strict_json_or_refused_by_name(tmp_path_factory, metrics, before) -> None:
    file = MetricsFile(path=tmp_path_factory.mktemp("m") / "metrics.jsonl")
    if before:
        file.append(0, {"loss": 0.5})
    refused = ""
    try:
        file.append(1, metrics)
    except DataError as error:
        refused = str(error)
    if refused:
        assert any(repr(name) in refused for name in metrics) or "step" in metrics
        assert len(file.rows()) == before
        return
    line = file.path.read_text().splitlines()[-1]
    row = json.loads(line, parse_constant=pytest.fail)
    assert list(row) == ["step", *metrics]
    assert all(type(value) in (bool, int, float, str, type(None)) for value in row.values())
    assert file.rows()[-1] == row
    file.keep_before(1)
    assert len(file.rows()) == before


def test_an_integer_that_no_reader_can_hold_is_null(tmp_path) -> None:
    file = MetricsFile(path=tmp_path / "metrics.jsonl")
    file.append(0, {"huge": -(10**5000), "large": 10**300})
    assert file.rows() == ({"step": 0, "huge": None, "large": 10**300},)
