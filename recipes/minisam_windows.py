"""A `Sam` for large images, trained on windows of them, which cost a fraction."""

from typing import Any, cast

import torch
from jaxtyping import Float
from segment_anything.modeling import Sam
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor

from adapterkit.promptable.stock_sam import resized_sam


class Window:
    """A window of what a `Sam` sees, as a smaller `Sam` with the same weights.

    Every position has the meaning that it has in the whole: of the position embedding and of the
    positions of prompts the window takes its part, of the relative positions of global attention
    the near ones. So what is learnt on windows holds for the whole; a model whose positions are
    stretched, as by interpolation, has to learn its distances anew.

    Args:
        sam: of stock classes; what trains.
        image_size: side of the window in pixels, a multiple of the patch size.
    """

    def __init__(self, sam: Sam, image_size: int):
        self.sam, self.windowed = sam, resized_sam(sam, image_size)
        whole = sam.image_encoder
        self.patch_size = cast(int, whole.patch_embed.proj.stride[0])
        self.grid = image_size // self.patch_size
        self.places = whole.img_size // self.patch_size - self.grid + 1
        """Where a window can begin, along a side, in patches."""
        for name, module in self.windowed.named_modules():
            for key, parameter in sam.get_submodule(name).named_parameters(recurse=False):
                if getattr(module, key).shape == parameter.shape:
                    setattr(module, key, parameter)
                else:
                    # `at` puts a view of the whole's into its place, which is a plain tensor.
                    delattr(module, key)
        self.positions = _WindowPositions(
            cast(PositionEmbeddingRandom, sam.prompt_encoder.pe_layer),
            whole.img_size,
            self.patch_size,
        )
        self.windowed.prompt_encoder.pe_layer = self.positions

    def at(self, row: int, column: int) -> Sam:
        """The window that begins at a patch (row, column), both below `places`.

        The model returned is the same object at every call: use it before the next.
        """
        grid, patch = self.grid, self.patch_size
        whole: Any = self.sam.image_encoder
        part: Any = self.windowed.image_encoder
        if self.places > 1:
            part.pos_embed = whole.pos_embed[:, row : row + grid, column : column + grid]
        for mine, original in zip(part.blocks, whole.blocks, strict=True):
            for key in ("rel_pos_h", "rel_pos_w"):
                if key not in mine.attn._parameters:
                    table = getattr(original.attn, key)
                    middle = len(table) // 2
                    setattr(mine.attn, key, table[middle - grid + 1 : middle + grid])
        self.positions.corner = (column * patch, row * patch)
        return self.windowed


class _WindowPositions(PositionEmbeddingRandom):
    """The positional encoding of a window's points and cells, in the whole's coordinates."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, whole: PositionEmbeddingRandom, image_size: int, patch_size: int):
        super().__init__()
        self.positional_encoding_gaussian_matrix = cast(
            Tensor, whole.positional_encoding_gaussian_matrix
        )
        self.image_size, self.patch_size = image_size, patch_size
        self.corner: tuple[int, int] = (0, 0)

    def forward(self, size: tuple[int, int]) -> Float[Tensor, "c h w"]:
        """Of the cells of a grid of `size`, each a patch."""
        rows, columns = (self.patch_size * (torch.arange(side) + 0.5) for side in size)
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        return self.forward_with_coords(cells, size).permute(2, 0, 1)

    def forward_with_coords(
        self, coords_input: Float[Tensor, "b n 2"], image_size: tuple[int, int]
    ) -> Float[Tensor, "b n c"]:
        """Of points (x, y) in pixels of the window."""
        device = self.positional_encoding_gaussian_matrix.device
        # Half precision is too coarse for a position.
        with torch.autocast(device.type, enabled=False):
            moved = coords_input.to(device).float() + torch.tensor(self.corner, device=device)
            return super().forward_with_coords(moved, (self.image_size, self.image_size))
