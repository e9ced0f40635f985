"""Image files as arrays in (row, column) order: NIfTI, MetaImage, DICOM and pictures.

Reading needs nibabel, SimpleITK and Pillow, which come with `adapterkit[recipes]`; DICOM needs
`adapterkit[dicom]`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
from jaxtyping import Real
from nibabel.nifti1 import Nifti1Header, Nifti1Image

from adapterkit.data.files import pictures
from adapterkit.data.files.quiet import quietly, without_standard_error
from adapterkit.data.image_file import (
    DataError,
    ImageFile,
    Spacing,
    check_finite,
    check_size,
    check_spacing,
    right_front_top,
    unreadable,
)
from adapterkit.system.extras import MissingExtraError, require

# A file's first bytes tell its kind whatever it is called; where they are damaged, its ending does.
_ENDINGS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    **dict.fromkeys(pictures.ENDINGS, "a picture"),
}
# Elements that a DICOM data set without preamble begins with, and their types where it states them.
_FIRST_ELEMENTS = {
    *((2, element) for element in (0, 1, 2, 3, 16)),
    *((8, element) for element in (0, 1, 5, 6, 8, 18, 20, 22, 24)),
}
_FIRST_TYPES = (b"UL", b"OB", b"UI", b"CS", b"LO", b"SH", b"DA", b"TM", b"SQ")
# Of NIfTI's codes for units of length, in mm.
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}
ENDINGS = tuple(_ENDINGS)
"""How the names of files that `read_image` reads end. DICOM files may have no ending at all."""


def read_image(path: str | Path) -> ImageFile:
    """An image, or the frames of a stack or sequence, of any kind of file that adapterkit reads.

    The file's content says which kind it is: pictures as `pictures.read_pages` reads them, NIfTI
    (.nii, .nii.gz) and MetaImage (.mhd, .mha) as `read_frames` does, MetaImage in colour too, and
    DICOM as `data.files.dicom.read_dicom` does. Of three axes the slowest counts the frames.

    Args:
        path: of the file.

    Returns:
        Its frames, (T, H, W) or (T, H, W, 3) in the file's own values, with pixel size and place.

    Raises:
        DataError: there is no such file, it is of no such kind, damaged or cut short, has no pixels
            or more than three axes or `MAX_VALUES`, or holds values, or states a place, that are
            NaN or infinite; the message names it.
    """
    with quietly():
        return _read(Path(path))


def _read(path: Path) -> ImageFile:
    kind = _kind(path)
    if kind is None:
        raise DataError(
            f"{path} is no image that adapterkit reads: expected {', '.join(ENDINGS)}, or DICOM."
        )
    if kind == "NIfTI":
        return _read_nifti(path)
    if kind == "MetaImage":
        return _read_metaimage(path)
    if kind == "a picture":
        return ImageFile(path, pictures.read_pages(path), None, np.eye(4))
    try:
        require("dicom", "highdicom", "pydicom")
    except MissingExtraError as error:
        raise DataError(f"{path} is a DICOM file: {error}") from error
    from adapterkit.data.files.dicom import read_dicom

    return read_dicom(path)


def find_images(folder: str | Path) -> list[Path]:
    """The files in a folder and its subfolders that look as if `read_image` read them, sorted.

    Hidden files and folders are left out.

    Args:
        folder: where to look.

    Returns:
        Their paths, which begin with `folder`.

    Raises:
        DataError: it is no folder, or there is none.
    """
    return sort_out(folder)[0]


def by_name(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Files by their paths within a folder, without the endings of images.

    Raises:
        DataError: two have the same.
    """
    found: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(folder).with_name(stem(file.name)).as_posix()
        if name in found:
            raise DataError(
                f"{name} is listed twice, as {found[name]} and as {file.name}: expected one file "
                "of a name."
            )
        found[name] = file
    return found


