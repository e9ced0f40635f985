"""SAMUS+ for sequences: SAMUS+, of which detail and encoder look over time.

Not published; adapterkit's own. The U-Net of `Detail` looks to the frames beside in each of its
levels, which is where flicker and dropouts of single frames are made good: attention between the
encoder's tokens alone left the contours as unsteady as without. That attention is TimeSformer's
(arXiv 2102.05095), as MediViSTA (arXiv 2309.13539) has it for SAM on echocardiography, to the same
place in other frames; it starts as the identity, as all in SAMUS+ does.
"""

from collections.abc import Sequence
from dataclasses import replace

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods import samus_plus
from adapterkit.methods.registry import Schedule, register_method
from adapterkit.parts import Detail, TemporalAttention


@register_method(
    "samus_plus_video",
    title="SAMUS+ video",
    schedule=Schedule(learning_rate=1e-4, batch_size=8),
)
def parts(
    view: ViT | None = None,
    image_size: int = 256,
    patch_stride: int | None = None,
    structures: Sequence[str] = (),
    reach: int = 2,
    detail_reach: int = 1,
) -> list[Part]:
    """What SAMUS+ has, over time, and attention at the end of the blocks that attend globally.

    Args:
        view: of the encoder; None for a `Sam`.
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches; None: the encoder's own.
        structures: names of those that can be asked for without a click; none: clicks alone.
        reach: frames before and after its own that a token attends to in each of these blocks.
        detail_reach: frames before and after its own that each level of `Detail` looks to.
    """
    of_images = samus_plus.parts(view, image_size, patch_stride, structures)
    of_sequences = [
        replace(part, reach=detail_reach) if isinstance(part, Detail) else part
        for part in of_images
    ]
    return [*of_sequences, TemporalAttention(reach=reach, neighbourhood=1)]
