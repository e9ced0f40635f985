"""One small data set, written as each format has it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

STRUCTURES = {1: "ventricle", 2: "atrium"}


@dataclass(frozen=True)
class Drawn:
    """An image of a patient, with its label map of two structures."""

    name: str
    patient: str
    image: np.ndarray
    labels: np.ndarray


def draw(count: int = 6, size: tuple[int, int] = (20, 28), seed: int = 0) -> list[Drawn]:
    """Two images of each patient: rectangles in noise, that do not touch."""
    rng = np.random.default_rng(seed)
    drawn = []
    for index in range(count):
        image = rng.integers(0, 256, size, dtype=np.uint8)
        labels = np.zeros(size, np.uint8)
        top, left = rng.integers(1, 5, 2)
        labels[top : top + 6, left : left + 5] = 1
        labels[top + 8 : top + 13, left + 9 : left + 15] = 2
        patient = f"p{index // 2}"
        drawn.append(Drawn(f"{patient}_{'ab'[index % 2]}", patient, image, labels))
    return drawn


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_folders(root: Path, drawn: Sequence[Drawn]) -> Path:
    for each in drawn:
        save(root / "images" / f"{each.name}.png", each.image)
        save(root / "masks" / f"{each.name}.png", each.labels)
    return root


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths: by columns, background first."""
    flat = mask.T.ravel().astype(int)
    borders = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.array([0, *borders.tolist(), flat.size])).tolist()
    return {"counts": runs if flat[0] == 0 else [0, *runs], "size": list(mask.shape)}


def rectangle(mask: np.ndarray) -> list[list[float]]:
    """The polygon around a rectangle."""
    rows, columns = np.nonzero(mask)
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    return [[left, top, right, top, right, bottom, left, bottom]]


def coco(drawn: Sequence[Drawn]) -> dict:
    """Polygons of one structure, run lengths of the other, as a crowd; ids as in no order."""
    images = [
        {"id": 10 + i, "file_name": f"{each.name}.png", "height": each.labels.shape[0],
         "width": each.labels.shape[1]}
        for i, each in enumerate(drawn)
    ]  # fmt: skip
    annotations = []
    for image, each in zip(images, drawn, strict=True):
        for category, label in ((3, 1), (7, 2)):
            mask = each.labels == label
            region = rectangle(mask) if label == 1 else run_lengths(mask)
            annotations.append(
                {"id": len(annotations), "image_id": image["id"], "category_id": category,
                 "segmentation": region, "iscrowd": label - 1}
            )  # fmt: skip
    categories = [{"id": 7, "name": STRUCTURES[2]}, {"id": 3, "name": STRUCTURES[1]}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, drawn: Sequence[Drawn]) -> Path:
    for each in drawn:
        save(root / "images" / f"{each.name}.png", each.image)
    (root / "instances.json").write_text(json.dumps(coco(drawn)))
    return root


def rows(root: Path, drawn: Sequence[Drawn], parts: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a table, whose files are written."""
    found = []
    for index, each in enumerate(drawn):
        save(root / "scans" / f"{each.name}.png", each.image)
        save(root / "labels" / f"{each.name}_map.png", each.labels)
        row = {"image": f"scans/{each.name}.png", "mask": f"labels/{each.name}_map.png",
               "group": each.patient}  # fmt: skip
        found.append(row | ({"split": parts[index]} if parts else {}))
    return found


def write_nifti(path: Path, frames: np.ndarray) -> Path:
    """Frames, or one picture, of 0.5 x 0.7 x 3 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(frames.T, np.diag([0.5, 0.7, 3.0, 1.0])), path)
    return path


def write_metaimage(path: Path, frames: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(frames)
    image.SetSpacing((0.5, 0.7, 3.0)[: frames.ndim])
    sitk.WriteImage(image, path)
    return path


_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
          "StudyTime", "AccessionNumber", "ReferringPhysicianName")  # fmt: skip


def write_dicom_slices(folder: Path, frames: np.ndarray) -> list[Path]:
    """A series of CT slices, in files whose names are in no order, from the feet to the head."""
    folder.mkdir(parents=True)
    series, place = generate_uid(), generate_uid()
    paths = []
    for index, frame in enumerate(frames):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        for keyword in _EMPTY:
            setattr(dataset, keyword, "")
        dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 1, index + 1
        dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = place
        dataset.SeriesInstanceUID = series
        dataset.Rows, dataset.Columns = frame.shape
        dataset.PixelSpacing, dataset.SliceThickness = [0.7, 0.5], 3
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, 3.0 * index]
        dataset.PositionReferenceIndicator = ""
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.PixelRepresentation = 7, 0
        dataset.PixelData = np.ascontiguousarray(frame, np.uint8).tobytes()
        path = folder / f"{(7 * index + 3) % 10}_{index}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_segmentation(path: Path, slices: Sequence[Path], labels: np.ndarray) -> Path:
    """A DICOM-SEG of a series, by highdicom, which leaves out what is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = [dcmread(each) for each in slices]
    described = [
        SegmentDescription(
            label, name, codes.SCT.AnatomicalStructure, codes.SCT.AnatomicalStructure,
            SegmentAlgorithmTypeValues.MANUAL,
        )
        for label, name in STRUCTURES.items()
    ]  # fmt: skip
    masks = np.stack([labels == label for label in STRUCTURES], axis=-1)
    Segmentation(
        sources, masks, SegmentationTypeValues.BINARY, described, generate_uid(), 2,
        generate_uid(), 1, "nobody", "nothing", "0", "0",
    ).save_as(path)  # fmt: skip
    return path
