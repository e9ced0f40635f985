"""How much memory `adapterkit predict` takes for a short and for a long sequence.

    python -m benchmarks.sequence_memory

Each is a fresh process that segments a NIfTI file of noise, with the small Sam and an adapter whose
temporal parts do nothing yet. Peaks of resident memory are printed, and the ratio of the last to
the first.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adapterkit.system.command_line import check_positive, console, run

PREDICT = """
from adapterkit.__main__ import main
from adapterkit.system.memory import peak_bytes
main()
print(peak_bytes())
"""


@dataclass(frozen=True)
class Config:
    frames: tuple[int, ...] = (20, 200)
    """Of each sequence."""
    size: int = 256
    """Rows and columns of a frame, in pixels."""
    method: str = "samus_plus_video"
    """That takes structures; one without temporal parts segments frame by frame."""
    stored: str = "uint8"
    """How the file stores grey values, as NumPy calls it."""


def main(config: Config) -> None:
    check_positive(config, "size")
    peaks: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        adapter = _adapter(Path(folder), config.method)
        for frames in config.frames:
            image = _sequence(Path(folder), frames, config.size, config.stored)
            out = Path(folder) / f"masks_{frames}"
            options = ["--adapter", str(adapter), "--out", str(out)]
            command = [sys.executable, "-c", PREDICT, "predict", str(image), *options]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks.append(int(done.stdout.split()[-1]))
            console.print(f"{frames} frames: {peaks[-1] / 1e6:.0f} MB")
    console.print(f"ratio: {peaks[-1] / peaks[0]:.2f}")


def _adapter(folder: Path, method: str) -> Path:
    import adapterkit as ak

    sam = ak.inject(ak.mini_sam(), method, image_size=256, structures=("ventricle", "atrium"))
    ak.save_adapter(sam, folder / "adapter.safetensors", classes=("ventricle", "atrium"))
    return folder / "adapter.safetensors"


def _sequence(folder: Path, frames: int, size: int, stored: str) -> Path:
    import nibabel
    import numpy as np

    values = np.random.default_rng(0).integers(0, 256, (size, size, frames)).astype(stored)
    path = folder / f"{frames}_frames.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


if __name__ == "__main__":
    run(main, Config)
