"""What the server refuses before a route sees it, and the folder in which its files lie."""

import hmac
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterkit.system.lock import LOCK, locked_folder

SHORTEST_TOKEN = 16
"""Characters that a token has at least."""

_LOOPBACK = "localhost", "127.0.0.1", "[::1]"
_PREFIX = "adapterkit-serve-"
_COOKIE = "adapterkit_token"
_MAX_JSON = 32 * 2**20
"""Bytes of a request that is no upload: the run lengths of a painted mask are the longest."""

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def guards(
    host: str, trusted: Sequence[str], max_upload: int, token: str | None = None
) -> list[Middleware]:
    """Middleware that answers requests which neither this server's page nor its owner makes.

    Args:
        host: the address that the server listens at.
        trusted: further names under which it is reached.
        max_upload: bytes of a file that is uploaded.
        token: what page and programs have to show; None: nothing.
    """
    hosts = {*_LOOPBACK, host, *trusted, *(_own_names() if host in ("0.0.0.0", "::") else ())}
    found = [
        # Another name that leads here is a foreign page's, whose host has rebound it.
        Middleware(TrustedHostMiddleware, allowed_hosts=sorted(hosts), www_redirect=False),
        Middleware(SameOrigin),
        Middleware(BoundedBodies, max_upload=max_upload),
        Middleware(SafeHeaders),
    ]
    return found if token is None else [*found, Middleware(Token, token=token)]


def check_reach(host: str, token: str | None) -> None:
    """Raises ValueError where others can reach a host and no good token keeps them out."""
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ValueError(f"--token has {len(token)} characters: expected {SHORTEST_TOKEN} or more")
    if token is None and not _is_loopback(host):
        raise ValueError(
            f"--host {host} can be reached from other machines: expected --token too, a secret of "
            f"at least {SHORTEST_TOKEN} characters that page and programs have to show"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class SameOrigin:
    """Refuses what a page of another origin asks for: it could not read the answer, but could
    upload and click."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            foreign = origin is not None and urlsplit(origin).netloc != headers.get("host")
            # Pictures and scripts are asked for without an origin; links are followed with it.
            site = headers.get("sec-fetch-site", "none")
            embedded = site not in ("none", "same-origin") and (
                headers.get("sec-fetch-mode") != "navigate" or scope["method"] != "GET"
            )
            if foreign or embedded:
                refusal = JSONResponse({"detail": "asked for by a page of another server"}, 403)
                return await refusal(scope, receive, send)
        await self._app(scope, receive, send)


class Token:
    """Lets those in who show the token: as a bearer, in the page's cookie, or in its address.

    Args:
        app: gets what is not refused.
        token: the secret.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token
        # Who reads the cookie does not have the token.
        self._cookie = hmac.new(token.encode(), b"cookie of adapterkit", sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_let_in(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        path = scope["path"]
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if path == "/login" and scope["method"] == "POST":
            given = await _posted_token(receive)
        if given and _same(given, self._token):
            welcome = RedirectResponse("/", 303)
            welcome.set_cookie(_COOKIE, self._cookie, httponly=True, samesite="strict")
            return await welcome(scope, receive, send)
        if path in ("/", "/login"):
            return await HTMLResponse(_login_page(bool(given)), 401)(scope, receive, send)
        refusal = JSONResponse(
            {"detail": "no valid token: expected the header Authorization: Bearer TOKEN"},
            401,
            {"WWW-Authenticate": "Bearer"},
        )
        return await refusal(scope, receive, send)

    def _is_let_in(self, headers: Headers) -> bool:
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(shown.strip(), self._token):
            return True
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return _COOKIE in cookies and _same(cookies[_COOKIE].value, self._cookie)


def _same(shown: str, expected: str) -> bool:
    return hmac.compare_digest(shown.encode(), expected.encode())


async def _posted_token(receive: Receive) -> str:
    body, more = b"", True
    while more and len(body) < 4096:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return parse_qs(body.decode("latin-1")).get("token", [""])[0]


def _login_page(failed: bool) -> str:
    why = "<p role='alert'>This is not the token.</p>" if failed else ""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>adapterkit</title>
<meta name="viewport" content="width=device-width"><style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
form {{ max-width: 20rem; margin: 20vh auto; display: grid; gap: .7rem; }}
input, button {{ font: inherit; padding: .5rem; }}</style></head>
<body><form method="post" action="/login"><h1>adapterkit</h1>{why}
<label for="token">Token, as given to <code>adapterkit serve --token</code></label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<button>Open</button></form></body></html>"""


class BoundedBodies:
    """Refuses requests that are longer than they may be, or longer than they say.

    Args:
        app: gets what is not refused.
        max_upload: bytes of a file that is uploaded.
    """

    def __init__(self, app: ASGIApp, max_upload: int) -> None:
        self._app = app
        self._max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        upload = headers.get("content-type", "").startswith("multipart/form-data")
        # What surrounds the file, prompts too.
        limit = self._max_upload + 2**20 if upload else _MAX_JSON
        length = headers.get("content-length")
        if length is None and headers.get("transfer-encoding") is not None:
            refusal = JSONResponse({"detail": "a request has to say its length"}, 411)
            return await refusal(scope, receive, send)
        if length is not None and (not length.isdecimal() or int(length) > limit):
            refusal = JSONResponse(
                {"detail": f"too long: expected at most {limit / 2**20:,.0f} MiB"}, 413
            )
            return await refusal(scope, receive, send)
        await self._app(scope, receive, send)


class SafeHeaders:
    """Tells browsers to load and frame nothing of other servers, and to keep nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with)


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


def _own_names() -> set[str]:
    """The name of this machine and its addresses, as far as it knows them."""
    name = socket.gethostname()
    with suppress(OSError):
        return {name, *socket.gethostbyname_ex(name)[2]}
    return {name}
