"""SAMUS+ for sequences: SAMUS+, and attention over time.

Not published; adapterkit's own. The attention is that of TimeSformer (arXiv 2102.05095), as
MediViSTA (arXiv 2309.13539) has it for SAM on echocardiography; it starts as the identity, as all
in SAMUS+ does.
"""

from collections.abc import Sequence

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods import samus_plus
from adapterkit.methods.registry import Schedule, register_method
from adapterkit.parts import TemporalAttention


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
) -> list[Part]:
    """What SAMUS+ has, and attention over time at the end of the blocks that attend globally.

    Args:
        view: of the encoder; None for a `Sam`.
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches; None: the encoder's own.
        structures: names of those that can be asked for without a click; none: clicks alone.
        reach: frames before and after its own that a token attends to in each of these blocks.
    """
    of_images = samus_plus.parts(view, image_size, patch_stride, structures)
    return [*of_images, TemporalAttention(reach=reach)]
