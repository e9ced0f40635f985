"""What published checkpoints of several methods have in common."""

from collections.abc import Mapping

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.parts import Train

ENCODER = "image_encoder."
"""The prefix of the image encoder's keys within a `Sam`."""


def trained_components(
    base: ViT, tensors: Mapping[str, Tensor], *components: str
) -> tuple[list[Part], dict[str, str]]:
    """`Train` parts for the components that checkpoint and model have, and their tensors' names."""
    parts: list[Part] = []
    names: dict[str, str] = {}
    for what in components:
        module = base.components.get(what)
        if module is None or not any(key.startswith(f"{what}.") for key in tensors):
            continue
        parts.append(Train(what))
        for name, _ in module.named_parameters():
            names[f"{what}.{name}"] = f"trained.{what}.{name}.value"
    return parts, names
