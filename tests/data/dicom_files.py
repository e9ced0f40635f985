"""DICOM files for tests: some that are written, and some of many scanners."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

BUNDLED = Path(pydicom.__file__).parent / "data/test_files"
"""DICOM files that pydicom brings along, of many scanners and transfer syntaxes."""


def write_dicom(path: Path, array: np.ndarray, axes: str = "HW", **elements: Any) -> Path:
    """A DICOM file of `array`; axes may begin with T and end with C. Elements given as None are
    left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    several = axes.startswith("T")
    kind = UltrasoundMultiFrameImageStorage if several else SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    unique = UID(generate_uid(entropy_srcs=[path.name])[:60])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = unique
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = unique + ".1", unique + ".2"
    dataset.PatientID, dataset.PatientName, dataset.Modality = "1", "No^Body", "US"
    dataset.StudyID = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.Rows, dataset.Columns = array.shape[several : several + 2]
    if several:
        dataset.NumberOfFrames = len(array)
    dataset.SamplesPerPixel = 3 if axes.endswith("C") else 1
    if axes.endswith("C"):
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if axes.endswith("C") else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * array.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    dataset.PixelData = array.tobytes() + b"\0" * (array.nbytes % 2)
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
