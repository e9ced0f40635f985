"""What PyTorch wraps around a model or its encoder is seen through."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jaxtyping
import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import adapterkit as ak
from adapterkit.adapters.fingerprint import fingerprint
from adapterkit.encoders.wrappers import plain_names, unwrapped
from adapterkit.parts import FeatureAdapter, LoRA, Resize, Train
from tests.models import TINY, snapshot

PARTS = [Resize(64), FeatureAdapter(), LoRA(), Train("mask_decoder"), Train("neck")]


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(module: nn.Module) -> nn.Module:
    return cast("nn.Module", torch.compile(module, backend="eager"))


class Own(nn.Module):
    """A user's module whose only child has the name that wrappers give theirs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "DDP": DistributedDataParallel,
    "DDP, compiled": lambda module: compiled(DistributedDataParallel(module)),
    "DataParallel": nn.DataParallel,
}


@pytest.fixture(params=WRAPPERS.values(), ids=list(WRAPPERS))
def wrap(request: pytest.FixtureRequest, process_group: None) -> Callable[[nn.Module], Any]:
    return request.param


def test_a_wrapped_adapted_model_is_saved_summed_up_and_ejected(
    sam: Sam, wrap: Callable[[nn.Module], Any], tmp_path: Path
):
    base = copy.deepcopy(sam)
    ak.inject(sam, PARTS)
    ak.save_adapter(sam, tmp_path / "plain.safetensors")
    wrapped = wrap(sam)
    assert str(ak.summary(wrapped)) == str(ak.summary(sam))
    ak.save_adapter(wrapped, tmp_path / "wrapped.safetensors")
    files = [tmp_path / f"{each}.safetensors" for each in ("plain", "wrapped")]
    assert len({str(ak.inspect_adapter(file)) for file in files}) == 1
    plain, other = map(load_file, files)
    assert list(plain) == list(other)
    assert all(torch.equal(plain[key], other[key]) for key in plain)
    assert fingerprint(wrapped) == fingerprint(base)
    assert snapshot(unwrapped(ak.eject(wrapped))) == snapshot(unwrapped(wrap(base)))
    ak.load_adapter(base, tmp_path / "wrapped.safetensors")


def test_a_wrapped_encoder_is_saved_and_loaded(
    sam: Sam, wrap: Callable[[nn.Module], Any], tmp_path: Path
):
    expected = fingerprint(sam)
    ak.inject(sam, PARTS)
    sam.image_encoder = wrap(sam.image_encoder)
    assert fingerprint(sam) == expected
    ak.save_adapter(sam, tmp_path / "a.safetensors")
    assert len(ak.summary(sam).parts) == len(PARTS)
    ak.eject(sam)
    ak.load_adapter(ak.build_sam(TINY, seed=0), tmp_path / "a.safetensors")


def test_a_compiled_model_takes_adapters(sam: Sam, monkeypatch: pytest.MonkeyPatch):
    # Which not every version of PyTorch can trace.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    sam.image_encoder = compiled(sam.image_encoder)  # pyright: ignore[reportAttributeAccessIssue]
    image = torch.rand(1, 3, 64, 64)
    ak.inject(sam, [Resize(64), FeatureAdapter(zero_init=False), Train("neck")])
    encoder = unwrapped(sam.image_encoder)
    with torch.no_grad():
        torch.testing.assert_close(sam.image_encoder(image), encoder(image))


def test_a_trained_component_that_is_compiled_has_its_own_names(sam: Sam):
    ak.inject(sam, PARTS)
    found = ak.adapters_of(sam)
    assert found is not None
    names = list(found["default"].added.state_dict())
    ak.eject(sam)
    sam.mask_decoder.transformer = compiled(sam.mask_decoder.transformer)
    ak.inject(sam, PARTS)
    found = ak.adapters_of(sam)
    assert found is not None
    assert list(found["default"].added.state_dict()) == names


def test_injecting_into_data_parallel_says_that_gradients_will_not_be_shared(process_group: None):
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    wrapped = DistributedDataParallel(model)
    with pytest.warns(UserWarning, match="inject first, then wrap"):
        ak.inject(wrapped, [LoRA()])
    assert ak.adapters_of(model) is ak.adapters_of(wrapped) is not None


def test_names_lose_the_wrappers_and_nothing_else():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    module_of_its_own = Own(model)
    plain = list(module_of_its_own.state_dict())
    model[1] = compiled(model[1])
    wrapped = compiled(module_of_its_own)
    assert [plain_names(wrapped)(name) for name in wrapped.state_dict()] == plain
    assert plain_names(wrapped)("_orig_mod.module.1._orig_mod") == "module.1"
    assert unwrapped(wrapped) is module_of_its_own
