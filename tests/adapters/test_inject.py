"""Injecting, ejecting, disabling and switching leave the base exactly as it was."""

import copy
import pickle
from typing import Any, cast

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.parts import (
    CNNBranch,
    FeatureAdapter,
    LoRA,
    Normalise,
    PositionAdapter,
    Resize,
    Train,
)
from tests.models import TINY, snapshot, train_one_step

IDENTITIES = {
    "tokens": [FeatureAdapter(at="tokens")],
    "mlp": [FeatureAdapter(at="mlp", blocks="global", scale=0.5)],
    "attention": [
        FeatureAdapter(at="attn_in", blocks="windowed"),
        FeatureAdapter(at="attn_out", blocks=[0, 5]),
    ],
    "every other block": [
        FeatureAdapter(at="block_out", blocks=lambda block: block.index % 2 == 0)
    ],
    "output": [FeatureAdapter(at="output")],
    "LoRA": [LoRA()],
    "LoRA on k": [LoRA(rank=2, targets=("k",), blocks="global", alpha=16)],
    "relative positions": [Train("rel_pos")],
    "neck": [Train("neck")],
    "decoder": [Train("mask_decoder"), Train("prompt_encoder")],
}


@pytest.fixture
def image(image: Tensor) -> Tensor:
    """One of the two, since nothing here is about batches."""
    return image[:1]


@pytest.fixture
def base_image() -> Tensor:
    return torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))


def encode(sam: Sam, image: Tensor) -> Tensor:
    with torch.no_grad():
        return sam.image_encoder(image)


@pytest.mark.parametrize("parts", IDENTITIES.values(), ids=IDENTITIES)
def test_parts_that_start_as_the_identity_change_no_bit(parts: list[Any]):
    sam = ak.build_sam(
        ak.SamConfig(
            width=32, depth=6, num_heads=2, global_blocks=(2, 5), image_size=256, prompt_width=32
        ),
        seed=0,
    )
    image = torch.rand(1, 3, 256, 256)
    before = encode(sam, image)
    assert torch.equal(encode(ak.inject(sam, parts), image), before)


def test_samus_changes_the_output(sam: Sam, image: Tensor):
    resized = ak.inject(sam, [Resize(256, patch_stride=8)])
    plain = encode(resized, image)
    assert not torch.allclose(plain, encode(ak.inject_samus(ak.eject(sam)), image))


def test_inactive_adapters_do_not_require_gradients(sam: Sam):
    def trained() -> set[str]:
        return {name.split(".")[2] for name, each in sam.named_parameters() if each.requires_grad}

    ak.inject(sam, [FeatureAdapter(), LoRA()], name="one")
    frozen = "image_encoder.adapterkit.one.added.lora.0.q.a"
    sam.get_parameter(frozen).requires_grad_(False)
    count = ak.summary(sam).trained_parameters
    ak.inject(sam, [LoRA(blocks=(0,))], name="other")
    assert trained() == {"other"}
    assert ak.summary(sam).trained_parameters > count
    ak.activate(sam, "one", "other")
    assert trained() == {"one", "other"}
    assert not sam.get_parameter(frozen).requires_grad
    ak.activate(sam)
    assert trained() == set()
    ak.remove(ak.activate(sam, "one"), "other")
    assert trained() == {"one"}
    assert ak.summary(sam).trained_parameters == count


