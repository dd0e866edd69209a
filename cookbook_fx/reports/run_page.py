"""A page that tells of one run or several: one file, which needs no other and asks no network."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from cookbook_fx.errors import ConfigurationError
from cookbook_fx.reports.colorized import WEIGHTED_CSS
from cookbook_fx.reports.figures import (
    COLORS,
    Chart,
    Shared,
    StepRewards,
    drawn,
    panel_charts,
    phases_chart,
    rewards_chart,
)
from cookbook_fx.reports.page_style import PAGE, STYLE
from cookbook_fx.reports.panels import (
    Curve,
    Line,
    Panel,
    Row,
    curves,
    duration,
    panels,
    phases,
    progress,
    thinned,
)
from cookbook_fx.reports.samples import SampleColumn
from cookbook_fx.runs import RunStart

_MOST_DIFF_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunStory:
    """All that a page tells of a run.

    Args:
        name: told apart by it from the others of the page.
        rows: of `metrics.jsonl`, in order.
        config: of `config.json`.
        state: whether it is finished, in words.
        starts: of `code.json`, in order.
        diff: what the code of the last start differed from its commit in.
        rewards: of the steps whose histogram is shown, ascending.
        samples: of the steps that are looked at, ascending.
        remarks: what could not be shown, and why.
    """

    name: str
    rows: Sequence[Row]
    config: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""
    starts: Sequence[RunStart] = ()
    diff: str = ""
    rewards: Sequence[StepRewards] = ()
    samples: Sequence[SampleColumn] = ()
    remarks: Sequence[str] = ()


class _Tile(NamedTuple):
    """A number at the top of the page."""

    label: str
    value: str
    more: str = ""


class _Figure(NamedTuple):
    """A chart and the element that it is drawn into."""

    chart: Chart
    place: Markup


class _Setting(NamedTuple):
    """A field of the configurations: its value in each run."""

    name: str
    values: list[str]
    differs: bool


class _Section(NamedTuple):
    """Fields of the configurations that stand under one name."""

    name: str
    settings: list[_Setting]


class _Measurement(NamedTuple):
    """A number of a run from first to last."""

    name: str
    first: str
    last: str
    least: str
    greatest: str
    sparkline: str


class _Shown(NamedTuple):
    """A run as the page's template wants it."""

    story: RunStory
    color: str
    tiles: list[_Tile]
    figures: list[_Figure]
    measurements: list[_Measurement]
    colorings: list[str]
    start: RunStart | None
    packages: list[tuple[str, str]]
    diff: str
    diff_left_out: int


def report_page(stories: Sequence[RunStory], *, bokeh: str) -> str:
    """The page of one run, or of several to compare.

    Whatever a run holds is shown as text; nothing in it can be markup or a script.

    Args:
        stories: at least one; names tell them apart.
        bokeh: the script that BokehJS is.

    Raises:
        ConfigurationError: no run, or two of one name.
    """
    names = [story.name for story in stories]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"a report tells of runs with a name each, got {names}")
    shared = Shared()
    found = {story.name: curves(story.rows) for story in stories}
    common = panel_charts({name: panels(of_run) for name, of_run in found.items()}, shared)
    if len(stories) > 1:
        common += panel_charts({name: _pace(of_run) for name, of_run in found.items()}, shared)
    own = [_own_charts(story, found[story.name], shared) for story in stories]
    script, places = drawn([*common, *(chart for charts in own for chart in charts)])
    figures = iter(
        map(_Figure, [*common, *(one for charts in own for one in charts)], map(Markup, places))
    )
    page: str = _TEMPLATE.render(
        title=", ".join(names),
        style=Markup(STYLE + WEIGHTED_CSS),
        figures=[next(figures) for _ in common],
        runs=[
            _shown(story, found[story.name], color, [next(figures) for _ in charts])
            for story, color, charts in zip(stories, _run_colors(len(stories)), own, strict=True)
        ],
        differing=[setting for setting in _settings(stories) if setting.differs],
        sections=_sections(setting for setting in _settings(stories) if not setting.differs),
        bokeh=Markup(_inside_script(bokeh)) if script else "",
        script=Markup(_inside_script(script)),
    )
    return page


# Where a text becomes markup, it says so; all others are escaped.
_TEMPLATE = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
).from_string(PAGE)


def _inside_script(script: str) -> str:
    """A script that cannot end the element it stands in; in JavaScript's strings it is the same."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


def _run_colors(count: int) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(count)]


def _pace(found: Mapping[str, Curve]) -> list[Panel]:
    seconds = found.get("time/total")
    if seconds is None:
        return []
    return [Panel(title="Seconds a step", lines=(Line(label="total", curve=seconds),))]


def _own_charts(story: RunStory, found: Mapping[str, Curve], shared: Shared) -> list[Chart]:
    """What cannot be laid upon another run's."""
    charts = []
    parts = phases(found)
    if parts:
        charts.append(phases_chart(parts, shared))
    if story.rewards:
        charts.append(rewards_chart(story.rewards, shared))
    return charts


