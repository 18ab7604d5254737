"""Plots of benchmark results as SVG files in ``bench/plots/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt  # the back end comes first

from bench import rows

FOLDER = Path(__file__).parent / "plots"


def curves(
    name: str,
    title: str,
    axes: tuple[str, str],
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    logarithmic: bool = True,
) -> Path:
    """One line per series through its (x, y) points; returns the file's path."""
    figure, axis = plt.subplots(figsize=(7, 4.2))
    for label, points in series.items():
        xs, ys = zip(*sorted(points), strict=True)
        axis.plot(xs, ys, marker="o", label=label)
        axis.annotate(
            f"{ys[-1]:.3g}", (xs[-1], ys[-1]), textcoords="offset points", xytext=(6, 0), fontsize=8
        )
    if logarithmic:
        axis.set_xscale("log")
        axis.set_yscale("log")
    axis.set_title(title)
    axis.set_xlabel(axes[0])
    axis.set_ylabel(axes[1])
    axis.grid(visible=True, which="both", alpha=0.25)
    axis.legend(fontsize=8)
    return _written(name, figure)


def bars(
    name: str, title: str, unit: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]
) -> Path:
    """A bar for each series, in each of the groups; values above them. Returns the file's path.

    A series may lack values of the last groups.
    """
    figure, axis = plt.subplots(figsize=(7, 4.2))
    width = 0.84 / len(groups)
    for number, group in enumerate(groups):
        values = {place: item[number] for place, item in enumerate(series.values()) if number < len(item)}
        places = [place + number * width for place in values]
        drawn = axis.bar(places, list(values.values()), width * 0.95, label=group)
        axis.bar_label(drawn, fmt="%.3g", fontsize=7)
    axis.set_xticks(
        [place + width * (len(groups) - 1) / 2 for place in range(len(series))], list(series), fontsize=8
    )
    axis.set_title(title)
    axis.set_ylabel(unit)
    axis.grid(visible=True, axis="y", alpha=0.25)
    if len(groups) > 1:
        axis.legend(fontsize=8)
    return _written(name, figure)


def _written(name: str, figure: Any) -> Path:
    figure.tight_layout()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    rows.plot(path)
    return path
