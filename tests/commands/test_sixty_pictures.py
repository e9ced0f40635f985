"""From sixty pictures with masks to masks of new ones: three commands, no Python, minutes."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter


def write_nodules(folder: Path, count: int, seed: int) -> Path:
    """Synthetic pictures of 320 x 400: speckle with a darker ellipse, and its mask of 0 and 255."""
    draw = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        rows, columns = np.mgrid[:320, :400]
        (y, x), angle = draw.uniform((80, 90), (240, 310)), draw.uniform(0, np.pi)
        along = (rows - y) * np.cos(angle) + (columns - x) * np.sin(angle)
        across = (columns - x) * np.cos(angle) - (rows - y) * np.sin(angle)
        inside = np.hypot(along / draw.uniform(45, 70), across / draw.uniform(30, 45)) < 1
        tissue = 140 - 70 * inside + 20 * np.sin(columns / 40 + i) * np.cos(rows / 60)
        grey = (tissue * draw.rayleigh(0.8, inside.shape)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(grey).filter(ImageFilter.GaussianBlur(2))
        picture.save(folder / "images" / f"scan{i:02d}.png")
        Image.fromarray(255 * inside.astype(np.uint8)).save(folder / "masks" / f"scan{i:02d}.png")
    return folder


@pytest.mark.slow
def test_three_commands_within_four_minutes(tmp_path: Path):
    write_nodules(tmp_path / "thyroid", 60, seed=0)
    new = write_nodules(tmp_path / "new", 8, seed=1)
    began = time.monotonic()
    for line in (
        "check thyroid",
        "train thyroid --out run",
        "predict new/images --adapter run/adapter.safetensors --format png --out masks",
    ):
        command = [sys.executable, "-m", "adapterkit", *line.split()]
        subprocess.run(command, cwd=tmp_path, check=True)
        print(f"{time.monotonic() - began:.0f} s: adapterkit {line}")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = spent.ru_utime + spent.ru_stime
    print(f"{processor:.0f} s of processor time")
    dice = []
    for path in sorted((new / "masks").iterdir()):
        expected = np.asarray(Image.open(path)) > 0
        found = np.asarray(Image.open(tmp_path / "masks" / path.name)) > 0
        dice.append(2 * (expected & found).sum() / (expected.sum() + found.sum()))
    print(f"Dice of new pictures: {np.mean(dice):.3f}, worst {min(dice):.3f}")
    assert np.mean(dice) > 0.8
    # Of two cores, whatever else runs on them.
    assert processor < 2 * 240
