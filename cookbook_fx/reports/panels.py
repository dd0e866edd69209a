"""The numbers of a run as curves, and which of them are looked at together."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_LARGEST = 1e300

Scalar = bool | int | float | str | None
Row = Mapping[str, Scalar]


class Curve(NamedTuple):
    """A number that changes with the steps.

    Fields:
        steps: steps done before each measurement, ascending.
        values: what was measured, finite.
    """

    steps: Float[np.ndarray, " point"]
    values: Float[np.ndarray, " point"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """A curve of a panel.

    Args:
        label: what it is, beside the others of the panel.
        curve: its points.
        is_held_out: measured at times on data that is not trained on, not at every step.
    """

    label: str
    curve: Curve
    is_held_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """Curves that share an axis."""

    title: str
    lines: tuple[Line, ...]


def curve(rows: Iterable[Row], name: str) -> Curve:
    """The measurements under one name; rows without a finite number there are passed over.

    Example:
        >>> found = curve([{"step": 0, "loss": 2.5}, {"step": 1, "loss": None}], "loss")
        >>> found.steps.tolist(), found.values.tolist()
        ([0.0], [2.5])
    """
    points = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return Curve(steps, values)


def thinned(points: Curve, *, limit: int = 600) -> Curve:
    """At most `limit` points, each the mean of neighbors.

    Example:
        >>> thinned(Curve(np.arange(4.0), np.array([1.0, 3.0, 5.0, 7.0])), limit=2).values.tolist()
        [2.0, 6.0]
    """
    if len(points.steps) <= limit:
        return points
    starts = np.linspace(0, len(points.steps), limit, endpoint=False).astype(np.int64)
    sizes = np.diff(starts, append=len(points.steps))
    return Curve(*(np.add.reduceat(column, starts) / sizes for column in points))


def smoothed(values: Float[np.ndarray, " point"], *, window: int) -> Float[np.ndarray, " point"]:
    """The mean of each value and its neighbors, as many on each side; fewer at both ends.

    Example:
        >>> smoothed(np.array([0.0, 3.0, 0.0]), window=3).tolist()
        [1.5, 1.0, 1.5]
    """
    each_side = min(window // 2, len(values))
    # Of what is small, sums round little: what stays the same stays exactly the same.
    level = values[:1]
    totals = np.concatenate([[0.0], np.cumsum(values - level)])
    place = np.arange(len(values))
    begin = np.maximum(place - each_side, 0)
    end = np.minimum(place + each_side + 1, len(values))
    means: np.ndarray = level + (totals[end] - totals[begin]) / (end - begin)
    return means


def panels(rows: Sequence[Row]) -> tuple[Panel, ...]:
    """What a run's rows are drawn as: the panels that there are numbers for, the first ones first.

    Example:
        >>> [panel.title for panel in panels([{"step": 0, "train_mean_nll": 3.0, "optim/lr": 0.1}])]
        ['Loss (nats/token)', 'Learning rate']
    """
    names = metric_names(rows)
    found = [_panel(rule, names, rows) for rule in (*_RULES, *_environment_rules(names))]
    return tuple(panel for panel in found if panel is not None and not _is_uneventful(panel))


def metric_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """The names under which any row has a finite number, as they first come."""
    return tuple(
        dict.fromkeys(
            name
            for row in rows
            for name, value in row.items()
            if name != "step" and _is_number(value)
        )
    )


def phases(rows: Sequence[Row]) -> dict[str, Curve]:
    """Seconds of each step by what they were spent on; what no part accounts for is `other`.

    Parts that overlap, so that together they are more than the whole, leave nothing for it.

    Example:
        >>> row = {"step": 0, "time/total": 5.0, "time/training": 3.0}
        >>> {name: part.values.tolist() for name, part in phases([row]).items()}
        {'training': [3.0], 'other': [2.0]}
    """
    timed = [row for row in rows if _is_number(row.get("time/total"))]
    # Of each group's sampling, which goes on beside the others', the step's wait is the part.
    parts = [
        name
        for name in metric_names(timed)
        if name.startswith("time/")
        and name != "time/total"
        and not name.startswith("time/sampling_time")
    ]
    total = curve(timed, "time/total")
    table = {
        name.removeprefix("time/"): np.array(
            [row[name] if _is_number(row.get(name)) else 0.0 for row in timed], np.float64
        )
        for name in parts
    }
    rest = np.maximum(0.0, total.values - sum(table.values(), np.zeros_like(total.values)))
    if not table or rest.sum() > _MENTIONED * total.values.sum():
        table["other"] = rest
    return {name: Curve(total.steps, values) for name, values in table.items()}


# The share of the time from which on it is said that it went elsewhere.
_MENTIONED = 0.01


class Progress(NamedTuple):
    """How far a run is.

    Fields:
        steps: done.
        total: of the whole run; None where that is not known.
        seconds_left: at the pace of the last steps; None where that is not known.
    """

    steps: int
    total: int | None = None
    seconds_left: float | None = None


def progress(rows: Sequence[Row]) -> Progress:
    """How far a run is by its rows.

    A row is of a step that was done, but for the one behind the last step, which is known by having
    no time.

    Example:
        >>> rows = [{"step": 0, "time/total": 2.0, "progress/done_frac": 0.25}]
        >>> progress(rows)
        Progress(steps=1, total=4, seconds_left=6.0)
    """
    seconds = curve(rows, "time/total")
    if not len(seconds.steps):
        return Progress(int(rows[-1]["step"]) if rows else 0)  # type: ignore[arg-type]
    steps = int(seconds.steps[-1]) + 1
    timed = [row for row in rows if _is_number(row.get("time/total"))]
    total = next(filter(None, (_total(timed, steps, name) for name in _PROGRESS)), None)
    pace = float(seconds.values[-_RECENT:].mean())
    return Progress(steps, total, None if total is None else pace * max(0, total - steps))


# The share of the run that is done: after the step, and before it.
_PROGRESS = ("progress/done_frac", "progress")
_RECENT = 20


def _total(rows: Sequence[Row], steps: int, name: str) -> int | None:
    share = curve(rows, name)
    is_known = len(share.steps) > 0 and share.values[-1] > 0
    if not is_known:
        return None
    done = share.steps[-1] + (1 if name == "progress/done_frac" else 0)
    return max(steps, round(float(done / share.values[-1])))


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> duration(75.0), duration(3.2), duration(7260.0)
        ('1 min 15 s', '3.2 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


class _Rule(NamedTuple):
    """Which names make a panel: those that match as a whole."""

    title: str
    train: str
    held_out: str | None = None


_FAILURES = "Failed episodes"
_RULES = (
    _Rule("Reward", r"env/all/reward/total", r".+/env/all/reward/total"),
    _Rule("Loss (nats/token)", r"train_mean_nll", r".+/nll"),
    _Rule("Preference loss", r"[a-z_]+_loss", r".+/[a-z_]+_loss"),
    _Rule("Accuracy", r"accuracy", r".+/accuracy"),
    _Rule("Margin", r"margin", r".+/margin"),
    _Rule("Implicit rewards", r"(?:chosen|rejected)_reward"),
    _Rule("Bits per byte", r"train_mean_bpb", r".+/bpb"),
    _Rule("KL: sampling against training", r"optim/kl_sample_train_v[12]"),
    _Rule("KL: before against after the step", r"kl_pre_post_v[12]"),
    _Rule("KL to the base policy", r"kl_policy_base"),
    _Rule("KL to the teacher", r"teacher_kl", r".+/teacher_kl"),
    _Rule("Entropy (nats/token)", r"optim/entropy"),
    _Rule(
        "Groups by their rewards",
        r"env/all/by_group/frac_(?:mixed|all_good|all_bad)",
    ),
    _Rule("Held-out problems solved", r"(?!)", r".+/by_group/frac_any_positive"),
    _Rule("Learning rate", r"learning_rate|optim/lr"),
    _Rule("Gradient norm", r"optim/grad_norm"),
    _Rule("Effective sample size", r"optim/effective_sample_size"),
    _Rule("Tokens a step", r"num_tokens|train/num_tokens"),
    _Rule("Tokens an answer", r"env/all/ac_tokens_per_turn", r".+/env/all/ac_tokens_per_turn"),
    _Rule(_FAILURES, r"rollout_errors/total"),
)
# Every environment has these; what it has besides is its own and gets a panel each.
_OF_ALL = re.compile(
    r"env/all/((?:ac|ob)_tokens_per_turn|turns_per_episode|total_.*|reward/total|by_group/.*)"
)
_ENVIRONMENT = re.compile(r"env/all/(.+)")


def _environment_rules(names: Iterable[str]) -> list[_Rule]:
    """The rules for what an environment measures itself."""
    own = [
        found[1]
        for name in names
        if (found := _ENVIRONMENT.fullmatch(name)) and not _OF_ALL.fullmatch(name)
    ]
    return [
        _Rule(
            f"Environment: {name}",
            rf"env/all/{re.escape(name)}",
            rf".+/env/all/{re.escape(name)}",
        )
        for name in own
    ]


def _panel(rule: _Rule, names: Sequence[str], rows: Sequence[Row]) -> Panel | None:
    trained = [name for name in names if re.fullmatch(rule.train, name)]
    held_out = [name for name in names if rule.held_out and re.fullmatch(rule.held_out, name)]
    if not trained and not held_out:
        return None
    lines = [
        Line(label=label, curve=curve(rows, name))
        for name, label in zip(trained, _labels(trained, alone="training"), strict=True)
    ] + [
        Line(label=label, curve=curve(rows, name), is_held_out=True)
        for name, label in zip(held_out, _labels(held_out, alone="held out"), strict=True)
    ]
    return Panel(title=rule.title, lines=tuple(lines))


def _is_uneventful(panel: Panel) -> bool:
    """Whether it counts what never happened."""
    return panel.title == _FAILURES and not any(line.curve.values.any() for line in panel.lines)


def _labels(names: Sequence[str], *, alone: str) -> list[str]:
    """What tells names apart: all but the parts that they end and begin with alike."""
    if len(names) < 2:
        return [alone] * len(names)
    parts = [name.split("/") for name in names]
    while all(len(one) > 1 and one[0] == parts[0][0] for one in parts):
        parts = [one[1:] for one in parts]
    while all(len(one) > 1 and one[-1] == parts[0][-1] for one in parts):
        parts = [one[:-1] for one in parts]
    return ["/".join(one) for one in parts]


def _is_number(value: object) -> bool:
    # Beyond it, sums overflow.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST
