"""Curves of characters."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = " #"
_BROADEST = 4


def curve(
    values: Sequence[float], *, width: int = 60, height: int = 8, is_unicode: bool = True
) -> str:
    """Draws values as columns between their least and their greatest.

    Args:
        values: at least one, all finite.
        width: columns at most; where there are more values, a column is the mean of several.
        height: lines.
        is_unicode: use characters that ASCII has not.
    """
    columns = _means(np.asarray(values, np.float64), width)
    breadth = min(_BROADEST, width // len(columns))
    low, high = float(columns.min()), float(columns.max())
    levels = _ASCII if not is_unicode else _EIGHTHS
    steps = len(levels) - 1
    # The least is still to be seen, so that a column is never missing.
    span = (columns - low) / (high - low) if high > low else np.ones_like(columns)
    filled = np.maximum(1, np.rint(span * height * steps).astype(int))
    lines = []
    for row in reversed(range(height)):
        label = {height - 1: _label(high), 0: _label(low)}.get(row, " " * 8)
        drawn = "".join(
            levels[level] * breadth for level in np.clip(filled - row * steps, 0, steps)
        )
        lines.append(f"{label} {'|' if not is_unicode else '┤'}{drawn}")
    return "\n".join(lines)


def _label(value: float) -> str:
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:8.3f}" if is_plain else f"{value:8.1e}"


def _means(values: Float[np.ndarray, " value"], width: int) -> Float[np.ndarray, " column"]:
    """As many columns as there is room for, each the mean of neighbors."""
    parts = np.array_split(values, min(width, len(values)))
    return np.array([part.mean() for part in parts])
