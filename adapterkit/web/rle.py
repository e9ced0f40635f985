"""Masks as run lengths, as they travel between server and page and lie in drafts.

    {"size": [rows, columns], "counts": [n0, n1, ...]}

The runs go along the rows, one row after another, and begin with that of zeros, which may be 0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

RunLengths = Mapping[str, Any]


def encode(mask: Bool[np.ndarray, "H W"]) -> dict[str, list[int]]:
    """A mask as run lengths."""
    flat = np.concatenate([[False], mask.ravel(), [False]])
    # Where a value differs from the one before it.
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    edges = np.concatenate([[0], changes, [mask.size]])
    counts = np.diff(edges)
    if counts[-1] == 0:
        counts = counts[:-1]
    return {"size": list(mask.shape), "counts": counts.tolist()}


def decode(rle: RunLengths, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The mask of run lengths.

    Raises:
        ValueError: they are not of `size`, (rows, columns), or do not fill it exactly.
    """
    if not isinstance(rle, Mapping) or list(rle.get("size", ())) != list(size):
        raise ValueError(f"a mask has another size than {list(size)} (rows, columns), the image's")
    counts: Any = rle.get("counts")
    whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not whole or sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"the runs of a mask do not fill it: expected whole numbers with the sum "
            f"{size[0] * size[1]}"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size)
