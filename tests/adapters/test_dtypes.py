"""Every method runs and trains in every dtype, with and without autocast, stock and fast."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from segment_anything.modeling import Sam

import adapterkit as ak
from tests.models import TINY

SMALL = replace(TINY, image_size=128, window_size=3, depth=2, global_blocks=(1,))
METHODS = ("samus", "samus_plus", "samed", "msa", "medsam")
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Precision:
    """Dtypes of the base and of the adapter, autocast's, and of the image embedding."""

    base: torch.dtype
    adapter: torch.dtype
    autocast: torch.dtype | None
    embedding: torch.dtype

    def __str__(self) -> str:
        names = (self.base, self.adapter, self.autocast)
        return " ".join(str(each).removeprefix("torch.") for each in names)


PRECISIONS = [
    *(Precision(each, each, None, each) for each in (F32, F64, BF16, F16)),
    *(Precision(F32, F32, each, F32) for each in (BF16, F16)),
    *(Precision(each, each, each, each) for each in (BF16, F16)),
    # Trained in full precision on a base that is kept in half.
    *(Precision(each, F32, each, each) for each in (BF16, F16)),
]


def adapted(method: str, size: int, precision: Precision) -> Sam:
    sam = ak.inject(ak.build_sam(SMALL, seed=0).to(precision.base), method, image_size=size)
    found = ak.adapters_of(sam)
    assert found is not None
    found.to(precision.adapter)
    return sam


@pytest.mark.parametrize("fast", [False, True], ids=["stock", "fast"])
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_trains(method: str, precision: Precision, fast: bool):
    size = 96  # A position embedding that is interpolated, and not only pooled.
    sam = adapted(method, size, precision)
    if fast:
        ak.fast(sam)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    autocast = torch.autocast("cpu", precision.autocast or BF16)
    with autocast if precision.autocast else nullcontext():
        embedding = sam.image_encoder(image.to(precision.base))
    assert embedding.isfinite().all()
    if precision.adapter == precision.base:
        assert embedding.dtype == precision.embedding
    found = ak.adapters_of(sam)
    assert found is not None
    # What the encoder's forward computes for the decoder is a part of it.
    given = [embedding, *found.handed_on().values()]
    assert all(each.isfinite().all() for each in given)
    in_decoder = (".trained.prompt", ".trained.mask", ".detail.weights")
    trained = {
        name: each
        for name, each in sam.named_parameters()
        if each.requires_grad and not any(where in name for where in in_decoder)
    }
    if trained:
        torch.stack([each.float().square().mean() for each in given]).sum().backward()
    for name, each in trained.items():
        assert each.grad is not None, name
        assert each.grad.isfinite().all(), name


def test_a_half_base_reads_a_full_precision_low_rank_update_in_half():
    sam = adapted("samed", 64, Precision(BF16, F32, None, BF16))
    assert sam.image_encoder(torch.rand(1, 3, 64, 64, dtype=BF16)).dtype == BF16
