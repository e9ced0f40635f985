"""Tests of what the server refuses, of its token, and of the folder of its files."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import adapterkit as ak
from adapterkit.system.lock import LOCK
from adapterkit.web.guards import check_reach, guards, server_folder
from adapterkit.web.model import Model
from adapterkit.web.server import Service, serving
from tests.models import ECHO
from tests.processes import ROOT
from tests.web.served import HERE, free_port

MIB = 2**20
TOKEN = "a long secret of adapterkit"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def guarded(token: str | None = None) -> TestClient:
    """Of an application behind the guards, which answers how much it was sent."""
    app = Starlette(
        routes=[Route("/{path:path}", echo, methods=["GET", "POST", "DELETE"])],
        middleware=guards(HERE, ("echo.example",), MIB, token),
    )
    return TestClient(app, base_url=f"http://{HERE}:7860", follow_redirects=False)


# Who may ask


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1", 200),
    ("localhost", 200),
    ("localhost:7860", 200),
    ("[::1]:7860", 200),
    ("echo.example", 200),
    ("ECHO.example:7860", 200),
    ("evil.example", 400),
    ("evil.example:7860", 400),
    ("127.0.0.1.evil.example", 400),
    ("localhost@evil.example", 400),
    ("192.0.2.1", 400),
    ("", 400),
])  # fmt: skip
def test_only_trusted_hosts_are_answered(host: str, status: int):
    assert guarded().get("/api/state", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("path", ["/api/images", "/api/v1/segment", "/login"])
@pytest.mark.parametrize("origin", [
    "http://evil.example", "https://127.0.0.1.evil.example", "null", "", "http://127.0.0.1:1",
    "http://localhost:3000", "file://",
])  # fmt: skip
def test_what_a_foreign_page_asks_for_is_refused(path: str, origin: str):
    answer = guarded().post(path, headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.json() == {"detail": "asked for by a page of another server"}


@pytest.mark.parametrize(("site", "mode", "status"), [
    ("cross-site", "no-cors", 403),
    ("same-site", "cors", 403),
    ("cross-site", "navigate", 200),
    ("same-origin", "cors", 200),
    ("none", "navigate", 200),
])  # fmt: skip
def test_a_foreign_page_cannot_show_images_of_this_server(site: str, mode: str, status: int):
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    answer = guarded().get("/api/images/a/frames/0/picture", headers=headers)
    assert answer.status_code == status


@pytest.mark.parametrize("origin", [None, f"http://{HERE}:7860"])
def test_the_page_itself_may_ask(origin: str | None):
    headers = {"Origin": origin} if origin else {}
    answer = guarded().post("/api/images", content=b"abc", headers=headers)
    assert (answer.status_code, answer.text) == (200, "3")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"


# With a token


@pytest.mark.parametrize("path", ["/api/state", "/api/v1/adapters", "/docs", "/static/app.js"])
@pytest.mark.parametrize("headers", [
    {},
    {"Authorization": "Bearer "},
    {"Authorization": "Bearer wrong"},
    {"Authorization": f"Basic {TOKEN}"},
    {"Authorization": TOKEN},
    {"Cookie": f"adapterkit_token={TOKEN}"},
    {"Cookie": "adapterkit_token="},
    {"Cookie": "\x01;;="},
])  # fmt: skip
def test_without_the_token_there_is_nothing(path: str, headers: dict[str, str]):
    answer = guarded(TOKEN).get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer TOKEN" in answer.json()["detail"]


def test_the_token_lets_programs_in_and_the_page_by_a_cookie():
    client = guarded(TOKEN)
    answer = client.get("/api/state", headers={"Authorization": f"bearer {TOKEN}"})
    assert answer.status_code == 200
    asked = client.get("/")
    assert (asked.status_code, 'name="token"' in asked.text) == (401, True)
    wrong = client.post("/login", data={"token": "no"})
    assert (wrong.status_code, "This is not the token" in wrong.text) == (401, True)
    let_in = client.post("/login", data={"token": TOKEN})
    assert (let_in.status_code, let_in.headers["location"]) == (303, "/")
    cookie = let_in.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert client.get("/api/state").status_code == 200
    by_address = guarded(TOKEN)
    # Not to stay in the address, where others see it.
    assert by_address.get("/", params={"token": TOKEN}).headers["location"] == "/"
    assert by_address.get("/").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.3", "station"])
def test_what_others_can_reach_needs_a_token(host: str):
    with pytest.raises(ValueError, match="can be reached from other machines: expected --token"):
        check_reach(host, None)
    with pytest.raises(ValueError, match="--token has 5 characters: expected 16 or more"):
        check_reach(host, "short")
    check_reach(host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_the_loopback_needs_none(host: str):
    check_reach(host, None)


# How much


def test_requests_are_bounded_and_say_their_length():
    def body() -> Iterator[bytes]:
        yield b"abc"

    client = guarded()
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/a", content=bytes(MIB), headers=multipart).status_code == 200
    answer = client.post("/a", content=bytes(2 * MIB + 1), headers=multipart)
    assert (answer.status_code, answer.json()["detail"]) == (
        413,
        "too long: expected at most 2 MiB",
    )
    assert client.post("/a", content=bytes(33 * MIB)).status_code == 413
    answer = client.post("/a", content=body(), headers={"Transfer-Encoding": "chunked"})
    assert (answer.status_code, answer.json()["detail"]) == (411, "a request has to say its length")
    for length in ("-1", "1e3", ""):
        assert (
            client.post("/a", content=b"a", headers={"Content-Length": length}).status_code == 413
        )


# The folder

HOLDER = """
import sys, threading
from adapterkit.commands.serve import _unwound
from adapterkit.web.guards import server_folder
with _unwound(), server_folder() as folder:
    (folder / "upload.png").write_bytes(b"a")
    print(folder, flush=True)
    threading.Event().wait()
