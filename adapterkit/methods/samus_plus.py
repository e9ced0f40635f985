"""SAMUS+: SAMUS's idea, started as the identity, with the decoder adapted too.

Not published; adapterkit's own variation, to be compared with the original. The base at its smaller
input is what training starts from, since all that is added to it is zero at first; SAMUS's random
branch, adapters and pooled position embedding first replace what the base has learned, and a short
training on few images has to recover it. For the same reason the base's own normalisation and its
interpolated position embedding stay. Every block has a feature adapter, since window attention too
was learned from other images, and the mask decoder is trained, since a frozen one limits what any
encoder can make it say.
"""

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods.registry import Schedule, register_method
from adapterkit.parts import CNNBranch, FeatureAdapter, Resize, Train


@register_method("samus_plus", title="SAMUS+", schedule=Schedule(learning_rate=1e-4, batch_size=8))
def parts(view: ViT | None = None, image_size: int = 256, patch_stride: int = 8) -> list[Part]:
    """Without relative positions or mask decoder where an encoder has none.

    Args:
        view: of the encoder; None for a `Sam`.
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches, which keep the base's kernel and so overlap.
    """
    has_relative_positions = view is None or any(block.rel_pos for block in view.blocks)
    has_decoder = view is None or "mask_decoder" in view.components
    return [
        Resize(image_size, patch_stride),
        FeatureAdapter(at="tokens"),
        FeatureAdapter(at="mlp", scale=0.5),
        CNNBranch(blocks="global", zero_init=True),
        *([Train("rel_pos", blocks="global")] if has_relative_positions else []),
        *([Train("mask_decoder")] if has_decoder else []),
    ]
