"""The sizes of the comparison networks, beside what was published.

python -m benchmarks.models
"""

import torch
from torch import nn

from benchmarks.models import SYSTEMS

CLASSES = 4
IMAGE_SIZE = 224


def main() -> None:
    print("| system | encoder | parameters | published | source | small |")
    print("|---|---|---|---|---|---|")
    for name, system in SYSTEMS.items():
        with torch.device("meta"):
            parameters = count_parameters(system.published(CLASSES, IMAGE_SIZE))
            small = count_parameters(system.small(CLASSES, IMAGE_SIZE))
        print(
            f"| {name} | {system.encoder} | {parameters / 1e6:.2f} M "
            f"| {system.parameters / 1e6:.2f} M | {system.source} | {small / 1e6:.2f} M |"
        )
    print(f"\nOf {CLASSES} classes and RGB images of {IMAGE_SIZE}x{IMAGE_SIZE} pixels.")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
