"""A figure of a patient's sequences: contours over time, and the area curve of the ventricle."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes

from adapterkit.data.files import palette
from adapterkit.evaluation.clinical import Recording
from adapterkit.evaluation.plots import draw_contour, hide_axis, new_figure, save_figure
from adapterkit.evaluation.sequences import SegmentedSequence

_SHOWN = 5
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
"""Of what is compared, in the curves."""


def sequence_figure(
    title: str, found: Mapping[str, Sequence[SegmentedSequence]], path: Path
) -> None:
    """Draw a patient's sequences, a row for each view.

    The contours are those of the last of what is compared, solid, and of the reference, dashed. The
    curves are the areas of the left ventricle of the reference and of all, with a triangle up at
    what was taken for end-diastole, and one down for end-systole.

    Args:
        title: of the patient, with the ejection fractions, say.
        found: the same sequences by each of what is compared, by name.
        path: the file.
    """
    rows = len(next(iter(found.values())))
    figure = new_figure(11, 2.1 * rows + 0.4)
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(rows, _SHOWN + 1, squeeze=False, width_ratios=[1] * _SHOWN + [2.2])
    shown = list(found.values())[-1]
    for row, (axes, sequence) in enumerate(zip(panels, shown, strict=True)):
        count = len(sequence.images)
        steps = np.linspace(0, count - 1, min(_SHOWN, count)).round().astype(int)
        for panel in axes[:_SHOWN]:
            hide_axis(panel)
        for panel, frame in zip(axes, steps, strict=False):
            _draw_frame(panel, sequence, int(frame))
        axes[0].set_title(f"{sequence.name}, frame {steps[0]}", fontsize=6, pad=2)
        curves = {name: each[row].measured for name, each in found.items()}
        _draw_curves(axes[-1], sequence.by_expert, curves)
    panels[0, -1].legend(fontsize=6, frameon=False)
    save_figure(figure, path)


def _draw_frame(panel: Axes, sequence: SegmentedSequence, frame: int) -> None:
    image = sequence.images[frame]
    panel.imshow(image, cmap="gray", vmin=0, vmax=255)
    panel.set_title(f"frame {frame}", fontsize=6, pad=2)
    for label in range(sequence.structures, 0, -1):
        colour = f"#{bytes(palette.colour(label)).hex()}"
        for masks, style in ((sequence.reference, "dashed"), (sequence.predicted, "solid")):
            draw_contour(panel, _squashed(masks[frame], len(image)) == label, colour, style, 0.8)
    panel.set_xlim(-0.5, len(image) - 0.5)
    panel.set_ylim(len(image) - 0.5, -0.5)


def _squashed(labels: UInt8[np.ndarray, "H W"], side: int) -> UInt8[np.ndarray, "S S"]:
    """By nearest neighbour, as the image was."""
    rows, columns = (
        ((np.arange(side) + 0.5) * length / side).astype(int) for length in labels.shape
    )
    return labels[np.ix_(rows, columns)]


def _draw_curves(panel: Axes, by_expert: Recording | None, curves: Mapping[str, Recording]) -> None:
    drawn = [("reference", by_expert, "0.2")] if by_expert is not None else []
    drawn += [(name, each, c) for (name, each), c in zip(curves.items(), _COLOURS, strict=False)]
    in_mm = all(recording.unit == "mm" for _, recording, _ in drawn)
    for name, recording, colour in drawn:
        areas = np.array(recording.areas) / (100 if in_mm else 1)
        style = "dashed" if name == "reference" else "solid"
        panel.plot(areas, color=colour, linestyle=style, linewidth=1, label=name)
        for frame, marker in ((recording.ed, "^"), (recording.es, "v")):
            if frame is not None:
                panel.plot(frame, areas[frame], marker, color=colour, markersize=5)
    panel.set_xlabel("frame", fontsize=6)
    panel.set_ylabel(f"left ventricle, {'cm²' if in_mm else 'pixels'}", fontsize=6)
    panel.tick_params(labelsize=6)
