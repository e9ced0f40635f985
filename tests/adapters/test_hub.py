"""The commands `adapterkit push` and `pull`, with a Hub of the tests' own."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

import adapterkit as ak
from adapterkit.parts import FeatureAdapter, LoRA
from tests.conftest import Done
from tests.models import ECHO

Run = Callable[..., Done]
TOKEN = "a token that may write"
COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """As much of the Hub as pushing and pulling needs; its repositories are dicts of files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}


class Request(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, b"{}")
        if self.path == "/api/repos/create":
            wanted = json.loads(content)
            repo = f"{wanted['organization']}/{wanted['name']}"
            if repo in self.server.repositories:
                return self.answer(409, json.dumps({"url": f"{self.server.url}/{repo}"}).encode())
            self.server.repositories[repo] = {}
            self.server.visibility[repo] = wanted["visibility"]
            return self.answer(200, json.dumps({"url": f"{self.server.url}/{repo}"}).encode())
        if self.path == "/api/validate-yaml":
            return self.answer(200, b'{"warnings": [], "errors": []}')
        _, _, _, owner, name, what, _ = self.path.split("/")
        if what == "preupload":
            names = [file["path"] for file in json.loads(content)["files"]]
            files = [
                {"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in names
            ]
            return self.answer(200, json.dumps({"files": files}).encode())
        assert what == "commit"
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                file = line["value"]
                repository = self.server.repositories[f"{owner}/{name}"]
                repository[file["path"]] = base64.b64decode(file["content"])
        answer = {
            "commitUrl": f"{self.server.url}/{owner}/{name}/commit/{COMMIT}",
            "commitOid": COMMIT,
        }
        return self.answer(200, json.dumps(answer).encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = self.path.split("?")[0].removeprefix("/api/models").split("/")
        _, owner, name, what, revision, *file = [*words, "revision", "main"][: max(5, len(words))]
        files = self.server.repositories.get(f"{owner}/{name}")
        if files is None:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            told = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [], "tags": []}
            return self.answer(200, json.dumps(told).encode())
        assert what == "resolve"
        content = files.get(file[0])
        if content is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = sha256(content).hexdigest()
        return self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        hub.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "echo.safetensors"
    sam = ak.inject(ak.build_sam(ECHO, seed=0), [LoRA(2), FeatureAdapter()])
    training = {"epochs": 3, "data": "CAMUS | 2CH", "dice": {"left atrium": 0.9}}
    ak.save_adapter(sam, path, classes=["left atrium", "wall"], training=training)
    return path


def test_what_was_pushed_is_pulled(run: Run, hub: Hub, adapter: Path, tmp_path: Path):
    done = run("push", adapter, "anna/echo", "--base", "sam_vit_b_01ec64.pth", "--licence", "mit")
    assert done.status == 0
    assert f"the adapter is at {hub.url}/anna/echo" in done.output
    assert hub.visibility == {"anna/echo": "private"}
    assert hub.repositories["anna/echo"].keys() == {"README.md", "adapter.safetensors"}
    out = tmp_path / "pulled.safetensors"
    done = run("pull", "anna/echo", "--out", out)
    assert done.status == 0
    assert "LoRA, FeatureAdapter" in done.output
    assert out.read_bytes() == adapter.read_bytes()
    assert list(tmp_path.iterdir()) == [out]

    again = run("pull", "anna/echo", "--out", out)
    assert again.status == f"error: {out} exists; give --force to replace it, or another --out"
    assert run("push", adapter, "anna/echo").status == 0
    assert b"sam_vit_b" not in hub.repositories["anna/echo"]["README.md"]


def test_a_model_card_says_what_it_is_and_how_to_use_it(run: Run, hub: Hub, adapter: Path):
    run("push", adapter, "anna/echo", "--base", "anna/sam", "--licence", "mit", "--public")
    assert hub.visibility == {"anna/echo": "public"}
    card = hub.repositories["anna/echo"]["README.md"].decode()
    header: Any = huggingface_hub.ModelCard(card).data
    assert (header.license, header.library_name) == ("mit", "adapterkit")
    assert header.base_model == "anna/sam"
    assert "Not for clinical use" in card
    assert "| structures | left atrium, wall |" in card
    assert "| training: epochs | 3 |" in card
    assert "| training: data | CAMUS \\| 2CH |" in card
    for part in ak.inspect_adapter(adapter).parts:
        assert f"\n{part}\n" in card
    assert "adapterkit pull anna/echo --out adapter.safetensors" in card
    assert 'ak.load_adapter(sam, "adapter.safetensors")' in card


def test_no_hub_is_one_line(
    run: Run, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for command in (
        ("push", adapter, "anna/echo"),
        ("pull", "anna/echo", "--out", tmp_path / "a.safetensors"),
    ):
        status = str(run(*command).status)
        assert status.startswith("error: http://127.0.0.1:9 cannot be reached")
        assert "\n" not in status


def test_what_the_hub_refuses_is_one_line(
    run: Run, hub: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.repositories["anna/empty"] = {}
    save_file({"weight": torch.ones(1)}, tmp_path / "foreign.safetensors")
    foreign = (tmp_path / "foreign.safetensors").read_bytes()
    hub.repositories["anna/foreign"] = {"adapter.safetensors": foreign}
    out = ("--out", tmp_path / "pulled.safetensors")
    mistakes = {
        ("pull", "anna/none", *out): "anna/none is not on http",
        ("pull", "anna/empty", *out): f"anna/empty on {hub.url} has no adapter.safetensors",
        ("pull", "anna/empty", *out, "--revision", "v2"): "has no such revision",
        ("pull", "anna/foreign", *out): "anna/foreign/adapter.safetensors is a safetensors file wi",
        ("pull", "a/b/c", *out): "a/b/c",
        ("push", tmp_path / "nothing", "anna/echo"): "no adapter file at",
        ("push", tmp_path / "foreign.safetensors", "anna/echo"): "without adapterkit's header",
    }
    for command, message in mistakes.items():
        status = str(run(*command).status)
        assert status.startswith("error: ")
        assert message in status
        assert "\n" not in status
    monkeypatch.setenv("HF_TOKEN", "of another")
    status = str(run("push", adapter, "anna/echo").status)
    assert status.startswith(f"error: {hub.url} does not let you do this with anna/echo (401)")
    assert not out[1].exists()
    assert "anna/echo" not in hub.repositories
