"""Segmentation metrics per image and structure, and their summary over a data set.

Overlaps and distances come from MONAI. This module decides what they are when a mask is empty.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float
from monai.metrics.meandice import compute_dice
from monai.metrics.meaniou import compute_iou
from monai.metrics.utils import get_mask_edges, get_surface_distance
from torch import Tensor

Statistics = dict[str, dict[str, dict[str, float]]]
"""`statistics[structure][metric]["mean" | "std"]`, with a row "mean" after the structures."""

DISTANCES = ("hausdorff", "hausdorff95", "average_surface_distance")
"""The metrics that have a unit, which their names in an evaluation end with: "hausdorff_mm"."""


def segmentation_metrics(
    predicted: Bool[Tensor, "B K H W"],
    reference: Bool[Tensor, "B K H W"],
    spacing: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Float[Tensor, "B K"]]:
    """Overlap and boundary distances of predicted masks, per image and structure.

    A mask's boundary is its foreground pixels that have a 4-neighbour in the background or outside
    the image. With D the distances of each predicted boundary pixel to the nearest reference
    boundary pixel, and D' those from reference to prediction:

    - ``dice``: 2 |P and R| / (|P| + |R|), in [0, 1].
    - ``iou``: |P and R| / |P or R|, in [0, 1].
    - ``hausdorff``: max(max D, max D').
    - ``hausdorff95``: the greater of the 95th percentiles of D and D' (linear interpolation), as
      MONAI has it. MedPy's ``hd95`` is another number, the 95th percentile of D and D' together,
      so do not compare the two.
    - ``average_surface_distance``: the mean of D and D' together (symmetric).

    Empty masks are counted so that every value is finite and no miss is hidden from a mean:

    - both empty: the structure is rightly not found. Dice and IoU are 1, all distances 0.
    - only one empty: Dice and IoU are 0, all distances are the image's diagonal,
      sqrt((H row)^2 + (W column)^2), which no distance between two pixels exceeds.

    Args:
        predicted: predicted masks, one channel per structure, no background channel. Structures
            may overlap.
        reference: reference masks of the same shape.
        spacing: (row, column) size of a pixel; distances are Euclidean in its units (pixels for
            the default). One spacing for the batch: call once per image where spacings differ.

    Returns:
        A tensor of shape (B, K), float32, per metric name, on the device of ``predicted``.

    Raises:
        ValueError: if the shapes differ or are not (B, K, H, W), a tensor is not boolean, an image
            has no pixels, or a spacing is not positive and finite.

    Source: Dice and Hausdorff distance as in the SAMUS reproduction study, Tables 1 to 4; on empty
    masks, Reinke et al. 2024, "Understanding metric-related pitfalls in image analysis
    validation", Nature Methods 21.
    """
    _check_masks(predicted, reference)
    if len(spacing) != 2 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing must be two positive finite numbers, but is {spacing}")

    # MONAI computes edges and their distances on the CPU.
    device = predicted.device
    predicted, reference = predicted.cpu(), reference.cpu()
    batch, structures = predicted.shape[:2]
    distances = torch.zeros(3, batch, structures)
    for b in range(batch):
        for k in range(structures):
            distances[:, b, k] = _distances(predicted[b, k], reference[b, k], spacing)

    values = {
        # ignore_empty=False is MONAI's name for "1 where both are empty".
        "dice": compute_dice(predicted, reference, include_background=True, ignore_empty=False),
        "iou": compute_iou(predicted, reference, include_background=True, ignore_empty=False),
        "hausdorff": distances[0],
        "hausdorff95": distances[1],
        "average_surface_distance": distances[2],
    }
    return {name: value.to(device, torch.float32) for name, value in values.items()}


def with_unit(values: Mapping[str, Tensor], unit: str) -> dict[str, Tensor]:
    """The results of `segmentation_metrics`, with distances named as of a unit, "px" or "mm"."""
    return {
        f"{metric}_{unit}" if metric in DISTANCES else metric: value
        for metric, value in values.items()
    }


def summarise(values: Mapping[str, Float[Tensor, "N K"]], structures: Sequence[str]) -> Statistics:
    """Mean and standard deviation over images, per structure and of the structures' mean.

    The row ``"mean"`` describes each image's mean over its structures, so its mean is the mean of
    the structures' means, and its standard deviation is over images, as that of the other rows.

    Args:
        values: per metric, the values of N images and K structures: the results of
            `segmentation_metrics`, concatenated along the first axis.
        structures: the K structures' names, in the order of the second axis.

    Returns:
        ``result[structure][metric]["mean" | "std"]``, with the structures in the given order and
        then ``"mean"``. ``std`` is the sample standard deviation (divisor N - 1); 0 for N = 1.

    Raises:
        ValueError: if there is no image, a shape does not fit, the names are not distinct or hold
            ``"mean"``, or a value is not finite.
    """
    if not structures or len({*structures, "mean"}) != len(structures) + 1:
        raise ValueError(
            f"structures must be distinct names, none of them 'mean', but are {list(structures)}"
        )
    if not values:
        raise ValueError("there is no metric to summarise")
    for metric, value in values.items():
        if value.ndim != 2 or value.shape[0] < 1 or value.shape[1] != len(structures):
            raise ValueError(
                f"{metric} must have the shape (N >= 1, {len(structures)}), "
                f"but has {tuple(value.shape)}"
            )
        if not value.isfinite().all():
            raise ValueError(f"{metric} holds values that are not finite")
    if len({value.shape[0] for value in values.values()}) > 1:
        raise ValueError("the metrics differ in the number of images")

    statistics: Statistics = {name: {} for name in [*structures, "mean"]}
    for metric, value in values.items():
        columns = pd.DataFrame(value.detach().cpu().double().numpy(), columns=list(structures))
        columns["mean"] = columns.mean(axis=1)
        means = columns.mean().tolist()
        deviations = columns.std(ddof=1).fillna(0.0).tolist()
        for each, mean, deviation in zip(statistics.values(), means, deviations, strict=True):
            each[metric] = {"mean": mean, "std": deviation}
    return statistics


def _check_masks(predicted: Tensor, reference: Tensor) -> None:
    if predicted.shape != reference.shape:
        raise ValueError(
            "predicted and reference differ in shape: "
            f"{tuple(predicted.shape)} and {tuple(reference.shape)}"
        )
    if predicted.ndim != 4:
        raise ValueError(
            f"masks must have the axes (B, K, H, W), but have {tuple(predicted.shape)}"
        )
    if predicted.dtype != torch.bool or reference.dtype != torch.bool:
        raise ValueError(f"masks must be boolean, but are {predicted.dtype} and {reference.dtype}")
    if predicted.numel() == 0:
        raise ValueError(f"there are no masks to compare: shape {tuple(predicted.shape)}")


def _distances(
    predicted: Bool[Tensor, "H W"], reference: Bool[Tensor, "H W"], spacing: tuple[float, float]
) -> Float[Tensor, "3"]:
    """Hausdorff, 95th percentile Hausdorff and average surface distance of one pair of masks."""
    if not (predicted.any() or reference.any()):
        return torch.zeros(3)
    if not (predicted.any() and reference.any()):
        height, width = predicted.shape
        return torch.full((3,), math.hypot(height * spacing[0], width * spacing[1]))

    # One pair of edges serves the three metrics; MONAI's own functions would each find it anew.
    edges_predicted, edges_reference = get_mask_edges(predicted, reference, crop=False)
    forward = torch.as_tensor(
        get_surface_distance(edges_predicted, edges_reference, spacing=spacing)
    )
    backward = torch.as_tensor(
        get_surface_distance(edges_reference, edges_predicted, spacing=spacing)
    )
    return torch.stack(
        [
            torch.maximum(forward.max(), backward.max()),
            torch.maximum(forward.quantile(0.95), backward.quantile(0.95)),
            torch.cat([forward, backward]).mean(),
        ]
    )
