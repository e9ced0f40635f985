"""What a grid of points finds, as `SamAutomaticMaskGenerator` has it."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from segment_anything.utils.amg import (
    batched_mask_to_box,
    build_point_grid,
    calculate_stability_score,
)
from torch import Tensor
from torchvision.ops import nms

from adapterkit.inference.fitting import at_side
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Masks

Found = tuple[Float[Tensor, "_ h w"], Float[Tensor, "_"], Float[Tensor, "_ 4"]]
"""Logits of masks at the model's resolution, their scores, and the boxes around them."""


def grid_of_points(
    shown: tuple[int, int], points_per_side: int, points_per_batch: int
) -> Iterator[Prompts]:
    """A point in each cell of a grid over the rows and columns that show the image."""
    rows, columns = shown
    grid = torch.from_numpy(build_point_grid(points_per_side)) * torch.tensor([columns, rows])
    for points in grid.float().split(points_per_batch):
        labels = torch.ones(1, len(points), 1, dtype=torch.int64)
        yield Prompts(points[None, :, None], labels)


def good_masks(
    found: Masks, shown: tuple[int, int], min_score: float, min_stability: float
) -> Found:
    """Of the three masks of each point, those of a score above and a stability from `min_...`."""
    rows, columns = shown
    scores = found.all_iou[0, :, 1:].flatten()
    good = scores > min_score
    logits, scores = found.all_logits[0, :, 1:].flatten(0, 1)[good], scores[good]
    square = at_side(logits, found.image_size) if len(logits) else logits
    square = square[:, :rows, :columns]
    stable = calculate_stability_score(square, 0, 1) >= min_stability
    boxes = batched_mask_to_box(square[stable] > 0).float()
    return logits[stable], scores[stable], boxes


def without_overlaps(
    grid: Sequence[Found], max_overlap: float, count: int | None
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n"]]:
    """The best of those whose boxes overlap, ordered by their scores; at most `count`."""
    logits, scores, boxes = (torch.cat(values) for values in zip(*grid, strict=True))
    kept = nms(boxes, scores.float(), max_overlap)[:count]
    return logits[kept], scores[kept]
