"""Training losses on low-resolution mask logits."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from monai.losses.dice import DiceFocalLoss, DiceLoss
from torch import Tensor

from adapterkit.training.choices import Loss

_SMOOTH = 1e-5


def dice_bce_loss(
    logits: Float[Tensor, "*batch h w"],
    target: Float[Tensor, "*batch h w"],
    dice_weight: float = 0.8,
    positive_weight: float = 2.0,
) -> Float[Tensor, ""]:
    """Weighted sum of the Dice loss and the binary cross-entropy, as in the published SAMUS.

    ``dice_weight * Dice + (1 - dice_weight) * BCE``, where, with p = sigmoid(logits), t = target,
    Dice = 1 - (2 sum(p t) + 1e-5) / (sum(p^2) + sum(t^2) + 1e-5). The sums run over the whole batch
    at once, not mask by mask, so a mask without foreground does not add a Dice term of its own.

    Args:
        logits: mask logits, unbounded; any leading axes.
        target: the target masks in [0, 1], a floating dtype.
        dice_weight: weight of the Dice term, in [0, 1].
        positive_weight: weight of the foreground pixels in the cross-entropy, above 0.

    Returns:
        The loss, a scalar at least 0, in float32 (float64 for float64 logits).

    Raises:
        ValueError: if the shapes differ, the batch is empty, the dtype of either is not floating,
            or a weight is outside its range.

    Source: Lin et al. 2023, SAMUS, arXiv 2309.06824, and its published code. The squared
    denominator is that of Milletari et al. 2016, V-Net.
    """
    if logits.shape != target.shape:
        raise ValueError(
            f"logits and target differ in shape: {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if logits.numel() == 0:
        raise ValueError(f"the batch is empty: shape {tuple(logits.shape)}")
    if not (logits.is_floating_point() and target.is_floating_point()):
        raise ValueError(
            f"logits and target must be floating, but are {logits.dtype} and {target.dtype}"
        )
    if not 0 <= dice_weight <= 1:
        raise ValueError(f"dice_weight must be in [0, 1], but is {dice_weight}")
    if not positive_weight > 0:
        raise ValueError(f"positive_weight must be above 0, but is {positive_weight}")

    # A sum over a whole batch of masks overflows float16 and loses all precision in bfloat16.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = target.to(logits.dtype)

    probabilities = logits.sigmoid()
    overlap = (probabilities * target).sum()
    total = probabilities.square().sum() + target.square().sum()
    dice = 1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)
    cross_entropy = F.binary_cross_entropy_with_logits(
        logits, target, pos_weight=logits.new_tensor(positive_weight)
    )
    return dice_weight * dice + (1 - dice_weight) * cross_entropy


def low_res_target(
    masks: Bool[Tensor, "B K H W"], size: tuple[int, int]
) -> Float[Tensor, "B K h w"]:
    """Binary masks at the size of the low-resolution logits, by nearest neighbour.

    Args:
        masks: binary masks.
        size: (h, w) of the result, for instance ``logits.shape[-2:]``.

    Returns:
        Masks of 0 and 1 in float32, a target for `dice_bce_loss`.

    Raises:
        ValueError: if masks is not a boolean tensor of four axes, or a size is below 1.

    Source: the published SAMUS code, which resizes the label image with PIL. For sizes that are not
    a whole fraction, PIL can round a centre that lies between two pixels to the other one.
    """
    if masks.dtype != torch.bool:
        raise ValueError(f"masks must be boolean, but are {masks.dtype}")
    if masks.ndim != 4:
        raise ValueError(f"masks must have the axes (B, K, H, W), but have {tuple(masks.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be two numbers of at least 1, but is {size}")
    # PIL takes the pixel under the centre of the new one. That is torch's "nearest-exact";
    # its plain "nearest" takes the upper left pixel and would shift the target.
    return F.interpolate(masks.float(), size=tuple(size), mode="nearest-exact")


def dice_ce_loss(
    logits: Float[Tensor, "B K h w"], target: Float[Tensor, "B K h w"]
) -> Float[Tensor, ""]:
    """MONAI's Dice loss, mask by mask, and the binary cross-entropy, in equal parts.

    Args:
        logits: mask logits.
        target: masks of 0 and 1.
    """
    dice = DiceLoss(sigmoid=True)(logits.float(), target)
    return dice + F.binary_cross_entropy_with_logits(logits.float(), target)


def dice_focal_loss(
    logits: Float[Tensor, "B K h w"], target: Float[Tensor, "B K h w"]
) -> Float[Tensor, ""]:
    """MONAI's Dice loss, mask by mask, and its focal loss with an exponent of 2, in equal parts.

    Args:
        logits: mask logits.
        target: masks of 0 and 1.
    """
    return DiceFocalLoss(sigmoid=True)(logits.float(), target)


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "samus": dice_bce_loss,
    "dice-ce": dice_ce_loss,
    "dice-focal": dice_focal_loss,
}
"""By their names in `Settings`."""
