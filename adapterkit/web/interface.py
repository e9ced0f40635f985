"""The interface for other programs: an image and prompts in, masks out. Its schema is at /docs."""

import json
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from adapterkit.data.files.images import read_image, stem
from adapterkit.data.files.masks import write_masks
from adapterkit.data.image_file import ImageFile, at_most
from adapterkit.inference.prediction import Prediction
from adapterkit.web import rle
from adapterkit.web.routes import State, state_of
from adapterkit.web.sessions import MAX_VALUES

router = APIRouter(prefix="/api/v1", tags=["masks"])


class Format(StrEnum):
    """How masks are given: a label map as NIfTI or PNG, or JSON with run lengths."""

    NIFTI = "nifti"
    PNG = "png"
    RLE = "rle"


class ClickOf(BaseModel):
    """A click: the pixel in column x and row y lies inside of the structure, or outside of it."""

    model_config = ConfigDict(extra="forbid")
    x: float
    y: float
    inside: bool = True


class StructurePrompts(BaseModel):
    """What is asked for one structure: clicks, a box, or a name that the adapter knows."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = None
    points: list[ClickOf] = Field(
        default=[], max_length=1000, description="answered together, not one after another"
    )
    box: tuple[float, float, float, float] | None = Field(
        default=None, description="x0, y0, x1, y1 in pixels, from edge to edge"
    )


class AdapterInfo(BaseModel):
    """An adapter, what it segments, and what of that it finds without a click."""

    name: str
    structures: list[str]
    without_click: list[str]


class RunLengths(BaseModel):
    """A mask of size (rows, columns): the lengths of its runs along the rows, zeros first."""

    size: tuple[int, int]
    counts: list[int]


class StructureMask(BaseModel):
    """The mask of a structure in a frame; label is what label maps hold."""

    label: int
    name: str
    frame: int
    rle: RunLengths
    area: int
    predicted_iou: float
    presence: float | None


class Segmented(BaseModel):
    """The masks of an image; those of structures that were asked for may overlap."""

    adapter: str | None
    masks: list[StructureMask]
    milliseconds: float


_PROMPTS = TypeAdapter(list[StructurePrompts])


@router.get("/adapters")
def adapters(it: Annotated[State, Depends(state_of)]) -> list[AdapterInfo]:
    """The adapters of this server."""
    return [
        AdapterInfo(
            name=name,
            structures=list(it.model.structures(name)),
            without_click=list(it.model.classes(name)),
        )
        for name in it.model.names
    ]


@router.post(
    "/segment",
    response_model=Segmented,
    responses={
        200: {
            "description": "The masks: JSON, or a label map as a file, as `format` says.",
            "content": {"application/gzip": {}, "image/png": {}},
        },
        400: {"description": "The image or a prompt is not as expected; `detail` says why."},
        401: {"description": "The server has a token, and it was not shown."},
        413: {"description": "The image is too large."},
    },
)
def segment(
    request: Request,
    image: Annotated[UploadFile, File(description="PNG, JPEG, TIFF, NIfTI, MetaImage or DICOM")],
    prompts: Annotated[
        str, Form(description="JSON, a list of StructurePrompts; empty: all that is known by name")
    ] = "",
    adapter: Annotated[str, Form(description="its name; empty: the first; none: the base")] = "",
    frame: Annotated[
        int | None, Form(description="of a sequence; without prompts, none is all")
    ] = None,
    format: Annotated[Format, Form()] = Format.RLE,
) -> Any:
    """Segment an image: by clicks and boxes, or without any where the adapter knows structures."""
    began = time.perf_counter()
    it = state_of(request)
    chosen = _adapter(it, adapter)
    asked = _read_prompts(prompts)
    read = _read_upload(image)
    frames = _frames(read, frame, bool(asked))
    given = _as_arguments(asked, it.model.classes(chosen))
    names = _names(asked, it.model.classes(chosen))
    found = [(each, it.model.predict(read, each, chosen, **given)) for each in frames]
    if format is not Format.RLE:
        return _as_file(read, found, names, format)
    return Segmented(
        adapter=chosen,
        masks=[each for index, one in found for each in _as_masks(index, one, names)],
        milliseconds=round(1000 * (time.perf_counter() - began), 1),
    )


def _adapter(it: State, name: str) -> str | None:
    if name == "none":
        return None
    chosen = name or next(iter(it.model.names), None)
    it.model.check(chosen)
    return chosen


def _read_prompts(text: str) -> list[StructurePrompts]:
    if not text.strip():
        return []
    try:
        return _PROMPTS.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"prompts are not as expected ({where}: {first['msg']}): expected JSON, "
            '[{"points": [{"x": 10, "y": 20, "inside": true}]}] say'
        ) from None


def _read_upload(upload: UploadFile) -> ImageFile:
    name = Path((upload.filename or "image").replace("\\", "/")).name.lstrip(".") or "image"
    with tempfile.TemporaryDirectory() as folder, at_most(MAX_VALUES):
        path = Path(folder) / name
        path.write_bytes(upload.file.read())
        try:
            read = read_image(path)
            return ImageFile(
                Path(name), np.array(read.frames), read.spacing, read.affine, read.nifti,
                read.dicom, read.series,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error


def _frames(image: ImageFile, frame: int | None, prompted: bool) -> list[int]:
    count = len(image.frames)
    if frame is None and prompted and count > 1:
        raise ValueError(f"the image has {count} frames: say with frame which one the prompts mean")
    if frame is not None and not 0 <= frame < count:
        raise ValueError(f"frame is {frame}: expected 0 to {count - 1}")
    return [*range(count)] if frame is None else [frame]


def _names(asked: list[StructurePrompts], classes: tuple[str, ...]) -> list[str]:
    if not asked:
        return list(classes)
    return [each.name or f"structure {k}" for k, each in enumerate(asked, start=1)]


def _as_arguments(asked: list[StructurePrompts], classes: tuple[str, ...]) -> dict[str, Any]:
    """What `Predictor.predict` takes."""
    if not asked and not classes:
        raise ValueError(
            "no prompts are given, and the adapter knows no structure by name: expected points or "
            "a box for each structure"
        )
    if not asked:
        return {}
    known = {each.casefold(): each for each in classes}
    return {
        "points": [[(p.x, p.y) for p in each.points] or None for each in asked],
        "labels": [[int(p.inside) for p in each.points] or None for each in asked],
        "boxes": [each.box for each in asked],
        "classes": [known.get((each.name or "").casefold()) for each in asked] if known else None,
    }


def _as_masks(frame: int, found: Prediction, names: list[str]) -> list[StructureMask]:
    presence = found.presence
    return [
        StructureMask(
            label=k + 1,
            name=names[k],
            frame=frame,
            rle=RunLengths.model_validate(rle.encode(mask)),
            area=int(mask.sum()),
            predicted_iou=float(np.clip(found.scores[k], 0, 1)),
            presence=None
            if presence is None or not np.isfinite(presence[k])
            else float(presence[k]),
        )
        for k, mask in enumerate(found.masks)
    ]


def _as_file(
    image: ImageFile, found: list[tuple[int, Prediction]], names: list[str], format: Format
) -> Response:
    labels = np.zeros(image.frames.shape[:3], np.uint8)
    for index, one in found:
        labels[index] = one.label_map()
    if format is Format.PNG and len(labels) > 1:
        raise ValueError(f"a PNG holds one label map, and there are {len(labels)}: ask for nifti")
    ending, kind = {
        Format.PNG: (".png", "image/png"),
        Format.NIFTI: (".nii.gz", "application/gzip"),
    }[format]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mask{ending}"
        write_masks(path, labels, image, names)
        content = path.read_bytes()
    name = f"{_plain(stem(image.path.name))}_mask{ending}"
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "X-Structures": json.dumps({k + 1: name for k, name in enumerate(names)}),
    }
    return Response(content, media_type=kind, headers=headers)


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
