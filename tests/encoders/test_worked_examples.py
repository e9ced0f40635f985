"""The examples of the page on encoders do what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import adapterkit as ak
from adapterkit.encoders import registry
from tests.models import snapshot
from tests.test_documentation import blocks

*_, CLASSIFICATION, LOADING, DENSE, OWN, DESCRIBED = blocks("docs/encoders.md", "python")


def lines(block: str) -> int:
    return len([line for line in block.splitlines() if line.strip()])


def test_they_are_short():
    assert lines(CLASSIFICATION) < 25
    assert lines(DESCRIBED) <= 20


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_FAMILIES", [*registry._FAMILIES])
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for block in (CLASSIFICATION, LOADING, DENSE, OWN, DESCRIBED):
        exec(block, found)
        found.setdefault("swin", found.get("model"))
    return found


def test_the_classifiers_files_load_onto_a_new_head(names: dict[str, Any]):
    # The loop's last model, whose name the page uses for another.
    model, image = names["swin"].eval(), torch.rand(1, 3, 224, 224)
    expected = model(image)
    ak.eject(model)
    nn.init.normal_(model.head.fc.weight)
    ak.load_adapter(model, "swin_tiny_patch4_window7_224.safetensors")
    assert torch.equal(model(image), expected)
    assert Path("vit_tiny_patch16_224.safetensors").stat().st_size < 1e6


def test_the_segmenter_trains_its_head_and_lora_alone(names: dict[str, Any]):
    model = names["segmenter"]
    model(torch.rand(2, 3, 64, 64)).square().mean().backward()
    trained = {name for name, each in model.named_parameters() if each.grad is not None}
    heads = {name for name in trained if ".trained.head." in name}
    assert len(heads) == 2
    assert all(".lora." in name for name in trained - heads)
    assert trained - heads


def test_the_described_encoder_ejects(names: dict[str, Any]):
    model = names["Mine"]().eval()
    before = snapshot(model)
    ak.inject(model, [ak.parts.FeatureAdapter(at=at) for at in ("attn_in", "mlp", "output")])  # pyright: ignore[reportArgumentType]
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    assert snapshot(ak.eject(model)) == before
