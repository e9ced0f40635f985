"""The parts work on every family of encoders, and ejecting leaves each as it was."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models import beit
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.encoders.views import BLOCK_SITES, ViT
from adapterkit.parts import (
    CNNBranch,
    FeatureAdapter,
    LoRA,
    Normalise,
    PositionAdapter,
    Resize,
    Train,
)
from tests.encoders.timm_models import CLASSES, Variant, built, timm_variants
from tests.models import snapshot

VARIANTS = timm_variants()

ADDED = "adapterkit.default.added"


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def output(model: nn.Module, image: Tensor) -> Tensor:
    found = model(image)
    return found if isinstance(found, Tensor) else found.last_hidden_state


def sites(base: ViT) -> list[Any]:
    return ["tokens", *base.blocks[0].sites, "output"]


def check(model: nn.Module) -> None:
    """Inject, run forward and backward, eject, and compare with what was there."""
    model = model.eval()
    base, before = ak.view(model), snapshot(model)
    block = base.blocks[0]
    # Where attention and MLP are one module, or there are several side by side, neither is a site.
    in_turn = hasattr(block.module, "attn") or hasattr(block.module, "attention")
    has_lora = bool(block.projections)
    assert {*block.sites} == ({*BLOCK_SITES} if in_turn else {"attn_in", "block_out"})
    assert has_lora == in_turn
    image = images(base.image_size)
    plain = output(model, image)

    parts: list[Any] = [FeatureAdapter(at=at) for at in sites(base)]
    parts.append(Train("image_encoder"))
    if has_lora:
        parts.append(LoRA())
    ak.inject(model, parts)
    assert torch.equal(output(model, image), plain), "identities change the output"
    assert snapshot(ak.eject(model)) == before, "ejecting identities leaves something"

    overlaps = base.patches_can_overlap
    parts = [Resize(3 * base.patch_size, base.patch_size // 2 if overlaps else None), Normalise()]
    if base.pos_embed is not None:
        parts.append(PositionAdapter())
    parts += [FeatureAdapter(at=at, zero_init=False) for at in sites(base)]
    parts.append(CNNBranch(stem_channels=4, output_scale=0.5 if base.reads_patches else 0.0))
    ak.inject(model, parts)
    output(model.train(), images(3 * base.patch_size)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("adapterkit" in name), name
        if ".cnn_branch.convolutions." in name:
            assert parameter.grad is not None
            assert parameter.grad.any(), f"{name} has no influence"
    assert snapshot(ak.eject(model.eval())) == before, "ejecting leaves something"
    assert torch.equal(output(model, image), plain)


def test_timm_has_models_of_each_class():
    assert {variant.cls for variant in VARIANTS} >= set(CLASSES)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.names[0])
def test_parts_work_on_every_model_of_timm(variant: Variant):
    check(built(variant))


def small(name: str, **arguments: Any) -> Any:
    """A small model of timm with random weights, positions too; if timm has it."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    sizes = {"depth": 4, "embed_dim": 48, "num_heads": 2, "num_classes": 3}
    torch.manual_seed(0)
    model: Any = timm.create_model(name, **{**sizes, **arguments}).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "pos" in key:
                parameter.normal_()
    return model


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_dinov3",
        "vit_small_patch16_rope_mixed_224",
    ],
)
def test_resize_is_timm_at_that_size(name: str, dynamic: bool):
    patch = 14 if "patch14" in name else 16
    model = small(name, img_size=6 * patch, dynamic_img_size=dynamic)
    resized = copy.deepcopy(model)
    resized.set_input_size((4 * patch, 4 * patch))
    image = images(4 * patch)
    ak.inject(model, [Resize(4 * patch)])
    torch.testing.assert_close(model(image), resized(image))
    features = model.forward_intermediates(image, intermediates_only=True)
    assert features[-1].shape == (2, 48, 4, 4)


def test_resize_is_timm_samvit_at_that_size():
    model = small("samvit_base_patch16", img_size=96, global_attn_indexes=(1, 3), neck_chans=16)
    image = images(64)
    expected = model(image)
    torch.testing.assert_close(ak.inject(model, [Resize(64)])(image), expected)


def test_overlapping_patches_give_a_finer_grid_in_every_output_of_timm():
    model = small("vit_small_patch16_224", img_size=64, global_pool="")
    ak.inject(model, [Resize(48, 8), CNNBranch()])
    features = model.forward_intermediates(images(48), intermediates_only=True)
    assert features[-1].shape == (2, 48, 6, 6)
    with pytest.raises(ValueError, match=r"64x64 pixels, but .* adapted to 48x48"):
        model.forward_features(images(64))


