"""Writing label maps in the geometry of the image that they lie on: NIfTI, PNG and DICOM-SEG.

Writing needs nibabel and Pillow, which come with `adapterkit[recipes]`; DICOM-SEG needs
`adapterkit[dicom]`.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import UInt8
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from PIL import Image

from adapterkit.data.files.palette import colour
from adapterkit.data.files.quiet import quietly
from adapterkit.data.image_file import DataError, ImageFile
from adapterkit.system.files import atomic_write

ENDINGS = (".nii.gz", ".nii", ".png", ".dcm")
"""How the names of files that `write_masks` writes end."""


def write_masks(
    path: str | Path,
    labels: UInt8[np.ndarray, "T H W"],
    image: ImageFile,
    structures: Sequence[str] = (),
) -> None:
    """Write label maps to a file of the kind that its name's ending says, atomically.

    - `.nii.gz`, `.nii`: labels with the affine of the image, and of a NIfTI image the axes and what
      its header says of them.
    - `.png`: indices with a palette, of a single image.
    - `.dcm`: DICOM-SEG, one binary segment per structure, which refers to the frames of the DICOM
      image, or to the slices of its series; its patient and study are the image's.

    Args:
        path: replaced if it exists.
        labels: 0 is background, k + 1 is the k-th structure.
        image: what was segmented.
        structures: names of the structures, which DICOM-SEG keeps; without any, they are numbered.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        OSError: it cannot be written; the disk is full, say.
        DataError: as `check_holds`, the labels have another shape than the image or exceed the
            structures, or a DICOM image lacks what DICOM-SEG must state.
    """
    path = Path(path)
    check_holds(path, image)
    if labels.shape != image.frames.shape[:3]:
        raise DataError(
            f"labels have the shape {labels.shape}: expected {image.frames.shape[:3]} (frames, "
            f"rows, columns), as {image.path}."
        )
    count = int(labels.max(initial=0))
    # A segmentation has a segment even where nothing was found.
    names = list(structures) or [f"structure {k + 1}" for k in range(max(count, 1))]
    if count > len(names):
        raise DataError(
            f"labels go up to {count}, but structures names {len(names)}: expected a name for each."
        )
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        content = _nifti(labels, image)
        content = gzip.compress(content, mtime=0) if name.endswith(".gz") else content
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    elif name.endswith(".png"):
        _write_png(path, labels[0])
    else:
        assert image.dicom is not None
        from adapterkit.data.files.dicom_seg import segmentation

        sources = image.series or (image.dicom,)
        with quietly():
            found = segmentation(labels, image.path, sources, image.spacing, names)
        with atomic_write(path) as temporary:
            found.save_as(temporary)


def check_holds(path: Path, image: ImageFile) -> None:
    """Whether a file of the kind that its name says can hold masks of an image.

    Raises:
        DataError: `path` ends otherwise than `write_masks` takes it, a PNG is to hold several
            images, or DICOM-SEG to refer to no DICOM image.
    """
    name, count = path.name.lower(), len(image.frames)
    if not name.endswith(ENDINGS):
        raise DataError(f"{path}: expected a name that ends in {', '.join(ENDINGS)}.")
    if name.endswith(".png") and count != 1:
        raise DataError(
            f"{path}: a PNG holds one label map, and {image.path} has {count} frames; write "
            ".nii.gz instead."
        )
    if name.endswith(".dcm") and image.dicom is None:
        raise DataError(
            f"{path}: DICOM-SEG refers to a DICOM image, and {image.path} is none; write "
            ".nii.gz or .png instead."
        )


def _nifti(labels: UInt8[np.ndarray, "T H W"], image: ImageFile) -> bytes:
    # On disk the fastest axis comes first: (x, y, time).
    array, affine = labels.T, image.affine
    if image.nifti is not None:
        header = image.nifti.copy()
        affine = header.get_best_affine()  # In its own unit of length.
        array = array.reshape(header.get_data_shape())
        header.extensions.clear()
    else:
        header = Nifti1Header()
        # With a unit, 1 x 1 would be read as a stated spacing.
        header.set_xyzt_units("unknown" if image.spacing is None else "mm")
    kind = nibabel.Nifti2Image if isinstance(header, Nifti2Header) else nibabel.Nifti1Image
    # With the image's own affine, nibabel keeps what the header says of its origin.
    nifti = kind(array, affine, header, dtype=np.uint8)
    nifti.header.set_slope_inter(1, 0)
    nifti.header["cal_min"] = nifti.header["cal_max"] = 0
    return nifti.to_bytes()


def _write_png(path: Path, labels: UInt8[np.ndarray, "H W"]) -> None:
    picture = Image.fromarray(labels)
    picture.putpalette([channel for label in range(256) for channel in colour(label)])
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")
