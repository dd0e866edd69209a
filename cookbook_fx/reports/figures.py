"""Curves drawn by Bokeh, as a script and the places in a page that it draws into.

Colours of lines are such that they can be seen on light and on dark; those of axes and grids are
left to the page's style sheet. Legends are the page's too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from bokeh.embed import components
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColumnDataSource,
    CrosshairTool,
    DataRange1d,
    HoverTool,
    PrintfTickFormatter,
    Range1d,
    ResetTool,
)
from bokeh.models.annotations import Span
from bokeh.plotting import figure
from jaxtyping import Float, Int

from cookbook_fx.reports.panels import Curve, Panel, smoothed, thinned

COLORS = (
    "#4c8dd6", "#e0803a", "#3ba272", "#b07cc6", "#d65f6e", "#b8962e", "#2aa5b8", "#8c9aa8",
)  # fmt: skip
"""In this order; where there are more lines, from the first one again."""

_HEIGHT = 220
# As many as a broad screen can show apart, and all curves of a page together.
_MOST_POINTS = 400
_MOST_POINTS_OF_ALL = 12_000
_MOST_BARS = 120
# With fewer points, what is to be seen of them is seen without.
_FEWEST_TO_SMOOTH = 16


class Swatch(NamedTuple):
    """A line of a legend."""

    label: str
    color: str
    is_held_out: bool = False


class Chart(NamedTuple):
    """A figure with what stands around it.

    Fields:
        title: above it.
        legend: what the colors mean; empty where there is one line.
        figure: Bokeh's.
        note: below it.
    """

    title: str
    legend: tuple[Swatch, ...]
    figure: Any
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepRewards:
    """The total rewards of a step's episodes."""

    step: int
    rewards: Float[np.ndarray, " episode"]


class Shared:
    """What the figures of a page have in common: the steps that are in view, and the crosshair."""

    def __init__(self) -> None:
        self.range = DataRange1d(only_visible=True, range_padding=0.02)
        self.crosshair = Span(dimension="height", line_color="#8c9aa8", line_dash="dotted")


