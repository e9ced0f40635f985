"""Checkpoints of the published implementations, loaded as adapters."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapterkit.attachment import Adapter, Part
from adapterkit.files import load_state_dict, tensors_only
from adapterkit.inject import CONTAINER, Model, attach, deactivated
from adapterkit.methods import samus
from adapterkit.vit import ViT


def load_published(
    model: Model,
    checkpoint: str | Path | Mapping[str, Tensor],
    method: str,
    name: str = "default",
    load_base: bool = False,
) -> Model:
    """Inject a method with the weights that its published implementation trained.

    Args:
        model: the base that the checkpoint was trained from.
        checkpoint: a `.pth` (with or without a "module." prefix), or its state dict.
        method: "samus".
        name: what the adapter is called on this model.
        load_base: take the base's tensors from the checkpoint too, where it holds them. By
            default they must equal the model's.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of this method for this encoder, or its base differs from
            the model's; the message names the tensor, and the model is as before.
    """
    if method not in _METHODS:
        raise ValueError(f"method={method!r}: expected one of {sorted(_METHODS)}")
    if isinstance(checkpoint, str | Path):
        source, tensors = str(checkpoint), load_state_dict(checkpoint)
    else:
        source, tensors = "the state dict", tensors_only(dict(checkpoint), "checkpoint")
    with deactivated(model) as base:
        try:
            parts, trained = _METHODS[method](base, tensors)
        except KeyError as error:
            raise ValueError(
                f"{source} is no {method} checkpoint of this encoder: it lacks {error}"
            ) from error
        own = {k: v for k, v in model.state_dict().items() if CONTAINER not in k.split(".")}
        rest = {key: value for key, value in tensors.items() if key not in trained}
        _check_base(own, rest, source, compare=not load_base)
        with torch.device("meta"):
            adapter = Adapter(base, parts)
        like = base.patch_projection.weight
        placed = {
            ours: tensors[theirs].to(like.device, like.dtype) for theirs, ours in trained.items()
        }
        try:
            adapter.added.load_state_dict(placed, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"{source} is no {method} checkpoint of this encoder: {error}"
            ) from error
        attach(base, adapter, name)
        if load_base:
            model.load_state_dict({**own, **rest}, strict=False)
    return model


def _check_base(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str, compare: bool
) -> None:
    for key, value in found.items():
        if key not in own:
            raise ValueError(f"{source} holds a tensor {key} that neither the method nor SAM has")
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
    encoder = "image_encoder."
    names: dict[str, str] = {}
    for key in tensors:
        for theirs, ours in _SAMUS_NAMES:
            if re.fullmatch(re.escape(encoder) + theirs, key):
                names[key] = re.sub(re.escape(encoder) + theirs, ours, key)
    for order, block in enumerate(base.select("global")):
        refine = f"{encoder}blocks.{block.index}.refine_Adapter.conv."
        for key in (key for key in tensors if key.startswith(refine)):
            names[key] = f"cnn_branch.convolutions.refine.{order}.{key.removeprefix(refine)}"
        for _, table in block.rel_pos:
            key = f"{encoder}blocks.{block.index}.attn.{table}"
            names[key] = f"trained.blocks.{block.index}.{table}.value"
    return names


def _samus(base: ViT, tensors: Mapping[str, Tensor]) -> tuple[Sequence[Part], dict[str, str]]:
    first = base.select("global")[0].index
    rows = len(tensors[f"image_encoder.blocks.{first}.attn.rel_pos_h"])
    # The published implementation fixes the patch stride at 8 pixels.
    return samus(image_size=(rows + 1) // 2 * 8, patch_stride=8), samus_names(base, tensors)


_METHODS = {"samus": _samus}
