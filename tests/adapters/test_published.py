"""SAMed and MSA compute what their published implementations compute; MedSAM's decoder loads."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from segment_anything.modeling import MaskDecoder, Sam
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

import adapterkit as ak
from adapterkit.parts import LoRA, Train
from adapterkit.promptable.protocol import Embedding
from tests.conftest import SHARED
from tests.models import TINY, snapshot
from tests.processes import Process, run

SAMED = ak.SamConfig(
    width=48, depth=4, num_heads=2, global_blocks=(1, 3), image_size=256, prompt_width=32,
    decoder_mlp_width=64, decoder_num_heads=4, iou_head_width=32,
)  # fmt: skip

OPTIONS: dict[str, dict[str, Any]] = {"samed": {"image_size": 256}, "msa": {}}


def reference(name: str) -> dict[str, Tensor]:
    path = SHARED / "reference" / f"{name}_tiny.safetensors"
    if not path.is_file():
        pytest.skip(f"the published {name}'s reference tensors are not beside the project")
    return load_file(path)


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture
def samed() -> dict[str, Tensor]:
    return reference("samed")


@pytest.fixture
def msa() -> dict[str, Tensor]:
    return reference("msa")


@pytest.fixture
def samed_base(samed: dict[str, Tensor]) -> Sam:
    sam = ak.build_sam(SAMED, seed=0)
    fitting = {
        k: v for k, v in below("sam/", samed).items() if v.shape == sam.state_dict()[k].shape
    }
    sam.load_state_dict({**sam.state_dict(), **fitting})
    return sam


@pytest.fixture
def msa_base(msa: dict[str, Tensor]) -> ImageEncoderViT:
    """The encoder that the reference was made from; its global relative-position tables, which the
    published code resized, are not in the reference and stay random."""
    encoder = ak.build_sam(
        ak.SamConfig(width=48, depth=4, num_heads=2, global_blocks=(1, 3), prompt_width=32), seed=0
    ).image_encoder
    own = encoder.state_dict()
    weights = {k.replace(".rel_", ".rel_pos_"): v for k, v in below("official/", msa).items()}
    fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    assert len(own) - len(fitting) == 4
    encoder.load_state_dict({**own, **fitting})
    return encoder


def close(encoder: nn.Module, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        embedding = encoder(tensors["in/image"])
    torch.testing.assert_close(embedding, tensors["out/image_embedding"], rtol=0, atol=1e-4)


def test_samed_is_the_published_one(samed_base: Sam, samed: dict[str, Tensor]):
    before = snapshot(samed_base)
    ak.load_published(samed_base, below("official/", samed), method="samed", image_size=256)
    close(samed_base.image_encoder, samed)
    assert snapshot(ak.eject(samed_base)) == before


def test_msa_is_the_published_one(msa_base: ImageEncoderViT, msa: dict[str, Tensor]):
    before = snapshot(msa_base)
    ak.load_published(msa_base, below("official/", msa), method="msa")
    close(msa_base, msa)
    assert snapshot(ak.eject(msa_base)) == before


def test_samed_s_whole_file_brings_prompt_encoder_and_decoder(
    samed_base: Sam, samed: dict[str, Tensor], tmp_path: Path
):
    other = ak.build_sam(SAMED, seed=1).state_dict()
    buffer = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    other[buffer] = samed_base.state_dict()[buffer]
    trained = {k: v for k, v in other.items() if not k.startswith("image_encoder.")}
    torch.save({**below("official/", samed), **trained}, tmp_path / "samed.pth")
    ak.load_published(samed_base, tmp_path / "samed.pth", method="samed", image_size=256)
    close(samed_base.image_encoder, samed)
    token = "mask_decoder.iou_token"
    seen = torch.as_tensor(samed_base.get_submodule(token).weight)
    assert torch.equal(seen, other[f"{token}.weight"])


def test_medsam_s_decoder_becomes_the_adapter(sam: Sam, tmp_path: Path):
    trained = sam.state_dict()
    for key in trained:
        if key.startswith("mask_decoder."):
            trained[key] = trained[key] + 1
    torch.save({f"module.{key}": value for key, value in trained.items()}, tmp_path / "m.pth")
    before = snapshot(sam)
    ak.load_published(sam, tmp_path / "m.pth", method="medsam")
    for name, _ in sam.mask_decoder.named_parameters():
        owner, _, parameter = name.rpartition(".")
        seen = getattr(sam.mask_decoder.get_submodule(owner), parameter)
        assert torch.equal(seen, trained[f"mask_decoder.{name}"]), name
    assert snapshot(ak.eject(sam)) == before


def test_medsam_with_a_trained_encoder_needs_load_base(sam: Sam):
    trained = {key: value + 1 for key, value in sam.state_dict().items()}
    before = snapshot(sam)
    with pytest.raises(ValueError, match=r"another base: image_encoder\.pos_embed differs"):
        ak.load_published(sam, trained, method="medsam")
    assert snapshot(sam) == before
    ak.load_published(sam, trained, method="medsam", load_base=True)
    assert torch.equal(
        sam.get_parameter("image_encoder.pos_embed"), trained["image_encoder.pos_embed"]
    )


def resized_as_samed_s_code_does(sam: Sam, image_size: int) -> dict[str, Tensor]:
    """The tensors of a Sam for another image size: positions bilinear, relative ones linear."""
    weights, side = sam.state_dict(), image_size // 16
    positions = weights["image_encoder.pos_embed"].permute(0, 3, 1, 2)
    positions = F.interpolate(positions, (side, side), mode="bilinear", align_corners=False)
    weights["image_encoder.pos_embed"] = positions.permute(0, 2, 3, 1)
    for block in SAMED.global_blocks:
        for axis in "hw":
            key = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            size = (2 * side - 1, weights[key].shape[1])
            weights[key] = F.interpolate(weights[key][None, None], size, mode="bilinear")[0, 0]
    return weights


@pytest.mark.parametrize("image_size", [128, 512])
def test_samed_takes_the_size_that_it_is_told(samed_base: Sam, samed, image_size: int):
    config = dataclasses.replace(SAMED, image_size=image_size)
    rebuilt = ak.build_sam(config)
    rebuilt.load_state_dict(resized_as_samed_s_code_does(samed_base, image_size))
    ak.load_published(
        rebuilt.image_encoder, below("official/", samed), "samed", image_size=image_size
    )
    encoder = samed_base.image_encoder
    ak.load_published(encoder, below("official/", samed), "samed", image_size=image_size)
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(image), rebuilt.image_encoder(image))


def test_samed_is_of_512_pixels_unless_it_is_told_otherwise(samed_base: Sam, samed):
    ak.load_published(samed_base, below("official/", samed), "samed")
    assert samed_base.image_encoder.img_size == 512
    with pytest.raises(ValueError, match="a checkpoint of 'samed' has no option 'rank'; it has im"):
        ak.load_published(samed_base, below("official/", samed), "samed", "other", rank=2)


def test_samus_of_another_size_is_refused(sam: Sam, samus_reference: dict[str, Tensor]):
    weights = below("official/", samus_reference)
    weights |= {
        key.replace(".downs.2.", ".downs.3."): value
        for key, value in weights.items()
        if "cnn_embed.downs.2." in key
    }
    with pytest.raises(ValueError, match=r"halves the image 4 times, .* made at 256 are read"):
        ak.load_published(sam, weights, "samus")


@pytest.mark.parametrize("method", ["samed", "msa"])
def test_from_a_checkpoint_to_a_fresh_process(request, tmp_path: Path, method: str):
    tensors = reference(method)
    base = request.getfixturevalue(f"{method}_base")
    encoder = base.image_encoder if isinstance(base, Sam) else base
    save_file(encoder.state_dict(), tmp_path / "base.safetensors")
    checkpoint = {f"module.{k}": v for k, v in below("official/", tensors).items()}
    torch.save(checkpoint, tmp_path / "published.pth")
    ak.load_published(base, tmp_path / "published.pth", method=method, **OPTIONS[method])
    ak.save_adapter(encoder, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        embedding = encoder(tensors["in/image"])
    save_file({"image": tensors["in/image"], "embedding": embedding}, tmp_path / "io.safetensors")
    script = f"""
