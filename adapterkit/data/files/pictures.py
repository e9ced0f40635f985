"""Pictures by Pillow: PNG, JPEG, TIFF, BMP, GIF and WebP, as they are shown.

Needs Pillow, which comes with `adapterkit[recipes]`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Real, UInt8
from PIL import Image, ImageOps, ImageSequence

from adapterkit.data.image_file import DataError, check_finite, check_size, unreadable

JPEG = (".jpg", ".jpeg")
ENDINGS = (".png", *JPEG, ".tif", ".tiff", ".bmp", ".gif", ".webp")
"""How the names of files that `read_pages` reads end."""

# Of no other kinds: Pillow hands some, PostScript for one, to programs that run them.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")


def is_start(start: bytes) -> bool:
    """Whether a file that begins so is one of these pictures."""
    return start.startswith(
        (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM")
    ) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def read_picture(path: Path) -> Real[np.ndarray, "H W *rgb"]:
    """The pixels of a picture: grey (H, W) or colour (H, W, 3), of 8 or 16 bits or float32.

    As `read_pages`, of a file that holds one.

    Raises `DataError`, naming the file, where it cannot be read, holds several images, or has
    values that are NaN or infinite.
    """
    pages = read_pages(path)
    if len(pages) != 1:
        raise DataError(f"{path} holds {len(pages)} images: expected one; save them one by one.")
    return pages[0]


def read_pages(path: Path) -> Real[np.ndarray, "T H W *rgb"]:
    """The pages or frames of a picture, in their order: all grey, or all colour with a last axis.

    They are turned as the EXIF orientation says, as viewers do, and so are masks
    that are drawn on them. Transparency is dropped, black and
    white are 0 and 255, and colour of 16 bits is read as 8.

    Raises `DataError`, naming the file, where it cannot be read, its pages differ in size, or has
    values that are NaN or infinite.
    """
    return _pages(path, _pixels)


def read_label_pages(path: Path, binary: bool) -> Integer[np.ndarray, "T H W"]:
    """The pages of a picture as label maps, turned as `read_pages` turns them.

    - Grey values are labels; of one bit, 0 and 1.
    - A palette whose first colour is black or transparent is one of labels: the indices are. Where
      all colours are grey and the first is not black, or where they are the indices in another
      order, the grey values are. Of two colours one of which is black, that is 0 and the other 1.
    - Where transparency varies and the colour does not, the opacity is the label map, 0 to 255.
    - `binary` makes what is not 0 a 1; in a JPEG, whose compression blurs edges, what is above 127.

    Raises:
        DataError: it cannot be read, is in colour, its palette or its transparency does not tell
            what is background, or a label map of several labels is a JPEG; the message names it.
    """
    lossy = path.suffix.lower() in JPEG
    if lossy and not binary:
        raise DataError(
            f"{path} is a JPEG, whose compression changes labels: save it as PNG or TIFF."
        )
    labels = _pages(path, lambda page: _labels(page, path))
    if labels.dtype.kind == "f":
        if not (labels == np.round(labels)).all():
            raise DataError(f"{path} holds numbers that are not whole: expected labels.")
        labels = labels.astype(np.int64)
    return (labels > (127 if lossy else 0)).astype(np.uint8) if binary else labels


def _pages(path: Path, read: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """All pages, as `read` makes arrays of them."""
    try:
        # Of a file's name Pillow maps an uncompressed TIFF into memory, and turns it wrongly.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as picture:
            check_size((getattr(picture, "n_frames", 1), *picture.size), path)
            pages = [
                read(ImageOps.exif_transpose(page)) for page in ImageSequence.Iterator(picture)
            ]
    except DataError:
        raise
    # Damaged files make Pillow raise OSError, SyntaxError, ValueError and others.
    except Exception as error:
        raise unreadable(path, "a picture", error) from error
    if len({page.shape[:2] for page in pages}) != 1:
        sizes = ", ".join(f"{page.shape[0]} x {page.shape[1]}" for page in pages[:4])
        raise DataError(
            f"{path} holds {len(pages)} images of different sizes ({sizes}; rows x columns): "
            "expected frames of one size; save them one by one."
        )
    if any(page.ndim == 3 for page in pages):
        pages = [page if page.ndim == 3 else np.stack([page] * 3, axis=-1) for page in pages]
    array = np.stack(pages)
    check_finite(array, path)
    return array


def _pixels(page: Image.Image) -> Real[np.ndarray, "H W *rgb"]:
    if page.mode in ("1", "L", "LA"):
        return np.asarray(page.convert("L"))
    # Modes of more than 8 bits begin with I (whole numbers) and F (float32).
    if page.mode[0] in "IF":
        return np.asarray(page)
    return np.asarray(page.convert("RGB"))


def _labels(page: Image.Image, path: Path) -> Real[np.ndarray, "H W"]:
    if page.mode == "1":
        return np.asarray(page).astype(np.uint8)
    if page.mode == "P":
        return _of_palette(page, path)
    values = _pixels(page)
    if values.ndim == 3:
        if not (values == values[..., :1]).all():
            raise DataError(
                f"{path} is in colour: expected grey values or palette indices as labels."
            )
        values = values[..., 0]
    opacity = _opacity(page)
    if opacity is None:
        return values
    if (values == values.flat[0]).all():
        return opacity
    if values[opacity == 0].any():
        raise DataError(
            f"{path} shows other labels by its transparency than by its grey values: expected "
            "transparent pixels to be 0; save it without transparency."
        )
    return values


def _opacity(page: Image.Image) -> UInt8[np.ndarray, "H W"] | None:
    """None where it is the same everywhere."""
    if not page.has_transparency_data:
        return None
    opacity = np.asarray(page.convert("RGBA").getchannel("A"))
    return None if (opacity == opacity.flat[0]).all() else opacity


def _of_palette(page: Image.Image, path: Path) -> UInt8[np.ndarray, "H W"]:
    """Labels of a picture with a palette, as `read_label_pages` says."""
    indices = np.asarray(page)
    used = np.unique(indices)
    # Colour and opacity of each index that is used.
    colours = np.zeros((256, 4), dtype=np.uint8)
    palette = np.asarray(page.getpalette("RGBA"), dtype=np.uint8).reshape(-1, 4)
    colours[: len(palette)] = palette
    transparency = page.info.get("transparency")
    if isinstance(transparency, bytes):
        colours[: len(transparency), 3] = list(transparency)
    elif isinstance(transparency, int):
        colours[transparency, 3] = 0
    black = (colours[:, :3] == 0).all(axis=1)
    greys = (colours[used, :3] == colours[used, :1]).all()
    reordered = greys and sorted(colours[used, 0]) == used.tolist()
    if (black[0] or colours[0, 3] == 0) and not reordered:
        return indices
    if greys:
        return colours[indices, 0]
    if len(used) == 2 and black[used].sum() == 1:
        return (~black[indices]).astype(np.uint8)
    red, green, blue = colours[0, :3]
    raise DataError(
        f"{path} has a palette in which index 0 is the colour ({red}, {green}, {blue}), not black, "
        "so that it is not certain which labels its colours stand for: save the labels themselves, "
        "as grey values of a PNG or TIFF file."
    )
