"""Files as CAMUS has them, written by hand."""

from pathlib import Path

import nibabel
import numpy as np


def save(path: Path, rows: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> None:
    """Writes a (row, column) or (time, row, column) array as CAMUS does, (x, y, time)."""
    affine = np.diag([spacing[1], spacing[0], 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(rows.T, affine), path)