@pytest.mark.parametrize("normed", ["parametrizations", "hooks"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_a_weight_that_is_computed_takes_no_lora(sam: Sam, normed: str):
    norm = getattr(torch.nn.utils, "weight_norm")  # noqa: B009
    if normed == "parametrizations":
        norm = torch.nn.utils.parametrizations.weight_norm
    norm(sam.get_submodule("image_encoder.blocks.1.attn.qkv"))
    before = snapshot(sam)
    with pytest.raises(ValueError, match=r"weight of a \w*Linear is no parameter, but"):
        ak.inject(sam, [LoRA()])
    assert snapshot(sam) == before


def test_only_the_adapter_is_trained(sam: Sam, image: Tensor):
    ak.inject_samus(sam)
    trained = {name for name, each in sam.named_parameters() if each.requires_grad}
    assert trained
    assert all(name.startswith("image_encoder.adapterkit.default.") for name in trained)
    sam.image_encoder(image).square().mean().backward()
    for name, parameter in sam.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


def test_eject_restores_every_bit_key_flag_hook_and_attribute(sam: Sam, image: Tensor):
    sam.get_parameter("image_encoder.neck.0.weight").requires_grad_(False)
    sam.image_encoder.register_forward_hook(lambda module, args, output: None)
    before = snapshot(sam)
    parts = [*ak.methods.parts_of("samus"), Train("mask_decoder"), FeatureAdapter(at="attn_out")]
    ak.inject(sam, parts)
    assert snapshot(sam) != before
    train_one_step(sam.image_encoder, image)
    ak.eject(sam)
    assert snapshot(sam) == before


def test_disabled_is_the_base_and_then_the_adapter_again(sam: Sam, image: Tensor, base_image):
    before = encode(sam, base_image)
    ak.inject_samus(sam)
    adapted = encode(sam, image)
    with ak.disabled(sam):
        assert torch.equal(encode(sam, base_image), before)
    assert torch.equal(encode(sam, image), adapted)


def test_disabled_ends_with_an_error_inside_it(sam: Sam):
    ak.inject_samus(sam)
    with pytest.raises(KeyError), ak.disabled(sam):
        raise KeyError
    assert sam.image_encoder.img_size == 256


@pytest.mark.parametrize("take_off", [ak.eject, lambda sam: ak.remove(sam, "default")])
def test_what_is_taken_off_within_disabled_stays_off(take_off: Any):
    sam = ak.build_sam(TINY, seed=0)
    before = snapshot(sam)
    ak.inject(sam, [FeatureAdapter(zero_init=False), LoRA(), Train("neck")])
    with ak.disabled(sam):
        take_off(sam)
    assert snapshot(sam) == before
    assert ak.adapters_of(sam) is None


def test_what_remains_after_disabled_is_active_again(sam: Sam):
    ak.inject(sam, [FeatureAdapter()], name="one")
    ak.inject(sam, [LoRA()], name="other")
    ak.activate(sam, "one", "other")
    with ak.disabled(sam):
        ak.remove(sam, "one")
    assert ak.summary(sam).active == ("other",)
    with pytest.raises(ValueError, match=r"nothing in the active adapters \(\)"), ak.disabled(sam):
        ak.merge(sam)
    assert ak.summary(sam).active == ("other",)


def test_adapters_for_images_of_other_sizes_are_not_stacked(sam: Sam):
    ak.inject(sam, [CNNBranch(stem_channels=4)], name="branch")
    ak.inject(sam, [Resize(256)], name="small")
    with pytest.raises(ValueError, match="made for images of 256 and of 1024 pixels a side"):
        ak.activate(sam, "small", "branch")
    assert ak.summary(sam).active == ("small",)


def test_adapters_switch_and_stack(sam: Sam, image: Tensor):
    ak.inject_samus(sam, name="heart")
    heart = encode(sam, image)
    ak.inject_samus(sam, name="thyroid")
    thyroid = encode(sam, image)
    assert not torch.allclose(heart, thyroid)
    assert torch.equal(encode(ak.activate(sam, "heart"), image), heart)
    assert torch.equal(encode(ak.activate(sam, "thyroid"), image), thyroid)

    ak.inject(sam, [FeatureAdapter(zero_init=False)], name="features")
    ak.activate(sam, "heart", "features")
    assert not torch.allclose(encode(sam, image), heart)
    assert torch.equal(encode(ak.activate(sam, "heart"), image), heart)


def test_what_cannot_be_stacked_is_refused_and_changes_nothing(sam: Sam):
    ak.inject_samus(sam, name="heart")
    ak.inject_samus(sam, name="thyroid")
    before = snapshot(sam)
    with pytest.raises(ValueError, match="cannot be stacked: 2 of them set the Conv2d's stride"):
        ak.activate(sam, "heart", "thyroid")
    with pytest.raises(ValueError, match="each can be active once"):
        ak.activate(sam, "heart", "heart")
    assert snapshot(sam) == before


def test_one_of_several_adapters_can_be_removed(sam: Sam, image: Tensor):
    before = snapshot(sam)
    ak.inject_samus(sam, name="heart")
    heart = encode(sam, image)
    ak.inject(sam, [FeatureAdapter(zero_init=False)], name="features")
    ak.activate(sam, "heart", "features")
    with pytest.raises(ValueError, match="no adapter is named 'thyroid'"):
        ak.remove(sam, "thyroid")
    ak.remove(sam, "features")
    assert torch.equal(encode(sam, image), heart)
    assert snapshot(ak.remove(sam, "heart")) == before


def test_an_encoder_alone_can_be_patched_and_ejected_through_its_sam(sam: Sam, image: Tensor):
    before = snapshot(sam)
    encoder = ak.inject_samus(sam.image_encoder)
    assert encoder is sam.image_encoder
    assert encoder(image).shape == (1, 32, 32, 32)
    ak.eject(sam)
    assert snapshot(sam) == before


def test_a_deep_copy_is_independent(sam: Sam, image: Tensor):
    ak.inject_samus(sam)
    sam.image_encoder(image)
    before = encode(sam, image)
    replica = copy.deepcopy(sam)
    train_one_step(sam.image_encoder, image)
    assert torch.equal(encode(replica, image), before)
    ak.eject(sam)
    assert torch.equal(encode(replica, image), before)
    ak.eject(replica)
    assert snapshot(replica) == snapshot(sam)


def test_a_patched_model_can_be_pickled(sam: Sam, image: Tensor):
    ak.inject_samus(sam)
    replica = pickle.loads(pickle.dumps(sam))
    assert torch.equal(encode(replica, image), encode(sam, image))
    assert snapshot(ak.eject(replica)) == snapshot(ak.eject(sam))


def test_a_base_checkpoint_still_loads_strictly(sam: Sam, image: Tensor):
    ak.inject_samus(sam)
    before = encode(sam, image)
    other = ak.build_sam(TINY, seed=1)
    sam.load_state_dict(other.state_dict(), strict=True)
    assert not torch.allclose(encode(sam, image), before)
    ak.eject(sam)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in sam.state_dict().items())


def test_the_whole_state_dict_round_trips(sam: Sam, image: Tensor):
    ak.inject_samus(sam)
    train_one_step(sam.image_encoder, image)
    other = ak.inject_samus(ak.build_sam(TINY, seed=1))
    other.load_state_dict(sam.state_dict(), strict=True)
    assert torch.equal(encode(other, image), encode(sam, image))


def test_half_precision_follows(sam: Sam, image: Tensor):
    ak.inject_samus(sam.bfloat16())
    assert encode(sam, image.bfloat16()).dtype == torch.bfloat16
    ak.eject(sam)
    ak.inject_samus(sam.float())
    sam.bfloat16()
    assert encode(sam, image.bfloat16()).isfinite().all()


def test_sam_predictor_runs_on_the_patched_model(sam: Sam):
    predictor = SamPredictor(ak.inject_samus(sam))
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    assert predictor.get_image_embedding().shape == (1, 32, 32, 32)
    masks, scores, low_res = predictor.predict(np.array([[150, 100]]), np.array([1]))
    assert masks.shape == (3, 200, 300)
    assert scores.shape == (3,)
    assert low_res.shape == (3, 128, 128)
    masks, _, _ = predictor.predict(
        mask_input=np.asarray(low_res[:1]), box=np.array([10, 10, 90, 90])
    )
    assert masks.shape == (3, 200, 300)


def test_automatic_mask_generator_runs_on_the_patched_model(sam: Sam):
    generator = SamAutomaticMaskGenerator(
        ak.inject_samus(sam), points_per_side=2, pred_iou_thresh=-1e9, stability_score_thresh=-1
    )
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    for mask in generator.generate(image):
        assert mask["segmentation"].shape == (128, 128)


class Failing:
    """A part that changes things and then cannot go on."""

    def attach(self, to: Any) -> None:
        to.set(to.view.encoder, "img_size", 17)
        to.add("failing", torch.nn.Linear(2, 2))
        to.set(to.view.encoder, "no_such_attribute", 1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "expected a list of parts"),
        (Resize(256), "expected a list of parts"),
        (["samus"], "not a part"),
        ([FeatureAdapter], r"the class FeatureAdapter; write FeatureAdapter\(\)"),
        ([Resize(100)], "multiple of the patch stride, 16; the nearest is 96"),
        ([Resize(256, patch_stride=17)], "expected 1 to the encoder's patch size, 16"),
        (
            [FeatureAdapter(blocks=3)],  # pyright: ignore[reportArgumentType]
            r"blocks=3: expected 'all', .*, block indices, \(0, 3\) say",
        ),
        ([FeatureAdapter(blocks=[6])], r"names \[6\], but this encoder has blocks 0 to 5"),
        ([FeatureAdapter(blocks=cast("Any", "none"))], "expected 'all', 'global', 'windowed'"),
        ([FeatureAdapter(blocks=())], "selects none"),
        ([FeatureAdapter(reduction=100)], "reduction=100"),
        ([FeatureAdapter(), FeatureAdapter()], "two parts add a module 'feature_adapter.mlp.0'"),
        ([Train("mask_encoder")], "expected 'rel_pos' or a component"),
        ([Resize(256, patch_stride=5)], "multiple of the patch stride, 5; the nearest is 255"),
        ([LoRA(), LoRA(blocks=[5])], "two parts add a module 'lora.5.q'"),
        ([FeatureAdapter(), Failing()], "no_such_attribute"),
        ([Resize(256), Resize(128)], "2 of them set the ImageEncoderViT's img_size"),
        ([Train("image_encoder"), Train("neck")], "2 of them set the Conv2d's weight"),
        ([Train("rel_pos"), Train("image_encoder")], "2 of them set the Attention's rel_pos_h"),
    ],
)
def test_bad_parts_are_refused_and_the_model_is_as_before(sam: Sam, parts: Any, message: str):
    before = snapshot(sam)
    with pytest.raises((ValueError, AttributeError), match=message):
        ak.inject(sam, parts)
    assert snapshot(sam) == before


