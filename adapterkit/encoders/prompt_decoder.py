"""Where the sites of a Segment Anything model's decoder are."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class PromptDecoder:
    """Where the sites of a prompt encoder and a mask decoder are.

    For the P prompts of all images; a library may count them along two axes, images and prompts.

    Attributes:
        width: channels of the image embedding and of prompt and mask tokens.
        grid: rows and columns of the image embedding, h and w.
        prompt_encoder: gives the sparse, (P, N, width), and the dense prompt embeddings,
            (P, width, h, w).
        mask_prompt: reads a mask as a prompt, (P, 1, 4h, 4w).
        mask_features: its output, (P, c, H, W), is what masks are made of, at their size; None
            where more is made of it than masks. Where it is called for other maps too, those have
            other numbers of channels.
        mask_channels: c.
        mask_weights: each makes of a mask token, (P, width), the weights, (P, c), with which the
            features are summed to a mask.
        token_head: reads the token of the whole prompt, (P, width): SAM's estimate of IoU.
        try_out: run prompt encoder and mask decoder once, on whatever values.
    """

    width: int
    grid: tuple[int, int]
    prompt_encoder: nn.Module
    mask_prompt: nn.Module
    mask_features: nn.Module | None
    mask_channels: int
    mask_weights: tuple[nn.Module, ...]
    token_head: nn.Module
    try_out: Callable[[], object]


def for_each_prompt(values: Float[Tensor, "b ..."], count: int) -> Float[Tensor, "p ..."]:
    """What belongs to B images, for each of the `count` prompts of an image."""
    # Not `repeat_interleave`, which exporters to ONNX get wrong for a number that is free.
    return values[:, None].expand(-1, count, *values.shape[1:]).flatten(0, 1)
