import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapterkit.training.losses import dice_bce_loss, low_res_target


def example(shape=(2, 3, 8, 8), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = (torch.rand(shape, generator=generator) < 0.4).double()
    return logits.to(dtype), target.to(dtype)


def test_parity_with_the_published_loss(samus_reference: dict[str, torch.Tensor]):
    tensors = samus_reference
    loss = dice_bce_loss(tensors["out/low_res_logits"], tensors["in/target"])
    torch.testing.assert_close(loss, tensors["out/loss"].squeeze(), atol=1e-6, rtol=0)


def test_value_by_hand():
    logits = torch.tensor([[[0.0, 0.0]]])
    target = torch.tensor([[[1.0, 0.0]]])
    # p = 1/2 everywhere: Dice = 1 - 2 * 0.5 / (0.5 + 1); BCE = (2 + 1) / 2 * ln 2.
    dice, cross_entropy = 1 / 3, 1.5 * np.log(2)
    assert dice_bce_loss(logits, target).item() == pytest.approx(
        0.8 * dice + 0.2 * cross_entropy, abs=1e-5
    )
    assert dice_bce_loss(logits, target, dice_weight=1.0).item() == pytest.approx(dice, abs=1e-5)
    assert dice_bce_loss(logits, target, 0.0, 4.0).item() == pytest.approx(2.5 * np.log(2))


def test_dice_is_over_the_whole_batch():
    logits, target = example()
    mask_by_mask = torch.stack(
        [
            dice_bce_loss(a, b, dice_weight=1.0)
            for a, b in zip(logits.flatten(0, 1), target.flatten(0, 1), strict=True)
        ]
    ).mean()
    whole = dice_bce_loss(logits, target, dice_weight=1.0)
    assert abs(whole - mask_by_mask) > 1e-4
    as_one_image = dice_bce_loss(logits.reshape(48, 8), target.reshape(48, 8), dice_weight=1.0)
    torch.testing.assert_close(whole, as_one_image)


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(6)), st.floats(0, 1), st.floats(0.1, 10))
def test_order_of_the_batch_does_not_matter(order, dice_weight, positive_weight):
    logits, target = example((6, 4, 5), torch.float64)
    torch.testing.assert_close(
        dice_bce_loss(logits[order], target[order], dice_weight, positive_weight),
        dice_bce_loss(logits, target, dice_weight, positive_weight),
    )


def test_gradient_is_exact():
    logits, target = example((2, 3, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda x: dice_bce_loss(x, target), logits.requires_grad_())


def test_perfect_prediction_of_masks_or_of_nothing_costs_nothing():
    _, target = example()
    assert dice_bce_loss(200 * target - 100, target) < 1e-4
    nothing = torch.zeros(2, 1, 4, 4)
    assert dice_bce_loss(nothing - 100, nothing) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    logits = torch.full((8, 1, 128, 128), 20.0, dtype=dtype)  # a sum of 131072, above float16
    loss = dice_bce_loss(logits, torch.ones_like(logits))
    assert loss.dtype == torch.float32
    assert loss < 1e-4


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 5), {}, "shape"),
        (torch.zeros(1, 4, 4), torch.zeros(2, 4, 4), {}, "shape"),
        (torch.zeros(0, 4, 4), torch.zeros(0, 4, 4), {}, "empty"),
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), {}, "floating"),
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), {"dice_weight": 1.5}, "dice_weight"),
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 4), {"positive_weight": 0.0}, "positive_weight"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_loss_errors(logits, target, options, message):
    with pytest.raises(ValueError, match=message):
        dice_bce_loss(logits, target, **options)


@pytest.mark.parametrize("size", [(8, 8), (4, 8), (2, 16), (16, 16)])
def test_low_res_target_is_that_of_pil(size):
    masks = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    result = low_res_target(masks, size)
    assert result.dtype == torch.float32
    assert result.shape == (2, 3, *size)
    for mask, small in zip(masks.flatten(0, 1), result.flatten(0, 1), strict=True):
        image = Image.fromarray(mask.numpy().astype(np.uint8))
        resized = image.resize(size[::-1], Image.Resampling.NEAREST)
        np.testing.assert_array_equal(small.numpy(), np.asarray(resized))


@pytest.mark.usefixtures("unchecked_shapes")
def test_low_res_target_errors():
    with pytest.raises(ValueError, match="boolean"):
        low_res_target(torch.zeros(1, 1, 4, 4), (2, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="axes"):
        low_res_target(torch.zeros(1, 4, 4, dtype=torch.bool), (2, 2))
    with pytest.raises(ValueError, match="size"):
        low_res_target(torch.zeros(1, 1, 4, 4, dtype=torch.bool), (2, 0))
