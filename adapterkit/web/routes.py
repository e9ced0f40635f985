"""The requests of the page. What they take and give is JSON; masks are run lengths."""

import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, BackgroundTasks, Depends, File, Request, Response, UploadFile
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from adapterkit.data.collections.annotated import Structure
from adapterkit.data.dataset import to_grey_values
from adapterkit.web.annotation import Answer
from adapterkit.web.clinical import partner_of
from adapterkit.web.drafts import Point
from adapterkit.web.model import Model
from adapterkit.web.predictions import Worker
from adapterkit.web.results import endings, mask_file, measured, opened
from adapterkit.web.sessions import Sessions, add_example, add_upload
from adapterkit.web.training_job import TrainingJob
from adapterkit.web.workspace import Workspace

_COOKIE = "adapterkit_session"
_MAX_SIDE = 4096
"""Pixels of a picture's side that the browser gets."""


@dataclass
class State:
    """What the requests of a server are about.

    Attributes:
        model: with its adapters.
        about: what the page says about the model.
        sessions: the uploads of each browser.
        workspace: of the folder; None where there is none.
        worker: finds its masks in the background.
    training: on what was accepted there.
    """

    model: Model
    about: str
    sessions: Sessions
    workspace: Workspace | None = None
    worker: Worker | None = None
    training: TrainingJob | None = None

    def wake(self) -> None:
        """There may be something new to do in the background."""
        if self.worker is not None:
            self.worker.wake()


def state_of(request: Request) -> State:
    """Of the server that is asked."""
    return request.app.state.it


def workspace_of(request: Request, response: Response) -> Workspace:
    """The folder, or the uploads of the browser that asks."""
    state = state_of(request)
    if state.workspace is not None:
        return state.workspace
    key, workspace = state.sessions.get(request.cookies.get(_COOKIE))
    if key != request.cookies.get(_COOKIE):
        response.set_cookie(_COOKIE, key, httponly=True, samesite="strict")
    return workspace


Its = Annotated[State, Depends(state_of)]
Work = Annotated[Workspace, Depends(workspace_of)]
router = APIRouter(prefix="/api", include_in_schema=False)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Change(_Body):
    """A change of an image, made on a revision of it; with `force` it counts whatever that is."""

    revision: int
    force: bool = False

    @property
    def on(self) -> int | None:
        return None if self.force else self.revision


class PointBody(_Body):
    x: int
    y: int
    inside: bool = True


class Prompted(Change):
    structure: int
    points: list[PointBody] = Field(default=[], max_length=1000)
    box: tuple[float, float, float, float] | None = None


class RunLengthsBody(_Body):
    size: tuple[int, int]
    counts: list[int]


class Painted(Change):
    structure: int
    rle: RunLengthsBody


class OfFrame(Change):
    frame: int


class Carried(OfFrame):
    to: int


class StructureBody(_Body):
    name: str | None = None
    colour: str | None = None


class AdapterBody(_Body):
    name: str | None


class OrderBody(_Body):
    order: Literal["name", "uncertainty"]


# What there is


@router.get("/state")
def state(it: Its, work: Work) -> dict[str, Any]:
    folder = None if it.workspace is None else str(work.worklist.folder.resolve())
    return {
        "title": "adapterkit" if folder is None else work.worklist.folder.resolve().name,
        "folder": folder,
        "annotator": work.annotator,
        "device": it.model.device,
        "demo_note": it.about,
        "structures": _structures(work),
        "adapters": [
            {
                "name": name,
                "structures": it.model.structures(name),
                "note": "" if it.model.classes(name) else "needs a click for each structure",
            }
            for name in it.model.names
        ],
        "adapter": work.adapter,
        "images": [_listed(work, name) for name in work.names()],
        "order": work.order,
        "training": None if it.training is None else it.training.told(),
    }


@router.post("/images")
def upload(it: Its, work: Work, file: Annotated[UploadFile, File()]) -> dict[str, Any]:
    _only_without_folder(it, "images are uploaded")
    it.sessions.make_room(file.size or 0)
    return image(work, add_upload(work, file.filename or "image", file.file.read()))


@router.post("/example")
def example(it: Its, work: Work) -> dict[str, Any]:
    _only_without_folder(it, "the example is opened")
    return image(work, add_example(work))


@router.delete("/images/{name:path}")
def delete(it: Its, work: Work, name: str) -> dict[str, Any]:
    _only_without_folder(it, "images are deleted")
    work.remove(name)
    return {}


# Frames


