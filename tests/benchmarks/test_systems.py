"""The systems that are compared: their parts, schedules and inputs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import adapterkit as ak
from adapterkit.promptable.class_maps import ClassMaps
from benchmarks.compare import schedules
from benchmarks.compare.subjects import AnySize, parts_of
from benchmarks.compare.systems import SYSTEMS, Base, Network, Prompted
from benchmarks.compare.tables import PAPER, TABLES
from tests.models import ECHO


def test_networks_are_read_as_masks_of_their_own_probabilities():
    logits = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = ClassMaps.of(logits, image_size=16)
    torch.testing.assert_close(maps.low_res_logits.sigmoid(), logits.softmax(dim=1)[:, 1:])
    most_probable = torch.nn.functional.one_hot(logits.argmax(dim=1), 4).movedim(-1, 1)[:, 1:]
    assert torch.equal(maps.logits((8, 8)) > 0, most_probable.bool())
    assert maps.logits().shape == (2, 3, 16, 16)
    assert ((maps.logits() > 0).sum(dim=1) <= 1).all()


def test_an_image_of_any_size_is_resized_and_its_points_with_it():
    sam = ak.build_sam(ECHO, seed=0)
    images = 255 * torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    points, labels = torch.tensor([[[[40.0, 200.0]]]]), torch.ones(1, 1, 1, dtype=torch.long)
    with torch.no_grad():
        own = ak.Segmenter(sam)(images, ak.Prompts(points, labels))
        same = AnySize(sam)(images, ak.Prompts(points, labels))
        # Doubled pixels, of which the first of each pair has the lower half of the point.
        doubled = images.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        twice = AnySize(sam)(doubled, ak.Prompts(2 * points + 0.5, labels))
    assert torch.equal(same.logits(), own.logits())
    assert twice.logits().shape[-2:] == (512, 512)
    torch.testing.assert_close(twice.low_res_logits, own.low_res_logits, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("schedule", ["common", "published"])
@pytest.mark.parametrize("checkpoint", [None, Path("sam.pth")])
def test_every_system_has_a_schedule(schedule: schedules.ScheduleName, checkpoint: Path | None):
    found = {
        name: schedules.settings_of(
            name,
            schedule,
            Base(checkpoint, 512),
            epochs=3,
            batch_size=8,
            learning_rate=None,
            activation_checkpointing=True,
            images=100,
            seed=1,
        )
        for name in SYSTEMS
    }
    for name, settings in found.items():
        assert (settings.epochs, settings.seed) == (3, 1)
        assert settings.points == SYSTEMS[name].trained_with
        assert settings.activation_checkpointing != isinstance(SYSTEMS[name], Network)
    if schedule == "common":
        for kind in (True, False):
            of_kind = [n for n in SYSTEMS if isinstance(SYSTEMS[n], Network) == kind]
            plain = {replace(found[n], points="1").learning_rate for n in of_kind}
            assert len(plain) == 1
    else:
        assert found["samed"].optimizer == "adamw"
        assert found["transunet"].schedule == "polynomial"
        assert found["samus-branch"].learning_rate == 1e-4


def test_the_ablations_are_samus_with_parts_left_out():
    base = Base(None, 512)
    kinds = {
        name: [type(part).__name__ for part in parts_of(system, base, ["wall"])]
        for name, system in SYSTEMS.items()
        if isinstance(system, Prompted)
    }
    assert kinds["samus-branch"] == ["Resize", "Normalise", "CNNBranch", "Train"]
    assert kinds["samus-adapters"] == [each for each in kinds["samus"] if each != "CNNBranch"]
    for part, what in {"Detail": "detail", "FeatureAdapter": "adapters"}.items():
        without = [each for each in kinds["samus-plus"] if each != part]
        assert kinds[f"samus-plus-no-{what}"] == without != kinds["samus-plus"]
    assert kinds["samus-plus-lora"] == [*kinds["samus-plus"], "LoRA"]
    assert "Train" not in kinds["samus-plus-frozen-base"]
    assert kinds["samus-plus-branch"].index("CNNBranch") == kinds["samus-plus"].index("Detail")


def test_each_variant_of_samus_plus_differs_from_it_in_one_thing():
    base, structures = Base(None, 512), ["wall", "cavity"]

    def made_of(name: str) -> list[object]:
        system = SYSTEMS[name]
        assert isinstance(system, Prompted)
        trained = schedules.settings_of(
            name, "common", base, epochs=1, batch_size=1, learning_rate=None,
            activation_checkpointing=False, images=8, seed=0,
        )  # fmt: skip
        return [*parts_of(system, base, structures), system.augmented, trained]

    variants = [made_of(name) for name in SYSTEMS if name.startswith("samus-plus")]
    for k, variant in enumerate(variants):
        assert variant not in variants[:k]
    plain, averaged = made_of("samus-plus"), made_of("samus-plus-ema")
    assert averaged[:-1] == plain[:-1]
    assert averaged[-1] == replace(plain[-1], ema=0.97)  # pyright: ignore[reportArgumentType]


def test_the_paper_s_tables_are_of_known_systems():
    named = {name for table in TABLES for name, _ in table.entries}
    assert named == set(SYSTEMS)
    ours = {"dynunet", "samed-auto", "autosamus", "samus-2-disagreement"}
    assert set(PAPER) == {n for n in SYSTEMS if not n.startswith("samus-plus")} - ours


def test_samus_plus_starts_as_the_base_at_its_smaller_input():
    images = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    points, labels = torch.tensor([[[[40.0, 20.0]]]]), torch.ones(1, 1, 1, dtype=torch.long)

    def segment(parts: list) -> torch.Tensor:
        sam = ak.inject(ak.build_sam(ECHO, seed=0), parts)
        return ak.Segmenter(sam)(images, ak.Prompts(points, labels)).logits()

    base = segment([ak.parts.Resize(64, patch_stride=8)])
    plus = segment(ak.methods.parts_of("samus_plus", image_size=64, patch_stride=8))
    torch.testing.assert_close(plus, base, atol=1e-5, rtol=1e-5)
    assert (segment(ak.methods.parts_of("samus", image_size=64)) - base).abs().max() > 0.01
