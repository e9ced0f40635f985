"""The sizes of the comparison networks, beside what was published.

python -m benchmarks.models
"""

import torch
from torch import nn

from benchmarks.models import NETWORKS

CLASSES = 4
IMAGE_SIZE = 224


def main() -> None:
    print("| system | encoder | parameters | published | source | small |")
    print("|---|---|---|---|---|---|")
    for name, network in NETWORKS.items():
        with torch.device("meta"):
            parameters = count_parameters(network.published(CLASSES, IMAGE_SIZE))
            small = count_parameters(network.small(CLASSES, IMAGE_SIZE))
        print(
            f"| {name} | {network.encoder} | {parameters / 1e6:.2f} M "
            f"| {network.parameters / 1e6:.2f} M | {network.source} | {small / 1e6:.2f} M |"
        )
    print(f"\nOf {CLASSES} classes and RGB images of {IMAGE_SIZE}x{IMAGE_SIZE} pixels.")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
