"""Tests of what the server of the page refuses, over HTTP, and of the folder of its files."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import adapterkit as ak
from adapterkit.system.lock import LOCK
from adapterkit.web.guards import guards, server_folder
from adapterkit.web.page import serving
from tests.models import ECHO
from tests.web.test_web import HERE, free_port

UPLOAD = "gradio_api/upload"
MIB = 2**20


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tmp_path_factory.getbasetemp()  # Made now, or it would lie in the server's folder.
    predictor = ak.Predictor(ak.build_sam(ECHO))
    trusted = ("echo.example",)
    with serving(predictor, "", HERE, free_port(), MIB, trusted, max_kept=3 * MIB) as address:
        yield address


def uploads() -> list[Path]:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    return [path for path in folder.rglob("*") if path.is_file()]


def files(size: int, name: str = "a.png") -> dict[str, tuple[str, bytes]]:
    """What `httpx` uploads: a file whose bytes are of its own."""
    return {"files": (name, os.urandom(size))}


# Who may ask


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1", 200),
    ("localhost", 200),
    ("localhost:{port}", 200),
    ("[::1]:{port}", 200),
    ("echo.example", 200),
    ("ECHO.example:{port}", 200),
    ("evil.example", 400),
    ("evil.example:{port}", 400),
    ("127.0.0.1.evil.example", 400),
    ("localhost@evil.example", 400),
    ("192.0.2.1", 400),
    ("", 400),
])  # fmt: skip
def test_only_trusted_hosts_are_answered(address: str, host: str, status: int):
    port = address.rstrip("/").rpartition(":")[2]
    answer = httpx.get(address + "config", headers={"Host": host.format(port=port)})
    assert answer.status_code == status


@pytest.mark.parametrize("path", [UPLOAD, "gradio_api/queue/join", "gradio_api/run/start", "login"])
@pytest.mark.parametrize("origin", [
    "http://evil.example", "https://127.0.0.1.evil.example", "null", "", "http://127.0.0.1:1",
    "http://localhost:3000", "file://",
])  # fmt: skip
def test_what_a_foreign_page_asks_for_is_refused(address: str, path: str, origin: str):
    answer = httpx.post(address + path, files=files(100), headers={"Origin": origin})
    assert (answer.status_code, answer.text) == (403, "asked for by a page of another server")
    assert uploads() == []


@pytest.mark.parametrize("origin", [None, "own"])
def test_the_page_itself_may_ask(address: str, origin: str | None):
    headers = {"Origin": address.rstrip("/")} if origin else {}
    answer = httpx.post(address + UPLOAD, files=files(100), headers=headers)
    assert answer.status_code == 200
    (path,) = uploads()
    assert [str(path)] == answer.json()
    path.unlink()


# What lies on disk


def test_uploads_are_bounded_and_the_oldest_forgotten_one_makes_way(address: str):
    def upload() -> httpx.Response:
        return httpx.post(address + UPLOAD, files=files(MIB - 1000))

    assert [upload().status_code for _ in range(3)] == [200] * 3
    refused = upload()
    assert refused.status_code == 507
    assert refused.text == (
        "more than 3 MiB of uploads would lie on the server: try again in a minute"
    )
    oldest, *others = sorted(uploads(), key=lambda path: path.stat().st_mtime)
    assert len(others) == 2
    os.utime(oldest, (0, time.time() - 61))
    assert upload().status_code == 200
    assert {*others} < {*uploads()}
    assert not oldest.exists()
    for path in uploads():
        path.unlink()


def test_an_upload_says_its_length(address: str):
    def body() -> Iterator[bytes]:
        yield b"--x\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(address + UPLOAD, content=body(), headers=kind)
    assert (answer.status_code, answer.text) == (411, "an upload has to say its length")


@pytest.mark.parametrize("path", [
    "gradio_api/file=/etc/passwd",
    "gradio_api/file=%2Fetc%2Fpasswd",
    "gradio_api/file=/etc/../etc/passwd",
    "gradio_api/file=../../../../../../etc/passwd",
    "gradio_api/file=file:///etc/passwd",
    "gradio_api/file//etc/passwd",
    "gradio_api/file/%2Fetc%2Fpasswd",
    "gradio_api/file={beside}",
    "gradio_api/file={folder}/../" + LOCK,
    "gradio_api/file={own}",
    "file=/etc/passwd",
    "static/../../../../../../etc/passwd",
    "static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "static/%2Fetc%2Fpasswd",
    "assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "gradio_api/custom_component/1/client/component/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "gradio_api/proxy=http://127.0.0.1:1/",
    "gradio_api/proxy=http://169.254.169.254/latest/meta-data/",
    "gradio_api/proxy=file:///etc/passwd",
    "gradio_api/deep_link?session_hash=..%2f..%2fetc%2fpasswd",
    "monitoring",
    "monitoring/summary",
    "gradio_api/runs",
])  # fmt: skip
def test_no_other_file_or_server_is_shown(address: str, tmp_path: Path, path: str):
    secret = tmp_path / "secret.png"
    secret.write_text("root:secret")
    places = {
        "folder": os.environ["GRADIO_TEMP_DIR"],
        "beside": secret,
        "own": Path(__file__),
    }
    # As it stands, since httpx would resolve it.
    url = httpx.URL(address).copy_with(raw_path=b"/" + path.format(**places).encode())
    answer = httpx.get(url)
    assert answer.status_code >= 400 or answer.json() == ""
    assert "root:" not in answer.text


@pytest.mark.parametrize("data", [
    {"path": "/etc/passwd"},
    {"path": "{own}"},
    {"path": "http://127.0.0.1:1/a.png", "url": "http://127.0.0.1:1/a.png"},
])  # fmt: skip
def test_an_event_takes_only_what_was_uploaded(address: str, data: dict[str, str]):
    config: dict[str, Any] = httpx.get(address + "config").json()
    (opening,) = (
        each["id"] for each in config["dependencies"] if each["targets"][0][1] == "upload"
    )
    given = {key: value.format(own=__file__) for key, value in data.items()}
    file = {**given, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    event = {"data": [file], "fn_index": opening, "session_hash": "it"}
    assert httpx.post(address + "gradio_api/queue/join", json=event).status_code == 200
    told = ""
    with httpx.stream("GET", f"{address}gradio_api/queue/data?session_hash=it") as lines:
        for line in lines.iter_lines():
            told += line
            if "process_completed" in line:
                break
    assert '"success":false' in told
    assert "root:" not in told
    assert Path("/etc/passwd").exists()
    assert Path(__file__).exists()
    assert uploads() == []


# The folder

HOLDER = """
import sys, threading
from adapterkit.commands.serve import _unwound
from adapterkit.web.guards import guards, server_folder
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


@pytest.mark.slow
def test_serve_leaves_nothing_when_it_is_terminated(tmp_path: Path):
    port = free_port()
    command = [sys.executable, "-m", "adapterkit", "serve", "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert f"http://{HERE}:{port}/" in server.stdout.readline()
        answer = httpx.post(f"http://{HERE}:{port}/{UPLOAD}", files=files(100))
        (path,) = answer.json()
        assert tmp_path in Path(path).parents
        server.terminate()
        assert server.wait(20) == -signal.SIGTERM
    assert [path for path in tmp_path.iterdir() if path.name.startswith("adapterkit")] == []


def test_a_wildcard_host_is_reached_by_this_machines_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.gethostname", lambda: "station")
    monkeypatch.setattr("socket.gethostbyname_ex", lambda name: (name, [], ["10.1.2.3"]))

    def allowed(host: str) -> Any:
        return guards(host, (), Path(), 1)[0].kwargs["allowed_hosts"]

    assert allowed("0.0.0.0") == ["0.0.0.0", "10.1.2.3", HERE, "[::1]", "localhost", "station"]
    assert allowed(HERE) == [HERE, "[::1]", "localhost"]