def _shown(
    story: RunStory, found: Mapping[str, Curve], color: str, figures: list[_Figure]
) -> _Shown:
    start = story.starts[-1] if story.starts else None
    return _Shown(
        story=story,
        color=color,
        tiles=list(_tiles(found)),
        figures=figures,
        measurements=[_measurement(name, points) for name, points in found.items()],
        colorings=_colorings(story.samples),
        start=start,
        packages=[
            (name, start.packages[name]) for name in _PACKAGES if start and name in start.packages
        ],
        diff=story.diff[:_MOST_DIFF_CHARACTERS],
        diff_left_out=max(0, len(story.diff) - _MOST_DIFF_CHARACTERS),
    )


def _colorings(columns: Sequence[SampleColumn]) -> list[str]:
    """What there is to choose from; nothing where each text has one coloring."""
    samples = [sample for column in columns for sample in column.samples]
    if all(len(sample.colored) < 2 for sample in samples):
        return []
    return list(dict.fromkeys(coloring for sample in samples for coloring in sample.colored))


# Those that decide what comes out.
_PACKAGES = (
    "cookbook-fx", "tinker", "jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "numpy",
    "transformers", "tokenizers", "datasets",
)  # fmt: skip

# Panels whose ends stand at the top, where there are such.
_HEADLINES = (
    "Reward",
    "Held-out problems solved",
    "Loss (nats/token)",
    "Preference loss",
    "Accuracy",
)


def _tiles(found: Mapping[str, Curve]) -> Iterator[_Tile]:
    if not found:
        return
    done = progress(found)
    yield _Tile("steps", f"{done.steps}", f"of {done.total}" if done.total else "")
    for panel in panels(found):
        if panel.title in _HEADLINES:
            for line in panel.lines:
                first, last = _ends(line)
                what = panel.title.removesuffix(" (nats/token)").lower()
                is_said = line.label.replace(" ", "-") in what
                label = what if is_said else f"{what}, {line.label}"
                yield _Tile(label, _number(last), f"from {_number(first)}")
    sums = {name: float(points.values.sum()) for name, points in found.items()}
    if "time/total" in sums:
        yield _Tile("time", duration(sums["time/total"]))
    for name in ("num_tokens", "train/num_tokens"):
        if name in sums:
            yield _Tile("tokens trained on", f"{sums[name]:,.0f}")
    if sums.get("rollout_errors/total"):
        yield _Tile("failed episodes", f"{sums['rollout_errors/total']:,.0f}")


def _ends(line: Line) -> tuple[float, float]:
    """The first and the last value; of those measured at every step, a mean over some."""
    values = line.curve.values
    several = 1 if line.is_held_out else max(1, len(values) // 10)
    return float(values[:several].mean()), float(values[-several:].mean())


def _measurement(name: str, points: Curve) -> _Measurement:
    values = points.values
    return _Measurement(
        name=name,
        first=_number(values[0]),
        last=_number(values[-1]),
        least=_number(values.min()),
        greatest=_number(values.max()),
        sparkline=_sparkline(thinned(points, limit=60)),
    )


def _sparkline(points: Curve) -> str:
    """The points of a curve in a field of 100 by 20; "" where there is nothing to see."""
    low, high = points.values.min(), points.values.max()
    if len(points.steps) < 2 or low == high:
        return ""
    across = 100 * (points.steps - points.steps[0]) / (points.steps[-1] - points.steps[0])
    down = 19 - 18 * (points.values / (high - low) - low / (high - low))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))


def _settings(stories: Sequence[RunStory]) -> list[_Setting]:
    """The configurations side by side."""
    flat = [dict(_flat(story.config)) for story in stories]
    names = dict.fromkeys(name for fields in flat for name in fields)
    return [
        _Setting(name, values, len(set(values)) > 1)
        for name in names
        for values in [[fields.get(name, "") for fields in flat]]
    ]


def _sections(settings: Iterable[_Setting]) -> list[_Section]:
    """Settings by the first part of their names; those of one part come first."""
    sections: dict[str, list[_Setting]] = {"": []}
    for setting in settings:
        first, dot, rest = setting.name.partition(".")
        section, name = (first, rest) if dot else ("", first)
        sections.setdefault(section, []).append(setting._replace(name=name))
    return [_Section(name, found) for name, found in sections.items() if found]


def _flat(config: Mapping[str, Any], *, within: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, within=f"{within}{name}.")
        else:
            yield f"{within}{name}", value if isinstance(value, str) else json.dumps(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"
