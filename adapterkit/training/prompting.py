"""What the structures of a batch are asked for by in a step of training.

An image is encoded once, and each of its prompts then costs the decoder alone. So with "mixed" a
step asks for every structure in four ways: by its class; by a click, or in a quarter of the batches
by a box; and by each of the two again with one to four clicks, each where the answer before is
wrong, half of the times beside that answer's mask. One training then serves all of these.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from adapterkit.promptable.points import Segment, choose_prompts, corrected
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable
from adapterkit.promptable.strategies import PromptStrategy, TrainingStrategy

_SHARE_OF_BOXES = 0.25
_MOST_CORRECTIONS = 4
_SHARE_WITH_MASK = 0.5


def first_prompts(
    masks: Bool[Tensor, "B K H W"],
    strategy: TrainingStrategy,
    generators: Sequence[torch.Generator],
    segment: Segment,
) -> list[Prompts]:
    """The prompts of each way that a step asks in; the arguments are those of `choose_prompts`."""
    ways: list[PromptStrategy]
    if strategy == "mixed":
        boxes = torch.rand((), generator=generators[0]).item() < _SHARE_OF_BOXES
        ways = ["class", "box" if boxes else "1"]
    else:
        ways = [strategy]
    return [choose_prompts(masks, way, generators, segment) for way in ways]


def answers(
    segmenter: Promptable,
    embedding: Embedding,
    prompts: Sequence[Prompts],
    masks: Bool[Tensor, "B K H W"],
    generators: Sequence[torch.Generator],
) -> Iterator[Masks]:
    """What a model answers to prompts, and, to several, also to each with clicks that correct it.

    Of one to four corrections, each of the answer before, the last answer alone is given, and the
    others cost no gradients.

    Args:
        segmenter: the model.
        embedding: of the images.
        prompts: of each way.
        masks: reference masks.
        generators: a source of randomness for each image.
    """
    for each in prompts:
        answer = segmenter.decode(embedding, each)
        yield answer
        if len(prompts) == 1:
            continue
        more = int(torch.randint(_MOST_CORRECTIONS, (), generator=generators[0]))
        with_mask = torch.rand((), generator=generators[0]).item() < _SHARE_WITH_MASK
        each = corrected(each, masks, answer, generators, with_mask)
        for _ in range(more):
            with torch.no_grad():
                found = segmenter.decode(embedding, each)
            each = corrected(each, masks, found, generators, with_mask)
        yield segmenter.decode(embedding, each)


def validation_strategy(strategy: TrainingStrategy) -> PromptStrategy:
    """By what the structures are asked for after an epoch."""
    return "class" if strategy == "mixed" else strategy
