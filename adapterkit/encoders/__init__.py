"""Where the sites of vision transformers are: the view, and one file for each library or family.

Importing this package registers the families of all of them, without importing the libraries.
"""

from adapterkit.encoders import (
    segment_anything,
    timm,
    timm_families,
    transformers_edgetam,
    transformers_families,
    transformers_sam,
    transformers_sam2,
    transformers_sam3,
)

__all__ = [
    "segment_anything",
    "timm",
    "timm_families",
    "transformers_edgetam",
    "transformers_families",
    "transformers_sam",
    "transformers_sam2",
    "transformers_sam3",
]
