"""The networks that promptable systems are compared with."""

import re
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.models.__main__ import Config, count_parameters, main
from benchmarks.models.networks import NETWORKS
from benchmarks.models.segmentation_model import SegmentationModel

ENCODERS = {
    "CE-Net": "resnet34.tv_in1k",
    "Swin-Unet": "swin_tiny_patch4_window7_224.ms_in1k",
    "TransUNet": "vit_base_r50_s16_224.orig_in21k",
    "H2Former": "resnet34.tv_in1k",
}

every_network = pytest.mark.parametrize("name", NETWORKS)


def build_small(name: str) -> SegmentationModel:
    torch.manual_seed(0)
    return NETWORKS[name].small(classes=4, image_size=64)


def draw_batch(size: int = 64) -> tuple[Tensor, Tensor]:
    """Two noisy images (2, 3, S, S) of rings about a centre, and their classes (2, S, S)."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(size) / size
    centres = torch.tensor([[0.4, 0.6], [0.6, 0.5]])[:, :, None, None]
    distance = torch.hypot(axis[:, None] - centres[:, 0], axis - centres[:, 1])
    classes = torch.bucketize(distance, torch.tensor([0.15, 0.25, 0.4]))
    noise = 20 * torch.randn((2, 3, size, size), generator=generator)
    return (60.0 * classes[:, None] + 40 + noise).clamp(0, 255), classes


def test_the_command_s_table_has_every_size_within_five_percent(capsys: pytest.CaptureFixture[str]):
    main(Config())
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:8]]
    assert [row[0] for row in rows] == list(NETWORKS)
    for _, _, measured, published, _, small in rows:
        assert millions(measured) == pytest.approx(millions(published), rel=0.05)
        assert 2 <= millions(small) <= 3


def millions(cell: str) -> float:
    return float(cell.removesuffix(" M"))


@pytest.mark.parametrize(
    ("name", "classes", "image_size", "difference"),
    [
        ("CE-Net", 1, 224, 0),
        ("Swin-Unet", 9, 224, 0),
        ("TransUNet", 2, 224, 0),
        # The authors' H2Former has a fourth input channel: 64 7x7 kernels, and the embedding's.
        ("H2Former", 2, 256, -(64 * 49 + 32 * 4 + 16 * 16 + 8 * 64 + 8 * 256)),
    ],
)
def test_no_parameter_more_or_less_than_in_the_authors_code(name, classes, image_size, difference):
    with torch.device("meta"):
        model = NETWORKS[name].published(classes, image_size)
    assert count_parameters(model) == NETWORKS[name].parameters + difference


@every_network
@pytest.mark.parametrize(
    ("size", "image_size"), [("small", 128), ("small", 256), ("published", 224)]
)
def test_logits_have_the_image_s_resolution(name: str, size: str, image_size: int):
    with torch.device("meta"):
        model = getattr(NETWORKS[name], size)(classes=5, image_size=image_size)
        logits = model(torch.empty(2, 3, image_size, image_size))
    assert logits.shape == (2, 5, image_size, image_size)


@pytest.mark.parametrize("name", ["U-Net", "CE-Net"])
def test_convolutional_networks_take_any_size(name: str):
    model = build_small(name).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 96, 32)).shape == (1, 4, 96, 32)


@every_network
def test_a_small_network_overfits_one_batch(name: str):
    """To 40 % of the loss in 20 steps; the gradient reaches every parameter."""
    model = build_small(name)
    images, classes = draw_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if name == "Swin-Unet" else 5e-3)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(images), classes)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.4 * losses[0]

    model.eval()
    model.zero_grad()
    F.cross_entropy(model(images), classes).backward()
    unreached = [each for each, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


@every_network
def test_no_tensor_has_two_names_in_its_file(name: str, tmp_path: Path):
    save_file(build_small(name).state_dict(), tmp_path / "network.safetensors")


@every_network
def test_an_image_s_logits_do_not_depend_on_the_batch(name: str):
    model = build_small(name).eval()
    images, _ = draw_batch()
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@every_network
def test_a_seed_gives_the_same_network_and_the_same_pass_in_training(name: str):
    images, _ = draw_batch()
    outputs = []
    for _ in range(2):
        model = build_small(name)
        outputs.append(model(images))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", ENCODERS)
def test_images_are_normalised_as_the_encoder_expects(name: str):
    config = timm.get_pretrained_cfg(ENCODERS[name])
    assert config is not None
    model = build_small(name)
    seen = []
    model.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    mean, std = (torch.tensor(each)[:, None, None] for each in (config.mean, config.std))
    model(255 * (mean + std * torch.ones(2, 3, 64, 64)))
    torch.testing.assert_close(seen[0], torch.ones(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "image_size", "not_used"),
    [
        ("CE-Net", 64, r"fc\."),
        ("Swin-Unet", 224, r"head\.|layers\.2\.blocks\.[2-5]\."),
        ("TransUNet", 224, r"head\.|cls_token|pos_embed"),
        ("H2Former", 64, r"fc\."),
    ],
    ids=ENCODERS,
)
@torch.no_grad()
def test_pretrained_weights_arrive(name, image_size, not_used, monkeypatch: pytest.MonkeyPatch):
    """All that the network has a place for; here, of a random encoder in the download's place."""
    create_model = partial(timm.create_model, **({"depth": 2} if name == "TransUNet" else {}))
    weights = create_model(ENCODERS[name]).state_dict()

    def create_from_weights(*args, **options):
        overlay = {"state_dict": dict(weights), "num_classes": 1000}
        return create_model(*args, **options, pretrained_cfg_overlay=overlay)

    monkeypatch.setattr(timm, "create_model", create_from_weights)
    model = NETWORKS[name].published(classes=4, image_size=image_size, pretrained=True).eval()
    arrived = {fingerprint(tensor) for tensor in model.state_dict().values()}
    missing = {key for key, tensor in weights.items() if fingerprint(tensor) not in arrived}
    assert {key for key in missing if not re.match(not_used, key)} == set()
    if name == "TransUNet":
        assert fingerprint(weights["pos_embed"][:, 1:]) in arrived
    if name == "Swin-Unet":
        for stage, level in enumerate((2, 1, 0)):
            blocks = model.get_submodule(f"network.decoder.{stage}.blocks")
            for key, tensor in blocks.state_dict().items():
                assert torch.equal(tensor, weights[f"layers.{level}.blocks.{key}"])
    assert model(torch.rand(1, 3, image_size, image_size)).isfinite().all()


