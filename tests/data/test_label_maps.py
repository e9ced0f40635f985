"""Pictures as they are shown, and mask files of any kind as label maps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from adapterkit.data.files.images import read_image
from adapterkit.data.files.label_maps import read_label_map
from adapterkit.data.image_file import DataError

RNG = np.random.default_rng(0)
BINARY = np.zeros((60, 90), dtype=np.uint8)
BINARY[5:25, 10:40] = 1
LABELS = BINARY.copy()
LABELS[30:40, 10:40] = 2


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_viewers_turn_them(tmp_path: Path, ending: str, orientation: int):
    path = tmp_path / f"a{ending}"
    picture = Image.fromarray(np.kron(BINARY, np.ones((2, 2), np.uint8)) * 200)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)
    with path.open("rb") as file, Image.open(file) as opened:
        seen = np.asarray(ImageOps.exif_transpose(opened).convert("L"))
    frame = read_image(path).frames[0]
    np.testing.assert_array_equal(frame if frame.ndim == 2 else frame[..., 0], seen)
    assert frame.shape[:2] == ((120, 180) if orientation < 5 else (180, 120))


@pytest.mark.parametrize("ending", [".tif", ".gif", ".webp"])
def test_pages_are_frames(tmp_path: Path, ending: str):
    stack = RNG.integers(0, 2, (3, 20, 30), dtype=np.uint8) * 255
    first, *others = [Image.fromarray(page) for page in stack]
    path = tmp_path / f"a{ending}"
    options: dict[str, Any] = {"lossless": True} if ending == ".webp" else {}
    first.save(path, save_all=True, append_images=others, **options)
    frames = read_image(path).frames
    np.testing.assert_array_equal(frames if frames.ndim == 3 else frames[..., 0], stack)


def test_pages_of_different_sizes_are_refused(tmp_path: Path):
    pages = [Image.new("L", size) for size in ((30, 20), (15, 10))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"a\.tif holds 2 images .* \(20 x 30, 10 x 15;"):
        read_image(tmp_path / "a.tif")


def rgb(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([mask * 255] * 3, axis=-1))


def palette(mask: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(mask)
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


RED, GREEN, BLACK, WHITE = (128, 0, 0), (0, 128, 0), (0, 0, 0), (255, 255, 255)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (rgb(BINARY).quantize(2), BINARY),
        (rgb(BINARY).convert("P", palette=Image.Palette.ADAPTIVE, colors=2), BINARY),
        (palette(1 - BINARY, WHITE, BLACK), BINARY),
        (palette(1 - BINARY, RED, BLACK), BINARY),
        (palette(BINARY, BLACK, RED), BINARY),
        (Image.fromarray(BINARY * 255).convert("1"), BINARY),
        (Image.fromarray(BINARY * 255), BINARY),
        (rgb(BINARY), BINARY),
    ],
)
def test_binary_masks_are_not_inverted(tmp_path: Path, picture: Image.Image, expected: np.ndarray):
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_label_map(tmp_path / "a.png", binary=True).frames[0], expected
    )


@pytest.mark.parametrize(
    "picture",
    [
        palette(LABELS, BLACK, RED, GREEN),
        palette(LABELS, BLACK, WHITE, GREEN),
        # Grey values that a program has put into a palette, in the order in which it met them.
        palette((LABELS + 1) % 3, (2, 2, 2), BLACK, (1, 1, 1)),
        palette(np.array([0, 2, 1], np.uint8)[LABELS], BLACK, (2, 2, 2), (1, 1, 1)),
        Image.fromarray(LABELS).convert("P"),
        Image.fromarray(LABELS),
        Image.fromarray(LABELS.astype(np.uint16)),
    ],
)
def test_label_maps_of_palettes_are_their_labels(tmp_path: Path, picture: Image.Image):
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png").frames[0], LABELS)


def test_a_palette_s_transparent_first_colour_is_the_background(tmp_path: Path):
    palette(LABELS, WHITE, RED, GREEN).save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png").frames[0], LABELS)


def test_a_palette_that_tells_nothing_is_asked_about(tmp_path: Path):
    palette(LABELS, WHITE, RED, GREEN).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png has a palette .* \(255, 255, 255\).*grey values"):
        read_label_map(tmp_path / "a.png")


def with_alpha(grey: np.ndarray, opacity: np.ndarray, mode: str) -> Image.Image:
    channels = [grey] * (1 if mode == "LA" else 3)
    return Image.fromarray(np.stack([*channels, opacity], axis=-1))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_may_be_in_the_transparency_alone(tmp_path: Path, mode: str):
    for shade in (0, 255):
        with_alpha(np.full_like(BINARY, shade), BINARY * 255, mode).save(tmp_path / "a.png")
        found = read_label_map(tmp_path / "a.png").frames[0]
        np.testing.assert_array_equal(found, BINARY * 255)
    with_alpha(LABELS, np.full_like(BINARY, 255), mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png").frames[0], LABELS)
    with_alpha(LABELS, BINARY * 200 + 55, mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png").frames[0], LABELS)
    # Black on a transparent white.
    with_alpha((1 - BINARY) * 255, BINARY * 255, mode).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png shows other labels by its transparency"):
        read_label_map(tmp_path / "a.png")


def test_labels_are_whole_numbers(tmp_path: Path):
    Image.fromarray(LABELS.astype(np.float32)).save(tmp_path / "a.tif")
    found = read_label_map(tmp_path / "a.tif").frames
    assert found.dtype.kind == "i"
    np.testing.assert_array_equal(found[0], LABELS)
    Image.fromarray(LABELS + np.float32(0.5)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif holds numbers that are not whole"):
        read_label_map(tmp_path / "a.tif")
