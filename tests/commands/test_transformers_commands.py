"""The commands work on folders of transformers as they do on files of segment_anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import adapterkit as ak
from adapterkit.training.embeddings import cached_embeddings
from tests.commands.test_train_command import write_discs
from tests.conftest import Done
from tests.inference.test_export import onnx, pt2, without_shape_checks
from tests.transformers_models import MODELS

Command = Callable[..., Done]


BASES = pytest.mark.parametrize("base", ["SamModel", "Sam2Model"], indirect=True)
EACH = pytest.mark.parametrize(
    "base", ["SamModel", "Sam2Model", "Sam3TrackerModel", "EdgeTamModel"], indirect=True
)


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a tiny random model for images of 64x64 pixels."""
    MODELS[request.param]().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@EACH
def test_training_and_predicting(tmp_path: Path, run: Command, base: Path):
    data = write_discs(tmp_path / "discs", images=6)
    out = tmp_path / "run"
    size = ("--epochs", "1", "--image-size", "64", "--batch-size", "4", "--prompts", "class")
    done = run("train", data, "--checkpoint", base, *size, "--out", out)
    assert done.status == 0, done.output
    assert json.loads((out / "config.json").read_text())["checkpoint"] == str(base)
    assert json.loads((out / "metrics.json").read_text())["base"] == "model"

    masks, picture = tmp_path / "masks", data / "images" / "scan1.png"
    file = out / "adapter.safetensors"
    predict = ("predict", picture, "--checkpoint", base, "--format", "png", "--out", masks)
    done = run(*predict, "--adapter", file)
    assert done.status == 0, done.status
    assert np.asarray(Image.open(masks / "scan1.png")).shape == (48, 56)

    predictor = ak.Predictor.from_files(base, file)
    predictor.set_image(picture)
    assert predictor.structures == ("foreground",)
    assert predictor.predict(points=[[(20, 20)]], labels=[[1]]).masks.shape == (1, 48, 56)
    predictor.use(None)
    found = predictor.predict(boxes=[(3, 3, 20, 20), (8, 8, 30, 40)], multimask=True)
    assert found.masks.shape == (2, 3, 48, 56)
    assert len(predictor.predict_automatic(2, min_score=-9, min_stability=-9, count=2).masks) <= 2


@EACH
def test_a_folder_alone_is_clicked_on(tmp_path: Path, run: Command, base: Path):
    """As `serve` has it, and as `predict` does."""
    picture = write_discs(tmp_path / "discs", images=2) / "images" / "scan1.png"
    predictor = ak.Predictor(ak.load(base))
    assert predictor.names == ()
    predictor.set_image(picture)
    clicked = predictor.predict(points=[[(20, 20)], [(9, 30)]], labels=[[1], [1]])
    assert clicked.masks.shape == (2, 48, 56)
    refined = predictor.predict(
        points=[[(20, 20), (5, 5)]], labels=[[1, 0]], masks=clicked.low_res_logits[:1]
    )
    assert not np.array_equal(refined.logits[0], clicked.logits[0])
    masks = tmp_path / "masks"
    predict = ("predict", picture, "--checkpoint", base, "--format", "png", "--out", masks)
    done = run(*predict, "--point", "20,20", "--point", "9,30")
    assert done.status == 0, done.status
    found = np.asarray(Image.open(masks / "scan1.png"))
    np.testing.assert_array_equal(found, clicked.label_map())


@BASES
def test_embeddings_are_kept_where_the_decoder_alone_is_trained(tmp_path: Path, base: Path):
    segmenter = ak.Segmenter(ak.inject(ak.load(base), "medsam"))
    images = 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    asked = ak.Prompts(torch.full((2, 1, 1, 2), 20.0), torch.ones(2, 1, 1, dtype=torch.int64))
    with torch.no_grad():
        expected = segmenter(images, asked).all_logits
    with cached_embeddings(segmenter, tmp_path / "kept"):
        torch.testing.assert_close(segmenter(images, asked).all_logits, expected)
        found = segmenter(images, asked).all_logits
    torch.testing.assert_close(found, expected)
    found.square().mean().backward()
    trained = [each for each in segmenter.parameters() if each.requires_grad]
    assert sum(each.grad is not None for each in trained) > 50
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize(
    ("base", "format", "read"),
    [
        ("Sam2Model", "torch", pt2),
        pytest.param("Sam3TrackerModel", "torch", pt2, marks=pytest.mark.slow),
        pytest.param("EdgeTamModel", "torch", pt2, marks=pytest.mark.slow),
        pytest.param("Sam2Model", "onnx", onnx, marks=pytest.mark.slow),
        pytest.param("SamModel", "onnx", onnx, marks=pytest.mark.slow),
    ],
    indirect=["base"],
)
def test_exports_answer_as_the_model_does(
    tmp_path: Path, run: Command, base: Path, format: str, read: Callable[..., Any]
):
    model: Any = ak.inject(ak.load(base), "samus_plus", image_size=32, structures=("a",))
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.02 * torch.randn_like(each))
    ak.save_adapter(model.eval(), tmp_path / "adapter.safetensors")
    with without_shape_checks():
        files = ("--checkpoint", base, "--adapter", tmp_path / "adapter.safetensors")
        done = run("export", *files, "--format", format, "--out", tmp_path / "out")
    assert done.status == 0, done.status
    segmenter = ak.Segmenter(model)
    side, draw = segmenter.image_size, torch.Generator().manual_seed(0)
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["image_size"] == side
    images = 255 * torch.rand(2, 3, side, side, generator=draw)
    points = side * torch.rand(2, 2, 1, 2, generator=draw)
    labels, classes = torch.ones(2, 2, 1, dtype=torch.int64), torch.tensor([[0, -1], [-1, 0]])
    with torch.no_grad():
        embedding = segmenter.encode(images)
        asked = ak.Prompts(points, labels, classes=classes)
        expected = segmenter.decode(embedding, asked)
    image, *maps = read(tmp_path / "out", "encoder")(images)
    torch.testing.assert_close(image, embedding.image, rtol=1e-4, atol=1e-4)
    no_point = (torch.zeros(2, 2, 1, 2), torch.full((2, 2, 1), -1))
    points, labels = (
        torch.cat(each, dim=2) for each in zip((points, labels), no_point, strict=True)
    )
    low_res = 4 * image.shape[-1]
    mask: Any = torch.zeros(2, 2, low_res, low_res)
    found = read(tmp_path / "out", "decoder")(
        image, points, labels, mask, torch.zeros(2, 2), *maps, classes
    )
    for value, own in zip(
        found, (expected.all_logits, expected.all_iou, expected.presence), strict=True
    ):
        torch.testing.assert_close(value, own, rtol=1e-4, atol=1e-4)


@BASES
def test_merging_writes_a_folder(tmp_path: Path, run: Command, base: Path):
    model = ak.inject(ak.load(base), [ak.parts.LoRA(2), ak.parts.FeatureAdapter()])
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.1 * torch.randn_like(each))
    ak.save_adapter(model, tmp_path / "adapter.safetensors")
    files = ("--checkpoint", base, "--adapter", tmp_path / "adapter.safetensors")
    done = run("merge", *files, "--out", tmp_path / "merged")
    assert done.status == 0, done.status
    merged = ak.load_adapter(ak.load(tmp_path / "merged"), tmp_path / "merged.adapter.safetensors")
    images = 255 * torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = ak.Segmenter(model.eval()).encode(images).image
        found = ak.Segmenter(merged).encode(images).image
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
