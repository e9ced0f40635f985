"""Methods, each a list of parts: the published ones, and what was learned from SAMUS."""

from adapterkit.attach.attachment import Part
from adapterkit.parts import (
    CNNBranch,
    FeatureAdapter,
    LoRA,
    Normalise,
    PositionAdapter,
    Resize,
    Train,
)


def samus(image_size: int = 256, patch_stride: int = 8) -> list[Part]:
    """SAMUS (Lin et al. 2023, arXiv 2309.06824): all in the image encoder, the rest stays frozen.

    Args:
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches, which keep SAM's 16x16 kernel and so overlap.
    """
    return [
        Resize(image_size, patch_stride),
        Normalise(),
        PositionAdapter(),
        FeatureAdapter(at="tokens", zero_init=False),
        FeatureAdapter(at="mlp", blocks="global", scale=0.5, zero_init=False),
        CNNBranch(blocks="global"),
        Train("rel_pos", blocks="global"),
    ]


def samus_plus(image_size: int = 256, patch_stride: int = 8) -> list[Part]:
    """SAMUS's idea, started as the identity, with more of the base's depth and its decoder adapted.

    Not published; adapterkit's own variation, to be compared with the original. The base at its
    smaller input is what training starts from, since all that is added to it is zero at first;
    SAMUS's random branch, adapters and pooled position embedding first replace what the base has
    learned, and a short training on few images has to recover it. For the same reason the base's
    own normalisation and its interpolated position embedding stay. Every block has a feature
    adapter, since window attention too was learned from other images, and the mask decoder is
    trained, since a frozen one limits what any encoder can make it say.

    Args:
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches, as in `samus`.
    """
    return [
        Resize(image_size, patch_stride),
        FeatureAdapter(at="tokens"),
        FeatureAdapter(at="mlp", scale=0.5),
        CNNBranch(blocks="global", zero_init=True),
        Train("rel_pos", blocks="global"),
        Train("mask_decoder"),
    ]


def samed(rank: int = 4, image_size: int = 512) -> list[Part]:
    """SAMed (Zhang & Liu 2023, arXiv 2304.13785): LoRA on q and v, and all but the encoder trained.

    Args:
        rank: of the LoRA updates.
        image_size: side of the square input, in pixels.
    """
    return [
        Resize(image_size),
        Normalise(),
        LoRA(rank, targets=("q", "v")),
        Train("prompt_encoder"),
        Train("mask_decoder"),
    ]


def msa(image_size: int | None = None) -> list[Part]:
    """Medical SAM Adapter (Wu et al. 2023, arXiv 2304.12620), in 2-D: two adapters in every block.

    Args:
        image_size: side of the square input, in pixels; None keeps the base's own.
    """
    return [
        # The published code interpolates the position embedding without antialiasing.
        *([] if image_size is None else [Resize(image_size, antialias=False)]),
        Normalise(),
        FeatureAdapter(at="attn_out", zero_init=False),
        FeatureAdapter(at="mlp", scale=0.5, zero_init=False),
    ]


def medsam(image_size: int | None = None) -> list[Part]:
    """MedSAM (Ma & Wang 2023, arXiv 2304.12306), first version: the mask decoder alone is trained.

    Args:
        image_size: side of the square input, in pixels; None keeps the base's own.
    """
    return [
        *([] if image_size is None else [Resize(image_size)]),
        Normalise(),
        Train("mask_decoder"),
    ]
