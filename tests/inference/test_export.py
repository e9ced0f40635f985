"""Exports answer as the model does, in onnxruntime and in PyTorch alone."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit import __main__ as cli
from adapterkit.data.synthetic.scenes import draw_scene
from adapterkit.parts import FeatureAdapter, LoRA, Train
from adapterkit.promptable.points import boxes_around
from adapterkit.promptable.stock_sam import SamConfig, save_sam
from tests.models import snapshot

SMALL = SamConfig(
    width=16,
    depth=2,
    num_heads=2,
    global_blocks=(1,),
    window_size=5,
    image_size=256,
    prompt_width=32,
    decoder_mlp_width=32,
    iou_head_width=16,
)
"""A block that attends within several windows, which it fills up, and one that attends globally."""

PARTS = [
    *ak.methods.parts_of("samus", image_size=64),
    LoRA(2),
    FeatureAdapter(at="attn_out", zero_init=False),
    Train("mask_decoder"),
    Train("prompt_encoder"),
]
"""What the published methods are made of, all of it."""

Run = Callable[..., list[Tensor]]


def adapted(config: SamConfig, parts: Sequence[Any]) -> Sam:
    """A Sam with these parts, none of which is as it starts."""
    torch.manual_seed(0)
    return started(ak.inject(ak.build_sam(config, seed=0), parts))


def started(sam: Sam) -> Sam:
    """With what is trained moved away from where it starts."""
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return sam.eval()


@contextmanager
def without_shape_checks() -> Iterator[None]:
    """A tracer's shapes are no numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def export(sam: Sam, folder: Path, **options: Any) -> Path:
    before = snapshot(sam)
    with without_shape_checks():
        ak.export(sam, folder, **options)
    assert snapshot(sam) == before
    return folder


def onnx(folder: Path, name: str) -> Run:
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")

    def call(*inputs: Tensor) -> list[Tensor]:
        names = [each.name for each in session.get_inputs()]
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return [torch.from_numpy(each) for each in session.run(None, given)]

    return call


