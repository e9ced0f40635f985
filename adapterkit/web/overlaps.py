"""What becomes of pixels that several structures claim: masks that do not overlap, and in words
which structure won.

The rule depends on the masks and the clicks alone, not on the order in which they came to be. Each
piece in which masks overlap goes, as a whole, to

1. the structure for which it was painted last, pixel by pixel;
2. else the one that has a click inside of the piece, if only one has;
3. else the one of which the overlap with others is the larger part: the one that lies within.

So a click on a wall that also fills the cavity takes nothing from the cavity.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import ndimage


@dataclass(frozen=True, eq=False)
class Claim:
    """What a structure claims of a frame.

    Attributes:
        mask: all of it.
        painted: what of it was painted; no two structures have painted the same.
        inside: the clicks inside of it, (x, y).
    """

    mask: Bool[np.ndarray, "H W"]
    painted: Bool[np.ndarray, "H W"] | None = None
    inside: Sequence[tuple[int, int]] = ()


def resolve(
    claims: Mapping[int, Claim], names: Mapping[int, str]
) -> tuple[dict[int, Bool[np.ndarray, "H W"]], list[str]]:
    """Masks that do not overlap, and a sentence on each pair of structures that did.

    Args:
        claims: by label.
        names: of the labels.
    """
    masks = {label: claim.mask.copy() for label, claim in claims.items()}
    lost: dict[tuple[int, int], int] = {}
    if len(claims) > 1:
        window = _window(list(masks.values()))
        for winner, piece in _pieces(claims, window):
            for label, mask in masks.items():
                taken = int((mask[window] & piece).sum()) if label != winner else 0
                if taken:
                    mask[window] &= ~piece
                    lost[label, winner] = lost.get((label, winner), 0) + taken
    return masks, [
        f"{names[loser]} and {names[winner]} overlap: {pixels:,} px count as {names[winner]}; "
        f"{names[loser]} keeps {masks[loser].sum():,} of {claims[loser].mask.sum():,} px."
        for (loser, winner), pixels in lost.items()
    ]


Window = tuple[slice, slice]


def _overlap(masks: Sequence[Bool[np.ndarray, "H W"]]) -> Bool[np.ndarray, "H W"]:
    """The pixels of more than one mask."""
    seen, found = np.zeros_like(masks[0]), np.zeros_like(masks[0])
    for mask in masks:
        found |= seen & mask
        seen |= mask
    return found


def _window(masks: Sequence[Bool[np.ndarray, "H W"]]) -> Window:
    """Rows and columns that hold all of the overlap: of a large image, a small part to look at."""
    overlap = _overlap(masks)
    rows, columns = (np.flatnonzero(overlap.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _pieces(
    claims: Mapping[int, Claim], window: Window
) -> Iterator[tuple[int, Bool[np.ndarray, "h w"]]]:
    """Pixels of the overlap, each once, with the label that wins them; within a window."""
    inside = {label: claim.mask[window] for label, claim in claims.items()}
    overlap = _overlap(list(inside.values()))
    if not overlap.any():
        return
    rest = overlap.copy()
    for label, claim in claims.items():
        if claim.painted is not None:
            yield label, rest & claim.painted[window]
            rest &= ~claim.painted[window]
    pieces: np.ndarray = np.asarray(ndimage.label(rest)[0])  # pyright: ignore[reportIndexIssue]
    clicked: dict[int, set[int]] = {}
    for label, claim in claims.items():
        for x, y in claim.inside:
            row, column = y - window[0].start, x - window[1].start
            if 0 <= row < pieces.shape[0] and 0 <= column < pieces.shape[1]:
                clicked.setdefault(int(pieces[row, column]), set()).add(label)
    for index, labels in clicked.items():
        if index and len(labels) == 1:
            (label,) = labels
            won = (pieces == index) & inside[label]
            yield label, won
            rest &= ~won
    within = {
        label: (inside[label] & overlap).sum() / max(1, claim.mask.sum())
        for label, claim in claims.items()
    }
    for label in sorted(claims, key=lambda each: -within[each]):
        won = rest & inside[label]
        yield label, won
        rest &= ~won
