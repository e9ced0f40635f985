"""The page: what is on it, and what its events do to the session of who uses it."""

import base64
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr
import numpy as np
from gradio.themes import Default

from adapterkit.data.files.image_file import ImageFile
from adapterkit.data.files.images import read_image
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.inference.predictor import Predictor
from adapterkit.web import drawing
from adapterkit.web.session import Session

_HERE = Path(__file__).parent
_INSIDE, _OUTSIDE = "inside (+)", "outside (−)"
_NO_ADAPTER = "none: the base alone"
_KINDS = {".dcm": "DICOM-SEG", ".nii.gz": "NIfTI", ".png": "PNG"}

# By the browser, since a file that the server offers for download would have to lie there.
_SAVE = """async (file) => {
  if (!file) return;
  const blob = await (await fetch(`data:application/octet-stream;base64,${file.content}`)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = file.name;
  link.click();
  URL.revokeObjectURL(link.href);
}"""


@contextmanager
def serving(
    predictor: Predictor, model: str, host: str, port: int, max_upload: int
) -> Iterator[str]:
    """Serves the page while the block runs; no file of it outlives the block.

    Args:
        predictor: the model and the adapters to choose from; not to be used otherwise meanwhile.
        model: what the page says about the model, in a sentence.
        host: the address to listen at.
        port: a free one.
        max_upload: the size of a file that may be opened, in bytes.

    Yields:
        The page's address.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="adapterkit-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        made = page(predictor, model)
        try:
            _, address, _ = made.launch(
                server_name=host,
                server_port=port,
                max_file_size=max_upload,
                theme=Default(
                    primary_hue="blue",
                    font=("system-ui", "sans-serif"),
                    font_mono=("ui-monospace", "monospace"),
                ),
                css=(_HERE / "page.css").read_text(encoding="utf-8"),
                quiet=True,
                prevent_thread_lock=True,
                share=False,
                footer_links=[],
                # What gradio itself would remember of what users do.
                run_history=False,
                enable_monitoring=False,
                state_session_capacity=32,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
            )
            yield address
        finally:
            made.close(verbose=False)
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def page(predictor: Predictor, model: str) -> gr.Blocks:
    """The page, not served yet. Each browser tab that shows it has a `Session` of its own."""
    sessions: dict[str, Session] = {}
    lock = Lock()

    def session_of(request: gr.Request) -> Session:
        key = str(request.session_hash)
        if key not in sessions:
            sessions[key] = Session(predictor, lock)
        return sessions[key]

    def forget(request: gr.Request) -> None:
        sessions.pop(str(request.session_hash), None)

    def act(
        request: gr.Request, action: Callable[[Session], object], picture: bool = False
    ) -> dict[Any, Any]:
        """What the page shows after an action; if that is refused, a message says why."""
        session = session_of(request)
        try:
            action(session)
        except (ValueError, OSError) as error:
            gr.Warning(escape(str(error)))
        return shown(session, picture)

    def shown(session: Session, picture: bool) -> dict[Any, Any]:
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
            viewer: gr.HTML(**drawn),
            caption: drawing.caption(session),
            frames: gr.Slider(maximum=max(last, 2), value=session.frame + 1, visible=last > 1),
            structures: drawing.structure_list(session),
            ending: gr.Radio(
                [(_KINDS[each], each) for each in session.endings],
                value=session.ending,
                visible=image is not None,
            ),
        }

    # What the events do

    def start(request: gr.Request) -> dict[Any, Any]:
        return shown(session_of(request), picture=False)

    def open_file(request: gr.Request, path: str) -> dict[Any, Any]:
        return act(request, lambda session: session.open(_uploaded(Path(path))), picture=True)

    def open_example(request: gr.Request) -> dict[Any, Any]:
        return act(request, lambda session: session.open(example()), picture=True)

    def show_frame(request: gr.Request, number: float) -> dict[Any, Any]:
        return act(request, lambda session: session.show(int(number) - 1), picture=True)

    def mark(request: gr.Request, event: gr.EventData, kind: str) -> dict[Any, Any]:
        def click(session: Session) -> None:
            height, width = session.image.frames.shape[1:3] if session.image else (1, 1)
            # The right and the lower border belong to the last pixel.
            x, y = min(int(event.x * width), width - 1), min(int(event.y * height), height - 1)
            session.click(x, y, inside=(kind == _INSIDE) != event.shift)

        return act(request, click)

    def choose(request: gr.Request, event: gr.EventData) -> dict[Any, Any]:
        return act(request, lambda session: session.choose(event.structure))

    def use(request: gr.Request, adapter: str) -> dict[Any, Any]:
        name = None if adapter == _NO_ADAPTER else adapter
        return act(request, lambda session: session.use(name))

    def add_structure(request: gr.Request) -> dict[Any, Any]:
        return act(request, Session.add_structure)

    def undo(request: gr.Request) -> dict[Any, Any]:
        return act(request, Session.undo)

    def clear(request: gr.Request) -> dict[Any, Any]:
        return act(request, Session.clear)

    def save_as(request: gr.Request, ending: str) -> dict[Any, Any]:
        return act(request, lambda session: session.save_as(ending))

    def download(request: gr.Request) -> dict[str, str] | None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = session_of(request).save(Path(folder))
                content = base64.b64encode(path.read_bytes()).decode()
                return {"name": path.name, "content": content}
        except (ValueError, OSError) as error:
            gr.Warning(escape(str(error)))
            return None

    # What is on the page

    made = gr.Blocks(title="adapterkit", analytics_enabled=False, delete_cache=(60, 60))
    with made:
        gr.HTML(
            "<h1>adapterkit</h1><p>Click on a structure, and the model outlines it.</p>"
            '<span class="demonstration">For demonstration and research. Not for clinical use.'
            "</span>",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(scale=7, min_width=420, elem_id="main"):
                viewer = gr.HTML(
                    "",
                    html_template=(_HERE / "viewer.html").read_text(encoding="utf-8"),
                    js_on_load=(_HERE / "viewer.js").read_text(encoding="utf-8"),
                    elem_id="viewer",
                    image="",
                    width=1,
                    height=1,
                )
                caption = gr.HTML("", elem_id="caption")
                frames = gr.Slider(1, 2, 1, step=1, label="Frame", visible=False, elem_id="frames")
                with gr.Row(elem_id="tools"):
                    kind = gr.Radio(
                        [_INSIDE, _OUTSIDE],
                        value=_INSIDE,
                        label="A click marks what is …",
                        elem_id="kind",
                        scale=3,
                    )
                    undo_button = gr.Button("Undo", elem_id="undo", min_width=90, size="md")
                    clear_button = gr.Button("Clear", elem_id="clear", min_width=90, size="md")
            with gr.Column(scale=4, min_width=300, elem_id="side"):
                gr.HTML(
                    "<h2>1. Open an image</h2><p>PNG, JPEG, TIFF, NIfTI, MetaImage or DICOM. It is "
                    "not kept.</p>"
                )
                file = gr.File(show_label=False, height=112, elem_id="open")
                example_button = gr.Button(
                    "Open an example: a synthetic heart", size="md", elem_id="example"
                )
                gr.HTML(
                    "<h2>2. Click on a structure</h2><p>Begin in its middle, then correct the mask "
                    "with further clicks. With Shift, a click marks the opposite.</p>"
                )
                structures = gr.HTML(
                    "",
                    js_on_load=(_HERE / "structures.js").read_text(encoding="utf-8"),
                    elem_id="structures",
                )
                add_button = gr.Button("Add a structure", size="sm", elem_id="add")
                gr.HTML("<h2>3. Take the masks</h2><p>As labels of the image's size.</p>")
                ending = gr.Radio(
                    show_label=False, container=False, visible=False, elem_id="ending"
                )
                download_button = gr.Button(
                    "Download", variant="primary", size="md", elem_id="download"
                )
                mask = gr.JSON(visible=False)
                gr.HTML(f"<h2>Model</h2><p>{escape(model)}</p>")
                adapter = gr.Dropdown(
                    [*predictor.names, _NO_ADAPTER],
                    value=next(iter(predictor.names), _NO_ADAPTER),
                    label="Adapter",
                    visible=bool(predictor.names),
                    elem_id="adapter",
                )

        shows: dict[str, Any] = {
            "outputs": [viewer, caption, frames, structures, ending],
            "show_progress": "hidden",
            "api_visibility": "private",
            # In the order in which a user does things, none of which may be left out.
            "trigger_mode": "multiple",
            "concurrency_id": "model",
            "concurrency_limit": 1,
        }
        slow: dict[str, Any] = {
            **shows,
            "show_progress": "full",
            "show_progress_on": viewer,
            "trigger_mode": "once",
        }
        # Of the frames that a slider passes, the last.
        newest: dict[str, Any] = {**shows, "trigger_mode": "always_last"}
        opened = file.upload(open_file, [file], **slow)
        opened.then(None, outputs=file, js="() => null", api_visibility="private")
        example_button.click(open_example, **slow)
        frames.input(show_frame, [frames], **newest)
        adapter.input(use, [adapter], **slow)
        ending.input(save_as, [ending], **shows)
        viewer.mark(mark, [kind], **shows)
        structures.choose(choose, **shows)
        add_button.click(add_structure, **shows)
        undo_button.click(undo, **shows)
        clear_button.click(clear, **shows)
        download_button.click(
            download, outputs=mask, concurrency_id="model", api_visibility="private"
        ).then(None, mask, js=_SAVE, api_visibility="private")
        made.load(start, **shows)
        made.unload(forget)
    return made


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
