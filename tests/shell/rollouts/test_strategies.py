import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from shell.rollouts import MinViableGroup, RetryOnFailure
from shell.rollouts.strategies import Verdict, after_failure

STRATEGIES = st.builds(RetryOnFailure, max_retries=st.integers(0, 4)) | st.builds(
    MinViableGroup,
    min_successful=st.none() | st.integers(1, 10),
    max_retries=st.integers(0, 4),
)


@given(STRATEGIES, st.integers(1, 8), st.integers(0, 20))
def test_a_group_of_which_all_is_tried_ends_whole_enough_or_given_up(strategy, size, failures):
    """However many failures come, in whatever order."""
    lost = retries = 0
    for _ in range(failures):
        verdict = after_failure(strategy, size=size, lost=lost, retries=retries)
        if verdict is Verdict.GIVE_UP:
            assert retries == strategy.max_retries
            assert size - lost - 1 < strategy.floor(size)
            return
        lost += verdict is Verdict.LEAVE_OUT
        retries += verdict is Verdict.RETRY
        assert size - lost >= strategy.floor(size) >= 1
        assert retries <= strategy.max_retries
        if lost == size:
            return


def test_a_group_that_must_be_whole_repeats_and_then_gives_up():
    verdicts = [
        after_failure(RetryOnFailure(max_retries=2), size=4, lost=0, retries=retries)
        for retries in range(3)
    ]
    assert verdicts == [Verdict.RETRY, Verdict.RETRY, Verdict.GIVE_UP]


@pytest.mark.parametrize(("size", "floor"), [(1, 1), (2, 2), (4, 3), (8, 6), (16, 12), (5, 4)])
def test_three_quarters_of_a_group_are_enough(size, floor):
    assert MinViableGroup().floor(size) == floor


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match="max_retries"):
        RetryOnFailure(max_retries=-1)
    with pytest.raises(ConfigurationError, match="max_retries"):
        MinViableGroup(max_retries=-1)
    with pytest.raises(ConfigurationError, match="min_successful"):
        MinViableGroup(min_successful=0)
