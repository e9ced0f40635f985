"""The sizes of methods on Segment Anything's own models."""

from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry

import adapterkit as ak
from adapterkit.parts import LoRA, Resize, Train


def test_a_lora_of_vit_b_fits_in_a_megabyte(tmp_path: Path):
    sam = ak.inject(ak.build_sam(seed=0), [LoRA(rank=4, targets=("q", "v"))])
    ak.save_adapter(sam, tmp_path / "lora.safetensors")
    assert (tmp_path / "lora.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("name", "width", "global_blocks"),
    [("vit_b", 64, (2, 5, 8, 11)), ("vit_l", 64, (5, 11, 17, 23)), ("vit_h", 80, (7, 15, 23, 31))],
)
def test_relative_positions_of_every_size_are_resized_by_block(name, width, global_blocks):
    """Published code finds the tables by digits in their names, which fails from ten blocks on."""
    with torch.device("meta"):
        sam = sam_model_registry[name]()
        ak.inject(sam, [Resize(256, patch_stride=8), Train("rel_pos", blocks="global")])
    trained = {key: tuple(p.shape) for key, p in sam.named_parameters() if p.requires_grad}
    prefix = "image_encoder.adapterkit.default.added.trained.blocks"
    assert trained == {
        f"{prefix}.{block}.rel_pos_{axis}.value": (2 * 32 - 1, width)
        for block in global_blocks
        for axis in "hw"
    }
