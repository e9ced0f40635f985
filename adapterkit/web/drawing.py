"""An image, masks and clicks as SVG, and the list of structures as HTML.

The SVG's unit is a pixel's height, from the upper left corner; a pixel is as wide as its spacing
says, so that shapes are those of the body. Outlines stay sharp however large the page shows them.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Real
from PIL import Image

from adapterkit.data.dataset import to_square
from adapterkit.data.files.palette import colour
from adapterkit.data.image_file import ImageFile
from adapterkit.evaluation.outlines import outline
from adapterkit.web.session import Answer, Click, Session

_MAX_SIDE = 1600
"""Pixels of a picture's side that the browser gets; more would not be seen."""


def picture(frame: Real[np.ndarray, "H W *rgb"]) -> str:
    """A frame as the model sees it: a square PNG, to be stretched, as a URL that holds it."""
    pixels = to_square(frame, min(max(frame.shape[:2]), _MAX_SIDE))
    file = io.BytesIO()
    Image.fromarray(pixels.movedim(0, -1).squeeze(-1).numpy()).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def size(image: ImageFile) -> tuple[float, int]:
    """Width and height of the drawing of an image."""
    height, width = image.frames.shape[1:3]
    return width * _pixel_width(image), height


def overlay(image: ImageFile, answer: Answer | None, clicks: Sequence[Click]) -> str:
    """The masks of an answer with their outlines, and the clicks, in the structures' colours."""
    drawn = []
    if answer is not None:
        labels, logits = answer.label_map(), answer.prediction.logits
        for k, structure in enumerate(answer.structures):
            others = np.delete(logits, k, axis=0).max(axis=0, initial=0)
            path = outline(logits[k] - others, labels == structure + 1)
            drawn.append(
                f'<path class="mask" data-structure="{structure}" d="{path}" '
                f'fill="{hexadecimal(structure)}" stroke="{hexadecimal(structure)}"/>'
            )
    wide = _pixel_width(image)
    masks = f'<g transform="scale({wide:.6g} 1)">{"".join(drawn)}</g>'
    radius = 0.013 * max(size(image))
    return masks + "".join(_mark(click, wide, radius) for click in clicks)


def structure_list(session: Session) -> str:
    """The structures with their colours, clicks and areas, as buttons to choose one."""
    labels = None if session.answer is None else session.answer.label_map()
    spacing = session.image.spacing if session.image else None
    items = []
    for k, name in enumerate(session.structures):
        count = sum(click.structure == k for click in session.clicks)
        told = "not clicked yet"
        if labels is not None and count:
            area = int((labels == k + 1).sum())
            told = f"{count} click{'s' if count > 1 else ''} · {area:,} px"
            if spacing is not None:
                told += f" · {area * spacing[0] * spacing[1]:,.0f} mm²"
        chosen = k == session.structure
        items.append(
            f'<button type="button" class="structure" data-structure="{k}" '
            f'aria-pressed="{str(chosen).lower()}">'
            f'<span class="swatch" style="background:{hexadecimal(k)}"></span>'
            f'<span class="name">{escape(name)}</span><span class="told">{told}</span></button>'
        )
    return "".join(items)


def caption(session: Session) -> str:
    """What is open: its name, size and spacing."""
    if session.image is None:
        return ""
    frames, height, width = session.image.frames.shape[:3]
    told = [escape(session.image.path.name), f"{width} × {height} pixels"]
    if frames > 1:
        told.append(f"frame {session.frame + 1} of {frames}")
    if session.image.spacing is None:
        told.append("size of a pixel not known, so areas are in pixels")
    else:
        row, column = session.image.spacing
        told.append(f"{column:.3g} × {row:.3g} mm per pixel")
    return " · ".join(told)


def hexadecimal(structure: int) -> str:
    """The colour of a structure, counted from 0, as HTML writes it."""
    return f"#{bytes(colour(structure + 1)).hex()}"


def _pixel_width(image: ImageFile) -> float:
    row, column = image.spacing or (1, 1)
    return column / row


def _mark(click: Click, wide: float, radius: float) -> str:
    """A disc with a plus in it, or a ring with a minus."""
    x, y = (click.x + 0.5) * wide, click.y + 0.5
    arm = 0.55 * radius
    sign = f"M{x - arm:.2f},{y:.2f}h{2 * arm:.2f}"
    if click.inside:
        sign += f"M{x:.2f},{y - arm:.2f}v{2 * arm:.2f}"
    tint = hexadecimal(click.structure)
    fill, ink = (tint, "#000") if click.inside else ("#000", tint)
    border = "#fff" if click.inside else tint
    return (
        f'<g class="click {"inside" if click.inside else "outside"}">'
        f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" fill="{fill}" stroke="{border}" '
        f'stroke-width="{radius / 5:.2f}"/>'
        f'<path d="{sign}" stroke="{ink}" stroke-width="{radius / 4:.2f}"/></g>'
    )