def fingerprint(tensor: Tensor) -> tuple[torch.Size, float]:
    return tensor.shape, tensor.double().sum().item()


@every_network
@pytest.mark.parametrize("image_size", [0, -64, 100, 250])
def test_a_side_that_cannot_be_halved_is_refused_when_building(name: str, image_size: int):
    for build in (NETWORKS[name].published, NETWORKS[name].small):
        with pytest.raises(ValueError, match=rf"{image_size} pixels, and {name} takes multiples"):
            build(classes=4, image_size=image_size)


@pytest.mark.parametrize(("name", "size"), [("U-Net", (64, 40)), ("CE-Net", (48, 64))])
def test_a_side_that_cannot_be_halved_is_refused(name: str, size: tuple[int, int]):
    with pytest.raises(ValueError, match=r"4[08] pixels, and \w+ takes multiples of (16|32)"):
        build_small(name)(torch.rand(1, 3, *size))


@pytest.mark.parametrize("name", ["Swin-Unet", "TransUNet", "H2Former"])
def test_a_size_that_a_network_was_not_built_for_is_refused(name: str):
    model = build_small(name)
    for height, width in ((96, 96), (64, 96)):
        with pytest.raises(ValueError, match=rf"{height}x{width} pixels.* built for 64x64"):
            model(torch.rand(1, 3, height, width))


def test_h2former_s_channel_attention_treats_tokens_alike():
    """The authors' code mixes tokens and channels there; see the module's docstring."""
    mlp = build_small("H2Former").get_submodule("network.stages.0.transformer.blocks.0.mlp")
    tokens = torch.randn(2, 32 * 32, 16)
    order = torch.randperm(32 * 32)
    torch.testing.assert_close(mlp(tokens[:, order]), mlp(tokens)[:, order])
