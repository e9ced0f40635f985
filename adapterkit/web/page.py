"""The page: what is on it, which event does what, and the server that shows it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default

from adapterkit.inference.predictor import Predictor
from adapterkit.web.events import INSIDE, NO_ADAPTER, OUTSIDE, Events, Shown
from adapterkit.web.guards import MAX_KEPT, guards, server_folder

_HERE = Path(__file__).parent

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
    predictor: Predictor,
    model: str,
    host: str,
    port: int,
    max_upload: int,
    trusted: Sequence[str] = (),
    max_kept: int = MAX_KEPT,
) -> Iterator[str]:
    """Serves the page while the block runs; no file of it outlives the block.

    Requests are answered that name this machine's loopback, `host` or a trusted name, and that no
    page of another server makes.

    Args:
        predictor: the model and the adapters to choose from; not to be used otherwise meanwhile.
        model: what the page says about the model, in a sentence.
        host: the address to listen at.
        port: a free one.
        max_upload: the size of a file that may be opened, in bytes.
        trusted: further names under which browsers reach the server.
        max_kept: the size of all files that wait to be opened, in bytes. The oldest make way, if
            they have waited for a minute; otherwise an upload is refused.

    Yields:
        The page's address.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    with server_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
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
                css=_read("page.css"),
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
                app_kwargs={"middleware": guards(host, trusted, folder, max_kept)},
            )
            yield address
        finally:
            made.close(verbose=False)
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def page(predictor: Predictor, model: str) -> gr.Blocks:
    """The page, not served yet. Each browser tab that shows it has a `Session` of its own.

    Args:
        predictor: as `serving` takes it.
        model: as `serving` takes it.
    """
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
                viewer, caption, frames = _image()
                with gr.Row(elem_id="tools"):
                    kind, undo, clear = _tools()
            with gr.Column(scale=4, min_width=300, elem_id="side"):
                file, example = _open()
                structures, add = _structures()
                ending, download, content = _download()
                adapter = _model(model, predictor.names)

        shown = Shown(viewer, caption, frames, structures, ending)
        events = Events(predictor, shown)
        shows: dict[str, Any] = {
            "outputs": shown.components,
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
        opened = file.upload(events.open_file, [file], **slow)
        opened.then(None, outputs=file, js="() => null", api_visibility="private")
        example.click(events.open_example, **slow)
        frames.input(events.show_frame, [frames], **newest)
        adapter.input(events.use, [adapter], **slow)
        ending.input(events.save_as, [ending], **shows)
        viewer.mark(events.mark, [kind], **shows)
        structures.choose(events.choose, **shows)
        add.click(events.add_structure, **shows)
        undo.click(events.undo, **shows)
        clear.click(events.clear, **shows)
        download.click(
            events.download, outputs=content, concurrency_id="model", api_visibility="private"
        ).then(None, content, js=_SAVE, api_visibility="private")
        made.load(events.start, **shows)
        made.unload(events.forget)
    return made


# What is on the page


def _image() -> tuple[gr.HTML, gr.HTML, gr.Slider]:
    """The image with masks and clicks, what is said of it, and the choice of its frame."""
    viewer = gr.HTML(
        "",
        html_template=_read("viewer.html"),
        js_on_load=_read("viewer.js"),
        elem_id="viewer",
        image="",
        width=1,
        height=1,
    )
    caption = gr.HTML("", elem_id="caption")
    frames = gr.Slider(1, 2, 1, step=1, label="Frame", visible=False, elem_id="frames")
    return viewer, caption, frames


def _tools() -> tuple[gr.Radio, gr.Button, gr.Button]:
    """What a click marks; undo and clear."""
    kind = gr.Radio(
        [INSIDE, OUTSIDE], value=INSIDE, label="A click marks what is …", elem_id="kind", scale=3
    )
    undo = gr.Button("Undo", elem_id="undo", min_width=90, size="md")
    clear = gr.Button("Clear", elem_id="clear", min_width=90, size="md")
    return kind, undo, clear


def _open() -> tuple[gr.File, gr.Button]:
    """Where files are dropped, and the example."""
    gr.HTML(
        "<h2>1. Open an image</h2><p>PNG, JPEG, TIFF, NIfTI, MetaImage or DICOM. It is not kept."
        "</p>"
    )
    file = gr.File(show_label=False, height=112, elem_id="open")
    return file, gr.Button("Open an example: a synthetic heart", size="md", elem_id="example")


def _structures() -> tuple[gr.HTML, gr.Button]:
    """The list of structures, and the button for one more."""
    gr.HTML(
        "<h2>2. Click on a structure</h2><p>Begin in its middle, then correct the mask with "
        "further clicks. With Shift, a click marks the opposite.</p>"
    )
    structures = gr.HTML("", js_on_load=_read("structures.js"), elem_id="structures")
    return structures, gr.Button("Add a structure", size="sm", elem_id="add")


def _download() -> tuple[gr.Radio, gr.Button, gr.JSON]:
    """The masks' format, the button, and what takes the file's content to the browser."""
    gr.HTML("<h2>3. Take the masks</h2><p>As labels of the image's size.</p>")
    ending = gr.Radio(show_label=False, container=False, visible=False, elem_id="ending")
    download = gr.Button("Download", variant="primary", size="md", elem_id="download")
    return ending, download, gr.JSON(visible=False)


def _model(model: str, adapters: Sequence[str]) -> gr.Dropdown:
    """What is said of the model, and the choice of its adapter."""
    gr.HTML(f"<h2>Model</h2><p>{escape(model)}</p>")
    return gr.Dropdown(
        [*adapters, NO_ADAPTER],
        value=next(iter(adapters), NO_ADAPTER),
        label="Adapter",
        visible=bool(adapters),
        elem_id="adapter",
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
