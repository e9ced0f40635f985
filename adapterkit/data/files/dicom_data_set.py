"""The data set of a DICOM file, with or without the preamble that files should begin with.

Needs pydicom, which comes with `adapterkit[dicom]`.

Source: DICOM PS3.10, 7.1 (File Meta Information).
"""

from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian


def read_data_set(path: Path, *, with_pixels: bool = True) -> Dataset:
    """The data set of a DICOM file, which may lack its preamble and its transfer syntax.

    Raises:
        ValueError: it begins neither with a preamble nor with a data set.
        Exception: it is damaged; pydicom's errors share no narrower base.
    """
    try:
        return pydicom.dcmread(path, stop_before_pixels=not with_pixels)
    except InvalidDicomError:
        dataset = pydicom.dcmread(path, stop_before_pixels=not with_pixels, force=True)
    if "SOPClassUID" not in dataset or not isinstance(dataset.SOPClassUID, UID):
        raise ValueError("it begins neither with a preamble nor with a data set")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset
