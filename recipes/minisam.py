"""Pretrain a small Segment Anything model from nothing, for tests and demonstrations.

    python -m recipes.minisam                              a few hours on 2 CPU cores
    python -m recipes.minisam --out runs/minisam --resume  goes on where it was interrupted

The procedure is SAM's in small. Procedural scenes stand in for SA-1B; the first prompt of a mask is
a point or a box, and the next ones are clicks where the mask is wrong, with the mask itself;
the loss is 20 focal + Dice, of an ambiguous point's three masks only the lowest, and the squared
error of the predicted IoU. Training begins on 128x128 pixels, a quarter of a scene, where a step
costs a twentieth of one at the model's 512x512, and ends there. It leaves the weights in half
precision, `mini_sam.safetensors`; `python -m benchmarks.promptability` measures them.

Source: Kirillov et al. 2023, Segment Anything, arXiv 2304.02643, section 3 and appendix A.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention as EncoderAttention
from segment_anything.modeling.transformer import Attention as DecoderAttention
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adapterkit.command_line import run
from adapterkit.data.scenes import Scene, draw_scene
from adapterkit.files import atomic_write
from adapterkit.prompts import random_points, seeded_generator
from adapterkit.sam import SMALL, build_sam, resized_sam, save_sam
from adapterkit.segmenter import Segmenter

console = Console()


@dataclass(frozen=True)
class Stage:
    """A number of optimiser steps on images of one size."""

    steps: int
    image_size: int
    """Side in pixels. Below the model's own, images are the quarters of scenes twice as large."""
    batch_size: int
    """Images per step, a multiple of 4."""


STAGES = (Stage(12000, 128, 4), Stage(1500, 256, 4), Stage(300, 512, 4))
SAVE_EVERY = 100
"""Steps between two saved states."""


