"""Checkpoints of the published implementations, loaded as adapters."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapterkit.adapters.injection import Model, attach, base_state_dict, deactivated
from adapterkit.attach.attachment import Adapter
from adapterkit.encoders.views import ViT
from adapterkit.methods import find_method
from adapterkit.methods.checkpoints import ENCODER
from adapterkit.system.checkpoints import load_state_dict, tensors_only


def load_published(
    model: Model,
    checkpoint: str | Path | Mapping[str, Tensor],
    method: str,
    name: str = "default",
    load_base: bool = False,
    **options: Any,
) -> Model:
    """Inject a method with the weights that its published implementation trained.

    Args:
        model: the base that the checkpoint was trained from. An image encoder alone takes what the
            checkpoint holds for the encoder.
        checkpoint: a `.pth` (with or without a "module." prefix), or its state dict.
        method: "samus"; "samed", the file of LoRA weights, with prompt encoder and mask decoder
            or without; "msa", in 2-D, whose unused `Depth_Adapter` is left out, and which brings
            what its code changed about SAM, see `parts.PadBeforeNorm` and
            `parts.ResidualSelfAttention`; "medsam", of which the mask decoder is taken. As
            "samed_auto" SAMed's file is taken whole, with a mask for each of its classes and one
            more; as "samed", its decoder fits a `Sam` whose `MaskDecoder` has
            `num_multimask_outputs` of classes.
        name: what the adapter is called on this model.
        load_base: take the base's tensors from the checkpoint too, where it holds them. By
            default they must equal the model's. The released `medsam_vit_b.pth` was trained with
            its image encoder, so it needs this.
        **options: what the checkpoint does not tell: `image_size` of SAMed's, 512 by default, and
            `structures`, the names of its classes.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this method for this encoder, its base differs from
            the model's, or it predicts another number of masks; the message names the tensor, and
            the model is as before.
    """
    found = find_method(method)
    if isinstance(checkpoint, str | Path):
        source, tensors = str(checkpoint), load_state_dict(checkpoint)
    else:
        source, tensors = "the state dict", tensors_only(dict(checkpoint), "checkpoint")
    with deactivated(model) as base:
        own = base_state_dict(base)
        try:
            tensors = _of_components(base, _named_as_in_a_sam(tensors))
            parts, names = found.read(base, tensors, **options)
            _check_number_of_masks(base, tensors, names)
            trained = {ours: tensors[theirs] for theirs, ours in names.items()}
        except KeyError as error:
            raise ValueError(
                f"{source} is no {method} checkpoint of this encoder: it lacks {error}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
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
        (ENCODER if is_encoder else "") + re.sub(r"\.rel_([hw])$", r".rel_pos_\1", key): value
        for key, value in tensors.items()
    }


def _of_components(base: ViT, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without those of a `Sam`'s components that an encoder alone does not have."""
    absent = {"prompt_encoder", "mask_decoder"} - set(base.components)
    return {key: value for key, value in tensors.items() if key.split(".")[0] not in absent}


def _check_number_of_masks(
    base: ViT, tensors: Mapping[str, Tensor], names: Mapping[str, str]
) -> None:
    key = "mask_decoder.mask_tokens.weight"
    if key not in tensors or names.get(key, "").startswith("class_masks."):
        return
    found = len(tensors[key])
    own = len(base.components["mask_decoder"].get_parameter("mask_tokens.weight"))
    if found != own:
        raise ValueError(
            f"its mask decoder predicts {found} masks ({key}), and this model's {own}. "
            'SAMed\'s decoder has one for each class and one more: load it as method="samed_auto", '
            f"or give the Sam a MaskDecoder with num_multimask_outputs={found - 1} first"
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
