"""The sizes of the comparison networks, beside what was published.

python -m benchmarks.models
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterkit.system.command_line import check_positive, run

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Config:
    classes: int = 4
    """Background and structures."""
    image_size: int = 224
    """Side of the RGB images, in pixels."""


def main(config: Config) -> None:
    import torch

    from benchmarks.models.networks import NETWORKS

    check_positive(config, "classes", "image_size")
    classes, size = config.classes, config.image_size
    print("| system | encoder | parameters | published | source | small |")
    print("|---|---|---|---|---|---|")
    for name, network in NETWORKS.items():
        with torch.device("meta"):
            parameters = count_parameters(network.published(classes, size))
            small = count_parameters(network.small(classes, size))
        print(
            f"| {name} | {network.encoder} | {parameters / 1e6:.2f} M "
            f"| {network.parameters / 1e6:.2f} M | {network.source} | {small / 1e6:.2f} M |"
        )
    print(f"\nOf {classes} classes and RGB images of {size}x{size} pixels.")


def count_parameters(model: "nn.Module") -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    run(main, Config)