def test_checkpointing_activations_gives_the_same_gradients():
    model = small("vit_small_patch16_224", img_size=64, global_pool="avg")
    ak.inject(model, [CNNBranch(stem_channels=4)])
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(images(64)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [64, 160])
def test_resize_is_a_beit_of_timm_made_for_that_size(size: int, shared: bool):
    arguments = {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
    model = small("beit_base_patch16_224", img_size=96, use_abs_pos_emb=True, **arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.normal_()
    made = small("beit_base_patch16_224", img_size=size, use_abs_pos_emb=True, **arguments)
    made.load_state_dict(beit.checkpoint_filter_fn(model.state_dict(), made))
    ak.inject(model, [Resize(size), Train("image_encoder")])
    torch.testing.assert_close(model(images(size)), made(images(size)))
    model(images(size)).square().sum().backward()
    tables = [n for n, _ in model.named_parameters() if "relative_position_bias_table.value" in n]
    assert len(tables) == (1 if shared else 4)
    gradients = [model.get_parameter(name).grad for name in tables]
    assert all(each is not None and each.any() for each in gradients)


def test_resize_is_a_hybrid_of_timm_made_for_that_size():
    model = small("vit_tiny_r_s16_p8_224", img_size=96)
    grid = ak.view(model).grid
    resized = copy.deepcopy(model)
    resized.set_input_size((64, 64))
    before = snapshot(model)
    with pytest.raises(ValueError, match="with several convolutions, which cannot overlap"):
        ak.inject(model, [Resize(64, patch_stride=8)])
    assert snapshot(model) == before
    ak.inject(model, [Resize(64)])
    torch.testing.assert_close(model(images(64)), resized(images(64)))
    assert (grid, ak.view(model).grid) == ((3, 3), (2, 2))


@pytest.mark.parametrize("name", ["vit_base_patch16_18x2_224", "vit_base_patch16_rpn_224"])
def test_what_attention_reads_is_a_site_where_no_module_gives_it(name: str):
    model = small(name, img_size=64)
    ak.inject(model, [FeatureAdapter(at="attn_in", blocks=[0, 1], zero_init=False)])
    replica = copy.deepcopy(model)
    block, adapter = model.blocks[1], model.get_submodule(f"{ADDED}.feature_adapter.attn_in.1")
    attentions = [each.attn for each in block.attns] if hasattr(block, "attns") else [block.attn]
    given: list[Tensor] = []
    read: list[Tensor] = []
    adapter.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    for attention in attentions:
        attention.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    adapted = model(images(64))
    assert len(given) == len(attentions)
    for x, y in zip(tuple(given), read, strict=True):
        assert torch.equal(y, x + adapter(x))
    ak.eject(model)
    assert torch.equal(replica(images(64)), adapted)


@pytest.mark.parametrize("method", ["samus", "samus_plus"])
@pytest.mark.parametrize(
    ("name", "pool", "reads_patches"),
    [
        ("vit_small_patch16_224", "token", False),
        ("vit_small_patch16_224", "avg", True),
        ("vit_small_patch16_224", "map", True),
        ("vit_small_patch16_224", "", True),
        ("eva02_tiny_patch14_224", "token", False),
        ("eva02_tiny_patch14_224", "avg", True),
        ("beit_base_patch16_224", "token", False),
    ],
)
def test_where_the_class_token_alone_is_read_the_branch_has_no_last_map(
    name: str, pool: str, reads_patches: bool, method: str
):
    model = small(name, img_size=4 * (14 if "14" in name else 16), global_pool=pool)
    before, base = snapshot(model), ak.view(model)
    assert base.reads_patches == reads_patches
    if not reads_patches:
        message = r"CNNBranch\(output_scale=0.5\): .* class token alone.*global_pool=''"
        with pytest.raises(ValueError, match=message):
            ak.inject(model, [CNNBranch()])
        assert snapshot(model) == before
    ak.inject(model, ak.methods.parts_of(method, base, image_size=base.image_size))
    with torch.no_grad():  # From its identity, at which the branch is to begin.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    output(model, images(base.image_size)).square().mean().backward()
    for path, parameter in model.get_submodule(f"{ADDED}.cnn_branch").named_parameters():
        assert parameter.grad is not None
        # Softmax takes no notice of what is added to all keys.
        assert parameter.grad.any() or path.endswith(".k.bias"), path


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("method", ["samus", "samus_plus"])
@pytest.mark.parametrize("name", ["vit_small_patch16_224", "samvit_base_patch16"])
def test_the_branch_takes_the_encoders_channels(name: str, method: str, channels: int):
    sam = {"global_attn_indexes": (1, 3), "neck_chans": 16} if "sam" in name else {}
    model = small(name, img_size=64, in_chans=channels, **sam)
    parts = ak.methods.parts_of(method, ak.view(model), image_size=64)
    ak.inject(model, parts)
    image = torch.rand(2, channels, 64, 64)
    output(model, image).square().mean().backward()
    stem = model.get_submodule(f"{ADDED}.cnn_branch.convolutions.stem")
    assert next(stem.parameters()).shape[1] == channels
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "eva02_tiny_patch14_224"])
def test_a_branch_on_an_encoder_that_drops_tokens_is_refused(name: str):
    model = small(name, img_size=56 if "14" in name else 64, patch_drop_rate=0.5)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"drops patch tokens in training.*patch_drop_rate=0"):
        ak.inject(model, [CNNBranch()])
    assert snapshot(model) == before
    ak.inject(model.train(), [FeatureAdapter(zero_init=False), LoRA()])
    assert output(model, images(56 if "14" in name else 64)).isfinite().all()