import torch, adapterkit as ak
from safetensors.torch import load_file
io = load_file("io.safetensors")
config = ak.SamConfig(width=48, depth=4, num_heads=2, global_blocks=(1, 3), prompt_width=32,
                      image_size={encoder.state_dict()["pos_embed"].shape[1] * 16})
encoder = ak.build_sam(config).image_encoder
encoder.load_state_dict(load_file("base.safetensors"))
ak.load_adapter(encoder, "adapter.safetensors")
with torch.no_grad():
    assert torch.equal(encoder(io["image"]), io["embedding"])
"""
    run(Process(script, folder=tmp_path))


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("samed", lambda w: w.pop("w_b_003"), "lacks 'w_b_003'"),
        ("samed", lambda w: w.update(w_c_000=torch.zeros(1)), "w_c_000"),
        ("samed", lambda w: w.pop("w_a_000"), "w_a_000"),
        ("samed", lambda w: w.update(sa_a_000=torch.zeros(1)), "SAMed_s, which has LoRA in the m"),
        ("msa", lambda w: w.pop("blocks.1.MLP_Adapter.D_fc2.bias"), r"mlp\.1\.up\.bias"),
        ("msa", lambda w: w.pop("blocks.3.attn.rel_h"), r"blocks\.3\.attn\.rel_pos_h"),
        ("msa", lambda w: w.update(stray=torch.zeros(1)), "stray"),
    ],
)
def test_an_unfit_checkpoint_is_refused_by_name(request, method: str, change, message: str):
    weights = below("official/", reference(method))
    base = request.getfixturevalue(f"{method}_base")
    before = snapshot(base)
    change(weights)
    with pytest.raises(ValueError, match=message):
        ak.load_published(base, weights, method=method, **OPTIONS[method])
    assert snapshot(base) == before


def test_a_checkpoint_without_decoder_is_no_medsam(sam: Sam):
    with pytest.raises(ValueError, match="lacks 'mask_decoder'"):
        ak.load_published(sam, {"image_encoder.pos_embed": torch.zeros(1)}, method="medsam")


def test_an_encoder_alone_takes_what_a_checkpoint_holds_for_it(
    samed_base: Sam, samed: dict[str, Tensor]
):
    whole = {**below("official/", samed), **samed_base.state_dict()}
    encoder = samed_base.image_encoder
    before = snapshot(encoder)
    ak.load_published(encoder, whole, method="samed", image_size=256)
    close(encoder, samed)
    assert snapshot(ak.eject(encoder)) == before
    with pytest.raises(ValueError, match="mask decoder, which an image encoder alone does not"):
        ak.load_published(encoder, whole, method="medsam")
    assert snapshot(encoder) == before


def test_samus_loads_onto_an_encoder_alone(sam: Sam, samus_reference: dict[str, Tensor]):
    weights = below("official/", samus_reference)
    own = sam.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    sam.load_state_dict({**own, **fitting})
    encoder = ak.load_published(sam.image_encoder, weights, method="samus")
    close(encoder, samus_reference)


def with_masks(sam: Sam, number: int) -> Sam:
    """A copy of `sam` whose mask decoder has other multimask outputs, as SAMed's has."""
    sam = copy.deepcopy(sam)
    old = sam.mask_decoder
    sam.mask_decoder = MaskDecoder(
        transformer_dim=old.transformer_dim,
        transformer=old.transformer,
        num_multimask_outputs=number,
        iou_head_hidden_dim=32,
    )
    return sam.eval()