def pt2(folder: Path, name: str) -> Run:
    module = torch.export.load(folder / f"{name}.pt2").module()

    def call(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            found = module(*inputs)
        return [found] if isinstance(found, Tensor) else list(found)

    return call


def check(sam: Sam, encoder: Run, decoder: Run, tolerance: float = 1e-4) -> None:
    """The same embeddings and masks, for prompts of every kind, in every number."""
    segmenter = ak.Segmenter(sam)
    side = segmenter.image_size
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return side * torch.rand(*shape, generator=draw)

    def close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        torch.testing.assert_close(list(found), list(expected), rtol=0, atol=tolerance)

    def boxes_of(corners: Tensor) -> Tensor:
        return corners.unflatten(-1, (2, 2)).sort(dim=-2).values.flatten(-2)

    for batch in (1, 2):
        images = 255 * torch.rand(batch, 3, side, side, generator=draw)
        with torch.no_grad():
            embedding = segmenter.encode(images)
            image = embedding.image
        close(encoder(images), [image])
        low_res = 4 * image.shape[-1]
        for number in (1, 2, 3):
            k = 3 - batch + number % 2
            points, boxes = (random(batch, k, number, 2) - 0.5), boxes_of(random(batch, k, 4))
            labels = torch.arange(batch * k * number).view(batch, k, number) % 3 - 1
            masks = torch.randn(batch, k, low_res, low_res, generator=draw)
            padded = torch.cat([points, torch.zeros(batch, k, 1, 2)], dim=2)
            padded_labels = torch.cat([labels, torch.full((batch, k, 1), -1)], dim=2)
            corners = torch.cat([points, boxes.view(batch, k, 2, 2)], dim=2)
            corner_labels = torch.cat([labels, torch.tensor([2, 3]).expand(batch, k, 2)], dim=2)
            no, yes = torch.zeros(batch, k), torch.ones(batch, k)
            with torch.no_grad():
                of_points = segmenter.decode(embedding, ak.Prompts(points, labels))
                of_both = segmenter.decode(embedding, ak.Prompts(points, labels, boxes, masks))
                of_boxes = segmenter.decode(embedding, ak.Prompts(boxes=boxes))
            # A mask that does not count can be anything.
            close(
                decoder(image, padded, padded_labels, masks, no),
                [of_points.all_logits, of_points.all_iou],
            )
            close(
                decoder(image, corners, corner_labels, masks, yes),
                [of_both.all_logits, of_both.all_iou],
            )
            box_alone = corners[:, :, number:], corner_labels[:, :, number:]
            close(decoder(image, *box_alone, masks, no), [of_boxes.all_logits, of_boxes.all_iou])


@dataclass(frozen=True)
class Exported:
    sam: Sam
    files: Path
    """The base and the adapter."""
    onnx: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model with every part, and its export by the command."""
    folder = tmp_path_factory.mktemp("export")
    sam = adapted(SMALL, PARTS)
    base = folder / "base.safetensors"
    save_sam(ak.build_sam(SMALL, seed=0), base)
    adapter = folder / "adapter.safetensors"
    ak.save_adapter(sam, adapter, classes=["left atrium"])
    with without_shape_checks():
        done = command("--checkpoint", base, "--adapter", adapter, "--out", folder / "onnx")
    assert not done.status
    assert "encoder.onnx" in done.output
    return Exported(sam, folder, folder / "onnx")


@dataclass(frozen=True)
class Done:
    status: int | str
    output: str


def command(*arguments: str | Path) -> Done:
    """A call of the command within this process; a failure's status is its one line."""
    output, given = StringIO(), sys.argv
    sys.argv = ["adapterkit", "export", *map(str, arguments)]
    try:
        with redirect_stdout(output):
            cli.main()
    except SystemExit as end:
        return Done(end.code or 0, output.getvalue())
    finally:
        sys.argv = given
    return Done(0, output.getvalue())


def test_onnxruntime_answers_as_the_model(exported: Exported):
    check(exported.sam, onnx(exported.onnx, "encoder"), onnx(exported.onnx, "decoder"))


def test_the_files_say_what_they_are(exported: Exported):
    about = json.loads((exported.onnx / "export.json").read_text())
    assert about["image_size"] == 64
    assert about["classes"] == ["left atrium"]
    assert (about["mean"], about["std"]) == ([0, 0, 0], [255, 255, 255])
    assert any(part.startswith("LoRA(rank=2") for part in about["parts"])
    for name in ("encoder", "decoder"):
        session = onnxruntime.InferenceSession(exported.onnx / about[name]["file"])
        inputs = {each.name: each.shape for each in session.get_inputs()}
        assert inputs == {key: value["shape"] for key, value in about[name]["inputs"].items()}
        assert [each.name for each in session.get_outputs()] == about[name]["outputs"]


@pytest.fixture(scope="module")
def in_torch(exported: Exported) -> Path:
    """The same model's export to PyTorch's format."""
    return export(exported.sam, exported.files / "torch", format="torch")


@pytest.mark.slow
def test_torch_export_answers_as_the_model(exported: Exported, in_torch: Path):
    check(exported.sam, pt2(in_torch, "encoder"), pt2(in_torch, "decoder"))


@pytest.mark.slow
def test_what_made_a_parameter_is_not_in_the_file(in_torch: Path):
    names = torch.export.load(in_torch / "encoder.pt2").state_dict
    assert not [name for name in names if "lora" in name or "position_adapter" in name]


@pytest.mark.slow
def test_loading_unpickles_nothing(in_torch: Path, monkeypatch: pytest.MonkeyPatch):
    load = torch.load

    def watched(*arguments: Any, **options: Any) -> Any:
        assert options.get("weights_only", True)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", watched)
    monkeypatch.delattr(pickle, "loads")
    for name in ("encoder", "decoder"):
        torch.export.load(in_torch / f"{name}.pt2")


@pytest.mark.slow
def test_loading_needs_pytorch_alone(in_torch: Path):
    script = f"""
import sys, torch
encoder = torch.export.load({str(in_torch / "encoder.pt2")!r}).module()
assert encoder(torch.zeros(3, 3, 64, 64)).shape == (3, 32, 8, 8)
assert not {{"adapterkit", "segment_anything", "timm"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_int8_is_smaller_and_close(exported: Exported, tmp_path: Path):
    sam = ak.mini_sam()
    for name in ("onnx", "int8"):
        export(sam, tmp_path / name, int8=name == "int8")
    # A quarter, but for convolutions, tables and the graph, which in so small a model weigh much.
    for file, most in {"encoder.onnx": 0.5, "decoder.onnx": 0.6}.items():
        plain, small = (tmp_path / name / file for name in ("onnx", "int8"))
        assert small.stat().st_size < most * plain.stat().st_size
    scene = draw_scene(np.random.default_rng(0), 512)
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float()
    boxes = boxes_around(torch.from_numpy(scene.masks))
    corners = boxes.view(1, -1, 2, 2).float()
    labels = torch.tensor([2, 3]).expand(1, len(boxes), 2)
    no_mask = torch.zeros(1, len(boxes), 128, 128), torch.zeros(1, len(boxes))
    masks = []
    for name in ("onnx", "int8"):
        (embedding,) = onnx(tmp_path / name, "encoder")(image)
        logits, _ = onnx(tmp_path / name, "decoder")(embedding, corners, labels, *no_mask)
        masks.append(logits[0, :, 0] > 0)
    plain, small = masks
    assert not torch.equal(plain, small)
    assert 2 * (plain & small).sum() / (plain.sum() + small.sum()) > 0.95


def test_a_mistake_is_one_line_and_leaves_nothing(exported: Exported, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    adapter, base = exported.files / "adapter.safetensors", exported.files / "base.safetensors"
    for arguments, line in [
        (["--out", tmp_path / "full"], "full exists and is not an empty folder; name another"),
        (["--out", base], "exists and is not an empty folder; name another"),
        (["--out", tmp_path / "nowhere" / "out"], "nowhere does not exist; make it first"),
        (["--out", tmp_path / "out", "--adapter", "none.safetensors"], "no adapter file at none"),
        (["--out", tmp_path / "out", "--adapter", adapter], "trained on another base"),
        (["--out", tmp_path / "out", "--format", "torch", "--int8"], "int8 is for the format onnx"),
    ]:
        status = command(*arguments).status
        assert isinstance(status, str)
        assert line in status
        assert "\n" not in status
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "full", tmp_path / "full" / "precious"]


def test_a_failure_on_the_way_leaves_nothing(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch.export, "export", full)
    with pytest.raises(OSError, match="no space"):
        ak.export(exported.sam, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_only_a_sam_can_be_exported(exported: Exported, tmp_path: Path):
    with pytest.raises(TypeError, match="not a ImageEncoderViT"):
        ak.export(exported.sam.image_encoder, tmp_path / "out")


@pytest.mark.slow
def test_a_fast_model_is_exported_as_the_stock_one(tmp_path: Path):
    """Attention in pieces, as many as the batch asks for, is no graph."""
    sam = ak.fast(adapted(SMALL, ak.methods.parts_of("samus", image_size=64)))
    export(sam, tmp_path / "onnx")
    check(sam, onnx(tmp_path / "onnx", "encoder"), onnx(tmp_path / "onnx", "decoder"))


@pytest.mark.slow
@pytest.mark.parametrize("base", ["small Sam", "ViT-B"])
@pytest.mark.parametrize("method", ["none", "samus", "samed", "msa", "medsam"])
def test_every_method_on_real_bases_in_every_format(method: str, base: str, tmp_path: Path):
    sam = ak.mini_sam() if base == "small Sam" else ak.build_sam(seed=0)
    torch.manual_seed(0)
    if method != "none":
        parts = getattr(ak.methods, method)(image_size=sam.image_encoder.img_size // 4)
        started(ak.inject(sam, parts))
    export(sam, tmp_path / "onnx")
    check(sam, onnx(tmp_path / "onnx", "encoder"), onnx(tmp_path / "onnx", "decoder"))
    export(sam, tmp_path / "torch", format="torch")
    check(sam, pt2(tmp_path / "torch", "encoder"), pt2(tmp_path / "torch", "decoder"))


@pytest.mark.parametrize("format", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def test_structures_are_asked_for_by_name(tmp_path: Path, format: str):
    sam = ak.build_sam(replace(SMALL, depth=1, global_blocks=(0,)), seed=0)
    torch.manual_seed(0)
    started(ak.inject(sam, "samus_plus", image_size=64, structures=("ventricle", "atrium")))
    ak.fast(sam)  # What is exported is the stock forward all the same.
    folder = export(sam, tmp_path / "files", format=format)
    read = onnx if format == "onnx" else pt2
    encoder, decoder = read(folder, "encoder"), read(folder, "decoder")
    about = json.loads((folder / "export.json").read_text())
    assert about["classes"] == ["ventricle", "atrium"]
    assert list(about["decoder"]["inputs"])[-2:] == ["detail_maps", "classes"]
    low_res = about["decoder"]["inputs"]["mask_input"]["shape"][2:]
    for asked in ([[0, 1], [0, 1]], [[1]]):
        classes = torch.tensor(asked)
        images = 255 * torch.rand(len(classes), 3, 64, 64)
        embedding, maps = encoder(images)
        given = {
            "image_embeddings": embedding,
            "point_coords": torch.zeros(*classes.shape, 2, 2),
            "point_labels": torch.full((*classes.shape, 2), -1),
            "mask_input": torch.zeros(*classes.shape, *low_res),
            "has_mask_input": torch.zeros(classes.shape),
            "detail_maps": maps,
            "classes": classes,
        }
        logits, iou, presence = decoder(*given.values())
        with torch.no_grad():
            masks = ak.Segmenter(sam)(images, ak.Prompts(classes=classes))
        assert masks.presence is not None
        torch.testing.assert_close(logits, masks.all_logits, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(iou, masks.all_iou, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(presence, masks.presence, atol=1e-4, rtol=1e-4)
