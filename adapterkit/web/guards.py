"""What the server refuses before gradio sees it, and the folder in which its files lie."""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterkit.system.lock import LOCK, locked_folder

MAX_KEPT = 2 * 2**30
"""Bytes of uploads that may lie on disk at a time, by default."""

_LOOPBACK = "localhost", "127.0.0.1", "[::1]"
_PREFIX = "adapterkit-serve-"
_IN_USE = 60
"""Seconds in which an upload is read, unless its page was closed."""


def guards(host: str, trusted: Sequence[str], folder: Path, max_kept: int) -> list[Middleware]:
    """Middleware that answers requests which no page of this server makes.

    Args:
        host: the address that the server listens at.
        trusted: further names under which it is reached.
        folder: where uploads lie.
        max_kept: how many bytes of them at most.
    """
    hosts = {*_LOOPBACK, host, *trusted, *(_own_names() if host == "0.0.0.0" else ())}
    return [
        # Another name that leads here is a foreign page's, whose host has rebound it.
        Middleware(TrustedHostMiddleware, allowed_hosts=sorted(hosts), www_redirect=False),
        Middleware(SameOrigin),
        Middleware(BoundedUploads, folder=folder, max_kept=max_kept),
    ]


class SameOrigin:
    """Refuses what a page of another origin asks for: it could not read the answer, but could
    upload and click."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers.get("host"):
                refusal = PlainTextResponse("asked for by a page of another server", 403)
                return await refusal(scope, receive, send)
        await self._app(scope, receive, send)


class BoundedUploads:
    """Refuses an upload for which there is no room, once the oldest forgotten ones are removed.

    Args:
        app: gets what is not refused.
        folder: where uploads lie.
        max_kept: how many bytes of them at most.
    """

    def __init__(self, app: ASGIApp, folder: Path, max_kept: int) -> None:
        self._app = app
        self._folder = folder
        self._max_kept = max_kept
        self._coming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        if not headers.get("content-type", "").startswith("multipart/form-data"):
            return await self._app(scope, receive, send)
        length = headers.get("content-length", "")
        if not length.isdecimal():
            refusal = PlainTextResponse("an upload has to say its length", 411)
            return await refusal(scope, receive, send)
        if not self._make_room(int(length)):
            refusal = PlainTextResponse(
                f"more than {self._max_kept / 2**20:,.0f} MiB of uploads would lie on the server: "
                "try again in a minute",
                507,
            )
            return await refusal(scope, receive, send)
        self._coming += int(length)
        try:
            await self._app(scope, receive, send)
        finally:
            self._coming -= int(length)

    def _make_room(self, size: int) -> bool:
        kept = sorted((state.st_mtime, state.st_size, path) for path, state in _files(self._folder))
        free = self._max_kept - self._coming - sum(each for _, each, _ in kept)
        for modified, each, path in kept:
            if free >= size or modified > time.time() - _IN_USE:
                break
            path.unlink(missing_ok=True)
            free += each
        return free >= size


@contextmanager
def server_folder() -> Iterator[Path]:
    """A temporary folder that goes with the block; those of this user's killed servers go too.

    While the block runs, all temporary files of this process lie in it.
    """
    with locked_folder(folder := Path(tempfile.mkdtemp(prefix=_PREFIX))):
        before = tempfile.tempdir
        try:
            _remove_abandoned(folder.parent)
            files = folder / "files"
            files.mkdir()
            tempfile.tempdir = str(files)
            yield files
        finally:
            tempfile.tempdir = before
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove folders of servers that no longer run; one without a lock may just be starting."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # A lock's file is empty until it is locked. What cannot be removed is not this user's.
        with suppress(OSError):
            own = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            if own and (folder / LOCK).stat().st_size:
                with locked_folder(folder):
                    shutil.rmtree(folder)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # It has been read and removed meanwhile.
            if path.is_file():
                yield path, path.stat()


def _own_names() -> set[str]:
    """The name of this machine and its addresses, as far as it knows them."""
    name = socket.gethostname()
    with suppress(OSError):
        return {name, *socket.gethostbyname_ex(name)[2]}
    return {name}
