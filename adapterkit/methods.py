"""Published methods, each a list of parts."""

from adapterkit.attachment import Part
from adapterkit.parts import CNNBranch, FeatureAdapter, Normalise, PositionAdapter, Resize, Train


def samus(image_size: int = 256, patch_stride: int = 8) -> list[Part]:
    """SAMUS (Lin et al. 2023, arXiv 2309.06824): all in the image encoder, the rest stays frozen.

    Args:
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches, which keep SAM's 16x16 kernel and so overlap.
    """
    return [
        Resize(image_size, patch_stride),
        Normalise(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
        PositionAdapter(),
        FeatureAdapter(at="tokens", zero_init=False),
        FeatureAdapter(at="mlp", blocks="global", scale=0.5, zero_init=False),
        CNNBranch(blocks="global"),
        Train("rel_pos", blocks="global"),
    ]
