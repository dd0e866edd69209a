"""The numbers of a run as curves, and which of them are looked at together."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_LARGEST = 1e300
_NUMBERS = (int, float)

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


def curves(rows: Iterable[Row]) -> dict[str, Curve]:
    """The measurements under each name, as the names first come.

    What is no finite number is passed over.

    Example:
        >>> found = curves([{"step": 0, "loss": 2.5}, {"step": 1, "loss": None, "why": "nan"}])
        >>> {name: (curve.steps.tolist(), curve.values.tolist()) for name, curve in found.items()}
        {'loss': ([0.0], [2.5])}
    """
    points: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        step = row["step"]
        for name, value in row.items():
            # Not bool, which is an int; and nothing with which sums overflow.
            if type(value) in _NUMBERS and name != "step" and abs(value) <= _LARGEST:  # type: ignore[arg-type]
                steps, values = points.setdefault(name, ([], []))
                steps.append(step)  # type: ignore[arg-type]
                values.append(value)  # type: ignore[arg-type]
    return {
        name: Curve(np.array(steps, np.float64), np.array(values, np.float64))
        for name, (steps, values) in points.items()
    }


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


def panels(found: Mapping[str, Curve]) -> tuple[Panel, ...]:
    """What a run's curves are drawn as: the panels that there are curves for, the first ones first.

    Example:
        >>> found = curves([{"step": 0, "train_mean_nll": 3.0, "optim/lr": 0.1}])
        >>> [panel.title for panel in panels(found)]
        ['Loss (nats/token)', 'Learning rate']
    """
    made = [_panel(rule, found) for rule in (*_RULES, *_environment_rules(found))]
    return tuple(panel for panel in made if panel is not None and not _is_uneventful(panel))


def phases(found: Mapping[str, Curve]) -> dict[str, Curve]:
    """Seconds of each step by what they were spent on; what no part accounts for is `other`.

    Parts that overlap, so that together they are more than the whole, leave nothing for it.

    Example:
        >>> row = {"step": 0, "time/total": 5.0, "time/training": 3.0}
        >>> {name: part.values.tolist() for name, part in phases(curves([row])).items()}
        {'training': [3.0], 'other': [2.0]}
    """
    total = found.get(_TOTAL)
    if total is None:
        return {}
    parts = {
        name.removeprefix("time/"): _at(total.steps, part)
        for name, part in found.items()
        # Each group's sampling goes on beside the others'; the step's wait for them is the part.
        if name.startswith("time/") and name != _TOTAL and not name.startswith("time/sampling_time")
    }
    rest = np.maximum(0.0, total.values - sum(parts.values(), np.zeros_like(total.values)))
    if not parts or rest.sum() > _MENTIONED * total.values.sum():
        parts["other"] = rest
    return {name: Curve(total.steps, values) for name, values in parts.items()}


_TOTAL = "time/total"
# The share of the time from which on it is said that it went elsewhere.
_MENTIONED = 0.01


def _at(steps: Float[np.ndarray, " step"], part: Curve) -> Float[np.ndarray, " step"]:
    """The values of a curve at some steps, 0 where it has none."""
    values = np.zeros_like(steps)
    is_asked = np.isin(part.steps, steps)
    values[np.searchsorted(steps, part.steps[is_asked])] = part.values[is_asked]
    return values


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


def progress(found: Mapping[str, Curve]) -> Progress:
    """How far a run is by its curves.

    A step that was done has a time; what is measured behind the last step has none.

    Example:
        >>> progress(curves([{"step": 0, "time/total": 2.0, "progress/done_frac": 0.25}]))
        Progress(steps=1, total=4, seconds_left=6.0)
    """
    seconds = found.get(_TOTAL)
    if seconds is None:
        return Progress(0)
    last = seconds.steps[-1]
    steps = int(last) + 1
    total = next(filter(None, (_total(found, name, last=last) for name in _DONE_BEHIND)), None)
    pace = float(seconds.values[-_RECENT:].mean())
    return Progress(steps, total, None if total is None else pace * max(0, total - steps))


# The share of the run that is done, and how far behind the row's step that is.
_DONE_BEHIND = {"progress/done_frac": 1, "progress": 0}
_RECENT = 20


def _total(found: Mapping[str, Curve], name: str, *, last: float) -> int | None:
    share = found.get(name)
    if share is None:
        return None
    # The latest is the most exact.
    known = np.flatnonzero((share.steps <= last) & (share.values > 0))
    if not known.size:
        return None
    done = share.steps[known[-1]] + _DONE_BEHIND[name]
    return max(int(last) + 1, round(float(done / share.values[known[-1]])))


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


def _panel(rule: _Rule, found: Mapping[str, Curve]) -> Panel | None:
    trained = [name for name in found if re.fullmatch(rule.train, name)]
    held_out = [name for name in found if rule.held_out and re.fullmatch(rule.held_out, name)]
    if not trained and not held_out:
        return None
    lines = [
        Line(label=label, curve=found[name])
        for name, label in zip(trained, _labels(trained, alone="training"), strict=True)
    ] + [
        Line(label=label, curve=found[name], is_held_out=True)
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
