"""Figures of segmentations and of a training run, as files.

They use matplotlib's objects and not ``pyplot``, so they change no global state and need no screen.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Real
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from adapterkit.data.files import palette
from adapterkit.system.files import atomic_write

_PANEL_WIDTH = 2.2  # inches: three panels are as wide as the text of a page
_TEXT_SIZE = 7  # points
_TEXT_CHARACTERS = 38  # that fit above a panel at this size
_LINE_HEIGHT = 0.12  # inches, at this size
_PADDING = 0.08  # inches that the constrained layout leaves around panels and legend
_DPI = 200


@dataclass(frozen=True, eq=False)
class Case:
    """One image with its reference and predicted masks, a row of `segmentation_figure`.

    Args:
        title: the image's name.
        image: (H, W), grey; shown from its minimum (black) to its maximum (white).
        reference: (K, H, W), reference masks.
        predicted: (K, H, W), predicted masks.
        points: (K, N, 2), prompt points (x, y) per structure, in pixels; N may be 0.
        structures: the K structures' names.
        dice: Dice per structure, in [0, 1].

    Raises:
        ValueError: if the shapes do not fit each other, or masks are not boolean.
    """

    title: str
    image: Real[np.ndarray, "H W"]
    reference: Bool[np.ndarray, "K H W"]
    predicted: Bool[np.ndarray, "K H W"]
    points: Real[np.ndarray, "K N 2"]
    structures: Sequence[str]
    dice: Sequence[float]

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or self.image.size == 0:
            raise ValueError(f"image must have the axes (H, W), but has {self.image.shape}")
        expected = (len(self.structures), *self.image.shape)
        for name in ("reference", "predicted"):
            masks = getattr(self, name)
            if masks.dtype != np.bool_:
                raise ValueError(f"{name} must be boolean, but is {masks.dtype}")
            if masks.shape != expected:
                raise ValueError(f"{name} must have the shape {expected}, but has {masks.shape}")
        if self.points.ndim != 3 or self.points.shape[::2] != (len(self.structures), 2):
            raise ValueError(
                f"points must have the shape ({len(self.structures)}, N, 2), "
                f"but has {self.points.shape}"
            )
        if len(self.dice) != len(self.structures):
            raise ValueError(f"{len(self.structures)} structures, but {len(self.dice)} Dice values")


def segmentation_figure(cases: Sequence[Case], path: Path) -> None:
    """Draws one row per case: image, reference contours, predicted over reference contours.

    A structure, known by its name, has the same colour in all rows. Reference contours are dashed,
    predicted ones solid; the last panel also shows the prompt points, and its title the Dice.
    Contours run through the masks' outermost pixels. The panels' size does not depend on the number
    of rows, so about three rows fill a page; split more cases over several figures for print.

    Args:
        cases: the rows, at least one.
        path: the file; its suffix is the format (.png, .pdf, .svg). It is replaced at once and
            whole; missing folders are made.

    Raises:
        ValueError: if there is no case, or path has no suffix.
    """
    if not cases:
        raise ValueError("there is no case to draw")
    colours = _structure_colours(cases)
    titles = [_titles(case) for case in cases]
    title_lines = [max(title.count("\n") + 1 for title in row) for row in titles]
    handles = _legend_handles(colours, any(case.points.size for case in cases))

    aspects = [case.image.shape[0] / case.image.shape[1] for case in cases]
    heights = [
        (_PANEL_WIDTH - _PADDING) * aspect + lines * _LINE_HEIGHT + 2 * _PADDING
        for aspect, lines in zip(aspects, title_lines, strict=True)
    ]
    label_lines = max(str(handle.get_label()).count("\n") + 1 for handle in handles)
    legend_height = len(handles) / 3 * (label_lines + 0.25) * _LINE_HEIGHT + 3 * _PADDING
    figure = new_figure(3 * _PANEL_WIDTH, sum(heights) + legend_height)
    axes = figure.subplots(len(cases), 3, squeeze=False, height_ratios=aspects)
    for row, case, row_titles in zip(axes, cases, titles, strict=True):
        _draw_case(list(row), case, colours)
        for panel, title in zip(row, row_titles, strict=True):
            panel.set_title(title, fontsize=_TEXT_SIZE, pad=3)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, fontsize=_TEXT_SIZE, frameon=False
    )
    save_figure(figure, path)


def training_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws the training loss (left axis) and the validation Dice (right axis) by epoch.

    Args:
        history: one record per epoch with the keys ``epoch`` and ``loss``, and, in the epochs with
            a validation, ``validation_dice`` in [0, 1]. Other keys are ignored.
        path: the file; its suffix is the format (.png, .pdf, .svg). It is replaced at once and
            whole; missing folders are made.

    Raises:
        ValueError: if history is empty, a record lacks ``epoch`` or ``loss``, or path has no
            suffix.
    """
    if not history:
        raise ValueError("the history is empty")
    for index, record in enumerate(history):
        if not {"epoch", "loss"} <= record.keys():
            raise ValueError(f"record {index} must have 'epoch' and 'loss', but has {[*record]}")
    validated = [record for record in history if "validation_dice" in record]

    figure = new_figure(5.0, 3.0)
    left = figure.add_subplot()
    _plot_curve(left, history, "loss", "training loss", "#0072B2", "solid")
    left.set_xlabel("epoch", fontsize=8)
    left.tick_params(axis="x", labelsize=8)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    left.grid(axis="x", linewidth=0.4, alpha=0.5)
    if validated:
        right = left.twinx()
        _plot_curve(right, validated, "validation_dice", "validation Dice", "#D55E00", "dashed")
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, to be filled and given to `save_figure`."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _structure_colours(cases: Sequence[Case]) -> dict[str, str]:
    names = list(dict.fromkeys(name for case in cases for name in case.structures))
    return {name: f"#{bytes(palette.colour(k)).hex()}" for k, name in enumerate(names, 1)}


