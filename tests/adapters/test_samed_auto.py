"""SAMed without a prompt gives the published masks, and all that uses a model takes it.

The reference's weights follow from a formula, `drawn`; what the published code (commit e351840)
computed with them in float64 is in references/samed_auto_tiny.safetensors, whose header has their
shapes.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.methods import samed_auto
from adapterkit.parts import ClassMasks, Detail, Train
from adapterkit.promptable.class_maps import ClassMaps
from tests.adapters.test_msa_sam import drawn
from tests.commands.test_train_command import write_discs
from tests.conftest import Done
from tests.models import snapshot

FILE = Path(__file__).parent / "references" / "samed_auto_tiny.safetensors"
BASE = ak.SamConfig(
    width=32, depth=3, num_heads=2, global_blocks=(2,), window_size=4, image_size=256,
    prompt_width=32, decoder_mlp_width=64, iou_head_width=32,
)  # fmt: skip
SIZE, CLASSES = 128, 5
ORGANS = ["spleen", "kidney", "liver", "stomach", "aorta"]

Tensors = dict[str, Tensor]


def scale(key: str) -> float:
    if "norm" in key and key.endswith("weight"):
        return 1.0
    return 0.55 if key.startswith("mask_decoder.") else 0.3


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    with safe_open(FILE, framework="pt") as file:
        return json.loads(file.metadata()[name])


@pytest.fixture
def base() -> Sam:
    sam = ak.build_sam(BASE, seed=0)
    values = {key: drawn(i, s) * scale(key) for i, (key, s) in enumerate(shapes("base").items())}
    sam.load_state_dict(values)
    return sam


@pytest.fixture
def published(base: Sam) -> Tensors:
    """The file that the published code saved: what it trained, and the positions' matrix."""
    trained = enumerate(shapes("trained").items())
    values = {key: drawn(500 + i, shape) * scale(key) for i, (key, shape) in trained}
    own = base.state_dict()
    return {key: values[key] if key in values else own[key] for key in shapes("published")}


@pytest.fixture
def images() -> Tensor:
    return 255 * drawn(1000, (2, 3, SIZE, SIZE)).abs()


@pytest.fixture(params=["stock", "fast"])
def samed(base: Sam, published: Tensors, request: pytest.FixtureRequest) -> Sam:
    if request.param == "fast":
        ak.fast(base)
    return ak.load_published(base, published, "samed_auto", image_size=SIZE)


def published_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Of SAMed's trainer: a fifth of the cross-entropy, four fifths of the Dice loss."""
    probabilities = logits.softmax(dim=1)
    classes = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
    overlap = (probabilities * classes).sum(dim=(0, 2, 3))
    total = (probabilities.square() + classes.square()).sum(dim=(0, 2, 3))
    dice = 1 - (2 * overlap + 1e-5) / (total + 1e-5)
    return 0.2 * F.cross_entropy(logits, target) + 0.8 * dice.mean()