def test_prefix_rows_and_prefix_tokens_stay_as_they_are():
    model = small("vit_base_patch16_clip_224", img_size=64)
    prefix = model.pos_embed[:, :1].clone()
    ak.inject(model, [Resize(32), PositionAdapter()])
    assert model.pos_embed.shape == (1, 1 + 4, 48)
    assert torch.equal(model.pos_embed[:, :1], prefix)

    layout = ak.view(ak.eject(model)).output.layout
    grid = torch.rand(2, 3, 3, 48)
    assert torch.equal(layout.grid(layout.of_grid(grid)), grid)
    assert not layout.of_grid(grid)[:, 0].any()


@pytest.mark.parametrize(
    ("depth", "expected"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (12, [2, 5, 8, 11])]
)
def test_four_of_many_global_blocks_are_selected(depth: int, expected: list[int]):
    base = ak.view(small("vit_small_patch16_224", depth=depth, img_size=32))
    assert [block.index for block in base.select("global")] == expected
    assert len(base.select("all")) == depth
    with pytest.raises(ValueError, match="selects none"):
        base.select("windowed")


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("vit_small_patch16_224", [Train("rel_pos")], "no relative-position tables"),
        (
            "vit_small_patch16_dinov3",
            [PositionAdapter()],
            "no position embedding for its grid alone",
        ),
        (
            "vit_base_patch16_xp_224",
            [FeatureAdapter()],
            "no site 'mlp' in block 0; there is block_out",
        ),
    ],
)
def test_parts_that_do_not_fit_a_family_say_so(name: str, parts: list[Any], message: str):
    model = small(name, img_size=64)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        ak.inject(model, parts)
    assert snapshot(model) == before


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="64x32 pixels"):
        ak.view(small("vit_small_patch16_224", img_size=(64, 32)))


@pytest.fixture
def transformers_sam() -> Any:
    transformers = pytest.importorskip("transformers")
    vision = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_dim": 64}
    vision |= {"image_size": 64, "patch_size": 16, "window_size": 3, "output_channels": 32}
    vision |= {"global_attn_indexes": [1, 3], "num_pos_feats": 16}
    prompts = {"hidden_size": 32, "image_size": 64, "patch_size": 16}
    decoder = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2}
    decoder |= {"iou_head_hidden_dim": 32}
    config = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    return transformers.SamModel(config).eval()


def test_parts_work_on_the_sam_of_transformers(transformers_sam: Any):
    check(transformers_sam.vision_encoder)


def test_the_sam_of_transformers_segments_at_another_size(transformers_sam: Any):
    model, before = transformers_sam, snapshot(transformers_sam)
    prompt = {"input_points": torch.tensor([[[[20.0, 20.0]]]]), "input_labels": torch.ones(1, 1, 1)}
    plain = model(pixel_values=images(64)[:1], **prompt).pred_masks
    ak.inject(model, ak.methods.parts_of("samus", image_size=32))
    assert model(pixel_values=images(32)[:1], **prompt).pred_masks.shape[-2:] == (16, 16)
    assert model.vision_encoder(pixel_values=images(32)).last_hidden_state.shape == (2, 32, 4, 4)
    assert snapshot(ak.eject(model)) == before
    assert torch.equal(model(pixel_values=images(64)[:1], **prompt).pred_masks, plain)


def test_samus_attaches_to_timm_samvit():
    model = small("samvit_base_patch16", img_size=64, global_attn_indexes=(1, 3), neck_chans=16)
    before = snapshot(model)
    ak.inject_samus(model, image_size=32, patch_stride=8)
    assert model.forward_features(images(32)).shape == (2, 16, 4, 4)
    assert snapshot(ak.eject(model)) == before


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("vit_small_patch16_224", {"Train"}),
        ("vit_small_patch14_reg4_dinov2", {"Train"}),
        ("eva02_tiny_patch14_224", {"Train"}),
        ("vit_small_patch16_dinov3", {"PositionAdapter", "Train"}),
    ],
)
def test_inject_samus_leaves_out_what_an_encoder_has_no_place_for(name: str, left_out: set[str]):
    model = small(name, img_size=64 if "14" not in name else 56)
    before = snapshot(model)
    ak.inject_samus(model, image_size=64)
    parts = {row.part.split("(")[0] for row in ak.summary(model).parts}
    assert {type(part).__name__ for part in ak.methods.parts_of("samus")} - parts == left_out
    output(model, images(64)).square().mean().backward()
    trained = [each for each in model.parameters() if each.requires_grad]
    assert trained
    assert all(each.grad is not None for each in trained)
    assert snapshot(ak.eject(model)) == before
