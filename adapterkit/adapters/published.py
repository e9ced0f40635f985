"""Checkpoints of the published implementations, loaded as adapters."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from adapterkit import methods
from adapterkit.adapters.injection import Model, attach, base_state_dict, deactivated
from adapterkit.attach.attachment import Adapter, Part
from adapterkit.encoders.views import ViT
from adapterkit.parts import LoRA, Normalise, Train
from adapterkit.system.files import load_state_dict, tensors_only

_ENCODER = "image_encoder."
Mapped = tuple[list[Part], dict[str, str]]
"""A method's parts and, for each published key that it trains, the adapter's key."""


def load_published(
    model: Model,
    checkpoint: str | Path | Mapping[str, Tensor],
    method: str,
    name: str = "default",
    load_base: bool = False,
) -> Model:
    """Inject a method with the weights that its published implementation trained.

    The published MSA pads windows before norm1, and SAM after it, as does this model. Where the
    token grid is no multiple of the window (64 and 14 at 1024 pixels), the outputs therefore differ
    from the published ones.

    Args:
        model: the base that the checkpoint was trained from. An image encoder alone takes what the
            checkpoint holds for the encoder.
        checkpoint: a `.pth` (with or without a "module." prefix), or its state dict.
        method: "samus"; "samed", the file of LoRA weights, with prompt encoder and mask decoder
            or without; "msa", in 2-D, whose unused `Depth_Adapter` is left out; "medsam", of which
            the mask decoder is taken. SAMed's mask decoder has a mask for each of its classes and
            one more: it fits a `Sam` whose `MaskDecoder` has `num_multimask_outputs` of classes.
        name: what the adapter is called on this model.
        load_base: take the base's tensors from the checkpoint too, where it holds them. By
            default they must equal the model's. The released `medsam_vit_b.pth` was trained with
            its image encoder, so it needs this.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this method for this encoder, its base differs from
            the model's, or it predicts another number of masks; the message names the tensor, and
            the model is as before.
    """
    if method not in _METHODS:
        raise ValueError(f"method={method!r}: expected one of {sorted(_METHODS)}")
    if isinstance(checkpoint, str | Path):
        source, tensors = str(checkpoint), load_state_dict(checkpoint)
    else:
        source, tensors = "the state dict", tensors_only(dict(checkpoint), "checkpoint")
    with deactivated(model) as base:
        own = base_state_dict(base)
        try:
            tensors = _of_components(base, _named_as_in_a_sam(tensors))
            _check_number_of_masks(base, tensors, source)
            parts, names = _METHODS[method](base, tensors)
            trained = {ours: tensors[theirs] for theirs, ours in names.items()}
        except KeyError as error:
            raise ValueError(
                f"{source} is no {method} checkpoint of this encoder: it lacks {error}"
            ) from error
        rest = {
            key: value
            for key, value in tensors.items()
            if key not in names and ".Depth_Adapter." not in key
        }
        _check_base(own, rest, source, compare=not load_base)
        with torch.device("meta"):
            adapter = Adapter(base, parts)
        like = base.patch_projection.weight
        # Copies, since the values may be the caller's or a view of a file.
        placed = {
            key: value.to(like.device, like.dtype, copy=True) for key, value in trained.items()
        }
        try:
            adapter.added.load_state_dict(placed, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"{source} is no {method} checkpoint of this encoder: {error}"
            ) from error
        attach(base, adapter, name)
        if load_base:
            with torch.no_grad():
                for key, value in rest.items():
                    own[key].copy_(value)
    return model


def _named_as_in_a_sam(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's checkpoint with the encoder's prefix, and MSA's relative positions as SAM's."""
    is_encoder = "pos_embed" in tensors
    return {
        (_ENCODER if is_encoder else "") + re.sub(r"\.rel_([hw])$", r".rel_pos_\1", key): value
        for key, value in tensors.items()
    }


