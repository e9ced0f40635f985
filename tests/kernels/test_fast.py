"""The fast forward computes what the stock one computes, and comes off again."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.kernels import relative_attention
from adapterkit.promptable.protocol import Embedding
from tests.models import ECHO, TINY, snapshot

pytestmark = pytest.mark.usefixtures("small_layers_are_fast")

SIZE = 128
METHODS: dict[str, Callable[[Sam], Sam]] = {
    "SAM": lambda sam: sam,
    "SAMUS": lambda sam: ak.inject_samus(sam, SIZE),
    "SAMed": lambda sam: ak.inject(sam, "samed", image_size=SIZE),
    "MSA": lambda sam: ak.inject(sam, "msa", image_size=SIZE),
    "MedSAM": lambda sam: ak.inject(sam, "medsam", image_size=SIZE),
}


def tokens(model: nn.Module, image: Tensor) -> Tensor:
    encoder = ak.view(model).encoder
    return encoder(image)


def differences(one: nn.Module, other: nn.Module) -> dict[str, float]:
    """Of the gradients, relative to their norm, where that is more than rounding noise."""
    gradients = {name: each.grad for name, each in one.named_parameters() if each.grad is not None}
    others = dict(other.named_parameters())
    largest = max(each.norm() for each in gradients.values())
    found = {}
    for name, gradient in gradients.items():
        against = others[name].grad
        assert against is not None, name
        if gradient.norm() > 1e-5 * largest:
            found[name] = ((gradient - against).norm() / gradient.norm()).item()
    assert found
    return found


@pytest.mark.parametrize("method", METHODS)
def test_outputs_and_gradients_are_those_of_the_stock_forward(method: str):
    base = ak.build_sam(replace(TINY, image_size=SIZE if method == "SAM" else 256), seed=0)
    torch.manual_seed(1)
    sam = METHODS[method](base)
    faster = ak.fast(copy.deepcopy(sam))
    image = torch.rand(2, 3, SIZE, SIZE)
    points, labels = torch.full((2, 3, 1, 2), 50.0), torch.ones(2, 3, 1, dtype=torch.long)
    outputs = []
    for each in (sam, faster):
        segmenter = ak.Segmenter(each)
        embedding = each.image_encoder(image)
        found = segmenter.decode(Embedding(embedding, SIZE), ak.Prompts(points, labels))
        logits, iou = found.all_logits, found.all_iou
        (logits.square().mean() + iou.square().mean() + embedding.square().mean()).backward()
        outputs.append((embedding, logits, iou))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert max(differences(sam, faster).values()) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_off_the_cpu_nothing_stays_behind(method: str):
    base = ak.build_sam(replace(TINY, image_size=SIZE if method == "SAM" else 256), seed=0)
    sam = ak.fast(METHODS[method](base))
    with_gradients = []
    for device in ("cpu", "meta"):  # Of meta's tensors there is no data, but the device is checked.
        encoder = copy.deepcopy(sam).to(device).image_encoder
        image = torch.rand(2, 3, SIZE, SIZE, device=device, requires_grad=True)
        encoder(image).square().mean().backward()
        assert image.grad is not None
        assert image.grad.device.type == device
        named = encoder.named_parameters()
        with_gradients.append([name for name, each in named if each.grad is not None])
    assert with_gradients[0] == with_gradients[1]


@settings(max_examples=25, deadline=None)
@example(grid=5, window=2, heads=1, batch=1, trained=False)  # A view of another order of axes.
@given(
    grid=st.integers(1, 9),
    window=st.integers(1, 5),
    heads=st.sampled_from([1, 2, 3]),
    batch=st.integers(1, 3),
    trained=st.booleans(),
)
def test_any_geometry(grid: int, window: int, heads: int, batch: int, trained: bool):
    config = replace(
        ECHO, width=24, num_heads=heads, depth=2, global_blocks=(1,), window_size=window,
        image_size=16 * grid,
    )  # fmt: skip
    sam = ak.build_sam(config, seed=0).requires_grad_(trained)
    faster = ak.fast(copy.deepcopy(sam))
    image = torch.rand(batch, 3, 16 * grid, 16 * grid, generator=torch.Generator().manual_seed(0))
    image.requires_grad_()
    expected, found = tokens(sam, image), tokens(faster, image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for each in (expected, found):
        (each * weights).sum().backward(inputs=None if trained else [image])
        gradients.append(image.grad)
        image.grad = None
    scale = gradients[0].abs().max().item()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4 * scale)
    if trained:
        assert max(differences(sam, faster).values()) < 1e-4


@pytest.mark.parametrize("window", [(4, 4), (7, 5)])
def test_attention_is_the_same_on_every_device_and_in_small_pieces(
    monkeypatch: pytest.MonkeyPatch, window: tuple[int, int]
):
    generator = torch.Generator().manual_seed(0)
    heads, channels = 2, 6

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    qkv, filling = random(2, 7, 5, 3 * heads * channels), random(3 * heads * channels)
    of_rows, of_columns = (random(side, side, channels) for side in window)
    tensors = (qkv, filling, of_rows, of_columns)

    def found(attend: Callable[[], Tensor]) -> list[Tensor]:
        result = attend()
        gradients = torch.autograd.grad(result.square().sum(), tensors, materialize_grads=True)
        return [result, *gradients]

    # What runs on a GPU, by PyTorch's own gradient; the filling's queries are not used.
    fused, attention = relative_attention._fused, relative_attention.relative_attention
    expected = found(
        lambda: relative_attention._attended(qkv, filling, of_rows, of_columns, heads, fused)
    )
    for piece in (1, 100, 2**22):
        monkeypatch.setattr(relative_attention, "_PIECE", piece)
        in_pieces = found(lambda: attention(qkv, filling, of_rows, of_columns, heads))
        for one, other in zip(in_pieces, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_in_bf16_it_is_no_less_exact_than_the_stock_forward():
    sam = ak.inject_samus(ak.build_sam(replace(TINY, image_size=256), seed=0), SIZE)
    faster = ak.fast(copy.deepcopy(sam))
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    errors = []
    with torch.no_grad():
        exact = tokens(sam, image)
        for each in (sam, faster):
            with torch.autocast("cpu", torch.bfloat16):
                errors.append(((tokens(each, image) - exact).norm() / exact.norm()).item())
    assert errors[1] < 1.5 * errors[0] < 0.05


def test_it_keeps_little_for_the_gradient():
    config = replace(TINY, image_size=512, global_blocks=(0, 1, 2, 3))
    sam = ak.build_sam(config, seed=0).requires_grad_(False)
    image = torch.rand(1, 3, 512, 512, requires_grad=True)
    kept = []
    for model in (sam, ak.fast(copy.deepcopy(sam))):
        storages: dict[int, int] = {}

        def note(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = model.image_encoder(image)
        kept.append(sum(storages.values()))
        del output
    assert kept[1] < 0.3 * kept[0]


def test_it_comes_off_again_and_changes_no_key(sam: Sam):
    before = snapshot(sam)
    ak.fast(sam)
    assert list(sam.state_dict()) == before["keys"]
    assert snapshot(sam) != before
    assert ak.fast(sam) is sam
    ak.stock(sam)
    assert snapshot(sam) == before


@pytest.mark.parametrize("order", ["fast first", "adapter first"])
def test_adapters_come_and_go_under_it(sam: Sam, image: Tensor, order: str):
    expected_base = ak.Segmenter(sam).sam.state_dict()
    before = snapshot(sam)
    torch.manual_seed(0)
    reference = ak.inject_samus(copy.deepcopy(sam))
    torch.manual_seed(0)
    if order == "fast first":
        ak.inject_samus(ak.fast(sam))
    else:
        ak.fast(ak.inject_samus(sam))
    torch.testing.assert_close(
        tokens(sam, image), tokens(reference, image), rtol=1e-5, atol=1e-5
    )  # fmt: skip
    branch = "image_encoder.adapterkit.default.added.cnn_branch"
    for path in (
        "image_encoder.blocks.2",
        "image_encoder.blocks.2.attn",
        f"{branch}.attention.2",
        f"{branch}.convolutions.refine.0.0",
    ):
        assert type(sam.get_submodule(path)).__name__.startswith("Fast")
    ak.eject(sam)
    assert list(sam.state_dict()) == list(expected_base)
    ak.stock(sam)
    assert snapshot(sam) == before


def test_a_copy_and_a_pickled_one_are_fast_and_independent(sam: Sam, image: Tensor):
    ak.fast(ak.inject_samus(sam))
    with torch.no_grad():
        expected = tokens(sam, image)
        for other in (copy.deepcopy(sam), pickle.loads(pickle.dumps(sam))):
            assert torch.equal(tokens(other, image), expected)
            other.get_parameter("image_encoder.blocks.0.attn.qkv.bias").add_(1)
            assert not torch.equal(tokens(other, image), expected)
            assert torch.equal(tokens(sam, image), expected)


def test_the_predictor_gives_the_same_masks():
    sam = ak.build_sam(replace(TINY, image_size=256), seed=0)
    picture = np.random.default_rng(0).integers(0, 256, (100, 160, 3), np.uint8)
    answers = []
    for each in (sam, ak.fast(copy.deepcopy(sam))):
        predictor = SamPredictor(each)
        predictor.set_image(picture)
        answers.append(predictor.predict(np.array([[40, 50]]), np.ones(1), return_logits=True))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_hooks_run(sam: Sam, image: Tensor):
    ak.fast(ak.inject_samus(sam))
    seen = []
    for path in ("blocks.0", "blocks.0.norm1", "blocks.0.attn", "blocks.0.attn.qkv"):
        module = sam.image_encoder.get_submodule(path)
        module.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    with torch.no_grad():
        tokens(sam, image)
    # The second call of qkv projects a zero, which fills up the windows.
    assert seen == ["LayerNorm", "FastLinear", "FastLinear", "FastAttention", "FastBlock"]


def timm_samvit(**options: Any) -> nn.Module:
    sizes = {"img_size": 128, "embed_dim": 48, "depth": 4, "num_heads": 2, "neck_chans": 16}
    return timm.create_model(
        "samvit_base_patch16", window_size=3, global_attn_indexes=(1, 3), **sizes, **options
    )


def transformers_sam(**options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SamVisionConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=2, mlp_dim=96, image_size=128,
        window_size=3, global_attn_indexes=[1, 3], output_channels=32, num_pos_feats=16, **options,
    )  # fmt: skip
    return transformers.SamVisionModel(config)


@pytest.mark.parametrize("make", [timm_samvit, transformers_sam])
def test_sam_of_other_libraries(make: Callable[[], nn.Module]):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name:
                parameter.normal_()
    before = snapshot(model)
    ak.inject(model, ak.methods.parts_of("samus", image_size=64))
    faster = ak.fast(copy.deepcopy(model))
    assert list(faster.state_dict()) == list(model.state_dict())
    for block in ak.view(faster).blocks:
        for module in (block.module, block.module.attn):
            assert type(module).__name__.startswith("Fast")
    image = torch.rand(2, 3, 64, 64)
    outputs = []
    for each in (model, faster):
        output = ak.view(each).encoder(image)
        output = output if isinstance(output, Tensor) else output.last_hidden_state
        weights = torch.rand(output.shape, generator=torch.Generator().manual_seed(1))
        (output * weights).sum().backward()
        outputs.append(output)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    assert max(differences(model, faster).values()) < 1e-4
    assert pickle.loads(pickle.dumps(faster)).state_dict().keys() == model.state_dict().keys()
    assert snapshot(ak.stock(ak.eject(faster))) == before


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: timm_samvit(qk_norm=True), "norms of queries and keys"),
        (lambda: timm_samvit(use_rope=True, use_rel_pos=False), "rotary positions"),
        (lambda: timm_samvit(attn_drop_rate=0.1), "dropout of its weights"),
        (lambda: transformers_sam(attn_implementation="eager"), "class SamVisionAttention"),
    ],
)
def test_another_attention_is_refused(model: Callable[[], nn.Module], reason: str):
    made = model()
    before = snapshot(made)
    with pytest.raises(TypeError, match=reason):
        ak.fast(made)
    assert snapshot(made) == before


def test_another_model_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(TypeError, match="VisionTransformer has no block of SAM's"):
        ak.fast(model)