def panel_charts(runs: Mapping[str, Sequence[Panel]], shared: Shared) -> list[Chart]:
    """Each panel once, with the curves of all runs that have it.

    Args:
        runs: by the name of the run its panels.
        shared: with the other figures of the page.
    """
    titles = dict.fromkeys(panel.title for panels in runs.values() for panel in panels)
    num_lines = sum(len(panel.lines) for panels in runs.values() for panel in panels)
    limit = max(40, min(_MOST_POINTS, _MOST_POINTS_OF_ALL // max(1, num_lines)))
    return [
        _panel_chart(
            title,
            {
                name: panel
                for name, panels in runs.items()
                for panel in panels
                if panel.title == title
            },
            colors=dict(zip(runs, _colors(len(runs)), strict=True)),
            limit=limit,
            shared=shared,
        )
        for title in titles
    ]


def phases_chart(parts: Mapping[str, Curve], shared: Shared) -> Chart:
    """The seconds of each step, part upon part."""
    plot = _figure(shared)
    bars = {name: thinned(part, limit=_MOST_BARS) for name, part in parts.items()}
    steps = next(iter(bars.values())).steps
    width = float(np.diff(steps).min(initial=np.inf)) if len(steps) > 1 else 1.0
    columns = {f"part{number}": part.values for number, part in enumerate(bars.values())}
    source = ColumnDataSource(
        {"step": steps}
        | columns
        | {f"told_{name}": [f"{value:.4g} s" for value in each] for name, each in columns.items()}
    )
    drawn = plot.vbar_stack(
        list(columns),
        x="step",
        width=0.9 * width,
        color=_colors(len(columns)),
        source=source,
        line_width=0,
    )
    told = [(name, f"@told_part{number}") for number, name in enumerate(bars)]
    plot.add_tools(
        HoverTool(renderers=drawn[-1:], mode="vline", tooltips=[("step", "@step{0.[0]}"), *told])
    )
    swatches = tuple(
        Swatch(name.replace("_", " "), color)
        for name, color in zip(bars, _colors(len(bars)), strict=True)
    )
    return Chart(title="Seconds a step", legend=swatches, figure=plot)


def rewards_chart(steps: Sequence[StepRewards], shared: Shared, *, num_bins: int = 20) -> Chart:
    """The histogram of each step's rewards: the stronger the color, the more of its episodes.

    Args:
        steps: in ascending order, each with at least one reward.
        shared: with the other figures of the page.
        num_bins: parts of the range of rewards.
    """
    plot = _figure(shared)
    edges = np.histogram_bin_edges(np.concatenate([one.rewards for one in steps]), bins=num_bins)
    counts = np.stack([np.histogram(one.rewards, bins=edges)[0] for one in steps])
    shares = counts / counts.sum(axis=1, keepdims=True)
    at = np.array([one.step for one in steps], np.float64)
    ends = np.append(at[1:], at[-1] + (at[-1] - at[-2] if len(at) > 1 else 1.0))
    step, low = np.nonzero(shares)
    source = ColumnDataSource(
        {
            "left": at[step] - 0.5,
            "right": ends[step] - 0.5,
            "bottom": edges[low],
            "top": edges[low + 1],
            # The square root, so that a few episodes are seen too.
            "alpha": np.sqrt(shares[step, low]),
            "step": at[step],
            "reward": [f"{edges[bin]:.3g} to {edges[bin + 1]:.3g}" for bin in low],
            "share": [
                f"{count} of {total}"
                for count, total in zip(counts[step, low], counts.sum(axis=1)[step], strict=True)
            ],
        }
    )
    drawn = plot.quad(
        left="left",
        right="right",
        bottom="bottom",
        top="top",
        fill_alpha="alpha",
        fill_color=COLORS[0],
        line_width=0,
        source=source,
    )
    plot.line(at, [float(one.rewards.mean()) for one in steps], color=COLORS[1], line_width=2)
    plot.add_tools(
        HoverTool(
            renderers=[drawn],
            tooltips=[("step", "@step{0}"), ("reward", "@reward"), ("episodes", "@share")],
        )
    )
    return Chart(
        title="Rewards of each step's episodes",
        legend=(Swatch("episodes (the stronger, the more)", COLORS[0]), Swatch("mean", COLORS[1])),
        figure=plot,
    )


def drawn(charts: Sequence[Chart]) -> tuple[str, tuple[str, ...]]:
    """The script that draws figures once Bokeh's own is there, and an element for each."""
    if not charts:
        return "", ()
    script, places = components([chart.figure for chart in charts], wrap_script=False)
    return script, tuple(places)


def _panel_chart(
    title: str,
    runs: Mapping[str, Panel],
    *,
    colors: Mapping[str, str],
    limit: int,
    shared: Shared,
) -> Chart:
    """The curves of a panel: colored by run where there are several, else by what they are."""
    plot = _figure(shared)
    several = len(colors) > 1
    told: list[tuple[str, Curve]] = []
    swatches: list[Swatch] = []
    for run, panel in runs.items():
        by_line = _colors(len(panel.lines))
        for number, (line, color) in enumerate(zip(panel.lines, by_line, strict=True)):
            color = colors[run] if several else color
            points = thinned(line.curve, limit=limit)
            if line.is_held_out:
                _draw_held_out(plot, points, color, run=run)
            else:
                dash = _DASHES[number % len(_DASHES)] if several else "solid"
                _draw_trained(plot, points, color, run=run, dash=dash)
            told.append((f"{run}, {line.label}" if several else line.label, points))
            if not several:
                swatches.append(Swatch(line.label, color, line.is_held_out))
    _tell(plot, told)
    level = _level([points for _, points in told])
    if level is not None:
        plot.y_range = Range1d(start=min(0.0, 1.2 * level), end=max(0.0, 1.2 * level) or 1.0)
    labels = dict.fromkeys(
        f"{line.label} (points)" if line.is_held_out else line.label
        for panel in runs.values()
        for line in panel.lines
    )
    return Chart(
        title=title,
        legend=tuple(swatches) if len(swatches) > 1 or _is_sparse(runs) else (),
        figure=plot,
        note=", ".join(labels) if several and len(labels) > 1 else "",
    )


def _is_sparse(runs: Mapping[str, Panel]) -> bool:
    """Whether there is nothing but held-out points, which want to be named."""
    return all(line.is_held_out for panel in runs.values() for line in panel.lines)


def _level(curves: Sequence[Curve]) -> float | None:
    """The value that all points have, but for rounding; None where they have more than one."""
    values = np.concatenate([points.values for points in curves])
    low, high = float(values.min()), float(values.max())
    return low if high - low <= _ROUNDING * max(abs(low), abs(high)) else None


_ROUNDING = 1e-6
# Lines of one run in a comparison.
_DASHES = ("solid", "dashed", "dotted", "dotdash")


def _draw_trained(plot: Any, points: Curve, color: str, *, run: str, dash: str) -> None:
    """What was measured, and where that is many points, its course before it."""
    is_smoothed = len(points.steps) >= _FEWEST_TO_SMOOTH
    plot.line(
        points.steps,
        points.values,
        color=color,
        alpha=0.35 if is_smoothed else 1,
        line_width=1 if is_smoothed else 2,
        line_dash=dash,
        name=run,
    )
    if len(points.steps) == 1:
        plot.scatter(points.steps, points.values, size=6, color=color, name=run)
    if is_smoothed:
        window = max(3, len(points.steps) // 12)
        plot.line(
            points.steps,
            smoothed(points.values, window=window),
            color=color,
            line_width=2,
            line_dash=dash,
            name=run,
        )


def _draw_held_out(plot: Any, points: Curve, color: str, *, run: str) -> None:
    plot.line(
        points.steps, points.values, color=color, line_width=1.5, line_dash="dashed", name=run
    )
    plot.scatter(points.steps, points.values, size=7, color=color, name=run)


def _tell(plot: Any, curves: Sequence[tuple[str, Curve]]) -> None:
    """Lets the pointer tell all values at a step at once."""
    steps: Int[np.ndarray, " step"] = np.unique(
        np.concatenate([points.steps for _, points in curves])
    )
    columns: dict[str, Any] = {"step": steps, "step_told": [f"{step:g}" for step in steps]}
    for number, (_, points) in enumerate(curves):
        by_step = dict(zip(points.steps.tolist(), points.values.tolist(), strict=True))
        columns[f"value{number}"] = [
            f"{by_step[step]:.4g}" if step in by_step else "–" for step in steps.tolist()
        ]
    first = np.concatenate([points.values for _, points in curves])
    columns["height"] = np.full(len(steps), float(first[0]))
    invisible = plot.line("step", "height", source=ColumnDataSource(columns), alpha=0)
    told = [(name, f"@value{number}") for number, (name, _) in enumerate(curves)]
    plot.add_tools(
        HoverTool(
            renderers=[invisible],
            mode="vline",
            line_policy="nearest",
            tooltips=[("step", "@step_told"), *told],
        )
    )


def _figure(shared: Shared) -> Any:
    plot = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        x_range=shared.range,
        tools=[],
        toolbar_location=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_left=48,
        min_border_right=8,
        output_backend="canvas",
    )
    plot.add_tools(
        BoxZoomTool(dimensions="width"), ResetTool(), CrosshairTool(overlay=shared.crosshair)
    )
    # A finger that moves over a chart scrolls the page; for a mouse the page itself turns this on.
    plot.toolbar.active_drag = None
    plot.xgrid.grid_line_color = None
    for axis in (plot.xaxis[0], plot.yaxis[0]):
        axis.minor_tick_line_color = None
        axis.formatter = PrintfTickFormatter(format="%.5g")
        axis.ticker = BasicTicker(desired_num_ticks=5)
    return plot


def _colors(count: int) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(count)]
