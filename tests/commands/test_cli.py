"""The command `adapterkit`, as a user runs it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from rich.console import Console
from segment_anything.modeling import Sam

import adapterkit as ak
from adapterkit import __main__ as cli
from adapterkit.parts import FeatureAdapter, LoRA
from adapterkit.promptable.stock_sam import save_sam
from tests.conftest import Done
from tests.models import ECHO


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and an adapter of LoRA and feature adapters on it."""
    folder = tmp_path_factory.mktemp("cli")
    sam = ak.build_sam(ECHO, seed=0)
    save_sam(sam, folder / "base.safetensors")
    torch.manual_seed(0)
    ak.inject(sam, [LoRA(2), FeatureAdapter(zero_init=False)])
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    ak.save_adapter(
        sam, folder / "both.safetensors", classes=["left atrium"], training={"epochs": 3}
    )
    return folder


def embedding(sam: Sam) -> torch.Tensor:
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return sam.image_encoder(image)


def test_inspect_shows_parts_base_and_training(folder: Path, run: Callable[..., Done]):
    done = run("inspect", folder / "both.safetensors")
    assert done.status == 0
    for words in ("segment_anything", "256x256", "LoRA(rank=2", "FeatureAdapter(", "left atrium"):
        assert words in done.output
    assert "training: epochs" in done.output


def test_env_tells_versions_machine_and_extras(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
):
    def version_but_of_onnx(package: str) -> str:
        if package == "onnx":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("adapterkit.commands.env.version", version_but_of_onnx)
    done = run("env")
    assert done.status == 0
    told = dict(re.split(r"  +", line, maxsplit=1) for line in done.output.splitlines())
    assert told["adapterkit"] == version("adapterkit")
    assert f"torch {version('torch')}, " in told["packages"]
    assert "export" not in told["extras"].split(", ")
    assert {"files", "train"} <= {*told["extras"].split(", ")}
    assert "of export: onnx" in told["not installed"].split("; ")


def test_methods_are_listed_with_what_they_train(folder: Path, run: Callable[..., Done]):
    done = run("methods", "--checkpoint", folder / "base.safetensors", "--image-size", "64")
    assert done.status == 0
    trained = ak.summary(ak.inject_samus(ak.build_sam(ECHO), 64)).trained_parameters
    row = next(line for line in done.output.splitlines() if "samus" in line)
    assert f"{trained:,}" in row
    assert all(name in done.output for name in ("samus_plus", "samed", "msa", "medsam"))


def test_in_a_narrow_terminal_the_table_of_methods_is_folded_and_not_cut(
    folder: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
):
    module = import_module("adapterkit.commands.methods")
    monkeypatch.setattr(module, "console", Console(width=30))
    done = run("methods", "--checkpoint", folder / "base.safetensors", "--image-size", "64")
    assert "…" not in done.output
    names = "".join(line.split("|")[1].strip() for line in done.output.splitlines() if "|" in line)
    assert all(name in names for name in ("samus_plus", "samed", "msa", "medsam"))


@pytest.mark.slow
def test_the_documented_table_is_what_the_command_prints(run: Callable[..., Done]):
    page = Path(__file__).parents[2] / "docs/reference/methods.md"
    assert run("methods").output.strip() in page.read_text()


def test_merge_leaves_a_base_and_what_cannot_be_merged(
    folder: Path, tmp_path: Path, run: Callable[..., Done]
):
    base, adapter = folder / "base.safetensors", folder / "both.safetensors"
    out = tmp_path / "merged.safetensors"
    done = run("merge", "--checkpoint", base, "--adapter", adapter, "--out", out)
    assert done.status == 0
    merged = ak.load_sam(out)
    rest = tmp_path / "merged.adapter.safetensors"
    assert ak.inspect_adapter(rest).parts == (FeatureAdapter(zero_init=False),)
    assert ak.inspect_adapter(rest).classes == ("left atrium",)
    expected = embedding(ak.load_adapter(ak.load_sam(base), adapter))
    assert not torch.equal(embedding(merged), expected)
    torch.testing.assert_close(embedding(ak.load_adapter(merged, rest)), expected)

    again = run("merge", "--checkpoint", base, "--adapter", adapter, "--out", out)
    assert again.status == f"error: {out} exists; give --force to replace it, or another --out"


def test_convert_makes_an_adapter_of_a_published_checkpoint(
    folder: Path, tmp_path: Path, run: Callable[..., Done]
):
    sam = ak.load_sam(folder / "base.safetensors")
    weights = {key: value.clone() for key, value in sam.state_dict().items()}
    weights["mask_decoder.iou_token.weight"] += 1
    torch.save(weights, tmp_path / "medsam.pth")
    done = run(
        "convert", "--checkpoint", folder / "base.safetensors",
        "--published", tmp_path / "medsam.pth", "--method", "medsam",
        "--out", tmp_path / "medsam.safetensors",
    )  # fmt: skip
    assert done.status == 0
    ak.load_adapter(sam, tmp_path / "medsam.safetensors")
    assert torch.equal(sam.mask_decoder.iou_token.weight, weights["mask_decoder.iou_token.weight"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("inspect nothing.safetensors", "no adapter file at nothing.safetensors"),
        ("inspect base.safetensors", "base.safetensors is a safetensors file without"),
        ("methods --checkpoint both.safetensors", "both.safetensors is not a checkpoint"),
        (
            "merge --checkpoint base.safetensors --adapter both.safetensors "
            "--out nowhere/merged.safetensors",
            "the folder nowhere does not exist",
        ),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Done],
    arguments: str,
    line: str,
):
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(Path().iterdir())
    status = run(*arguments.split()).status
    assert isinstance(status, str)
    assert status.startswith(f"error: {line}")
    assert "\n" not in status
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_fits_a_screen_and_has_an_example(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, columns: str
):
    monkeypatch.setenv("COLUMNS", columns)
    done = run("--help")
    assert done.status == 0
    assert len(done.output.splitlines()) <= 40
    for name, summary in cli.COMMANDS.items():
        assert name in done.output
        done_here = run(name, "--help")
        assert done_here.status == 0
        # A training has as many settings as take three screens.
        assert len(done_here.output.splitlines()) <= (120 if name == "train" else 40), name
        assert f"Example: adapterkit {name} " in " ".join(done_here.output.split())
        docstring = cli.command(name).__doc__ or ""
        assert docstring.splitlines()[0] == summary


def test_each_file_of_commands_is_a_command():
    files = Path(cli.__file__).with_name("commands").glob("[!_]*.py")
    assert {file.stem for file in files} == set(cli.COMMANDS)


def test_a_package_that_is_not_there_is_named(
    folder: Path, tmp_path: Path, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    base = folder / "base.safetensors"
    status = run("export", "--checkpoint", base, "--out", tmp_path / "onnx").status
    assert status == (
        "error: this needs onnxscript, which adapterkit installs on request: "
        'pip install "adapterkit[export]"; see docs/install.md'
    )
    assert not (tmp_path / "onnx").exists()


def test_the_installed_command_helps():
    command = Path(sys.executable).with_name("adapterkit")
    done = subprocess.run([command, "merge", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Example: adapterkit merge" in done.stdout
