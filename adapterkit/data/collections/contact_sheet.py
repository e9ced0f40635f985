"""A picture of some images of a collection, with the contours of their structures."""

from pathlib import Path

import numpy as np

from adapterkit.data.collections.collection import Collection
from adapterkit.data.dataset import to_square
from adapterkit.data.files.palette import colour
from adapterkit.data.image_file import DataError
from adapterkit.system.files import atomic_write


def draw_contact_sheet(collection: Collection, path: Path, count: int = 20, side: int = 192) -> int:
    """Write a PNG of images evenly over the collection, five in a row, with contours.

    Args:
        collection: what to show; what cannot be read is left out.
        path: of the PNG, which is replaced.
        count: of images, at most.
        side: of each, in pixels; images are squashed to squares, as a model sees them.

    Returns:
        How many images it shows.

    Raises:
        DataError: none can be read.
        FileNotFoundError: there is no folder for it.
    """
    from PIL import Image

    records = collection.records
    steps = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    tiles = []
    for index in steps:
        record = records[index]
        try:
            native = record.read()
        except DataError:
            continue
        pixels = to_square(native.image, side).expand(3, -1, -1).permute(1, 2, 0).numpy().copy()
        labels = np.asarray(Image.fromarray(native.labels).resize((side, side), 0))
        for number, label in enumerate(record.structures, start=1):
            pixels[_contour(labels == label)] = colour(number)
        tiles.append(pixels)
    if not tiles:
        raise DataError(f"{collection.name}: none of {len(steps)} images can be read.")
    columns = min(5, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * side, columns * side, 3), np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // columns * side, place % columns * side
        sheet[top : top + side, left : left + side] = tile
    with atomic_write(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")
    return len(tiles)


def _contour(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that have one outside of it beside them."""
    framed = np.pad(mask, 1)
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inside
