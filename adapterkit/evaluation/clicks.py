"""How many clicks a segmenter needs for a mask that is good enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from jaxtyping import Int
from monai.metrics.meaniou import compute_iou
from torch import Tensor

from adapterkit.data.dataset import SegmentationDataset
from adapterkit.evaluation.evaluation import embedded
from adapterkit.evaluation.tables import markdown
from adapterkit.promptable.points import choose_prompts, corrected
from adapterkit.promptable.protocol import Embedding, Promptable
from adapterkit.system.random import seeded_generator

TARGET = 0.9
"""The IoU that is to be reached."""

MOST = 20
"""Clicks that are tried."""


@dataclass(frozen=True)
class ClicksNeeded:
    """The clicks after which each structure of each image has reached `TARGET`.

    Attributes:
        structures: the K structures' names.
        needed: of the N images; one more than `MOST` where it was not reached.
    """

    structures: Sequence[str]
    needed: Int[Tensor, "N K"]

    def summary(self) -> dict[str, dict[str, float]]:
        """Of each structure, and of all as "mean": "clicks", on average, those that were not enough
        counting as `MOST`, and the share that "reached" the target, in [0, 1]."""
        clicks = self.needed.clamp(max=MOST).double().mean(dim=0)
        reached = (self.needed <= MOST).double().mean(dim=0)
        names = [*self.structures, "mean"]
        values = zip(
            [*clicks.tolist(), clicks.mean().item()],
            [*reached.tolist(), reached.mean().item()],
            strict=True,
        )
        return {
            name: {"clicks": count, "reached": share}
            for name, (count, share) in zip(names, values, strict=True)
        }


def clicks_table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """What `ClicksNeeded.summary` gives, as Markdown."""
    rows = [
        [name, f"{each['clicks']:.1f}", f"{100 * each['reached']:.0f} %"]
        for name, each in summary.items()
    ]
    return markdown(["structure", f"clicks to {TARGET:.0%} IoU", f"reached within {MOST}"], rows)


def clicks_needed(
    segmenter: Promptable,
    dataset: SegmentationDataset,
    *,
    seed: int,
    batch_size: int = 8,
    progress: str = "",
) -> ClicksNeeded:
    """Click on every structure of every labelled image until its mask is good enough.

    The first click is that of "1" in `choose_prompts`, and each further one is drawn where the mask
    is wrong, as of "3" and "5"; the structure's name is not told.

    Args:
        segmenter: any promptable model that takes clicks; put in evaluation mode.
        dataset: with reference masks.
        seed: of the clicks.
        batch_size: images at a time.
        progress: what to call this in a progress bar; "" shows none.
    """
    found: list[tuple[int, list[int]]] = []
    for embedding, batch in embedded(segmenter, dataset, batch_size, progress):
        needed = _of_batch(segmenter, embedding, batch, seed)
        found += zip(batch["index"].tolist(), needed.tolist(), strict=True)
    found = sorted(gather_object(found), key=lambda pair: pair[0])
    return ClicksNeeded(dataset.structures, torch.tensor([needed for _, needed in found]))


@torch.no_grad()
def _of_batch(
    segmenter: Promptable, embedding: Embedding, batch: Mapping[str, Any], seed: int
) -> Int[Tensor, "b k"]:
    device = embedding.image.device
    masks = batch["masks"].bool()
    size = masks.shape[-2], masks.shape[-1]
    generators = [seeded_generator(seed, name) for name in batch["name"]]
    prompts = choose_prompts(
        masks, "1", generators, lambda asked: segmenter.decode(embedding, asked.to(device))
    )
    needed = torch.full(masks.shape[:2], MOST + 1)
    for count in range(1, MOST + 1):
        found = segmenter.decode(embedding, prompts.to(device))
        inside = (found.logits(size) > 0).cpu()
        iou = compute_iou(inside, masks, include_background=True, ignore_empty=False)
        reached = (iou >= TARGET) & (needed > MOST)
        needed[reached] = count
        if (needed <= MOST).all():
            break
        prompts = corrected(prompts, masks, found, generators)
    return needed