def _titles(case: Case) -> tuple[str, str, str]:
    scores = [f"{name} {dice:.3f}" for name, dice in zip(case.structures, case.dice, strict=True)]
    # A structure's name and Dice stay on one line, if that is long enough for both.
    no_break = "\N{NO-BREAK SPACE}"
    kept = [s.replace(" ", no_break) if len(s) < _TEXT_CHARACTERS else s for s in scores]
    return _wrap(case.title), "reference", _wrap("Dice: " + ", ".join(kept))


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, _TEXT_CHARACTERS))


def _draw_case(row: Sequence[Axes], case: Case, colours: Mapping[str, str]) -> None:
    for axes in row:
        axes.imshow(case.image, cmap="gray")
        hide_axis(axes)
    _, reference, prediction = row
    # In reverse, so that where two structures touch, the contour of the first stays whole: of a
    # cavity and the wall around it, the cavity, whose contour the wall's would otherwise cover.
    order = range(len(case.structures))[::-1]
    for k in order:
        colour = colours[case.structures[k]]
        draw_contour(reference, case.reference[k], colour, "dashed", 0.9)
        draw_contour(prediction, case.reference[k], colour, "dashed", 0.7)
    # After all dashed contours, so that none crosses a solid one; then the points.
    for k in order:
        draw_contour(prediction, case.predicted[k], colours[case.structures[k]], "solid", 0.9)
    for k in order:
        x, y = case.points[k].T
        colour = colours[case.structures[k]]
        prediction.scatter(x, y, s=16, c=colour, edgecolors="white", linewidths=0.7, zorder=3)
    for axes in row:
        # A contour along the border would otherwise widen the panel.
        axes.set_xlim(-0.5, case.image.shape[1] - 0.5)
        axes.set_ylim(case.image.shape[0] - 0.5, -0.5)


def hide_axis(axes: Axes) -> None:
    """Leaves the image alone, without axis lines and ticks."""
    axes.set_axis_off()
    # Ticks that are not drawn are still laid out, which takes longer than drawing the image.
    axes.set_xticks([])
    axes.set_yticks([])


def draw_contour(
    axes: Axes, mask: Bool[np.ndarray, "H W"], colour: str, style: str, width: float
) -> None:
    """Draws the contour of a mask, through its outermost pixels; nothing if it is empty.

    Args:
        axes: of the image.
        mask: of the image's size.
        colour: of the line.
        style: "solid" or "dashed".
        width: of the line, in points.
    """
    if not mask.any():
        return
    # The border of background closes the contours of masks that touch the image's edge.
    height, columns = mask.shape
    # A level near 1 runs through the outermost foreground pixels, not between them and the next
    # ones, so that the contours of two structures that touch lie side by side.
    axes.contour(
        np.arange(-1, columns + 1),
        np.arange(-1, height + 1),
        np.pad(mask, 1).astype(float),
        levels=[0.95],
        colors=colour,
        linestyles=style,
        linewidths=width,
    )


def _legend_handles(colours: Mapping[str, str], with_points: bool) -> list[Line2D]:
    """Handles for a legend of three columns: rows of structures, then a row of line styles."""
    grey = "0.35"
    handles = [Line2D([], [], color=colour, label=_wrap(name)) for name, colour in colours.items()]
    handles += [Line2D([], [], linestyle="none", label=" ") for _ in range(-len(handles) % 3)]
    handles += [
        Line2D([], [], color=grey, linestyle="dashed", linewidth=1, label="reference"),
        Line2D([], [], color=grey, linestyle="solid", linewidth=1, label="predicted"),
    ]
    if with_points:
        point = Line2D([], [], color=grey, linestyle="none", marker="o", markersize=4)
        point.set_label("prompt point")
        handles.append(point)
    handles += [Line2D([], [], linestyle="none", label=" ") for _ in range(-len(handles) % 3)]
    # matplotlib fills a legend column by column.
    return [handle for column in range(3) for handle in handles[column::3]]


def _plot_curve(
    axes: Axes,
    records: Sequence[Mapping[str, float]],
    key: str,
    label: str,
    colour: str,
    linestyle: str,
) -> None:
    epochs, values = [r["epoch"] for r in records], [r[key] for r in records]
    # A marker per epoch also shows a history of a single epoch, which has no line.
    axes.plot(
        epochs, values, color=colour, linestyle=linestyle, linewidth=1.2, marker="o", markersize=2.5
    )
    axes.set_ylabel(label, color=colour, fontsize=8)
    axes.tick_params(axis="y", labelcolor=colour, labelsize=8)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure, atomically.

    Raises:
        ValueError: if path has no suffix, which tells the format (.png, .pdf, .svg).
        OSError: it cannot be written; the disk is full, say.
    """
    if not path.suffix:
        raise ValueError(f"path needs a suffix that tells the format, such as .png: {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        try:
            figure.savefig(temporary, format=path.suffix[1:])
        except OSError as error:
            raise OSError(f"cannot write {path}: {error}") from error