def test_bad_parts_leave_an_earlier_adapter_active(sam: Sam, image: Tensor):
    ak.inject_samus(sam)
    before, adapted = snapshot(sam), encode(sam, image)
    for parts, name in (
        ([Resize(100)], "other"),
        ([Resize(256)], "default"),
        ([Resize(256)], "a b"),
        ([Resize(256)], "class"),
    ):
        with pytest.raises(ValueError, match=r"Resize|named|identifier"):
            ak.inject(sam, parts, name)
        assert torch.equal(encode(sam, image), adapted)
        assert snapshot(sam) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: FeatureAdapter(at="qkv"),  # pyright: ignore[reportArgumentType]
        lambda: LoRA(rank=0),
        lambda: LoRA(targets=()),
        lambda: LoRA(targets=("q", "q")),
        lambda: Normalise(mean=(0, 0, 0), std=(1, 0, 1)),
        lambda: Normalise(mean=(0, 0), std=(1, 1)),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_part_with_impossible_values_cannot_be_made(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_an_image_of_another_size_is_refused(sam: Sam):
    ak.inject_samus(sam)
    with pytest.raises(ValueError, match=r"512x512 pixels, but .* adapted to 256x256"):
        sam.image_encoder(torch.rand(1, 3, 512, 512))


def test_an_unknown_model_is_refused():
    with pytest.raises(TypeError, match=r"torch\.nn\.modules\.linear\.Linear"):
        ak.inject_samus(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "call",
    [
        ak.eject,
        lambda sam: ak.activate(sam, "default"),
        lambda sam: ak.disabled(sam).__enter__(),
        lambda sam: ak.save_adapter(sam, "x.safetensors"),
    ],
)
def test_a_model_without_adapters_says_so(sam: Sam, call):
    with pytest.raises(ValueError, match="no adapter"):
        call(sam)


def test_an_unknown_name_changes_nothing(sam: Sam, image: Tensor):
    ak.inject_samus(sam)
    before = snapshot(sam)
    with pytest.raises(ValueError, match="no adapter is named 'thyroid'; there is default"):
        ak.activate(sam, "thyroid")
    assert snapshot(sam) == before


def test_position_adapter_needs_a_position_embedding(sam: Sam):
    sam.image_encoder.pos_embed = None
    with pytest.raises(ValueError, match="no position embedding for its grid alone"):
        ak.inject(sam, [PositionAdapter()])
