import hypothesis.strategies as st
from hypothesis import given

from shell.engine.sequencing import (
    Arrived,
    Hold,
    Refuse,
    Repeat,
    Run,
    Sequence,
    TimePassed,
    step,
)


def run(events, patience_seconds=300.0):
    sequence, commands = Sequence(), []
    for event in events:
        sequence, more = step(sequence, event, patience_seconds=patience_seconds)
        commands += more
    return sequence, commands


def arrivals(*seq_ids):
    return [Arrived(seq_id=seq_id, at_seconds=0.0) for seq_id in seq_ids]


def test_chunks_that_arrive_with_the_first_one_last_run_in_order():
    _, commands = run(arrivals(2, 3, 1, 4))
    assert commands == [
        Hold(seq_id=2),
        Hold(seq_id=3),
        Run(seq_ids=(1, 2, 3)),
        Run(seq_ids=(4,)),
    ]


def test_a_repeated_operation_is_recognised_before_and_after_it_ran():
    _, commands = run(arrivals(2, 2, 1, 2, 1))
    assert commands == [
        Hold(seq_id=2),
        Repeat(seq_id=2),
        Run(seq_ids=(1, 2)),
        Repeat(seq_id=2),
        Repeat(seq_id=1),
    ]


@given(st.data())
def test_whatever_the_order_and_repeats_each_operation_runs_once_and_in_order(data):
    count = data.draw(st.integers(1, 12))
    extra = data.draw(st.lists(st.integers(1, count)))
    order = data.draw(st.permutations([*range(1, count + 1), *extra]))
    sequence, commands = run(arrivals(*order))
    ran = [seq_id for c in commands if isinstance(c, Run) for seq_id in c.seq_ids]
    assert ran == list(range(1, count + 1))
    assert sum(isinstance(c, Repeat) for c in commands) == len(extra)
    assert sequence == Sequence(next_seq_id=count + 1)


def test_what_waits_for_a_lost_operation_is_refused_after_the_wait_and_not_before():
    held = [Arrived(seq_id=1, at_seconds=0), Arrived(seq_id=3, at_seconds=10)]
    patient, commands = run([*held, TimePassed(at_seconds=109)], patience_seconds=100)
    assert commands == [Run(seq_ids=(1,)), Hold(seq_id=3)]
    after, (refusal,) = step(patient, TimePassed(at_seconds=111), patience_seconds=100)
    assert isinstance(refusal, Refuse)
    assert refusal.seq_ids == (3,)
    assert "operation 2" in refusal.reason
    # The model goes on with what the client numbers next; the lost one comes too late.
    after, commands = step(after, Arrived(seq_id=4, at_seconds=112), patience_seconds=100)
    assert commands == (Run(seq_ids=(4,)),)
    after, (late,) = step(after, Arrived(seq_id=2, at_seconds=113), patience_seconds=100)
    assert isinstance(late, Refuse)
    assert step(after, Arrived(seq_id=2, at_seconds=114), patience_seconds=100)[1] == (
        Repeat(seq_id=2),
    )


def test_a_wait_for_the_next_hole_begins_anew():
    events = [
        Arrived(seq_id=2, at_seconds=0),
        Arrived(seq_id=4, at_seconds=1),
        Arrived(seq_id=1, at_seconds=90),
        TimePassed(at_seconds=150),
    ]
    sequence, commands = run(events, patience_seconds=100)
    assert not any(isinstance(command, Refuse) for command in commands)
    assert sequence.waiting_since == 90
