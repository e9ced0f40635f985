"""A part at a module that the forward never calls is refused, and finding that out does nothing."""

from typing import Any

import pytest
import timm
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.attach import probe
from adapterkit.attach.attachment import Adapter, Attachment
from adapterkit.parts import FeatureAdapter, LoRA, Peft
from tests.models import snapshot

QKV = Peft("LoraConfig", {"r": 2, "target_modules": ["qkv"]})
BYPASSED = ["beit_base_patch16_224", "eva02_tiny_patch14_224"]


def small(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    size = 56 if "patch14" in name else 64
    sizes = {"depth": 3, "embed_dim": 48, "num_heads": 2, "num_classes": 3, "img_size": size}
    return timm.create_model(name, **{**sizes, **arguments}).eval()


def forbid_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the probe fail where a copy without data is not enough for it."""

    def fail(base: Any) -> Any:
        raise AssertionError("the probe ran the model itself")

    monkeypatch.setattr(probe, "_called_on_a_black_image", fail)


@pytest.mark.parametrize("name", BYPASSED)
def test_a_projection_that_is_used_but_never_called_is_refused(name: str):
    model = small(name)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"never calls blocks\.0\.attn\.qkv, .*parts\.LoRA"):
        ak.inject(model, [FeatureAdapter(), QKV])
    assert snapshot(model) == before
    assert ak.adapters_of(model) is None
    ak.inject(model, [LoRA(), FeatureAdapter()])
    output = Peft("LoraConfig", {"r": 2, "target_modules": ["attn.proj"]})
    ak.inject(model, [output], name="output")


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224", "samvit_base_patch16", "vit_small_patch16_dinov3"]
)
def test_a_projection_that_is_called_is_not(name: str, monkeypatch: pytest.MonkeyPatch):
    forbid_running(monkeypatch)
    arguments = {"global_attn_indexes": (1,), "neck_chans": 16} if "sam" in name else {}
    ak.inject(small(name, **arguments), [QKV, FeatureAdapter()])


class Unused:
    """A part at a module that no forward calls."""

    def attach(self, to: Attachment) -> None:
        to.after(to.view.encoder.get_submodule("unused"), Never())


class Never:
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        raise AssertionError


def test_any_part_is_checked(sam: Sam):
    sam.image_encoder.unused = nn.Linear(2, 2)
    ak.inject(sam, [FeatureAdapter()])
    before = snapshot(sam)
    with pytest.raises(ValueError, match=r"Unused object.* never calls unused, so"):
        ak.inject(sam, [FeatureAdapter(), Unused()], name="other")
    assert snapshot(sam) == before


class Recording:
    """A user's hook; it keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, module: nn.Module, *args: Any) -> None:
        self.seen.append(args)

    def __deepcopy__(self, memo: Any) -> "Recording":
        return self


def test_it_runs_no_hook_and_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    forbid_running(monkeypatch)
    model = small("vit_small_patch16_224", drop_path_rate=0.5, proj_drop_rate=0.5).train()
    model.norm_pre = nn.BatchNorm1d(17)  # of 16 patch tokens and the class token
    record = Recording()
    for module in model.modules():
        module.register_forward_hook(record)
        module.register_forward_pre_hook(record)
    before, state = snapshot(model), torch.get_rng_state()
    base = ak.view(model)
    assert base.blocks[0].projections["q"].layer in probe._called_in_a_copy_without_data(base)
    assert record.seen == []
    assert torch.equal(torch.get_rng_state(), state)
    assert snapshot(model) == before
    ak.inject(model, [FeatureAdapter()])
    assert record.seen == []
    assert not any(each.is_meta for each in (*model.parameters(), *model.buffers()))


class Awkward(nn.Module):
    """A layer whose forward needs values, draws random numbers and counts; it may fail."""

    def __init__(self, works: bool = True):
        super().__init__()
        self.works = works
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.total = self.total + torch.rand(1)
        if not self.works or self.training or float(x.sum()) == torch.inf:
            raise RuntimeError("no such kernel")
        return x


def test_a_forward_that_needs_values_is_run_and_its_traces_are_removed(sam: Sam):
    sam.image_encoder.neck.append(Awkward())
    sam.train()
    record = Recording()
    sam.image_encoder.register_forward_pre_hook(record)
    adapter = Adapter(ak.view(sam), [FeatureAdapter()])
    before, state = snapshot(sam), torch.get_rng_state()
    probe.check_reached(ak.view(sam), adapter)
    assert torch.equal(torch.get_rng_state(), state)
    [((image,),)] = record.seen
    assert image.shape == (1, 3, 1024, 1024)
    assert not image.is_meta
    assert not image.any()
    assert snapshot(sam) == before


def test_a_forward_that_fails_is_an_error_that_says_why(sam: Sam):
    sam.image_encoder.neck.append(Awkward(works=False))
    before = snapshot(sam)
    with pytest.raises(
        ValueError, match=r"fails on a black image of 1024x1024.*no such kernel"
    ) as e:
        ak.inject(sam, [FeatureAdapter()])
    assert isinstance(e.value.__cause__, RuntimeError)
    assert snapshot(sam) == before


def test_parts_without_hooks_need_no_forward(sam: Sam):
    sam.image_encoder.neck.append(Awkward(works=False))
    ak.inject(sam, [LoRA()])


def test_a_forward_that_the_user_replaced_is_followed():
    model = small("vit_small_patch16_224")
    for block in model.blocks:
        plain = block.forward
        block.forward = lambda *args, plain=plain, **options: plain(*args, **options)
    ak.inject(model, [FeatureAdapter(), QKV])


def test_other_adapters_on_the_model_do_not_disturb(sam: Sam, monkeypatch: pytest.MonkeyPatch):
    forbid_running(monkeypatch)
    ak.inject_samus(sam, name="samus")
    sam.image_encoder(torch.rand(1, 3, 256, 256))  # leaves the branch's maps
    ak.inject(sam, [QKV, FeatureAdapter()], name="peft")
    ak.inject(sam, [FeatureAdapter(at="attn_out")], name="third")
    ak.activate(sam, "samus", "peft", "third")


def test_the_copy_shares_no_data(sam: Sam, monkeypatch: pytest.MonkeyPatch):
    replicas: list[nn.Module] = []
    real = probe._called
    monkeypatch.setattr(
        probe, "_called", lambda encoder, image: replicas.append(encoder) or real(encoder, image)
    )
    ak.inject_samus(sam)
    [replica] = replicas
    assert all(each.is_meta for each in (*replica.parameters(), *replica.buffers()))
    assert not {*replica.modules()} & {*sam.modules()}