def _of_components(base: ViT, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without those of a `Sam`'s components that an encoder alone does not have."""
    absent = {"prompt_encoder", "mask_decoder"} - set(base.components)
    return {key: value for key, value in tensors.items() if key.split(".")[0] not in absent}


def _check_number_of_masks(base: ViT, tensors: Mapping[str, Tensor], source: str) -> None:
    key = "mask_decoder.mask_tokens.weight"
    if key not in tensors:
        return
    found = len(tensors[key])
    own = len(base.components["mask_decoder"].get_parameter("mask_tokens.weight"))
    if found != own:
        raise ValueError(
            f"{source}: its mask decoder predicts {found} masks ({key}), and this model's {own}. "
            f"Give the Sam a MaskDecoder with num_multimask_outputs={found - 1} first; SAMed's has "
            "as many as classes"
        )


def _check_base(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str, compare: bool
) -> None:
    for key, value in found.items():
        if key not in own:
            raise ValueError(
                f"{source} holds a tensor {key} that neither the method nor this model has"
            )
        if value.shape != own[key].shape:
            raise ValueError(
                f"{source}: {key} has shape {tuple(value.shape)}, and in this model it has "
                f"{tuple(own[key].shape)}; load the SAM that the checkpoint was trained from"
            )
        if compare and not torch.equal(value.to(own[key]), own[key]):
            raise ValueError(
                f"{source} was trained from another base: {key} differs from this model's. Load "
                "that base, or pass load_base=True to take it from the checkpoint"
            )


_SAMUS_NAMES = (
    (r"input_Adapter\.D_fc1\.(.+)", r"feature_adapter.tokens.down.\1"),
    (r"input_Adapter\.D_fc2\.(.+)", r"feature_adapter.tokens.up.\1"),
    (r"blocks\.(\d+)\.MLP_Adapter\.D_fc1\.(.+)", r"feature_adapter.mlp.\1.down.\2"),
    (r"blocks\.(\d+)\.MLP_Adapter\.D_fc2\.(.+)", r"feature_adapter.mlp.\1.up.\2"),
    (r"blocks\.(\d+)\.Space_Adapter\.(.+)", r"cnn_branch.attention.\1.\2"),
    (r"post_pos_embed\.downs\.(\d+)\.maxpool_conv\.(.+)", r"position_adapter.stages.\1.\2"),
    (r"cnn_embed\.inc\.conv\.(.+)", r"cnn_branch.convolutions.stem.\1"),
    (r"cnn_embed\.downs\.(\d+)\.maxpool_conv\.(.+)", r"cnn_branch.convolutions.pools.\1.\2"),
)


def samus_names(base: ViT, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each key of a published SAMUS that the method trains, the adapter's key."""
    names: dict[str, str] = {}
    for key in tensors:
        for theirs, ours in _SAMUS_NAMES:
            if re.fullmatch(re.escape(_ENCODER) + theirs, key):
                names[key] = re.sub(re.escape(_ENCODER) + theirs, ours, key)
    for order, block in enumerate(base.select("global")):
        refine = f"{_ENCODER}blocks.{block.index}.refine_Adapter.conv."
        for key in (key for key in tensors if key.startswith(refine)):
            names[key] = f"cnn_branch.convolutions.refine.{order}.{key.removeprefix(refine)}"
        for _, table in block.rel_pos:
            key = f"{_ENCODER}blocks.{block.index}.attn.{table}"
            names[key] = f"trained.blocks.{block.index}.{table}.value"
    return names


def _samus(base: ViT, tensors: Mapping[str, Tensor]) -> Mapped:
    first = base.select("global")[0].index
    rows = len(tensors[f"{_ENCODER}blocks.{first}.attn.rel_pos_h"])
    # The published implementation fixes the patch stride at 8 pixels.
    parts = methods.samus(image_size=(rows + 1) // 2 * 8, patch_stride=8)
    return parts, samus_names(base, tensors)


def _samed(base: ViT, tensors: Mapping[str, Tensor]) -> Mapped:
    names: dict[str, str] = {}
    for block in base.blocks:
        for offset, target in enumerate("qv"):
            number = f"{2 * block.index + offset:03d}"
            names[f"w_a_{number}"] = f"lora.{block.index}.{target}.a"
            names[f"w_b_{number}"] = f"lora.{block.index}.{target}.b"
    rank = len(tensors["w_a_000"])
    trained, trained_names = _trained_components(base, tensors, "prompt_encoder", "mask_decoder")
    # The checkpoint does not tell its image size; SAMed's is 512 unless it was told otherwise.
    parts = [Normalise(), LoRA(rank, targets=("q", "v")), *trained]
    return parts, names | trained_names


def _msa(base: ViT, tensors: Mapping[str, Tensor]) -> Mapped:
    names: dict[str, str] = {}
    for key in tensors:
        match = re.fullmatch(
            re.escape(_ENCODER) + r"blocks\.(\d+)\.(Space|MLP)_Adapter\.D_fc([12])\.(.+)", key
        )
        if match:
            block, adapter, layer, parameter = match.groups()
            site = {"Space": "attn_out", "MLP": "mlp"}[adapter]
            linear = {"1": "down", "2": "up"}[layer]
            names[key] = f"feature_adapter.{site}.{block}.{linear}.{parameter}"
    resized: list[int] = []
    rows = 0
    for block in base.blocks:
        for owner, table in block.rel_pos:
            key = f"{_ENCODER}blocks.{block.index}.attn.{table}"
            if block.attends_globally:
                rows = len(tensors[key])
            if tensors[key].shape != owner._parameters[table].shape:  # pyright: ignore[reportOptionalMemberAccess]
                resized = [*resized, *([] if block.index in resized else [block.index])]
                names[key] = f"trained.blocks.{block.index}.{table}.value"
    image_size = (rows + 1) // 2 * base.patch_projection.kernel_size[0]
    trained, trained_names = _trained_components(base, tensors, "mask_decoder")
    parts = [
        *methods.msa(image_size),
        *([Train("rel_pos", blocks=tuple(resized))] if resized else []),
        *trained,
    ]
    return parts, names | trained_names


def _medsam(base: ViT, tensors: Mapping[str, Tensor]) -> Mapped:
    if "mask_decoder" not in base.components:
        raise ValueError(
            "medsam trains the mask decoder, which an image encoder alone does not have"
        )
    trained, names = _trained_components(base, tensors, "mask_decoder")
    if not trained:
        raise KeyError("mask_decoder")
    return methods.medsam(), names


def _trained_components(
    base: ViT, tensors: Mapping[str, Tensor], *components: str
) -> tuple[list[Part], dict[str, str]]:
    """`Train` parts for the components that checkpoint and model have, and their tensors' names."""
    parts: list[Part] = []
    names: dict[str, str] = {}
    for what in components:
        module = base.components.get(what)
        if module is None or not any(key.startswith(f"{what}.") for key in tensors):
            continue
        parts.append(Train(what))
        for name, _ in module.named_parameters():
            names[f"{what}.{name}"] = f"trained.{what}.{name}.value"
    return parts, names


_METHODS: dict[str, Callable[[ViT, Mapping[str, Tensor]], Mapped]] = {
    "samus": _samus,
    "samed": _samed,
    "msa": _msa,
    "medsam": _medsam,
}
