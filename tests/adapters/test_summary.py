"""The summary counts what the published SAMUS trains on ViT-B."""

import pytest
import timm
import torch
from rich.console import Console
from segment_anything import build_sam_vit_b
from segment_anything.modeling import Sam

import adapterkit as ak
from adapterkit.parts import LoRA, Train


@pytest.fixture(scope="module")
def vit_b() -> Sam:
    return ak.inject_samus(build_sam_vit_b())


def test_samus_trains_the_published_number_of_parameters(vit_b: Sam):
    by_part = {
        row.part.split("(")[0] + " " + row.site: row.parameters for row in ak.summary(vit_b).parts
    }
    assert by_part == {
        "Resize ": 0,
        "Normalise ": 0,
        "PositionAdapter ": 5_309_952,
        "FeatureAdapter tokens": 295_872,
        "FeatureAdapter mlp": 1_183_488,
        "CNNBranch ": 2_142_272 + 9_449_472 + 21_239_808,
        "Train ": 32_256,
    }
    assert ak.summary(vit_b).trained_parameters == 39_653_120
    trained = sum(each.numel() for each in vit_b.parameters() if each.requires_grad)
    assert trained == 39_653_120


def test_the_table_shows_parts_sites_blocks_and_totals(vit_b: Sam):
    text = str(ak.summary(vit_b))
    for expected in (
        "PositionAdapter()",
        "tokens",
        "2, 5, 8, 11",
        "1,183,488",
        "39,653,120",
        "159 MB",
    ):
        assert expected in text


def test_a_narrow_table_is_folded_and_not_cut(vit_b: Sam):
    console = Console(width=50, color_system=None)
    with console.capture() as capture:
        console.print(ak.summary(vit_b).table())
    text = capture.get()
    assert "…" not in text
    cells = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    columns = ["".join(cell.strip() for cell in column) for column in zip(*cells, strict=True)]
    assert "PositionAdapter()" in columns[1]
    assert "2, 5, 8, 11".replace(" ", "") in columns[3].replace(" ", "")
    assert f"{2_142_272 + 9_449_472 + 21_239_808:,}" in columns[4]


def test_it_counts_the_file_s_bytes(vit_b: Sam, tmp_path):
    ak.save_adapter(vit_b, tmp_path / "samus.safetensors")
    size = (tmp_path / "samus.safetensors").stat().st_size
    assert ak.summary(vit_b).bytes <= size < ak.summary(vit_b).bytes + 100_000


def test_a_model_without_adapters_has_an_empty_summary(sam: Sam):
    found = ak.summary(sam)
    assert (found.parts, found.active, found.trained_parameters) == ((), (), 0)
    assert found.base_parameters == sum(each.numel() for each in sam.parameters())
    assert "0 trained" in str(found)


def test_blocks_are_those_that_a_part_is_in(sam: Sam):
    parts = [
        ak.parts.FeatureAdapter(at="output"),
        ak.parts.Train("rel_pos", blocks="global"),
        ak.parts.Train("mask_decoder"),
        ak.parts.LoRA(blocks=lambda block: block.index < 2),
    ]
    rows = ak.summary(ak.inject(sam, parts)).parts
    assert [row.blocks for row in rows] == [(), (2, 5), (), (0, 1)]


def test_inactive_adapters_are_marked_and_stay_inactive(sam: Sam):
    ak.inject_samus(sam, name="heart")
    ak.inject(sam, [ak.parts.FeatureAdapter()], name="features")
    assert "heart (inactive)" in str(ak.summary(sam))
    assert ak.summary(sam).active == ("features",)


def test_the_patched_vit_b_gives_sam_s_embedding_shape(vit_b: Sam):
    with torch.no_grad():
        assert vit_b.image_encoder(torch.rand(1, 3, 256, 256)).shape == (1, 256, 32, 32)


def test_what_is_trained_outside_and_what_is_frozen_though_new_is_said():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2)
    ak.inject(model, [LoRA(2)])
    assert ak.summary(model).notes == (
        'head (579 parameters) is frozen; if it is new, Train("head") trains it',
    )
    model.get_submodule("head").requires_grad_(True)
    (note,) = ak.summary(model).notes
    assert note.startswith("head.weight, head.bias: trained, and not part of an adapter")
    assert 'Train("head") would save it' in str(ak.summary(model))
    ak.inject(ak.eject(model), [LoRA(2), Train("head")])
    assert ak.summary(model).notes == ()
