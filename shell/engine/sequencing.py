"""The order of one model's operations: a machine without clocks, sockets or threads.

A client numbers a model's operations 1, 2, 3, ...; requests can arrive out of order, twice, or
(when one is lost) leave a hole. Operations run strictly by number: an early one is held until
everything before it has arrived, a repeated one is recognised, and after a long wait for a number
that never comes, what was held behind it is refused instead of being run without it.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """An operation reached the engine."""

    seq_id: int
    at_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """Nothing arrived; the clock reads this."""

    at_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Every operation before these has been run or refused: run them, in this order."""

    seq_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Keep the operation until it is run or refused."""

    seq_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The operation arrived before: answer as then, run nothing."""

    seq_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """These will never run."""

    seq_ids: tuple[int, ...]
    reason: str


Event = Arrived | TimePassed
Command = Run | Hold | Repeat | Refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """Where one model stands.

    Args:
        next_seq_id: the lowest number that has neither run nor been refused.
        held: numbers above `next_seq_id` that have arrived.
        lost: numbers below `next_seq_id` that were given up without having arrived.
        waiting_since: when the present wait for `next_seq_id` began; None while nothing is held.
    """

    next_seq_id: int = 1
    held: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()
    waiting_since: float | None = None


def step(
    sequence: Sequence, event: Event, *, patience_seconds: float
) -> tuple[Sequence, tuple[Command, ...]]:
    """Takes one event in; says what the model's owner must do.

    Example:
        >>> early, commands = step(
        ...     Sequence(), Arrived(seq_id=2, at_seconds=0.0), patience_seconds=300)
        >>> commands
        (Hold(seq_id=2),)
        >>> step(early, Arrived(seq_id=1, at_seconds=0.1), patience_seconds=300)[1]
        (Run(seq_ids=(1, 2)),)
    """
    match event:
        case Arrived(seq_id=seq_id, at_seconds=now):
            return _arrive(sequence, seq_id, now)
        case TimePassed(at_seconds=now):
            return _give_up(sequence, now, patience_seconds)


def _arrive(sequence: Sequence, seq_id: int, now: float) -> tuple[Sequence, tuple[Command, ...]]:
    if seq_id in sequence.lost:
        late = Refuse(
            seq_ids=(seq_id,),
            reason=f"operation {seq_id} arrived after the engine had given up waiting for it",
        )
        return replace(sequence, lost=sequence.lost - {seq_id}), (late,)
    if seq_id < sequence.next_seq_id or seq_id in sequence.held:
        return sequence, (Repeat(seq_id=seq_id),)
    if seq_id > sequence.next_seq_id:
        since = now if sequence.waiting_since is None else sequence.waiting_since
        held = sequence.held | {seq_id}
        return replace(sequence, held=held, waiting_since=since), (Hold(seq_id=seq_id),)
    after = seq_id + 1
    while after in sequence.held:
        after += 1
    ready = tuple(range(seq_id, after))
    held = sequence.held.difference(ready)
    moved = replace(sequence, next_seq_id=after, held=held, waiting_since=now if held else None)
    return moved, (Run(seq_ids=ready),)


def _give_up(
    sequence: Sequence, now: float, patience_seconds: float
) -> tuple[Sequence, tuple[Command, ...]]:
    since = sequence.waiting_since
    if since is None or now - since < patience_seconds:
        return sequence, ()
    refused = tuple(sorted(sequence.held))
    missing = set(range(sequence.next_seq_id, refused[-1])) - sequence.held
    refusal = Refuse(
        seq_ids=refused,
        reason=(
            f"operation {sequence.next_seq_id} of this model did not arrive within "
            f"{patience_seconds:g} s, so the operations after it were not run; submit them again"
        ),
    )
    moved = Sequence(next_seq_id=refused[-1] + 1, lost=sequence.lost | missing)
    return moved, (refusal,)
