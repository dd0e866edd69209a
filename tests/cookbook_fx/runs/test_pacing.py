import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.runs import Pacing

counts = st.integers(1, 12)


@given(st.integers(0, 200), counts, counts)
def test_parts_take_each_group_once_and_differ_by_one_at_most(groups, substeps, minibatches):
    parts = Pacing(num_substeps=substeps, num_minibatches=minibatches).parts(groups)
    assert sum(map(sum, parts)) == groups
    assert len(parts) == min(substeps, groups)
    assert all(0 < len(sizes) <= minibatches for sizes in parts)
    assert all(min(sizes) > 0 and max(sizes) - min(sizes) <= 1 for sizes in parts)
    totals = [sum(sizes) for sizes in parts]
    assert not totals or max(totals) - min(totals) <= 1


@given(st.integers(0, 5), st.integers(0, 20), st.integers(1, 20))
def test_each_step_begins_once_and_never_staler_than_the_bound(bound, first, total):
    pacing = Pacing(max_steps_off_policy=bound)
    begun = {}
    next_step = first
    for version in range(first, total + 1):
        steps = pacing.may_begin(version=version, begun=next_step, total_steps=total)
        begun |= {step: version for step in steps}
        next_step = steps.stop
        # The step that these weights learn next can be rolled out.
        assert version >= total or version in begun
    assert list(begun) == list(range(first, total))
    assert all(0 <= step - version <= bound for step, version in begun.items())


def test_on_policy_means_one_step_a_version():
    assert Pacing().may_begin(version=3, begun=3, total_steps=9) == range(3, 4)
    assert not Pacing().may_begin(version=3, begun=4, total_steps=9)


@pytest.mark.parametrize(
    ("name", "least"),
    [("max_steps_off_policy", 0), ("num_minibatches", 1), ("num_substeps", 1)],
)
def test_counts_out_of_range_are_refused(name, least):
    assert getattr(Pacing(**{name: least}), name) == least
    with pytest.raises(ConfigurationError, match=name):
        Pacing(**{name: least - 1})
