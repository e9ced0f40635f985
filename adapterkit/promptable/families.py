"""Which family a Segment Anything model is of; importing this registers all that come with
adapterkit, without importing their libraries."""

from torch import nn

from adapterkit.encoders.wrappers import unwrapped
from adapterkit.promptable import (
    segment_anything,
    transformers_edgetam,
    transformers_sam,
    transformers_sam2,
    transformers_sam3,
)
from adapterkit.promptable.sam_family import SamFamily, all_families

__all__ = [
    "all_families",
    "family_of",
    "segment_anything",
    "titles",
    "transformers_edgetam",
    "transformers_sam",
    "transformers_sam2",
    "transformers_sam3",
]


def family_of(model: object) -> SamFamily | None:
    """`model`, or what it wraps, as its family has it; None where it is of none."""
    if not isinstance(model, nn.Module):
        return None
    within = unwrapped(model)
    return next((each(within) for each in all_families() if each.takes(within)), None)


def titles() -> str:
    """What a model can be, in words."""
    *first, last = [each.title for each in all_families()]
    return f"{', '.join(first)} or {last}"
