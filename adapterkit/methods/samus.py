"""SAMUS (Lin et al. 2023, arXiv 2309.06824)."""

import re
from collections.abc import Mapping

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods.checkpoints import ENCODER
from adapterkit.methods.registry import Mapped, Schedule, register_method
from adapterkit.parts import CNNBranch, FeatureAdapter, Normalise, PositionAdapter, Resize, Train

_PUBLISHED_NAMES = (
    (r"input_Adapter\.D_fc1\.(.+)", r"feature_adapter.tokens.down.\1"),
    (r"input_Adapter\.D_fc2\.(.+)", r"feature_adapter.tokens.up.\1"),
    (r"blocks\.(\d+)\.MLP_Adapter\.D_fc1\.(.+)", r"feature_adapter.mlp.\1.down.\2"),
    (r"blocks\.(\d+)\.MLP_Adapter\.D_fc2\.(.+)", r"feature_adapter.mlp.\1.up.\2"),
    (r"blocks\.(\d+)\.Space_Adapter\.(.+)", r"cnn_branch.attention.\1.\2"),
    (r"post_pos_embed\.downs\.(\d+)\.maxpool_conv\.(.+)", r"position_adapter.stages.\1.\2"),
    (r"cnn_embed\.inc\.conv\.(.+)", r"cnn_branch.convolutions.stem.\1"),
    (r"cnn_embed\.downs\.(\d+)\.maxpool_conv\.(.+)", r"cnn_branch.convolutions.pools.\1.\2"),
)

_POOLING = re.compile(re.escape(ENCODER) + r"cnn_embed\.downs\.\d+\.")


def checkpoint_names(base: ViT, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each key of a published SAMUS that the method trains, the adapter's key."""
    names: dict[str, str] = {}
    for key in tensors:
        for theirs, ours in _PUBLISHED_NAMES:
            if re.fullmatch(re.escape(ENCODER) + theirs, key):
                names[key] = re.sub(re.escape(ENCODER) + theirs, ours, key)
    for order, block in enumerate(base.select("global")):
        refine = f"{ENCODER}blocks.{block.index}.refine_Adapter.conv."
        for key in (key for key in tensors if key.startswith(refine)):
            names[key] = f"cnn_branch.convolutions.refine.{order}.{key.removeprefix(refine)}"
        for _, table in block.rel_pos:
            key = f"{ENCODER}blocks.{block.index}.attn.{table}"
            names[key] = f"trained.blocks.{block.index}.{table}.value"
    return names


def read_checkpoint(base: ViT, tensors: Mapping[str, Tensor]) -> Mapped:
    poolings = {key.split(".")[3] for key in tensors if _POOLING.match(key)}
    if len(poolings) != 3:
        raise ValueError(
            f"its CNN branch halves the image {len(poolings)} times, and not 3 times as at 256 "
            "pixels; the published code shows its transformer 256x256 pixels whatever it is given, "
            "which adapterkit's SAMUS does not, so that only checkpoints made at 256 are read"
        )
    first = base.select("global")[0].index
    rows = len(tensors[f"{ENCODER}blocks.{first}.attn.rel_pos_h"])
    # The published implementation fixes the patch stride at 8 pixels.
    found = parts(base, image_size=(rows + 1) // 2 * 8, patch_stride=8)
    return found, checkpoint_names(base, tensors)


@register_method(
    "samus",
    title="SAMUS",
    # The reproduction study of SAMUS; the published code has 5e-4.
    schedule=Schedule(learning_rate=1e-4, batch_size=8),
    read_checkpoint=read_checkpoint,
)
def parts(view: ViT | None = None, image_size: int = 256, patch_stride: int = 8) -> list[Part]:
    """All is in the image encoder; the rest stays frozen.

    Without the parts that an encoder other than SAM's has no place for: the position adapter where
    there is no absolute position embedding, relative positions where there are none, the last map
    of the CNN branch where the encoder reads its class token alone. Patches that are closer than
    `patch_stride` already stay as they are.

    Args:
        view: of the encoder; None for a `Sam`.
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches, which keep SAM's 16x16 kernel and so overlap.
    """
    has_positions = view is None or view.pos_embed is not None
    reads_patches = view is None or view.reads_patches
    has_relative_positions = view is None or any(block.rel_pos for block in view.blocks)
    closer = view is not None and view.patch_size < patch_stride
    return [
        Resize(image_size, None if closer else patch_stride),
        Normalise(),
        *([PositionAdapter()] if has_positions else []),
        FeatureAdapter(at="tokens", zero_init=False),
        FeatureAdapter(at="mlp", blocks="global", scale=0.5, zero_init=False),
        CNNBranch(blocks="global", output_scale=0.5 if reads_patches else 0.0),
        *([Train("rel_pos", blocks="global")] if has_relative_positions else []),
    ]
