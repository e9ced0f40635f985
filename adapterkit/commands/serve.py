"""The command `adapterkit serve`."""

import errno
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

import adapterkit as ak


def serve(
    adapter: Annotated[UseAppendAction[tuple[Path, ...]], arg(metavar="FILE")] = (),
    checkpoint: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload: int = 200,
    trust: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = (),
) -> None:
    """Open a web page on which images are segmented by clicks.

    Ctrl+C or SIGTERM ends it. Nothing that is opened there is kept. There is no password: with
    another host than the default, whoever reaches this machine can use the page.

    Example: adapterkit serve --checkpoint sam_vit_b_01ec64.pth --adapter echo.safetensors

    Args:
        adapter: an adapter file; give the option again for each further one.
        checkpoint: the Segment Anything model that they fit: a file, a folder, or a name on the
            Hugging Face Hub; by default the small one that comes with adapterkit.
        host: address to listen at.
        port: to listen at.
        max_upload: the largest image file that can be opened, in MiB.
        trust: a name by which browsers reach the page, beside localhost and the host, as where a
            container or a proxy has another; give the option again for each further one.
    """
    if max_upload < 1:
        raise ValueError(f"--max-upload {max_upload}: expected a size in MiB, at least 1")
    _check_free(host, port)
    from adapterkit.web.guards import MAX_KEPT
    from adapterkit.web.page import serving

    base = ak.mini_sam() if checkpoint is None else ak.load(checkpoint)
    predictor = ak.Predictor(base)
    for file in adapter:
        predictor.load(file)
    limit = max_upload * 2**20
    about, kept = describe(checkpoint, adapter), max(MAX_KEPT, 4 * limit)
    with _unwound(), serving(predictor, about, host, port, limit, trust, kept) as url:
        print(f"the page is at {url} (Ctrl+C ends it)", flush=True)
        threading.Event().wait()


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
