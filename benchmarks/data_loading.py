"""How long a training step waits for its images.

python -m benchmarks.data_loading                  synthetic echo, two workers, nothing kept
python -m benchmarks.data_loading --workers 0 --cache 4GB
"""

from dataclasses import dataclass
from pathlib import Path

from adapterkit.system.command_line import bytes_in_words, console, run


@dataclass(frozen=True)
class Config:
    data: Path | None = None
    """A data set as `adapterkit train` takes it. Without it, synthetic echo is made and used."""
    workers: int = 2
    """Processes that read and augment."""
    cache: str = "0"
    """Memory for decoded images."""
    steps: int = 20
    """That are measured, after two that are not."""
    batch_size: int = 8
    """Images per step."""


def main(config: Config) -> None:
    import itertools
    import time

    import torch
    from torch.utils.data import DataLoader

    import adapterkit as ak
    from adapterkit.data.augmentation import SamusAugmentation
    from adapterkit.data.collections import open_collection
    from adapterkit.data.dataset import SegmentationDataset
    from adapterkit.data.synthetic.phantom import synthetic_echo
    from adapterkit.promptable.prompts import every_class
    from adapterkit.training.losses import dice_bce_loss, low_res_target

    collection = open_collection(config.data or synthetic_echo())
    structures = list(collection.structures.values())
    sam = ak.inject(ak.fast(ak.mini_sam()), "samus_plus", image_size=128, structures=structures)
    segmenter = ak.Segmenter(sam).train()
    cache = bytes_in_words(config.cache)
    data = SegmentationDataset(collection.records, 128, SamusAugmentation(128), 0, cache)
    order = itertools.islice(
        itertools.cycle(range(len(data))), (config.steps + 2) * config.batch_size
    )
    loader = iter(
        DataLoader(
            data, config.batch_size, sampler=list(order), num_workers=config.workers, drop_last=True
        )
    )
    trained = [each for each in segmenter.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-3)
    waited, took = 0.0, 0.0
    for step in range(config.steps + 2):
        began = time.perf_counter()
        batch = next(loader)
        arrived = time.perf_counter()
        masks = batch["masks"].bool()
        found = segmenter(batch["image"], every_class(len(masks), len(structures)))
        size = (found.low_res_logits.shape[-2], found.low_res_logits.shape[-1])
        optimizer.zero_grad()
        dice_bce_loss(found.low_res_logits, low_res_target(masks, size)).backward()
        optimizer.step()
        if step >= 2:
            waited += arrived - began
            took += time.perf_counter() - began
    console.print(
        f"{config.workers} workers, {config.cache} for decoded images, {config.steps} steps of "
        f"{config.batch_size} images: {1000 * took / config.steps:.0f} ms a step, of which "
        f"{1000 * waited / config.steps:.1f} ms ({100 * waited / took:.1f} %) it waits for images",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run(main, Config)
