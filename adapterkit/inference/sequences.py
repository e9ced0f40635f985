"""Sequences in windows of time, and masks that are carried from frame to frame."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adapterkit.inference.fitting import logits_as_mask_prompt
from adapterkit.inference.prediction import Prediction
from adapterkit.promptable.protocol import Embedding, Promptable
from adapterkit.system.allocator import give_back_freed_memory

WINDOW = 8
"""Frames of which masks are made at a time, where a frame's depend on others."""

MARGIN = 8
"""Frames at most that are encoded with a window's before and after it: memory is of these and the
window's. What several parts together reach beyond is left out; it has passed through all of them,
and weighs little."""

Embedded = tuple[int, Embedding]
"""A frame, and its embedding as that of one image."""


def embeddings(
    promptable: Promptable,
    square: Callable[[int], Float[Tensor, "3 S S"]],
    order: Sequence[int],
    count: int,
) -> Iterator[Embedded]:
    """The embedding of each frame of a sequence.

    Frames are encoded in windows, with as many before and after these as they depend on, up to
    `MARGIN`: then as if all frames were encoded at once. Memory does not grow with the sequence.

    Args:
        promptable: the model.
        square: gives a frame as the model's input.
        order: of the frames, consecutive ones, forward or backward.
        count: how many frames the sequence has.
    """
    device = next(promptable.parameters()).device
    reach = min(promptable.reach, MARGIN)
    window = WINDOW if reach else 1
    for start in range(0, len(order), window):
        asked = order[start : start + window]
        first, end = max(0, min(asked) - reach), min(count, max(asked) + 1 + reach)
        images = torch.stack([square(number) for number in range(first, end)]).to(device)
        with torch.no_grad():
            found = promptable.encode(images, frames=len(images))
        for number in asked:
            # A copy, since a part of a tensor keeps all of it.
            yield number, found.select(slice(number - first, number - first + 1)).map(torch.clone)
        del found
        # Else the next window's tensors, of other sizes perhaps, would come to lie beside them.
        give_back_freed_memory()


def carried(found: Prediction, given: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The prompts of the next frame: the masks of this one, and the classes.

    Args:
        found: in this frame.
        given: the arguments of `Predictor.predict` for it.
        size: of the logits that the model takes for a mask.
    """
    masks = [logits_as_mask_prompt(logits, size) for logits in found.low_res_logits]
    return {"masks": masks, "classes": given.get("classes")}