def test_masks_and_gradients_are_the_published_ones(
    samed: Sam, published: Tensors, images: Tensor, request: pytest.FixtureRequest
):
    expected = load_file(FILE)
    masks = ak.Segmenter(samed)(images)
    assert isinstance(masks, ClassMaps)
    torch.testing.assert_close(masks.class_logits, expected["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(masks.predicted_iou, expected["iou"][:, 1:], rtol=0, atol=1e-4)
    loss = published_loss(masks.class_logits, (drawn(1001, (2, 32, 32)).abs() * 5.999).long())
    torch.testing.assert_close(loss, expected["loss"][0], rtol=0, atol=1e-5)

    loss.backward()
    _, names = samed_auto.read_checkpoint(ak.view(samed), published, SIZE)
    found = ak.adapters_of(samed)
    assert found is not None
    ours = dict(found["default"].added.named_parameters())
    assert set(names.values()) == set(ours)
    compared = 0
    # Of the smallest gradients, some 1e-6, what was rounded on the way shows.
    rounding = 1e-7 if request.node.callspec.params["samed"] == "fast" else 1e-9
    for i, (key, shape) in enumerate(shapes("trained").items()):
        gradient = ours[names[key]].grad
        if f"grad/{key}" not in expected:  # Of clicks, boxes, masks and the estimate of IoU.
            assert gradient is None or not gradient.any(), key
            continue
        assert gradient is not None
        norm, product = expected[f"grad/{key}"]
        if key.endswith("k_proj.bias"):
            # It shifts all of a query's logits alike: the true gradient is zero.
            assert gradient.norm() < 1e-6
            continue
        direction = drawn(2000 + i, shape)
        assert abs(gradient.norm() - norm) < 1e-4 * norm + rounding, key
        difference = (gradient * direction).sum() - product
        assert abs(difference) < (1e-4 * norm + rounding) * direction.norm(), key
        compared += 1
    assert compared > 80


def test_the_adapter_is_saved_and_taken_off_and_is_another_than_the_base_s_decoder(
    base: Sam, published: Tensors, images: Tensor, tmp_path: Path
):
    before, click = snapshot(base), ak.Prompts(
        torch.full((2, 1, 1, 2), 60.0), torch.ones(2, 1, 1, dtype=torch.long)
    )  # fmt: skip
    torch.save(published, tmp_path / "epoch_159.pth")
    ak.load_published(
        base, tmp_path / "epoch_159.pth", "samed_auto", image_size=SIZE, structures=ORGANS
    )
    with torch.no_grad():
        expected = ak.Segmenter(base)(images).logits()
    ak.save_adapter(base, tmp_path / "organs.safetensors")
    assert ak.inspect_adapter(tmp_path / "organs.safetensors").classes == tuple(ORGANS)
    ak.eject(base)
    assert snapshot(base) == before
    ak.load_adapter(base, tmp_path / "organs.safetensors", "organs")
    segmenter = ak.Segmenter(base)
    assert segmenter.structures == tuple(ORGANS)
    with torch.no_grad():
        assert torch.equal(segmenter(images).logits(), expected)
        # Beside another adapter, of other classes, each has its own decoder.
        ak.inject(base, [ClassMasks(("a", "b"))], "other")
        ak.activate(base, "other")
        whole = torch.rand(1, 3, 256, 256) * 255
        assert segmenter(whole).logits().shape[1] == 2
        ak.activate(base, "organs")
        assert torch.equal(segmenter(images).logits(), expected)
        with ak.disabled(base):
            assert segmenter(whole, click.map(lambda t: t[:1])).all_logits.shape[2] == 4


@torch.no_grad()
def test_of_its_masks_those_that_are_asked_for(samed: Sam, images: Tensor):
    segmenter = ak.Segmenter(samed)
    every = segmenter(images)
    some = segmenter(images, ak.Prompts(classes=torch.tensor([[3, 0], [1, 1]])))
    assert torch.equal(some.logits()[0], every.logits()[0, [3, 0]])
    assert torch.equal(some.low_res_logits[1], every.low_res_logits[1, [1, 1]])
    with pytest.raises(ValueError, match="takes neither clicks nor boxes nor masks"):
        segmenter(images, ak.Prompts(boxes=torch.tensor([[[1.0, 1, 50, 50]]] * 2)))
    with pytest.raises(ValueError, match=r"classes go from -1 to 0: expected 0 to 4 \(class 1,"):
        segmenter(images, ak.Prompts(classes=torch.tensor([[0, -1]] * 2)))


@torch.no_grad()
def test_a_predictor_gives_the_most_probable_class_of_each_pixel(samed: Sam, images: Tensor):
    predictor = ak.Predictor(samed)
    predictor.set_image(images[0].movedim(0, -1).numpy().astype(np.uint8))
    found = predictor.predict()
    whole = images[:1].to(torch.uint8).float()
    maps = ak.Segmenter(samed)(whole)
    assert isinstance(maps, ClassMaps)
    at_size = F.interpolate(maps.class_logits, (SIZE, SIZE), mode="bilinear", align_corners=False)
    assert np.array_equal(found.label_map(), at_size.argmax(dim=1)[0].numpy())
    with pytest.raises(ValueError, match="one mask of each structure"):
        predictor.predict(multimask=True)


def test_what_cannot_be_combined_or_written_is_refused(samed: Sam, published: Tensors, tmp_path):
    with pytest.raises(ValueError, match=r"ClassMasks or PromptGenerator.* cannot be exported"):
        ak.export(samed, tmp_path / "out")
    ak.eject(samed)
    for parts in ([ClassMasks(("a",)), Detail()], [Train("mask_decoder"), ClassMasks(("a",))]):
        with pytest.raises(ValueError, match="these parts cannot be combined"):
            ak.inject(samed, parts)
    with pytest.raises(ValueError, match="ClassMasks: this model has no mask decoder of segment"):
        ak.inject(samed.image_encoder, [ClassMasks(("a",))])
    with pytest.raises(ValueError, match="has 1 names, and its mask decoder has masks for 5"):
        ak.load_published(samed, published, "samed_auto", structures=["heart"])
    assert ak.adapters_of(samed) is None


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("method", ["samed_auto", "autosamus"])
def test_the_command_trains_it_by_class(tmp_path: Path, run: Callable[..., Done], method: str):
    data, out = write_discs(tmp_path / "discs", images=6), tmp_path / "run"
    chosen = "train", data, "--method", method, "--epochs", "1", "--image-size", "64"
    done = run(*chosen, "--out", out)
    assert done.status == 0, done
    assert json.loads((out / "metrics.json").read_text())["settings"]["points"] == "class"
    sam = ak.load_adapter(ak.mini_sam(), out / "adapter.safetensors")
    names = ak.Segmenter(sam).structures
    assert names == ak.inspect_adapter(out / "adapter.safetensors").classes
    with torch.no_grad():
        found = ak.Segmenter(sam)(255 * torch.rand(1, 3, 64, 64)).logits()
    assert found.shape == (1, len(names), 64, 64)
    if method == "samed_auto":
        done = run(*chosen, "--prompts", "1", "--out", tmp_path / "other")
        assert "samed_auto gives a mask for each structure at once" in str(done.status)
