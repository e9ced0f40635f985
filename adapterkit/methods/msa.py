"""Medical SAM Adapter (Wu et al. 2023, arXiv 2304.12620), in 2-D: two adapters in every block."""

import re
from collections.abc import Mapping

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods.checkpoints import ENCODER, trained_components
from adapterkit.methods.registry import Mapped, Schedule, register_method
from adapterkit.parts import FeatureAdapter, Normalise, Resize, Train


def read_checkpoint(base: ViT, tensors: Mapping[str, Tensor]) -> Mapped:
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
    image_size = (rows + 1) // 2 * base.patch_projection.kernel_size[0]
    trained, trained_names = trained_components(base, tensors, "mask_decoder")
    found = [
        *parts(base, image_size=image_size),
        *([Train("rel_pos", blocks=tuple(resized))] if resized else []),
        *trained,
    ]
    return found, names | trained_names


@register_method(
    "msa",
    title="MSA",
    # As SAMUS's code trains it.
    schedule=Schedule(learning_rate=1e-4, batch_size=8),
    read_checkpoint=read_checkpoint,
)
def parts(view: ViT | None = None, image_size: int | None = None) -> list[Part]:
    """One adapter after each attention, one parallel to each MLP.

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
