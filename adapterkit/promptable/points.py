"""Prompts, chosen from reference masks to stand in for an expert's clicks and boxes.

Points are (x, y) = (column, row) indices of pixels of the given mask, (0, 0) to (W - 1, H - 1).
They name a pixel, not its centre: SAM's prompt encoder adds the 0.5 itself. Every strategy returns
points and labels (1 foreground, 0 background) with an axis for the points of one mask, so that the
results of two strategies concatenate along it.

Where a mask has no foreground, every strategy chooses among all pixels, and the label is 0. The
published SAMUS does the same, so that an absent structure is still a valid sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import masks_to_boxes

from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Masks
from adapterkit.promptable.strategies import PromptStrategy

Segment = Callable[[Prompts], Masks]
"""What a model answers to prompts."""


def choose_prompts(
    masks: Bool[Tensor, "B K H W"],
    strategy: PromptStrategy,
    generators: Sequence[torch.Generator],
    segment: Segment,
) -> Prompts:
    """The prompts of each structure of each image.

    Strategies of points agree in the first, so their results differ by the others alone.

    - "1": one random point of the structure.
    - "2-random", "2-entropy", "2-max-distance": a second one at random, where the prediction from
      the first is least certain, or farthest from the first.
    - "2-uncertain": the second where it is least certain that the pixel is the structure's: the
      probability of the mask times that the structure is in the image at all, asked for by its
      class and the first point. Without a judged presence, "2-entropy" of that answer.
    - "2-disagreement": where the model's three masks for an ambiguous prompt, asked by the first
      point, differ most: the variance of their probabilities.
    - "2-prior": where what the first point gives differs most from what the class alone gives, the
      model's own prior of the structure.
    - "3", "5": so many, each further one at random where the prediction so far is wrong, and beside
      that prediction, as `corrected` has it.
    - "box": the box around the structure, each edge moved by up to a tenth of the box's side; the
      whole image where the structure is absent.
    - "class": its name alone. "class+1": its name, and a point where what the name gives is wrong.

    Args:
        masks: reference masks of K structures, the model's classes in order, in each of B images.
        strategy: which.
        generators: a source of randomness for each image, such as `seeded_generator` gives.
        segment: called where points depend on what is predicted.

    Returns:
        Points (x, y) in pixels with labels 1, or 0 where a mask has no foreground and its points
        are from the background; boxes; classes.

    Raises:
        ValueError: the strategy is unknown, or there is not one generator per image.

    Source: the SAMUS reproduction study, Table 4, for one and two points; Kirillov et al. 2023,
    arXiv 2304.02643, appendix A, for points from the error and moved boxes.
    """
    if strategy not in get_args(PromptStrategy):
        raise ValueError(f"strategy is {strategy!r}: expected one of {get_args(PromptStrategy)}")
    if len(generators) != len(masks):
        raise ValueError(f"{len(masks)} images, but {len(generators)} generators")
    images, structures = masks.shape[:2]
    classes = torch.arange(structures, device=masks.device).repeat(images, 1)
    by_name = Prompts(classes=classes)
    if strategy == "class":
        return by_name
    if strategy == "class+1":
        return corrected(by_name, masks, segment(by_name), generators)
    if strategy == "box":
        each = zip(masks, generators, strict=True)
        return Prompts(boxes=torch.stack([moved_boxes(*of_image) for of_image in each]))
    count = 2 if strategy == "2-random" else 1
    drawn = [random_points(*each, count) for each in zip(masks, generators, strict=True)]
    points, labels = map(torch.stack, zip(*drawn, strict=True))
    first = Prompts(points, labels)
    if strategy in ("3", "5"):
        for _ in range(int(strategy) - 1):
            first = corrected(first, masks, segment(first), generators)
        return first
    second = second_point(masks, strategy, first, classes, segment)
    return first if second is None else _with(first, *second)


def second_point(
    masks: Bool[Tensor, "B K H W"],
    strategy: PromptStrategy,
    first: Prompts,
    classes: Int[Tensor, "B K"],
    segment: Segment,
) -> tuple[Float[Tensor, "B K 1 2"], Int[Tensor, "B K 1"]] | None:
    """The second point of each structure, and its label, as `choose_prompts` says; None for a
    strategy that does not choose it by the first point or by what is predicted."""
    size = masks.shape[-2], masks.shape[-1]
    if strategy == "2-max-distance":
        assert first.points is not None
        return farthest_point(masks, first.points[..., 0, :])
    if strategy == "2-entropy":
        return entropy_point(masks, segment(first).logits(size).float().sigmoid())
    if strategy == "2-uncertain":
        found = segment(replace(first, classes=classes))
        probabilities = _at_size(found.low_res_logits.float().sigmoid(), size)
        if found.presence is not None:
            probabilities = probabilities * found.presence.float().sigmoid()[..., None, None]
        return entropy_point(masks, probabilities)
    if strategy == "2-disagreement":
        return _best(masks, _at_size(_disagreement(segment(first)), size).to(masks.device))
    if strategy == "2-prior":
        prior = segment(Prompts(classes=classes)).logits(size).float().sigmoid()
        found = segment(first).logits(size).float().sigmoid()
        return _best(masks, (prior - found).abs().to(masks.device))
    return None


def _disagreement(found: Masks) -> Float[Tensor, "B K h w"]:
    """The variance of the probabilities of the masks for an ambiguous prompt.

    Raises:
        ValueError: the model gives one mask of each prompt.
    """
    if found.all_logits.shape[2] < 3:
        raise ValueError(
            "2-disagreement: this model gives one mask of each prompt; expected SAM's four, of "
            "which three are for an ambiguous one"
        )
    return found.all_logits[:, :, 1:].float().sigmoid().var(dim=2)


def _at_size(maps: Float[Tensor, "B K h w"], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _with(
    prompts: Prompts, points: Float[Tensor, "B K n 2"], labels: Int[Tensor, "B K n"]
) -> Prompts:
    if prompts.points is not None and prompts.labels is not None:
        points = torch.cat([prompts.points, points], dim=-2)
        labels = torch.cat([prompts.labels, labels], dim=-1)
    return replace(prompts, points=points, labels=labels)


def corrected(
    prompts: Prompts,
    masks: Bool[Tensor, "B K H W"],
    found: Masks,
    generators: Sequence[torch.Generator],
    with_mask: bool = True,
) -> Prompts:
    """With one more point for each structure, drawn where what the prompts gave is wrong.

    Args:
        prompts: so far; they may be without points.
        masks: reference masks.
        found: what the prompts gave.
        generators: a source of randomness for each image.
        with_mask: whether the mask that they gave is a prompt too, without gradients.

    Source: Kirillov et al. 2023, arXiv 2304.02643, appendix A.
    """
    wrong = (found.logits((masks.shape[-2], masks.shape[-1])) > 0).to(masks.device) != masks
    drawn = [random_points(*each) for each in zip(wrong, generators, strict=True)]
    points = torch.stack([point for point, _ in drawn])
    x, y = points.long()[..., 0, :].unbind(-1)
    inside = masks.flatten(2).gather(2, (y * masks.shape[-1] + x)[..., None])
    given = found.low_res_logits.detach() if with_mask else None
    return replace(_with(prompts, points, inside.long()), masks=given)


def moved_boxes(
    masks: Bool[Tensor, "k H W"], generator: torch.Generator, share: float = 0.1
) -> Float[Tensor, "k 4"]:
    """The box around each mask, each edge moved by up to a share of the box's side, within the
    image; the whole image where a mask has no foreground."""
    height, width = masks.shape[-2:]
    whole = torch.tensor([0, 0, width, height], dtype=torch.float32, device=masks.device)
    moves = (2 * torch.rand(len(masks), 4, generator=generator) - 1).to(masks.device) * share
    boxes = []
    for mask, move in zip(masks, moves, strict=True):
        if not mask.any():
            boxes.append(whole)
            continue
        box = boxes_around(mask[None])[0]
        sides = (box[2:] - box[:2]).repeat(2)
        boxes.append(torch.minimum((box + move * sides).clamp(min=0), whole[2:].repeat(2)))
    return torch.stack(boxes)


def boxes_around(masks: Bool[Tensor, "k H W"]) -> Float[Tensor, "k 4"]:
    """The smallest box (x0, y0, x1, y1) around each mask, from edge to edge of its pixels.

    Raises:
        ValueError: if a mask has no foreground.
    """
    if not masks.flatten(1).any(dim=1).all():
        raise ValueError("a mask has no foreground, so there is no box around it")
    # torchvision gives the first and the last pixel.
    return masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1], device=masks.device)


def random_points(
    masks: Bool[Tensor, "*batch H W"], generator: torch.Generator, count: int = 1
) -> tuple[Float[Tensor, "*batch count 2"], Int[Tensor, "*batch count"]]:
    """Points drawn uniformly at random from each mask's foreground.

    The draws are independent, so a pixel can be drawn twice (as published, and so that a
    foreground of one pixel can still give two points). With a CPU generator the first points of a
    call with a greater ``count`` are those of a call with a smaller one, whatever the masks'
    device, so strategies can be compared from the same first point.

    Args:
        masks: binary masks; the leading axes are any, including none.
        generator: source of randomness; it may be on another device than the masks.
        count: number of points per mask, at least 1.

    Returns:
        points (x, y) in pixels, float32, and labels, int64: 1, or 0 where a mask has no
        foreground and its points are from the background.

    Raises:
        ValueError: if masks are not boolean or have no pixels, or count is below 1.

    Source: the SAMUS reproduction study, Table 4, "random"; the published SAMUS code.
    """
    _check_masks(masks)
    if count < 1:
        raise ValueError(f"count must be at least 1, but is {count}")
    candidates = _candidates(masks)
    ranks_below = candidates.cumsum(dim=-1)
    total = ranks_below[..., -1:]
    # float64, because float32 cannot address each pixel of a large image. One row per point, not
    # per mask, so that a greater count only adds draws after those of a smaller count.
    uniform = torch.rand(
        (count, *total.shape[:-1]),
        dtype=torch.float64,
        device=generator.device,
        generator=generator,
    )
    ranks = (uniform.to(masks.device).movedim(0, -1) * total).long().contiguous()
    # The pixel of rank r is the first one up to which there are more than r candidates.
    indices = torch.searchsorted(ranks_below, ranks, right=True)
    return _points(indices, masks), _labels(masks, count)


def farthest_point(
    masks: Bool[Tensor, "*batch H W"], first: Float[Tensor, "*batch 2"]
) -> tuple[Float[Tensor, "*batch 1 2"], Int[Tensor, "*batch 1"]]:
    """The foreground pixel of each mask at the greatest Euclidean distance from its first point.

    Of several at the same distance, the first in row-major order.

    Args:
        masks: binary masks; the leading axes are any, including none.
        first: one point (x, y) per mask, in pixels: ``random_points(...)[0][..., 0, :]``.

    Returns:
        points (x, y) in pixels, float32, and labels, int64: 1, or 0 where a mask has no
        foreground and the pixel is from the background.

    Raises:
        ValueError: if masks are not boolean or have no pixels, or the shapes do not fit.

    Source: the SAMUS reproduction study, Table 4, "max distance".
    """
    _check_masks(masks)
    if first.shape != (*masks.shape[:-2], 2):
        raise ValueError(
            f"first must have the shape {(*masks.shape[:-2], 2)} for masks of shape "
            f"{tuple(masks.shape)}, but has {tuple(first.shape)}"
        )
    height, width = masks.shape[-2:]
    # float64 keeps squared distances exact, so equal distances are ties on every device.
    exact = first.to(masks.device, torch.float64)
    x = torch.arange(width, device=masks.device) - exact[..., 0, None]
    y = torch.arange(height, device=masks.device) - exact[..., 1, None]
    return _best(masks, x.square()[..., None, :] + y.square()[..., :, None])


def entropy_point(
    masks: Bool[Tensor, "*batch H W"], probabilities: Float[Tensor, "*batch H W"]
) -> tuple[Float[Tensor, "*batch 1 2"], Int[Tensor, "*batch 1"]]:
    """The foreground pixel of each mask whose predicted probability has the greatest entropy.

    Of several with the same entropy, the first in row-major order.

    Args:
        masks: binary masks; the leading axes are any, including none.
        probabilities: the predicted foreground probability of each pixel, in [0, 1], at the
            masks' size: the sigmoid of the logits that the first point gave.

    Returns:
        points (x, y) in pixels, float32, and labels, int64: 1, or 0 where a mask has no
        foreground and the pixel is from the background.

    Raises:
        ValueError: if masks are not boolean or have no pixels, the shapes differ, or a
            probability is outside [0, 1].

    Source: the SAMUS reproduction study, Table 4, "entropy".
    """
    _check_masks(masks)
    if probabilities.shape != masks.shape:
        raise ValueError(
            "probabilities and masks differ in shape: "
            f"{tuple(probabilities.shape)} and {tuple(masks.shape)}"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must be in [0, 1]; for logits, take their sigmoid first")
    # Binary entropy falls strictly with the distance of p from 1/2. The distance orders pixels
    # exactly, while the logarithm is flat around 1/2 and undefined at 0 and 1.
    return _best(masks, -(probabilities.to(masks.device, torch.float64) - 0.5).abs())


def _check_masks(masks: Tensor) -> None:
    if masks.dtype != torch.bool:
        raise ValueError(f"masks must be boolean, but are {masks.dtype}")
    if masks.ndim < 2 or 0 in masks.shape[-2:]:
        raise ValueError(f"masks must have the axes (..., H, W), but have {tuple(masks.shape)}")


def _has_foreground(masks: Bool[Tensor, "*batch H W"]) -> Bool[Tensor, "*batch 1"]:
    return masks.flatten(-2).any(dim=-1, keepdim=True)


def _candidates(masks: Bool[Tensor, "*batch H W"]) -> Bool[Tensor, "*batch HW"]:
    """The pixels to choose from: the foreground, or all where there is none."""
    return masks.flatten(-2) | ~_has_foreground(masks)


def _labels(masks: Bool[Tensor, "*batch H W"], count: int) -> Int[Tensor, "*batch count"]:
    return _has_foreground(masks).long().repeat_interleave(count, dim=-1)


def _points(
    indices: Int[Tensor, "*batch count"], masks: Bool[Tensor, "*batch H W"]
) -> Float[Tensor, "*batch count 2"]:
    width = masks.shape[-1]
    return torch.stack([indices % width, indices // width], dim=-1).float()


def _best(
    masks: Bool[Tensor, "*batch H W"], scores: Float[Tensor, "*batch H W"]
) -> tuple[Float[Tensor, "*batch 1 2"], Int[Tensor, "*batch 1"]]:
    """The candidate of the highest score; torch's argmax gives the first of equal ones."""
    scores = scores.flatten(-2).masked_fill(~_candidates(masks), -torch.inf)
    return _points(scores.argmax(dim=-1, keepdim=True), masks), _labels(masks, 1)