def test_samed_s_decoder_of_other_classes_fits_a_decoder_of_as_many_masks(
    samed_base: Sam, samed: dict[str, Tensor]
):
    torch.manual_seed(0)
    trained = with_masks(samed_base, 8)
    decoder = {k: v for k, v in trained.state_dict().items() if not k.startswith("image_encoder")}
    weights = {**below("official/", samed), **decoder}
    before = snapshot(samed_base)
    with pytest.raises(ValueError, match=r"predicts 9 masks .*, and this model's 4.*outputs=8"):
        ak.load_published(samed_base, weights, method="samed", image_size=256)
    assert snapshot(samed_base) == before

    model = ak.load_published(with_masks(samed_base, 8), weights, method="samed", image_size=256)
    image, points = samed["in/image"], torch.full((len(samed["in/image"]), 1, 1, 2), 100.0)
    with torch.no_grad():
        embedding = Embedding(model.image_encoder(image), image.shape[-1])
        labels = torch.ones(len(image), 1, 1, dtype=torch.long)
        prompts = ak.Prompts(points, labels)
        ours = ak.Segmenter(model).decode(embedding, prompts).low_res_logits
        theirs = ak.Segmenter(trained).decode(embedding, prompts).low_res_logits
    torch.testing.assert_close(ours, theirs)


def test_training_leaves_the_caller_s_weights_alone(msa_base: ImageEncoderViT, msa):
    weights = below("official/", msa)
    kept = {key: value.clone() for key, value in weights.items()}
    ak.load_published(msa_base, weights, method="msa")
    with torch.no_grad():
        for parameter in msa_base.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert all(torch.equal(weights[key], value) for key, value in kept.items())


def test_samed_on_an_encoder_alone_is_its_lora(sam: Sam):
    encoder = ak.inject(sam.image_encoder, "samed")
    parts = ak.summary(encoder).parts
    assert [row.part.split("(")[0] for row in parts] == ["Resize", "Normalise", "LoRA"]
    with pytest.raises(ValueError, match=r"Train\('mask_decoder'\): expected"):
        ak.inject(ak.eject(sam).image_encoder, "medsam")


def test_a_rank_4_lora_of_vit_b_is_below_a_megabyte(tmp_path: Path):
    encoder = ak.inject(ak.build_sam().image_encoder, [LoRA(rank=4)])
    ak.save_adapter(encoder, tmp_path / "lora.safetensors")
    assert (tmp_path / "lora.safetensors").stat().st_size < 1e6


def test_trained_components_start_from_the_base(sam: Sam):
    weight = sam.get_parameter("mask_decoder.iou_token.weight")
    ak.inject(sam, [Train("mask_decoder")])
    seen = sam.get_submodule("mask_decoder.iou_token").weight
    assert seen is not weight
    assert torch.equal(torch.as_tensor(seen), weight)
    assert TINY.prompt_width == weight.shape[1]
