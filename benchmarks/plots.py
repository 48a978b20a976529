"""Plots as SVG: lines, or bars for things that have no order."""

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Text stays text, and the same figures give the same file.
mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "meshkit",
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)
# From this ratio of the largest to the smallest on, an axis is logarithmic.
_WIDE = 30
_OURS, _OTHERS = "#c2410c", "#64748b"


def draw(plot: dict[str, Any], directory: Path) -> Path:
    """Draw one and give its file: `title`, `x`, `y` and `series` of points, or `title`, `x` and `bars`.

    There must be something to draw.
    """
    canvas = Figure(figsize=(8, 4.5), layout="constrained")
    axes = canvas.subplots()
    axes.set_title(plot["title"])
    axes.set_xlabel(plot["x"])
    if "bars" in plot:
        names = list(plot["bars"])
        canvas.set_figheight(1.2 + 0.28 * len(names))
        colours = [_OURS if name.startswith("meshkit") else _OTHERS for name in names]
        bars = axes.barh(names, list(plot["bars"].values()), color=colours)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.margins(x=0.1, y=0.01)
        axes.invert_yaxis()
    else:
        axes.set_ylabel(plot["y"])
        for name, points in plot["series"].items():
            ours = {"color": _OURS, "linewidth": 2.5} if name.startswith("meshkit") else {}
            axes.plot(*zip(*points, strict=True), marker="o", label=name, **ours)
        points = [point for series in plot["series"].values() for point in series]
        for values, scale in zip(zip(*points, strict=True), (axes.set_xscale, axes.set_yscale), strict=True):
            if max(values) > _WIDE * min(values) > 0:
                scale("log")
        if axes.get_yscale() == "linear":
            axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    file = directory / (re.sub("[^a-z0-9]+", "-", plot["title"].lower()).strip("-") + ".svg")
    canvas.savefig(file, metadata={"Date": None})
    return file