def sort_out(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """What `find_images` finds, and the other files: neither hidden, nor the data of a MetaImage.

    A file that cannot be opened counts as an image if its name ends as one's.

    Raises:
        DataError: it is no folder, or there is no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: expected one that holds images.")
    images, others = [], []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not _may_be_file(path):
            continue
        try:
            kind = _kind(path)
        except DataError:  # Reading it says so again.
            kind = _kind_of_name(path)
        (others if kind is None else images).append(path)
    if not images:
        raise DataError(f"{folder} holds no image: expected {', '.join(ENDINGS)}, or DICOM.")
    data = {path.parent for path in images if path.suffix.lower() == ".mhd"}
    others = [
        path
        for path in others
        if path.suffix.lower() not in (".raw", ".zraw") or path.parent not in data
    ]
    return images, others


def _may_be_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # Its folder can be listed, and nothing in it be looked at.
        return True


def stem(name: str) -> str:
    """A file's name without the ending of an image's: DICOM names may have dots elsewhere."""
    found = (ending for ending in ENDINGS if name.lower().endswith(ending) and name != ending)
    return name[: -max(map(len, found), default=0) or None]


def is_picture(path: Path) -> bool:
    """Whether a file is one of `data.files.pictures`: these state no size of pixels, nor a place.

    Raises:
        DataError: it cannot be opened.
    """
    return _kind(path) == "a picture"


def is_dicom(path: Path) -> bool:
    """Whether a file's content is DICOM, whatever it is called.

    Raises:
        DataError: it cannot be opened.
    """
    return is_dicom_start(_start(path))


def is_dicom_start(start: bytes) -> bool:
    """Whether a file that begins so is DICOM: with a preamble, or at once with a data set.

    Of the latter, the first element is one of the file's meta information or of the group of
    identifying attributes, and has a type, or a length that such an element can have.
    """
    if start[128:132] == b"DICM":
        return True
    group, element = int.from_bytes(start[:2], "little"), int.from_bytes(start[2:4], "little")
    if (group, element) not in _FIRST_ELEMENTS or len(start) < 8:
        return False
    return start[4:6] in _FIRST_TYPES or int.from_bytes(start[4:8], "little") <= 64


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(348)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): expected a file.") from error


def _kind(path: Path) -> str | None:
    """As the values of `_ENDINGS` name it; None for what is no image."""
    start = _start(path)
    if is_dicom_start(start):
        return "DICOM"
    if pictures.is_start(start):
        return "a picture"
    if start[344:347] == b"n+1" or start[4:7] == b"n+2":
        return "NIfTI"
    return _kind_of_name(path)


def _kind_of_name(path: Path) -> str | None:
    kinds = (kind for ending, kind in _ENDINGS.items() if path.name.lower().endswith(ending))
    return next(kinds, None)


def read_frames(path: Path) -> tuple[Real[np.ndarray, "T H W"], Spacing | None]:
    """The frames of a NIfTI (.nii, .nii.gz) or MetaImage (.mhd) file, and their pixel spacing.

    A 2-D image is one frame; of a 3-D one the slowest axis counts the frames. The spacing is None
    where the file states 1 x 1 mm, which is what writers put if they know none; but that of a NIfTI
    file which states its unit of length and a form (`sform_code`, `qform_code`) is believed.

    Raises `DataError`, naming the file, where it cannot be read, has other than two or three axes
    or not real numbers, holds values that are NaN or infinite, or states a spacing that is not
    finite and positive.
    """
    with quietly():
        image = (_read_metaimage if path.suffix == ".mhd" else _read_nifti)(path)
    if image.frames.ndim != 3:
        raise DataError(f"{path} is in colour: expected grey values or labels.")
    return image.frames, image.spacing


def _read_nifti(path: Path) -> ImageFile:
    # Not through SimpleITK, which fills the rest of a truncated NIfTI file with zeros.
    try:
        nifti = cast(Nifti1Image, nibabel.load(path))
        check_size(nifti.shape, path)
        array = np.asarray(nifti.dataobj)
        header = cast(Nifti1Header, nifti.header)
        zooms = header.get_zooms()
        affine = np.asarray(nifti.affine, dtype=np.float64)
    except DataError:
        raise
    # Damaged files make nibabel, gzip and zlib raise exceptions that share no narrower base.
    except Exception as error:
        raise unreadable(path, "NIfTI", error) from error
    in_mm = _UNITS.get(int(header["xyzt_units"]) & 7)
    unit = in_mm or 1
    spacing = (float(zooms[1]) * unit, float(zooms[0]) * unit) if len(zooms) > 1 else (1.0, 1.0)
    affine[:3] *= unit
    forms = int(header["sform_code"]), int(header["qform_code"])
    stated = in_mm is not None and max(forms) > 0
    # On disk the fastest axis comes first: (x, y, time).
    frames, known = _frames(array.T, spacing, path, stated=stated)
    return ImageFile(path, frames, known, affine, nifti=header)


def _read_metaimage(path: Path) -> ImageFile:
    try:
        require("files", "SimpleITK")
    except MissingExtraError as error:
        raise DataError(f"{path} is a MetaImage file: {error}") from error
    import SimpleITK as sitk

    _check_data_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.SetImageIO("MetaImageIO")
    try:
        with without_standard_error():
            reader.ReadImageInformation()
            check_size((*reader.GetSize(), reader.GetNumberOfComponents()), path)
            image = reader.Execute()
    except RuntimeError as error:
        raise unreadable(path, "MetaImage", error) from error
    axes = image.GetDimension()
    to_mm = np.reshape(image.GetDirection(), (axes, axes)) * image.GetSpacing()
    affine = np.eye(4)
    affine[:axes, :axes] = to_mm[:4, :4]
    affine[:axes, 3] = image.GetOrigin()[:4]
    colours = image.GetNumberOfComponentsPerPixel()
    spacing = image.GetSpacing()[1], image.GetSpacing()[0]
    frames, known = _frames(sitk.GetArrayFromImage(image), spacing, path, colours)
    return ImageFile(path, frames, known, right_front_top(affine))


def _check_data_file(path: Path) -> None:
    """A header that names files elsewhere would turn whatever lies there into pixels."""
    try:
        with path.open("rb") as file:
            lines = file.read(64 * 1024).decode("latin-1").splitlines()
    except OSError as error:
        raise unreadable(path, "MetaImage", error) from error
    key = "elementdatafile"
    named = [line.strip() for line in lines if line.strip().lower().startswith(key)]
    if not named:
        raise DataError(f"{path} names no ElementDataFile: expected the header of a MetaImage.")
    for line in named:
        value = line[len(key) :].strip(" \t=:")
        link = path.parent / value
        if link.is_symlink() and link.resolve().parent != path.resolve().parent:
            raise DataError(
                f"{path} names {value} as the file of its pixels, which is a link to "
                f"{link.resolve()}: expected a file beside it; put a copy there."
            )
        if {"/", "\\"} & set(value) or value.upper().startswith("LIST"):
            raise DataError(
                f"{path} names {value} as the file of its pixels: expected one beside it; move "
                "that file there and correct the header."
            )


def _frames(
    array: np.ndarray, spacing: Spacing, path: Path, colours: int = 1, stated: bool = False
) -> tuple[Real[np.ndarray, "T H W *rgb"], Spacing | None]:
    axes = array.ndim - (colours > 1)
    if axes not in (2, 3) or array.dtype.kind not in "iuf" or colours not in (1, 3):
        raise DataError(
            f"{path} holds an array of shape {array.shape} and type {array.dtype}: expected real "
            "numbers with two axes, or three for a sequence."
        )
    if 0 in array.shape:
        raise DataError(f"{path} holds an array of shape {array.shape}: expected some pixels.")
    check_spacing(spacing, path)
    check_finite(array, path)
    known = stated or spacing != (1, 1)
    return (array if axes == 3 else array[None]), spacing if known else None
