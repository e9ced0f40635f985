"""The comparison as figures: masks, prompts, and accuracy against trained parameters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from safetensors import safe_open

from adapterkit.data.files import palette
from adapterkit.evaluation.plots import draw_contour, hide_axis, new_figure, save_figure
from benchmarks.compare.results import SystemResults, mean_and_deviation
from benchmarks.compare.runs import run_folder
from benchmarks.compare.systems import SYSTEMS, Network
from benchmarks.compare.tables import TABLES

_TEXT = 7  # points
_MARKERS = "osD^vP*X"
_STRATEGIES = tuple(
    name for name, prompts in TABLES[-1].entries if prompts == SYSTEMS[name].tested_with[0]
)


@dataclass(frozen=True, eq=False)
class Cases:
    """What a run left of n test images for the figures: its cases.safetensors."""

    names: Sequence[str]
    structures: Sequence[str]
    image: UInt8[np.ndarray, "n S S"]
    reference: Bool[np.ndarray, "n k S S"]
    predicted: Bool[np.ndarray, "n k S S"]
    points: Float[np.ndarray, "n k p 2"]
    probability: Float[np.ndarray, "n k S S"] | None
    """That the first point gave, where the second was chosen by entropy."""

    @classmethod
    def read(cls, path: Path) -> "Cases":
        with safe_open(path, framework="np") as file:
            shown = json.loads(file.metadata()["cases"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return cls(**shown, **{"probability": None, **tensors})


def draw_figures(comparison: Path, results: Sequence[SystemResults]) -> list[Path]:
    """Write all figures for which there are finished runs; their paths."""
    cases = {
        each.name: Cases.read(
            run_folder(comparison, each.name, each.finished[0].seed) / "cases.safetensors"
        )
        for each in results
        if each.finished and each.is_main
    }
    finished = [each for each in results if each.finished]
    variants = {*cases} - {name for table in TABLES[:2] for name, _ in table.entries}
    masks = {name: found for name, found in cases.items() if name not in variants}
    prompts = {name: cases[name] for name in _STRATEGIES if name in cases}
    drawn = []
    if masks:
        drawn.append(comparison / "masks.png")
        _draw_masks(masks, drawn[-1])
    if prompts:
        drawn.append(comparison / "prompts.png")
        _draw_prompts(prompts, drawn[-1])
    if finished:
        drawn.append(comparison / "accuracy_and_parameters.png")
        _draw_accuracy(finished, drawn[-1])
    return drawn


def _draw_masks(cases: Mapping[str, Cases], path: Path) -> None:
    """A row for each case, a column for each system, and the reference before them."""
    first = next(iter(cases.values()))
    rows, columns = len(first.names), 1 + len(cases)
    figure = new_figure(1.25 * columns, 1.3 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        _show(axes[row, 0], first.image[row], first.names[row])
        _contours(axes[row, 0], first.reference[row], "dashed")
        for axis, (name, found) in zip(axes[row, 1:], cases.items(), strict=True):
            _show(axis, found.image[row], SYSTEMS[name].title if row == 0 else "")
            _contours(axis, found.reference[row], "dashed")
            _contours(axis, found.predicted[row], "solid")
            if not isinstance(SYSTEMS[name], Network):
                for k, points in enumerate(found.points[row]):
                    _dots(axis, points, [_colour(k)] * len(points))
    handles = [
        Line2D([], [], color=_colour(k), label=name) for k, name in enumerate(first.structures)
    ]
    handles += [
        Line2D([], [], color="0.35", linestyle="dashed", label="reference"),
        Line2D([], [], color="0.35", label="predicted"),
        Line2D([], [], color="0.35", marker="o", linestyle="none", markersize=4, label="click"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), columns),
        fontsize=_TEXT,
        frameon=False,
    )
    save_figure(figure, path)


def _draw_prompts(cases: Mapping[str, Cases], path: Path) -> None:
    """A row for each structure of the first case, a column for each strategy.

    The first point is blue, the second red. Beside the points chosen by entropy is the map that
    they were chosen by.
    """
    first = next(iter(cases.values()))
    columns: list[tuple[str, Cases, bool]] = []
    for name, found in cases.items():
        title = "1 random point" if name == "samus" else SYSTEMS[name].title.removeprefix("SAMUS, ")
        columns.append((title, found, False))
        if found.probability is not None:
            columns.append(("entropy after the first point", found, True))
    figure = new_figure(1.7 * len(columns), 1.75 * len(first.structures) + 0.3)
    axes = figure.subplots(len(first.structures), len(columns), squeeze=False)
    for k, row in enumerate(axes):
        for axis, (title, found, is_map) in zip(row, columns, strict=True):
            _show(axis, found.image[0], title if k == 0 else "")
            if is_map and found.probability is not None:
                entropy = binary_entropy(found.probability[0, k].astype(float))
                axis.imshow(entropy, cmap="inferno", vmin=0, vmax=1)
            draw_contour(axis, found.reference[0, k], _colour(k), "dashed", 0.9)
            points = found.points[0, k]
            _dots(axis, points, ["blue", "red"][: len(points)])
    for row, structure in zip(axes, first.structures, strict=True):
        row[0].text(
            -0.04, 0.5, structure, transform=row[0].transAxes, rotation=90,
            ha="right", va="center", fontsize=_TEXT,
        )  # fmt: skip
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="none", markersize=4, label=label)
        for colour, label in (("blue", "first point"), ("red", "second point"))
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, fontsize=_TEXT, frameon=False
    )
    save_figure(figure, path)


def binary_entropy(probability: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Entropy in bits, in [0, 1], of a foreground probability."""
    p = probability.clip(1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def _draw_accuracy(results: Sequence[SystemResults], path: Path) -> None:
    """Dice against trained parameters, on a logarithmic axis; what trains none is a line.

    Variants, and other prompts than none and one click, are not drawn.
    """
    figure = new_figure(6.5, 3.6)
    axes = figure.add_subplot()
    seen = {True: 0, False: 0}
    drawn = {entry for table in TABLES[:2] for entry in table.entries}
    for each in results:
        if (each.name, each.prompts) not in drawn:
            continue
        dice, deviation = mean_and_deviation([100 * value for value in each.over_seeds("dice")])
        parameters = each.cost("trained_parameters")[0]
        unprompted = each.prompts == "class"
        colour = "#D55E00" if unprompted else "#0072B2"
        if parameters == 0:
            label = f"{each.title}, nothing trained"
            axes.axhline(dice, color=colour, linestyle="dotted", linewidth=1, label=label)
            continue
        axes.errorbar(
            parameters,
            dice,
            yerr=deviation,
            color=colour,
            marker=_MARKERS[seen[unprompted] % len(_MARKERS)],
            markersize=5,
            capsize=2,
            linestyle="none",
            label=each.full_title,
        )
        seen[unprompted] += 1
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("trained parameters", fontsize=8)
    axes.set_ylabel("Dice (%)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(linewidth=0.4, alpha=0.5)
    figure.legend(
        loc="outside right center",
        fontsize=_TEXT,
        frameon=False,
        title="blue: one click per structure\nred: no prompt",
        title_fontsize=_TEXT,
    )
    save_figure(figure, path)


def _show(axes: Axes, image: UInt8[np.ndarray, "S S"], title: str) -> None:
    axes.imshow(image, cmap="gray")
    hide_axis(axes)
    if title:
        axes.set_title(title, fontsize=_TEXT, pad=3)
    # A contour along the border would otherwise widen the panel.
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)


def _contours(axes: Axes, masks: Bool[np.ndarray, "k S S"], style: str) -> None:
    # In reverse, so that where two structures touch, the contour of the first stays whole.
    for k in reversed(range(len(masks))):
        draw_contour(axes, masks[k], _colour(k), style, 0.9 if style == "solid" else 0.7)


def _dots(axes: Axes, points: Float[np.ndarray, "p 2"], colours: Sequence[str]) -> None:
    x, y = points.T
    axes.scatter(x, y, s=12, c=list(colours), edgecolors="white", linewidths=0.5, zorder=3)


def _colour(k: int) -> str:
    return f"#{bytes(palette.colour(k + 1)).hex()}"