@dataclass(frozen=True)
class Config:
    out: Path = Path("runs/minisam")
    """Folder for the weights and the state to resume from."""
    length: float = 1.0
    """Factor on the steps of all stages; 0.01 for a trial."""
    prompts: int = 6
    """Prompted masks per image."""
    rounds: int = 2
    """Decodings per prompted mask: by its first prompt, then after corrections."""
    learning_rate: float = 1e-3
    """Peak of the schedule: a rise over the first 2 %, then half a cosine."""
    seed: int = 0
    """Of weights, scenes and prompts."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    resume: bool = False
    """Go on from the state in the folder, with the other options as they were."""


def main(config: Config) -> None:
    state_file = config.out / "state.pt"
    if state_file.exists() and not config.resume:
        raise ValueError(f"{state_file} exists: give --resume to go on from it, or another --out")
    if config.resume and not state_file.exists():
        raise ValueError(f"--resume, but there is no {state_file}")
    config.out.mkdir(parents=True, exist_ok=True)
    state = torch.load(state_file, weights_only=True) if config.resume else None

    plan = [stage for stage in stages(config) for _ in range(stage.steps)]
    first_step = state["step"] if state else 0
    if first_step == len(plan):
        raise ValueError(f"{config.out} is finished: {first_step} of {len(plan)} steps")
    size = plan[max(first_step - 1, 0)].image_size
    sam = build_sam(replace(SMALL, image_size=size), seed=config.seed)
    match_keys_to_queries(sam)
    optimizer = make_optimizer(sam.to(config.device))
    # The learning rate follows the pixels seen, so that every stage takes its share of the decay.
    pixels = np.cumsum([stage.batch_size * stage.image_size**2 for stage in plan])
    if state:
        sam.load_state_dict(state["sam"])
        optimizer.load_state_dict(state["optimizer"])

    batches = Batches(plan, first_step, config.prompts, config.seed)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)
    log: dict[str, list[float]] = {}
    with progress_bar() as progress:
        task = progress.add_task("step", total=len(plan), completed=first_step)
        for step, batch in enumerate(loader, first_step):
            if plan[step].image_size != sam.image_encoder.img_size:
                sam = resized_sam(sam, plan[step].image_size).to(config.device)
                optimizer = make_optimizer(sam)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(pixels[step] / pixels[-1])
            generator = seeded_generator(config.seed, f"step {step}")
            batch = {name: value.to(config.device) for name, value in batch.items()}
            loss, iou = step_loss(Segmenter(sam.train()), batch, config.rounds, generator)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} in step {step}")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
            optimizer.step()
            progress.update(task, advance=1)
            for name, value in {"loss": loss.item(), **iou}.items():
                log.setdefault(name, []).append(value)
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == len(plan):
                means = "  ".join(f"{name} {np.mean(log[name]):.3f}" for name in sorted(log))
                progress.console.print(f"step {step + 1}  {means}", highlight=False)
                log.clear()
                with atomic_write(state_file) as temporary:
                    torch.save(
                        {
                            "step": step + 1,
                            "sam": sam.state_dict(),
                            "optimizer": optimizer.state_dict(),
                        },
                        temporary,
                    )
    save_sam(sam, config.out / "mini_sam.safetensors", dtype=torch.float16)
    console.print(f"weights in {config.out / 'mini_sam.safetensors'}")


def stages(config: Config) -> list[Stage]:
    return [replace(stage, steps=math.ceil(config.length * stage.steps)) for stage in STAGES]


def schedule(progress: float) -> float:
    """Share of the peak learning rate when `progress`, in (0, 1], of the training is done."""
    return min(1.0, progress / 0.02) * (0.5 + 0.5 * math.cos(math.pi * progress))


@torch.no_grad()
def match_keys_to_queries(sam: Sam) -> None:
    """Start every attention as attention to what is alike.

    With equal projections, a query's product with a key is greatest where the two are alike: in the
    encoder by appearance, in the decoder's cross-attention by position. From independent random
    projections, this has to be found first, and a prompt's position means nothing until then.

    Source: Trockman and Kolter 2023, Mimetic Initialization of Self-Attention Layers, arXiv
    2305.09828, without its value-projection part.
    """
    for module in sam.modules():
        if isinstance(module, EncoderAttention):
            query, key, _ = module.qkv.weight.chunk(3)
            key.copy_(query)
        elif isinstance(module, DecoderAttention):
            # The decoder's heads have few channels; a larger scale makes their products count.
            module.q_proj.weight.mul_(2)
            module.k_proj.weight.copy_(module.q_proj.weight)


def make_optimizer(sam: Sam) -> torch.optim.Optimizer:
    return torch.optim.AdamW(sam.parameters(), betas=(0.9, 0.98), weight_decay=0.05)


class Batches(Dataset[Mapping[str, Tensor]]):
    """The batches of all steps of a plan from `first_step` on; each depends on seed and step alone.

    A batch has "images" (B, 3, S, S) in [0, 255], "masks" (B, K, S/4, S/4), K of the masks of each,
    and their "boxes" (B, K, 4) as (x0, y0, x1, y1) in pixels.
    """

    def __init__(self, plan: list[Stage], first_step: int, prompts: int, seed: int):
        self.plan, self.first_step, self.prompts, self.seed = plan, first_step, prompts, seed

    def __len__(self) -> int:
        return len(self.plan) - self.first_step

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        step = self.first_step + index
        stage = self.plan[step]
        rng = np.random.default_rng((self.seed, step))
        samples: list[dict[str, Tensor]] = []
        while len(samples) < stage.batch_size:
            samples += [self._sample(rng, scene) for scene in draw_images(rng, stage.image_size)]
        return {name: torch.stack([each[name] for each in samples]) for name in samples[0]}

    def _sample(self, rng: np.random.Generator, scene: Scene) -> dict[str, Tensor]:
        low_res = scene.masks[:, 2::4, 2::4]
        visible = rng.permutation(np.flatnonzero(low_res.any((1, 2))))
        chosen = np.resize(visible, self.prompts)
        boxes = np.stack([bounding_box(mask) for mask in scene.masks[chosen]])
        return {
            "images": torch.from_numpy(scene.image.transpose(2, 0, 1).copy()),
            "masks": torch.from_numpy(low_res[chosen]),
            "boxes": torch.from_numpy(boxes),
        }


def draw_images(rng: np.random.Generator, size: int) -> list[Scene]:
    """A scene of the model's own size, or else the quarters of one twice as large as `size`."""
    if size == SMALL.image_size:
        return [draw_scene(rng, size)]
    scene = draw_scene(rng, 2 * size)
    quarters = [
        np.s_[row : row + size, column : column + size] for row in (0, size) for column in (0, size)
    ]
    return [Scene(scene.image[each], scene.masks[:, *each]) for each in quarters]


