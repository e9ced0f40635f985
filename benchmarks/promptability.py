"""Measure a Segment Anything model on procedural scenes that were held out from its pretraining.

    python -m benchmarks.promptability --weights runs/minisam/mini_sam.safetensors
    python -m benchmarks.promptability --weights sam_vit_b_01ec64.pth --figure scenes.png

No scene of the pretraining is among them. Of each, some masks are asked for by one click at their
most interior pixel, by their exact box, and by five clicks, each in the middle of the greatest
error of the mask before it. Printed are mean IoUs, how well the decoder ranks its own masks, how
ragged its outlines are, and how much it finds without a prompt.

Source: Kirillov et al. 2023, Segment Anything, arXiv 2304.02643, sections 7.1 and D.1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import adapterkit as ak
from adapterkit.system.command_line import console, run

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Config:
    weights: Path
    """A checkpoint of a Sam."""
    scenes: int = 500
    """Held-out scenes."""
    masks: int = 4
    """Masks of each, drawn at random."""
    everything: int = 50
    """Scenes of which all is segmented without a prompt."""
    figure: Path | None = None
    """Also write a picture: scenes, masks by one click, and all masks found without a prompt."""


def main(config: Config) -> None:
    import numpy as np
    import torch
    from rich.progress import track

    from adapterkit.data.synthetic.scenes import draw_scene
    from adapterkit.evaluation.tables import markdown
    from benchmarks.held_out_scenes import (
        SCENE_SIZE,
        ask,
        draw_figure,
        find_everything,
        held_out,
    )

    sam = ak.load_sam(config.weights)
    segmenter = ak.Segmenter(sam)
    answers = []
    for number in track(range(config.scenes), "scenes", console=console, transient=True):
        rng = held_out(number)
        scene = draw_scene(rng, SCENE_SIZE)
        count = min(config.masks, len(scene.masks))
        chosen = rng.permutation(len(scene.masks))[:count]
        answers.append(ask(segmenter, scene.image, scene.masks[chosen]))

    def every(name: str) -> "Tensor":
        return torch.cat([getattr(each, name) for each in answers])

    rows = {
        "one click, best of three by predicted IoU": every("click"),
        "one click, best of three by true IoU": every("oracle"),
        "box": every("box"),
        "five clicks": every("five_clicks"),
    }
    predicted, true = every("predicted"), every("true")
    correlation = torch.corrcoef(torch.stack([predicted.flatten(), true.flatten()]))[0, 1]
    right = (predicted.argmax(1) == true.argmax(1)).float().mean()
    console.print(f"{config.scenes} held-out scenes, {len(predicted)} masks\n")
    shown = [
        [name, f"{iou.mean():.3f}", f"{(iou > 0.5).float().mean():.0%}"]
        for name, iou in rows.items()
    ]
    console.print(markdown(["prompt", "mean IoU", "above 0.5"], shown))
    console.print(
        f"\npredicted and true IoU of the three masks: correlation {correlation:.2f}, "
        f"the best is ranked first in {right:.0%} (by chance 33%)",
        soft_wrap=True,
    )
    raggedness = every("raggedness").nanmedian()
    console.print(
        f"outlines by the box are {raggedness:.2f} times as ragged as the true ones "
        "(median of perimeter squared over area)",
        soft_wrap=True,
    )
    whole = [
        find_everything(sam, draw_scene(held_out(number), SCENE_SIZE))
        for number in track(range(config.everything), "all", console=console, transient=True)
    ]
    if whole:
        found = np.concatenate([each.found for each in whole])
        console.print(
            f"without a prompt, at SAM's default thresholds: a mask in "
            f"{np.mean([each.masks > 0 for each in whole]):.0%} of {len(whole)} scenes; "
            f"{found.mean():.0%} of {len(found)} things above 1 % of the area found at IoU 0.7",
            soft_wrap=True,
        )
    if config.figure is not None:
        draw_figure(sam, config.figure, rows=min(4, config.scenes))
        console.print(f"picture in {config.figure}")


if __name__ == "__main__":
    run(main, Config)
