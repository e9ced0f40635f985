"""SAMUS+: a pretrained encoder with adapters, class prompts, and a small U-Net for detail.

Not published; adapterkit's own, to be compared with SAMUS, from whose idea it started: a
transformer for what is where, and convolutions for where exactly. It keeps what short trainings on
few images need:

- All that is added starts as the identity, so that training starts from the base at its smaller
  input. SAMUS's random branch, adapters and pooled position embedding first replace what the base
  has learned. For the same reason the base's own normalisation and its interpolated position
  embedding stay.
- A structure that is known is better told by its name than by a random click, so `structures` have
  class prompts, and exclude each other as the classes of a network do.
- What is left then is detail, which the patches lose: a U-Net on the image that meets the image
  embedding, read by the mask decoder. SAMUS's branch, which attends from tokens to convolutions,
  brings it back only in part, at several times the cost; an encoder without a mask decoder, or with
  one that refines its own masks, has it nevertheless. An encoder of convolutions has its adapters
  behind its blocks.
- The mask decoder is trained, since a frozen one limits what any encoder can make it say.
"""

from collections.abc import Sequence

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods.registry import Schedule, register_method
from adapterkit.parts import ClassPrompts, CNNBranch, Detail, FeatureAdapter, Resize, Train


@register_method("samus_plus", title="SAMUS+", schedule=Schedule(learning_rate=1e-4, batch_size=8))
def parts(
    view: ViT | None = None,
    image_size: int = 256,
    patch_stride: int | None = None,
    structures: Sequence[str] = (),
) -> list[Part]:
    """What stands in the encoder and, where there is a mask decoder, what stands there.

    Args:
        view: of the encoder; None for a `Sam`.
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches; None: the encoder's own.
        structures: names of those that can be asked for without a click; none: clicks alone.
    """
    has_relative_positions = view is None or any(block.rel_pos for block in view.blocks)
    has_mlps = view is None or any("mlp" in block.sites for block in view.blocks)
    in_encoder: list[Part] = [
        Resize(image_size, patch_stride),
        FeatureAdapter(at="tokens", reduction=16),
        FeatureAdapter(at="mlp" if has_mlps else "block_out", scale=0.5, reduction=16),
        *([Train("rel_pos", blocks="global")] if has_relative_positions else []),
    ]
    decoder = None if view is None else view.decoder
    detail: Part = Detail(classes=len(structures))
    if view is not None and (decoder is None or decoder.mask_features is None):
        scale = 0.5 if view.reads_patches else 0.0
        detail = CNNBranch(blocks="global", output_scale=scale, zero_init=True)
    if view is not None and decoder is None:
        return [*in_encoder, detail]
    return [
        *in_encoder,
        *([ClassPrompts(tuple(structures))] if structures else []),
        detail,
        Train("mask_decoder"),
    ]