def bounding_box(mask: Bool[np.ndarray, "S S"]) -> Float[np.ndarray, "4"]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def step_loss(
    segmenter: Segmenter, batch: Mapping[str, Tensor], rounds: int, generator: torch.Generator
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The mean loss over the rounds, and the mean IoU of the masks of each."""
    target = batch["masks"]
    embedding = segmenter.encode(batch["images"].float())
    points = labels = boxes = masks = None
    if torch.rand((), generator=generator) < 0.4:
        boxes = shaken(batch["boxes"], segmenter.image_size, generator)
    else:
        points, labels = clicks(target, target, segmenter.image_size, generator)

    loss = embedding.new_zeros(())
    iou: dict[str, float] = {}
    for number in range(rounds):
        logits, predicted_iou = segmenter.decode_all(embedding, points, labels, boxes, masks)
        ambiguous = number == 0 and boxes is None
        if not ambiguous:
            logits, predicted_iou = logits[:, :, :1], predicted_iou[:, :, :1]
        losses = mask_losses(logits, target)
        true_iou = mask_iou(logits, target)
        # The first mask is for clear prompts, but is asked for after a single point too.
        loss = loss + losses[..., 0].mean() + F.mse_loss(predicted_iou, true_iou)
        best = torch.zeros_like(losses[..., :1], dtype=torch.long)
        if ambiguous:
            loss = loss + losses[..., 1:].amin(-1).mean()
            best = predicted_iou[..., 1:].argmax(-1, keepdim=True) + 1
            iou["oracle"] = true_iou[..., 1:].amax(-1).mean().item()
        name = "point" if ambiguous else "box" if number == 0 else f"round {number + 1}"
        iou[name] = true_iou.gather(-1, best).mean().item()

        # What is still wrong is corrected by one or two clicks, beside the mask itself.
        masks = logits.detach().take_along_dim(best[..., None, None], dim=2)[:, :, 0]
        for _ in range(int(torch.randint(1, 3, (), generator=generator))):
            new = clicks((masks > 0) != target, target, segmenter.image_size, generator)
            points = new[0] if points is None else torch.cat([points, new[0]], dim=2)
            labels = new[1] if labels is None else torch.cat([labels, new[1]], dim=2)
    return loss / rounds, iou


def clicks(
    region: Bool[Tensor, "b k h w"],
    target: Bool[Tensor, "b k h w"],
    image_size: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "b k 1 2"], Int[Tensor, "b k 1"]]:
    """A random point of each region, in pixels, and its label: 1 on the target, 0 beside it.

    Where the region is empty, because nothing is wrong with a mask, the label is -1, which SAM
    takes for no point at all.
    """
    cell, found = random_points(region, generator)
    x, y = cell.long().unbind(-1)
    label = target.flatten(2).long().gather(2, y * target.shape[-1] + x)
    # A cell of a low-resolution mask is several pixels wide; SAM adds the last half pixel itself.
    points = (cell + 0.5) * (image_size / target.shape[-1]) - 0.5
    return points, torch.where(found == 1, label, -1)


def shaken(
    boxes: Float[Tensor, "b k 4"], image_size: int, generator: torch.Generator
) -> Float[Tensor, "b k 4"]:
    """Boxes as a hand draws them: each corner off by 10 % of the side, at most 2 % of the image."""
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    noise = torch.randn(boxes.shape, generator=generator).to(boxes.device)
    return boxes + noise * (0.1 * sides).clamp(max=0.02 * image_size)


def mask_losses(
    logits: Float[Tensor, "b k m h w"], target: Bool[Tensor, "b k h w"]
) -> Float[Tensor, "b k m"]:
    """20 focal + Dice of each mask; the focal loss with a focus of 2 and without class weights."""
    truth = target[:, :, None].expand_as(logits).float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    focal = ((probability - truth).square() * cross_entropy).mean((-2, -1))
    overlap = (probability * truth).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + truth.sum((-2, -1)) + 1)
    return 20 * focal + dice


def mask_iou(
    logits: Float[Tensor, "b k m h w"], target: Bool[Tensor, "b k h w"]
) -> Float[Tensor, "b k m"]:
    """Intersection over union of each mask with its target, in [0, 1]."""
    predicted, truth = logits.detach() > 0, target[:, :, None]
    return (predicted & truth).sum((-2, -1)) / (predicted | truth).sum((-2, -1)).clamp(min=1)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


if __name__ == "__main__":
    run(main, Config)
