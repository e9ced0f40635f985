"""A batch of training images as the model sees them, with masks and prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.patches import Rectangle

from adapterkit.data.files import palette
from adapterkit.evaluation.plots import draw_contour, hide_axis, new_figure, save_figure
from adapterkit.promptable.prompts import Prompts

_COLUMNS, _SHOWN = 4, 8


def batch_figure(
    batch: Mapping[str, Any], structures: Sequence[str], prompts: Sequence[Prompts], path: Path
) -> None:
    """Draw up to eight images with the contours of their masks, and points and boxes.

    A point inside of a structure is a dot in the structure's colour, one outside a cross.

    Args:
        batch: "image", (B, 3, S, S) in [0, 255]; "masks", (B, K, S, S); and "name".
        structures: the K structures' names.
        prompts: what they are asked for by, in one or more ways, in pixels.
        path: the file.
    """
    count = min(_SHOWN, len(batch["image"]))
    rows = -(-count // _COLUMNS)
    figure = new_figure(2 * min(count, _COLUMNS), 2.2 * rows)
    axes = list(figure.subplots(rows, min(count, _COLUMNS), squeeze=False).flat)
    colours = [f"#{bytes(palette.colour(k)).hex()}" for k in range(1, len(structures) + 1)]
    for panel in axes:
        hide_axis(panel)
    for i, panel in zip(range(count), axes, strict=False):
        image = batch["image"][i].byte().permute(1, 2, 0).numpy()
        panel.imshow(image)
        panel.set_title(batch["name"][i], fontsize=6, pad=2)
        for k, colour in enumerate(colours):
            draw_contour(panel, batch["masks"][i, k].bool().numpy(), colour, "solid", 0.8)
            for asked in prompts:
                _draw(panel, asked, i, k, colour)
        panel.set_xlim(-0.5, image.shape[1] - 0.5)
        panel.set_ylim(image.shape[0] - 0.5, -0.5)
    save_figure(figure, path)


def _draw(panel: Any, prompts: Prompts, image: int, structure: int, colour: str) -> None:
    if prompts.points is not None and prompts.labels is not None:
        labels = prompts.labels[image, structure]
        for label, marker in ((1, "o"), (0, "X")):
            x, y = prompts.points[image, structure][labels == label].T
            panel.scatter(
                x, y, s=14, c=colour, marker=marker, edgecolors="white", linewidths=0.5, zorder=3
            )
    if prompts.boxes is not None:
        left, top, right, bottom = prompts.boxes[image, structure].tolist()
        corner = (left - 0.5, top - 0.5)
        panel.add_patch(
            Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, lw=0.8)
        )