"""


@pytest.fixture
def holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Two processes that each hold a folder in `tmp_path`, and these."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    found = []
    for process in started:
        assert process.stdout is not None
        found.append((process, Path(process.stdout.readline().strip())))
    yield found
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_signal_removes_the_folder_as_an_interruption_does(holders: list[Any]):
    for (process, folder), number in zip(holders, [signal.SIGTERM, signal.SIGHUP], strict=True):
        assert (folder / "upload.png").exists()
        process.send_signal(number)
        # By the signal itself, which is how a service manager knows that all is well.
        assert process.wait(10) == -number
        assert not folder.parent.exists()


def test_a_start_removes_what_a_killed_server_left_and_nothing_else(
    holders: list[Any], tmp_path: Path
):
    (killed, left), (_, living) = holders
    killed.kill()
    killed.wait()
    starting = tmp_path / "adapterkit-serve-starting"
    others = tmp_path / "others"
    for each in (starting, others):
        each.mkdir()
        (each / LOCK).touch()
    (others / LOCK).write_text("{}")
    link = tmp_path / "adapterkit-serve-link"
    link.symlink_to(others)
    assert (left / "upload.png").exists()
    with server_folder() as folder:
        assert not left.parent.exists()
        expected = {folder.parent, living.parent, starting, others, link}
        assert {*tmp_path.iterdir()} == expected
        assert (living / "upload.png").exists()
        assert (others / LOCK).exists()
    assert not folder.parent.exists()


SERVE = [sys.executable, "-m", "adapterkit", "serve"]


@pytest.mark.slow
def test_serve_leaves_nothing_when_it_is_terminated(tmp_path: Path):
    port = free_port()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [*SERVE, "--port", str(port)]
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert f"http://{HERE}:{port}/" in server.stdout.readline()
        answer = httpx.post(f"http://{HERE}:{port}/api/example", timeout=60)
        assert answer.json()["id"] == "synthetic_heart"
        assert [*tmp_path.rglob("synthetic_heart.nii.gz")]
        server.terminate()
        assert server.wait(20) == -signal.SIGTERM
    assert [path for path in tmp_path.iterdir() if path.name.startswith("adapterkit")] == []


def test_a_wildcard_host_is_reached_by_this_machines_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.gethostname", lambda: "station")
    monkeypatch.setattr("socket.gethostbyname_ex", lambda name: (name, [], ["10.1.2.3"]))

    def allowed(host: str) -> Any:
        return guards(host, (), 1)[0].kwargs["allowed_hosts"]

    assert allowed("0.0.0.0") == ["0.0.0.0", "10.1.2.3", HERE, "[::1]", "localhost", "station"]
    assert allowed(HERE) == [HERE, "[::1]", "localhost"]


@pytest.mark.slow
def test_a_browser_logs_in(browser: Any):
    model = Model(ak.Predictor(ak.build_sam(ECHO)))
    with serving(Service(model, port=free_port(), token=TOKEN)) as address:
        tab = browser.new_page()
        tab.goto(address)
        tab.fill("#token", "something else, as long")
        tab.click("button")
        tab.get_by_text("This is not the token").wait_for()
        tab.fill("#token", TOKEN)
        with tab.expect_response(lambda answer: answer.url.endswith("/api/state")) as state:
            tab.click("button")
        assert state.value.status == 200
        tab.close()
