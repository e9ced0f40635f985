"""What the comparison networks share: RGB images in [0, 255] in, logits at their resolution out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SegmentationModel(nn.Module):
    """Segments background and structures at once, without a prompt.

    Args:
        network: maps normalised images to logits of the same height and width.
        mean: red, green, blue, in [0, 1], that the network's encoder expects.
        std: the same.
        multiple: what an image's sides must be multiples of.
        image_size: side of the square images that the network is built for, where its position
            embeddings or windows belong to one size; None: any multiple will do.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        multiple: int = 1,
        image_size: int | None = None,
    ):
        super().__init__()
        self.network = network
        self.multiple = multiple
        self.image_size = image_size
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b classes H W"]:
        """Logits of background (the first) and structures.

        Args:
            images: RGB in [0, 255].

        Raises:
            ValueError: the network does not take images of this size.
        """
        height, width = images.shape[-2:]
        if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"images are {height}x{width} pixels, and this {type(self.network).__name__} was "
                f"built for {self.image_size}x{self.image_size}; resize them, or build it with "
                "another image_size"
            )
        for side in (height, width):
            check_side(side, self.multiple, type(self.network).__name__)
        return self.network((images - self.mean) / self.std)


def check_side(side: int, multiple: int, network: str) -> None:
    """Refuse an image's side that a network cannot halve as often as it does.

    Raises:
        ValueError: `side` is not a positive multiple of `multiple`.
    """
    if side <= 0 or side % multiple:
        raise ValueError(
            f"an image's side is {side} pixels, and {network} takes multiples of {multiple}; "
            "resize or pad the images"
        )
