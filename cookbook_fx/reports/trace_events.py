"""Events of a trace file as Chrome's tracing and Perfetto read them: one JSON object each.

Reference: the Trace Event Format, which Perfetto imports as "Chrome JSON". Times are microseconds.
A begin and an end belong together by the track they are on, the innermost first; the process and
thread ids of the format are the run and the track here.
"""

import json
import math
from collections.abc import Mapping

Attribute = bool | int | float | str | None


def begin_event(
    name: str, *, at: float, process: int, track: int, attributes: Mapping[str, Attribute]
) -> str:
    """What begins something on a track; it lasts until the end that matches it.

    Args:
        name: of what begins.
        at: when, in seconds.
        process: of the track.
        track: in the process.
        attributes: shown with it. What has no JSON is shown as text.

    Example:
        >>> begin_event("sampling", at=1.5, process=1, track=2, attributes={"step": 3})
        '{"ph":"B","name":"sampling","ts":1500000.0,"pid":1,"tid":2,"args":{"step":3}}'
    """
    args = {str(key): _shown(value) for key, value in attributes.items()}
    shown = {"args": args} if args else {}
    return _line({"ph": "B", "name": name, **_place(at, process, track), **shown})


def end_event(*, at: float, process: int, track: int) -> str:
    """What ends the innermost thing that is going on on a track."""
    return _line({"ph": "E", **_place(at, process, track)})


def process_name_event(name: str, *, process: int) -> str:
    """What the tracks of a process stand under."""
    return _line(
        {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
    )


def track_name_event(name: str, *, process: int, track: int) -> str:
    """What stands beside a track; tracks stand in the order of their numbers."""
    return _line(
        {"ph": "M", "name": "thread_name", "pid": process, "tid": track, "args": {"name": name}}
    )


def _place(at: float, process: int, track: int) -> dict[str, float | int]:
    return {"ts": round(at * 1e6, 3), "pid": process, "tid": track}


def _shown(value: object) -> Attribute:
    if value is None or type(value) in (bool, int, str):
        return value  # type: ignore[return-value]
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    return str(value)


def _line(event: Mapping[str, object]) -> str:
    return json.dumps(event, allow_nan=False, separators=(",", ":"))
