"""Colours of labels, the same in every file and on every screen."""

import colorsys

# Okabe and Ito 2008, "Color Universal Design": distinct under the common colour vision
# deficiencies. The brightest come first, because the images are mostly dark; black is left out.
_COLOURS = ("E69F00", "56B4E9", "CC79A7", "F0E442", "009E73", "D55E00", "0072B2")


def colour(label: int) -> tuple[int, int, int]:
    """Red, green and blue, in [0, 255], of a label from 0, the background, which is black."""
    if label == 0:
        return 0, 0, 0
    if label <= len(_COLOURS):
        red, green, blue = bytes.fromhex(_COLOURS[label - 1])
        return red, green, blue
    # The golden ratio spreads any number of further hues evenly.
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.6, 1)
    return round(255 * red), round(255 * green), round(255 * blue)
