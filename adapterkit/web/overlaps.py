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
        overlap = np.sum([claim.mask for claim in claims.values()], axis=0) > 1
        for winner, piece in _pieces(claims, overlap):
            for label in claims:
                taken = int((masks[label] & piece).sum()) if label != winner else 0
                if taken:
                    masks[label] &= ~piece
                    lost[label, winner] = lost.get((label, winner), 0) + taken
    return masks, [
        f"{names[loser]} and {names[winner]} overlap: {pixels:,} px count as {names[winner]}; "
        f"{names[loser]} keeps {masks[loser].sum():,} of {claims[loser].mask.sum():,} px."
        for (loser, winner), pixels in lost.items()
    ]


def _pieces(
    claims: Mapping[int, Claim], overlap: Bool[np.ndarray, "H W"]
) -> Iterator[tuple[int, Bool[np.ndarray, "H W"]]]:
    """Pixels of the overlap, each once, with the label that wins them."""
    if not overlap.any():
        return
    rest = overlap.copy()
    for label, claim in claims.items():
        if claim.painted is not None:
            yield label, rest & claim.painted
            rest &= ~claim.painted
    pieces: np.ndarray = np.asarray(ndimage.label(rest)[0])  # pyright: ignore[reportIndexIssue]
    clicked: dict[int, set[int]] = {}
    for label, claim in claims.items():
        for x, y in claim.inside:
            clicked.setdefault(int(pieces[y, x]), set()).add(label)
    for index, labels in clicked.items():
        if index and len(labels) == 1:
            (label,) = labels
            won = (pieces == index) & claims[label].mask
            yield label, won
            rest &= ~won
    within = {
        label: (claim.mask & overlap).sum() / max(1, claim.mask.sum())
        for label, claim in claims.items()
    }
    for label in sorted(claims, key=lambda each: -within[each]):
        won = rest & claims[label].mask
        yield label, won
        rest &= ~won
