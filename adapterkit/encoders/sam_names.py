"""The names of SAM's tensors: several libraries hold the same weights, each under its own names.

A family whose models have SAM's weights says so beside its code:

    names_in_sam("timm_samvit", (r"\\.mlp\\.fc(\\d)\\.", r".mlp.lin\\1."))
"""

import re

_PATTERNS: dict[str, tuple[tuple[str, str], ...]] = {}

_TRAINED = {"image_encoder": "image_encoder.", "neck": "image_encoder.neck."}
"""Where in a `Sam` a component of `Train` is that is not called by its place."""


def names_in_sam(family: str, *patterns: tuple[str, str]) -> None:
    """Register how names of a family's tensors become those of segment_anything's `Sam`.

    Args:
        family: as `ViT.family`; its names are as within a model, or after "image_encoder." as
            within the image encoder alone.
        *patterns: regular expressions and what stands for them, applied in this order.
    """
    _PATTERNS[family] = patterns


def share_weights(family: str, other: str) -> bool:
    """Whether models of both families can have the same weights."""
    return family == other or {family, other} <= _PATTERNS.keys()


def as_in_sam(family: str, name: str) -> str:
    """What segment_anything's `Sam` calls the tensor that a family calls `name`."""
    for pattern, replacement in _PATTERNS[family]:
        name = re.sub(pattern, replacement, name)
    return name


def trained_as_in_sam(family: str, name: str) -> str:
    """The same of an adapter's tensor: those of `Train` are named by what they are copies of."""
    part, _, rest = name.partition(".")
    component, _, path = rest.partition(".")
    if part != "trained" or component == "blocks":
        return name
    return f"trained.{as_in_sam(family, _TRAINED.get(component, f'{component}.') + path)}"
