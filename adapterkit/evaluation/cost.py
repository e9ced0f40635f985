"""What a model costs: operations and time for an image, and the memory of this process."""

import os
import platform
import statistics
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adapterkit.data.dataset import SegmentationDataset
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Promptable
from adapterkit.promptable.strategies import PromptStrategy
from adapterkit.system.memory import peak_bytes

_REPEATS = 5


def inference_cost(
    model: Promptable, dataset: SegmentationDataset, prompts: PromptStrategy
) -> dict[str, float]:
    """What it takes to segment all structures of one image, from its pixels to its masks.

    Args:
        model: not trained any more: afterwards none of its parameters requires gradients.
        dataset: of which the first image is taken.
        prompts: by class, or else by one click for each structure.

    Returns:
        "flops", a multiply-add being two, and "seconds_per_image", the median of five.
    """
    # FlopCounterMode stumbles over parameters without a graph that could have one.
    model.requires_grad_(False)
    device = next(model.parameters()).device
    images = dataset[0]["image"][None].to(device)
    asked = _prompts(len(dataset.structures), prompts, images.shape[-1]).to(device)

    def segment() -> Tensor:
        with torch.no_grad():
            return model(images, asked).logits().cpu()

    with FlopCounterMode(display=False) as counter:
        segment()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        segment()
        seconds.append(time.perf_counter() - start)
    return {
        "flops": counter.get_total_flops(),
        "seconds_per_image": statistics.median(seconds),
    }


def _prompts(structures: int, prompts: PromptStrategy, size: int) -> Prompts:
    if prompts == "class":
        return Prompts(classes=torch.arange(structures)[None])
    # Where the points are makes no difference to the cost.
    points = torch.full((1, structures, 1, 2), size / 2)
    return Prompts(points, torch.ones(points.shape[:3], dtype=torch.long))


def peak_memory() -> dict[str, int]:
    """The most memory that this process has held, in bytes, and the most of a GPU if it has one."""
    peak = {"process": peak_bytes()}
    if torch.cuda.is_available():
        peak["GPU"] = torch.cuda.max_memory_allocated()
    return peak


def machine() -> str:
    """What this runs on, in a few words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    cores = f"{os.cpu_count()} {platform.machine()} cores"
    return f"{cores}, {threads} thread{'s' * (threads > 1)}"
