import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.runs import Position, RunPlan, is_due

plans = st.builds(
    RunPlan,
    num_batches=st.integers(1, 9),
    num_epochs=st.integers(1, 4),
    max_steps=st.none() | st.integers(1, 40),
    evaluate_every=st.none() | st.integers(1, 5),
    save_every=st.none() | st.integers(1, 5),
)


@given(plans, st.data())
def test_interrupted_runs_see_the_batches_of_uninterrupted_ones(plan, data):
    whole = list(plan.steps())
    stop = data.draw(st.integers(0, plan.total_steps))
    recorded = plan.position(stop)
    assert [*whole[:stop], *plan.steps(from_step=plan.completed_steps(recorded))] == whole
    assert len({(step.epoch, step.batch) for step in whole}) == len(whole) == plan.total_steps


@given(plans)
def test_every_full_epoch_visits_every_batch_once(plan):
    for epoch in range(plan.total_steps // plan.num_batches):
        batches = [step.batch for step in plan.steps() if step.epoch == epoch]
        assert batches == list(range(plan.num_batches))


def test_max_steps_caps_the_total_and_the_position_tells_where_the_data_really_stands():
    plan = RunPlan(num_batches=4, num_epochs=3, max_steps=6)
    assert plan.total_steps == 6
    assert plan.position(plan.total_steps) == Position(epoch=1, batch=2)
    assert RunPlan(num_batches=4, num_epochs=3, max_steps=100).total_steps == 12


def test_evaluation_precedes_its_step_and_a_save_follows_it():
    steps = list(RunPlan(num_batches=6, evaluate_every=3, save_every=2).steps())
    assert [step.evaluate for step in steps] == [True, False, False, True, False, False]
    assert [step.save for step in steps] == [False, True, False, True, False, True]
    assert not any(step.evaluate or step.save for step in RunPlan(num_batches=6).steps())


def test_progress_runs_from_zero_to_just_below_one():
    assert [step.progress for step in RunPlan(num_batches=4).steps()] == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    "name", ["num_batches", "num_epochs", "max_steps", "evaluate_every", "save_every"]
)
def test_counts_below_one_are_refused_by_name(name):
    with pytest.raises(ConfigurationError, match=name):
        RunPlan(**({"num_batches": 1} | {name: 0}))


def test_what_lies_outside_the_run_is_refused():
    plan = RunPlan(num_batches=2)
    for index in (-1, 2):
        with pytest.raises(ConfigurationError, match="steps 0 to 1"):
            plan.step(index)
    with pytest.raises(ConfigurationError, match="batch size"):
        plan.completed_steps(Position(epoch=0, batch=2))
    with pytest.raises(ConfigurationError, match="None for never"):
        is_due(3, 0)
