"""Plots of benchmark results as SVG files in ``bench/plots/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt  # the back end comes first

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
    figure.tight_layout()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path
