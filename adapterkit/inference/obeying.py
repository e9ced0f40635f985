"""Clicks that are always obeyed, also by a model that passes over them.

A model that was trained on few images knows them by heart and needs no click on them, so that it
can learn to pass over clicks.
"""

import numpy as np
from jaxtyping import Float, Real

_WIDTH = 2.0
"""How far a click reaches: the standard deviation of a Gaussian, in distances from the click to the
outline."""

_FARTHEST = 0.1
"""The most that this distance counts, as a share of the image's longer side, and what it counts
where there is no outline."""


def obeying(
    logits: Float[np.ndarray, "H W"], points: Real[np.ndarray, "n 2"], labels: Real[np.ndarray, "n"]
) -> Float[np.ndarray, "H W"]:
    """Logits whose mask follows each point; of two in one pixel, the later.

    Where a point's pixel is on the wrong side, logits move around it: there to 1, or to -1 for a
    point outside, and the less the farther away. So a point in the middle of what is missing fills
    it up to the outline, and one close to the outline moves only that.

    Args:
        logits: of a mask; above 0 is inside.
        points: (x, y) in pixels within the image, in their order.
        labels: 1 for a point inside of the structure, 0 for one outside.
    """
    signs = {
        (y, x): 1 if label else -1
        for (x, y), label in zip(points.round().astype(int).tolist(), labels, strict=True)
    }
    # A point can undo another, close to it; not so with less and less around it.
    for width in _WIDTH / 2.0 ** np.arange(12):
        for at, sign in signs.items():
            logits = _moved(logits, at, sign, width)
    return logits


def _moved(
    logits: Float[np.ndarray, "H W"], at: tuple[int, int], sign: int, width: float
) -> Float[np.ndarray, "H W"]:
    """With the logit of a pixel, (row, column), at 1 or -1, if it has not this sign."""
    here = sign * logits[at]
    if here > 0:
        return logits
    others = np.argwhere(sign * logits > 0) - at
    farthest = _FARTHEST * max(logits.shape)
    reach = float(width * np.hypot(others[:, 0], others[:, 1]).min(initial=farthest))
    down, across = (
        np.exp(-(((np.arange(length, dtype=np.float32) - middle) / reach) ** 2) / 2)
        for length, middle in zip(logits.shape, at, strict=True)
    )
    return logits + sign * (1 - here) * np.outer(down, across)
