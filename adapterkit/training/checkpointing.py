"""Activation checkpointing of an encoder's blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from adapterkit.encoders.registry import view
from adapterkit.parts.conv import ConvBlock
from adapterkit.promptable.protocol import Promptable
from adapterkit.system.allocator import give_back_freed_memory


@contextmanager
def checkpointed_blocks(segmenter: Promptable) -> Iterator[None]:
    """Within it, the encoder's blocks, and those of the convolutions beside them, keep only their
    inputs for the backward pass, and compute the rest again. Around each, freed memory goes back to
    the system.

    Raises:
        ValueError: the model is of no family that adapterkit knows.
    """
    try:
        blocks = [block.module for block in view(segmenter.model).blocks]
    except TypeError as error:
        raise ValueError(
            f"activation checkpointing is for vision transformers; train without it ({error})"
        ) from error
    blocks += [each for each in segmenter.modules() if isinstance(each, ConvBlock)]
    for block in blocks:
        block.forward = partial(_checkpointed, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _checkpointed(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    output: Tensor = checkpoint(forward, *inputs, use_reentrant=False)
    give_back_freed_memory()
    if output.requires_grad:
        # When its gradient is known, what comes after it in the model has been computed again.
        output.register_hook(lambda gradient: give_back_freed_memory())
    return output