@router.get("/images/{name:path}/frames/{frame}/picture")
def picture(work: Work, request: Request, name: str, frame: int) -> Response:
    image = opened(work, name)
    if not 0 <= frame < len(image.frames):
        raise ValueError(f"frame is {frame}: expected 0 to {len(image.frames) - 1}")
    headers = {
        "ETag": f'"{work.worklist.stamp(name)}-{frame}"',
        "Cache-Control": "private, no-cache",
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    pixels = to_grey_values(image.frames[frame]).round().astype(np.uint8)
    shown = Image.fromarray(pixels)
    shown.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    shown.save(file, format="PNG", compress_level=1)
    return Response(file.getvalue(), media_type="image/png", headers=headers)


@router.get("/images/{name:path}/frames/{frame}")
def frame(work: Work, later: BackgroundTasks, name: str, frame: int) -> Answer:
    answer = work.frames.answer(name, frame)
    later.add_task(_prepare, work, name, frame)
    return answer


def _prepare(work: Work, name: str, frame: int) -> None:
    """Encode a frame for the first click on it, once it is on the page."""
    # An image may have gone since, or the server be ending: who asks for it next is told.
    with suppress(ValueError, KeyError, OSError):
        work.frames.prepare(name, frame)


@router.post("/images/{name:path}/frames/{frame}/prompts")
def prompt(work: Work, name: str, frame: int, body: Prompted) -> Answer:
    points = tuple(Point(each.x, each.y, each.inside) for each in body.points)
    return work.frames.prompt(name, frame, body.structure, points, body.box, body.on)


@router.post("/images/{name:path}/frames/{frame}/mask")
def paint(work: Work, name: str, frame: int, body: Painted) -> Answer:
    return work.frames.paint(name, frame, body.structure, body.rle.model_dump(), body.on)


@router.post("/images/{name:path}/undo")
def undo(work: Work, name: str, body: OfFrame) -> Answer:
    return work.frames.undo(name, body.frame, body.on)


@router.post("/images/{name:path}/redo")
def redo(work: Work, name: str, body: OfFrame) -> Answer:
    return work.frames.redo(name, body.frame, body.on)


@router.post("/images/{name:path}/clear")
def clear(work: Work, name: str, body: OfFrame) -> Answer:
    return work.frames.clear(name, body.frame, body.on)


@router.post("/images/{name:path}/carry")
def carry(work: Work, name: str, body: Carried) -> dict[str, Any]:
    return {"revision": work.frames.carry(name, body.frame, body.to, body.on)}


# Images


@router.post("/images/{name:path}/accept")
def accept(it: Its, work: Work, name: str, body: Change) -> dict[str, Any]:
    path = work.accept(name, body.on)
    it.wake()
    return {
        **_revised(work, name),
        "next": work.next(name),
        "path": path.relative_to(work.worklist.folder).as_posix(),
    }


@router.post("/images/{name:path}/reopen")
def reopen(work: Work, name: str, body: Change) -> dict[str, Any]:
    work.reopen(name, body.on)
    return _revised(work, name)


@router.get("/images/{name:path}/masks")
def masks(work: Work, name: str, ending: str = ".nii.gz") -> Response:
    file, content = mask_file(work, name, ending)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file)}"}
    return Response(content, media_type="application/octet-stream", headers=headers)


@router.get("/images/{name:path}/measures")
def measures(work: Work, name: str) -> dict[str, Any]:
    return measured(work, name)


@router.get("/images/{name:path}")
def image(work: Work, name: str) -> dict[str, Any]:
    found = opened(work, name)
    frames, height, width = found.frames.shape[:3]
    row, column = found.spacing or (1.0, 1.0)
    return {
        **_listed(work, name),
        "width": width,
        "height": height,
        "frames": frames,
        "spacing": found.spacing,
        "pixel_ratio": column / row,
        "frame_times": None,
        "endings": endings(work, name),
        "partner": partner_of(work, name),
    }


# Structures, adapters, order


@router.post("/structures")
def add_structure(work: Work, body: StructureBody) -> dict[str, Any]:
    work.worklist.structures.add(body.name or "", body.colour or "")
    return {"structures": _structures(work)}


@router.patch("/structures/{label}")
def rename_structure(work: Work, label: int, body: StructureBody) -> dict[str, Any]:
    work.worklist.structures.rename(label, body.name, body.colour)
    return {"structures": _structures(work)}


@router.delete("/structures/{label}")
def leave_structure_out(work: Work, label: int) -> dict[str, Any]:
    work.worklist.structures.leave_out(label)
    return {"structures": _structures(work)}


@router.post("/adapter")
def use_adapter(it: Its, work: Work, body: AdapterBody) -> dict[str, Any]:
    work.use(body.name)
    it.wake()
    return {"adapter": work.adapter}


@router.post("/order")
def sort(it: Its, work: Work, body: OrderBody) -> dict[str, Any]:
    work.sort(body.order)
    return {"order": work.order}


# Inside


def _only_without_folder(it: State, what: str) -> None:
    if it.workspace is not None:
        raise ValueError(f"{what} only where no folder is open: put files into the folder instead")


def _listed(work: Workspace, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "name": work.worklist.images[name].image.name,
        "frames": work.worklist.count_frames(name),
        **_revised(work, name),
        "uncertainty": work.predictions.uncertainty(name, work.adapter),
    }


def _revised(work: Workspace, name: str) -> dict[str, Any]:
    return {"status": work.status(name), "revision": work.revision(name)}


def _structures(work: Workspace) -> list[dict[str, Any]]:
    return [_structure(each) for each in work.worklist.structures.all]


def _structure(each: Structure) -> dict[str, Any]:
    return {"label": each.label, "name": each.name, "colour": each.colour.lower()}
