"""Medical SAM Adapter (Wu et al. 2023, arXiv 2304.12620), in 2-D: two adapters in every block."""

import re
from collections.abc import Mapping

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods.checkpoints import ENCODER, trained_components
from adapterkit.methods.registry import Mapped, Schedule, register_method
from adapterkit.parts import (
    FeatureAdapter,
    Normalise,
    PadBeforeNorm,
    ResidualSelfAttention,
    Resize,
    Train,
)


def read_checkpoint(base: ViT, tensors: Mapping[str, Tensor]) -> Mapped:
    if any(".lora_" in key for key in tensors):
        raise ValueError(
            "it holds LoRA, as MSA's code trains it with -mod sam_lora or sam_adalora; adapterkit "
            "reads what it trains with -mod sam_adpt, its adapters"
        )
    names: dict[str, str] = {}
    for key in tensors:
        match = re.fullmatch(
            re.escape(ENCODER) + r"blocks\.(\d+)\.(Space|MLP)_Adapter\.D_fc([12])\.(.+)", key
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
            key = f"{ENCODER}blocks.{block.index}.attn.{table}"
            if block.attends_globally:
                rows = len(tensors[key])
            if tensors[key].shape != owner._parameters[table].shape:  # pyright: ignore[reportOptionalMemberAccess]
                resized = [*resized, *([] if block.index in resized else [block.index])]
                names[key] = f"trained.blocks.{block.index}.{table}.value"
    image_size = (rows + 1) // 2 * base.patch_size
    decoder, decoder_names = _decoder(base, tensors)
    found = [
        *parts(base, image_size=image_size),
        *([PadBeforeNorm()] if any(not block.attends_globally for block in base.blocks) else []),
        *([Train("rel_pos", blocks=tuple(resized))] if resized else []),
        *decoder,
    ]
    return found, names | decoder_names


def _decoder(base: ViT, tensors: Mapping[str, Tensor]) -> Mapped:
    """The trained mask decoder, which later versions of the published code took from EfficientSAM.

    They are told apart by what the layers of its MLPs are called.
    """
    trained, names = trained_components(base, tensors, "mask_decoder")
    if not any(".mlp.fc." in key for key in tensors):
        return trained, names
    efficient = {
        key.replace(".mlp.lin1.", ".mlp.layers.0.0.").replace(".mlp.lin2.", ".mlp.fc."): ours
        for key, ours in names.items()
    }
    return [ResidualSelfAttention(), *trained], efficient


@register_method(
    "msa",
    title="MSA",
    # As SAMUS's code trains it.
    schedule=Schedule(learning_rate=1e-4, batch_size=8),
    read_checkpoint=read_checkpoint,
)
def parts(view: ViT | None = None, image_size: int | None = None) -> list[Part]:
    """One adapter after each attention, one parallel to each MLP; SAM itself stays frozen.

    The published code differs from this in three ways, which its checkpoints bring with them when
    they are loaded: it fills up windows before norm1 (`PadBeforeNorm`), its mask decoder is
    EfficientSAM's (`ResidualSelfAttention`) with SAM's weights, and is trained too.

    Args:
        view: of the encoder; None for a `Sam`.
        image_size: side of the square input, in pixels; None keeps the base's own.
    """
    return [
        # The published code interpolates the position embedding without antialiasing.
        *([] if image_size is None else [Resize(image_size, antialias=False)]),
        Normalise(),
        FeatureAdapter(at="attn_out", zero_init=False),
        FeatureAdapter(at="mlp", scale=0.5, zero_init=False),
    ]
