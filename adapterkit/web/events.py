"""What the page's events do to the session of who uses it, and what the page shows then."""

import base64
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr
import numpy as np

from adapterkit.data.dataset import doubt_of_levels
from adapterkit.data.files.images import read_image
from adapterkit.data.image_file import ImageFile
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.inference.predictor import Predictor
from adapterkit.web import drawing
from adapterkit.web.session import Session

INSIDE, OUTSIDE = "inside (+)", "outside (−)"
"""What a click marks, as the page calls it."""

NO_ADAPTER = "none: the base alone"
"""The choice of no adapter."""

_KINDS = {".dcm": "DICOM-SEG", ".nii.gz": "NIfTI", ".png": "PNG"}


@dataclass(frozen=True)
class Shown:
    """The components that show a session."""

    viewer: gr.HTML
    caption: gr.HTML
    frames: gr.Slider
    structures: gr.HTML
    ending: gr.Radio

    @property
    def components(self) -> list[Any]:
        return [self.viewer, self.caption, self.frames, self.structures, self.ending]

    def values(self, session: Session, picture: bool) -> dict[Any, Any]:
        """What they show of a session; its image only where `picture`, since it is large."""
        image = session.image
        drawn: dict[str, Any] = {"value": ""}
        if image is not None:
            drawn["value"] = drawing.overlay(image, session.answer, session.clicks)
            if picture:
                width, height = drawing.size(image)
                drawn |= {
                    "image": drawing.picture(image.frames[session.frame]),
                    "width": width,
                    "height": height,
                }
        last = 1 if image is None else len(image.frames)
        return {
            self.viewer: gr.HTML(**drawn),
            self.caption: drawing.caption(session),
            self.frames: gr.Slider(maximum=max(last, 2), value=session.frame + 1, visible=last > 1),
            self.structures: drawing.structure_list(session),
            self.ending: gr.Radio(
                [(_KINDS[each], each) for each in session.endings],
                value=session.ending,
                visible=image is not None,
            ),
        }


class Events:
    """The functions that gradio calls, each with the request that says whose session it is.

    Args:
        predictor: shared by all sessions, one at a time.
        shown: what shows a session.
    """

    def __init__(self, predictor: Predictor, shown: Shown) -> None:
        self._predictor = predictor
        self._shown = shown
        self._sessions: dict[str, Session] = {}
        self._lock = Lock()

    def start(self, request: gr.Request) -> dict[Any, Any]:
        return self._shown.values(self._session(request), picture=False)

    def forget(self, request: gr.Request) -> None:
        self._sessions.pop(str(request.session_hash), None)

    def open_file(self, request: gr.Request, path: str) -> dict[Any, Any]:
        def open_it(session: Session) -> None:
            image = _uploaded(Path(path))
            session.open(image)
            doubt = doubt_of_levels(image.frames[0], image.path)
            if doubt:
                gr.Warning(escape(doubt))

        return self._act(request, open_it, picture=True)

    def open_example(self, request: gr.Request) -> dict[Any, Any]:
        return self._act(request, lambda session: session.open(example()), picture=True)

    def show_frame(self, request: gr.Request, number: float) -> dict[Any, Any]:
        return self._act(request, lambda session: session.show(int(number) - 1), picture=True)

    def mark(self, request: gr.Request, event: gr.EventData, kind: str) -> dict[Any, Any]:
        def click(session: Session) -> None:
            height, width = session.image.frames.shape[1:3] if session.image else (1, 1)
            # The right and the lower border belong to the last pixel.
            x, y = min(int(event.x * width), width - 1), min(int(event.y * height), height - 1)
            session.click(x, y, inside=(kind == INSIDE) != event.shift)

        return self._act(request, click)

    def choose(self, request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        return self._act(request, lambda session: session.choose(event.structure))

    def use(self, request: gr.Request, adapter: str) -> dict[Any, Any]:
        name = None if adapter == NO_ADAPTER else adapter
        return self._act(request, lambda session: session.use(name))

    def add_structure(self, request: gr.Request) -> dict[Any, Any]:
        return self._act(request, Session.add_structure)

    def undo(self, request: gr.Request) -> dict[Any, Any]:
        return self._act(request, Session.undo)

    def clear(self, request: gr.Request) -> dict[Any, Any]:
        return self._act(request, Session.clear)

    def save_as(self, request: gr.Request, ending: str) -> dict[Any, Any]:
        return self._act(request, lambda session: session.save_as(ending))

    def download(self, request: gr.Request) -> dict[str, str] | None:
        """A file's name and its content in base64, for the browser to save."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = self._session(request).save(Path(folder))
                content = base64.b64encode(path.read_bytes()).decode()
                return {"name": path.name, "content": content}
        except (ValueError, OSError) as error:
            gr.Warning(escape(str(error)))
            return None

    def _session(self, request: gr.Request) -> Session:
        key = str(request.session_hash)
        if key not in self._sessions:
            self._sessions[key] = Session(self._predictor, self._lock)
        return self._sessions[key]

    def _act(
        self, request: gr.Request, action: Callable[[Session], object], picture: bool = False
    ) -> dict[Any, Any]:
        """What the page shows after an action; if that is refused, a message says why."""
        session = self._session(request)
        try:
            action(session)
        except (ValueError, OSError) as error:
            gr.Warning(escape(str(error)))
        return self._shown.values(session, picture)


@cache
def example() -> ImageFile:
    """A synthetic heart of four chambers, by `adapterkit.data.synthetic.phantom`."""
    with tempfile.TemporaryDirectory() as folder:
        patient = write_phantom(Path(folder) / "phantom", patients=1) / "database_nifti/patient0001"
        image = read_image(patient / "patient0001_4CH_ED.nii.gz")
    return replace(image, path=Path("synthetic_heart.nii.gz"))


def _uploaded(path: Path) -> ImageFile:
    """Reads a file that gradio has put into a folder of its own, and removes it."""
    try:
        image = read_image(path)
        # The pixels of a NIfTI file can otherwise stay on disk.
        return replace(image, path=Path(path.name), frames=np.array(image.frames))
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from error
    finally:
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()
