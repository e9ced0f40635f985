"""Scatter and Bland-Altman plots of measurements against a reference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from adapterkit.evaluation.clinical.bland_altman import Estimate
from adapterkit.evaluation.clinical.patients import Comparison
from adapterkit.evaluation.plots import new_figure, save_figure

_WIDTH, _HEIGHT = 6.6, 2.9
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.45"


def agreement_figure(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draws a row for each quantity: measured against reference, and their difference.

    The right panels are Bland-Altman plots: the difference over the mean of both, with the bias
    (solid) and the limits of agreement (dashed), each in the band of its 95 % confidence interval.

    Args:
        comparisons: the rows, at least one.
        path: the file; its suffix is the format (.png, .pdf, .svg). It is replaced at once and
            whole.

    Raises:
        ValueError: there is no comparison, or path has no suffix.
    """
    if not comparisons:
        raise ValueError("there is no comparison to draw")
    figure = new_figure(_WIDTH, _HEIGHT * len(comparisons))
    axes = figure.subplots(len(comparisons), 2, squeeze=False, width_ratios=(1, 1.25))
    for (left, right), each in zip(axes, comparisons, strict=True):
        _scatter(left, each)
        _differences(right, each)
        for panel in (left, right):
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(linewidth=0.4, alpha=0.5)
    save_figure(figure, path)


def _scatter(axes: Axes, each: Comparison) -> None:
    both = np.concatenate([each.measured, each.reference])
    margin = 0.06 * float(np.ptp(both)) or 1.0
    ends = float(both.min()) - margin, float(both.max()) + margin
    axes.plot(ends, ends, color=_GREY, linewidth=0.8)
    axes.scatter(each.reference, each.measured, s=12, color=_BLUE, alpha=0.7, linewidths=0)
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.set_aspect("equal")
    axes.set_xlabel(f"reference ({each.unit})", fontsize=8)
    axes.set_ylabel(f"{each.title}, measured ({each.unit})", fontsize=8)
    found = each.agreement
    title = f"r {found.correlation}\nMAE {found.mae} {each.unit}"
    axes.set_title(title, fontsize=7, loc="left")


def _differences(axes: Axes, each: Comparison) -> None:
    means = (each.measured + each.reference) / 2
    found = each.agreement
    axes.axhline(0, color=_GREY, linewidth=0.8)
    _line(axes, found.bias, "solid")
    for limit in (found.lower, found.upper):
        _line(axes, limit, "dashed")
    axes.scatter(means, each.measured - each.reference, s=12, color=_BLUE, alpha=0.7, linewidths=0)
    axes.set_xlabel(f"{each.title}, mean of both ({each.unit})", fontsize=8)
    axes.set_ylabel(f"measured - reference ({each.unit})", fontsize=8)
    title = f"bias {found.bias} {each.unit}\nlimits of agreement {found.limits} {each.unit}"
    axes.set_title(title, fontsize=7, loc="left")


def _line(axes: Axes, estimate: Estimate, style: str) -> None:
    if not np.isfinite(estimate.value):
        return
    axes.axhline(estimate.value, color=_ORANGE, linewidth=1, linestyle=style)
    if np.isfinite(estimate.low):
        axes.axhspan(estimate.low, estimate.high, color=_ORANGE, alpha=0.12, linewidth=0)
