"""The command `adapterkit serve`."""

import errno
import getpass
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

import adapterkit as ak


def serve(
    folder: Positional[Path | None] = None,
    adapter: Annotated[UseAppendAction[tuple[Path, ...]], arg(metavar="FILE")] = (),
    checkpoint: Path | None = None,
    annotator: str | None = None,
    group: str | None = None,
    device: str = "cpu",
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    max_upload: int = 200,
    trust: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = (),
) -> None:
    """Annotate images in a browser, train on them, and annotate the rest faster.

    With a folder, its images are a work list: masks by the adapter in use are there at once,
    clicks, boxes, brush and eraser correct them, and accepted ones lie in FOLDER/masks, so that
    `adapterkit train FOLDER` takes the folder as it is. Every change is on disk at once. Without a
    folder, images are uploaded, and nothing is kept.

    Other programs get masks from the same server; what they can ask is at /docs. Ctrl+C or SIGTERM
    ends it, and stops a training, which can go on later.

    Example: adapterkit serve scans --checkpoint sam_vit_b_01ec64.pth --adapter echo.safetensors

    Args:
        folder: images, in it or its folder images; masks there count as accepted.
        adapter: an adapter file.
        checkpoint: their base: a file, folder or Hub name; without, the small model.
        annotator: who accepts masks; by default the user's name.
        group: a regular expression for what a patient's images share in their names; by default
            the subfolder.
        device: where the model computes.
        host: address to listen at; others than this machine's need --token.
        port: to listen at.
        token: a secret to ask for, of at least 16 characters.
        max_upload: the largest file that can be uploaded, in MiB.
        trust: a further name by which browsers reach the page.
    """
    if max_upload < 1:
        raise ValueError(f"--max-upload {max_upload}: expected a size in MiB, at least 1")
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: expected one that holds images")
    from adapterkit.web.guards import check_reach

    check_reach(host, token)
    _check_free(host, port)
    from adapterkit.web.model import Model
    from adapterkit.web.server import MAX_KEPT, Service, serving

    base = ak.mini_sam() if checkpoint is None else ak.load(checkpoint)
    predictor = ak.Predictor(base.to(device))
    files = {predictor.load(file): file for file in adapter}
    limit = max_upload * 2**20
    service = Service(
        model=Model(predictor, files),
        about=describe(checkpoint, adapter),
        folder=folder,
        annotator=_user() if annotator is None else annotator,
        host=host,
        port=port,
        token=token,
        trusted=trust,
        max_upload=limit,
        max_kept=max(MAX_KEPT, 4 * limit),
        checkpoint=checkpoint,
        group=group,
    )
    with _unwound(), serving(service) as url, closing(service.model):
        print(f"the page is at {url} (Ctrl+C ends it)", flush=True)
        threading.Event().wait()


def _user() -> str:
    """Whose process this is; "" where the system does not know."""
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return ""


def describe(checkpoint: Path | None, adapters: tuple[Path, ...]) -> str:
    """What the page says about the model."""
    if checkpoint is not None:
        return f"{checkpoint.name}, {'with' if adapters else 'without'} adapters."
    if adapters:
        return "The small Sam that comes with adapterkit, with adapters."
    return (
        "The small Sam that comes with adapterkit, without an adapter. It has seen procedural "
        "scenes and no medical image, so expect to correct it; an adapter trained on images like "
        "yours does better."
    )


@contextmanager
def _unwound() -> Iterator[None]:
    """What asks the process to end unwinds the block first, as Ctrl+C does; then it ends by it."""
    asked = []

    def unwind(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        asked.append(number)
        sys.exit()

    numbers = signal.SIGTERM, signal.SIGHUP
    # Not one that is ignored, as nohup does with SIGHUP.
    before = [each for each in numbers if signal.getsignal(each) == signal.SIG_DFL]
    for each in before:
        signal.signal(each, unwind)
    try:
        yield
    finally:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        for number in asked:
            signal.raise_signal(number)


def _check_free(host: str, port: int) -> None:
    """Raises OSError, or ValueError, where one cannot listen."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port {port}: expected 1 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} of {host} is in use; choose another with --port") from error
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror}") from error
