"""The pretraining of the small Segment Anything model; see `minisam`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention as EncoderAttention
from segment_anything.modeling.transformer import Attention as DecoderAttention
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adapterkit.promptable.points import random_points
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.segmenter import Segmenter
from adapterkit.promptable.stock_sam import MINI, build_sam, resized_sam, save_sam
from adapterkit.system.allocator import keep_freed_memory
from adapterkit.system.random import seeded_generator
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.settings import Settings
from adapterkit.training.state import Progress, load_state, save_state
from recipes.minisam_batches import Batches, Stage
from recipes.minisam_options import Config

console = Console()

STAGES = (
    Stage(3500, 128, batch_size=16, prompts=4, rounds=2, learning_rate=3e-3),
    Stage(4500, 256, batch_size=8, prompts=4, rounds=2, learning_rate=2e-3),
    Stage(2700, 512, batch_size=4, prompts=4, rounds=3, learning_rate=1.5e-3),
    Stage(3600, 512, batch_size=4, prompts=4, rounds=3, learning_rate=1e-3),
)
SAVE_EVERY = 100
"""Steps between two saved states."""

ADAMW_SHARE = 1 / 3
"""The learning rate of what AdamW trains, as a share of Muon's."""


def pretrain(config: Config) -> None:
    keep_freed_memory()
    accelerator = make_accelerator(mixed_precision=config.mixed_precision)
    console.quiet = not accelerator.is_main_process
    plan = stages(config)
    for stage in plan:
        if stage.batch_size % accelerator.num_processes:
            raise ValueError(
                f"{accelerator.num_processes} processes cannot share batches of "
                f"{stage.batch_size} images; start a number of processes that divides it"
            )
    weights = config.out / "mini_sam.safetensors"
    state_files = [config.out / f"stage_{number}.safetensors" for number in range(1, len(plan) + 1)]
    if weights.exists():
        raise ValueError(f"{weights} exists: this pretraining is finished; name another --out")
    if state_files[0].exists() and not config.resume:
        raise ValueError(f"{config.out} holds a pretraining: give --resume, or another --out")
    if config.resume and not state_files[0].exists():
        raise ValueError(f"--resume, but there is no {state_files[0]}")
    config.out.mkdir(parents=True, exist_ok=True)

    first_sizes = replace(MINI, image_size=plan[0].image_size)
    model = Pretraining(build_sam(first_sizes, config.seed).train())
    match_keys_to_queries(model.sam)
    with progress_bar() as bar:
        task = bar.add_task("step", total=sum(stage.steps for stage in plan))
        for number, (stage, state_file) in enumerate(zip(plan, state_files, strict=True), 1):
            earlier = [each for each in plan[: number - 1] if each.image_size == stage.image_size]
            drawn = sum(each.steps for each in earlier)
            model.sam = resized_sam(model.sam, stage.image_size)
            model.to(accelerator.device)
            train_stage(model, config, stage, drawn, state_file, accelerator, bar, task)
            if accelerator.is_main_process:
                last = number == len(plan)
                after = config.out / f"after_stage_{number}.safetensors"
                save_sam(model.sam, weights if last else after, dtype=torch.float16)
    console.print(f"weights in {weights}")


class Pretraining(nn.Module):
    """A `Sam`, and what its image embedding is taught besides."""

    def __init__(self, sam: Sam):
        super().__init__()
        self.sam = sam
        channels = sam.prompt_encoder.embed_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.to_borders = nn.Conv2d(channels, 2 * 4 * 4, 1)

    def borders(self, embedding: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2 4*h 4*w"]:
        """Logits of whether a cell and its right, and its lower, neighbour show different things.

        The cells are those of the low-resolution masks.
        """
        return F.pixel_shuffle(self.to_borders(embedding), 4)


class Objective(nn.Module):
    """`step_loss` as a module, so that processes exchange the gradients of what it uses."""

    def __init__(self, model: Pretraining, stage: Stage):
        super().__init__()
        self.model, self.rounds = model, stage.rounds

    def forward(
        self, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        return step_loss(self.model.sam, self.model.borders, batch, self.rounds, generator)


def train_stage(
    model: Pretraining,
    config: Config,
    stage: Stage,
    drawn: int,
    state_file: Path,
    accelerator: Accelerator,
    bar: ProgressBar,
    task: TaskID,
) -> None:
    """Take the steps of a stage that `state_file`, if it exists, does not hold yet.

    `drawn` steps of earlier stages had images of this size; the stage goes on with other ones.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    parameters = list(model.parameters())
    objective, *optimizers = accelerator.prepare(Objective(model, stage), *optimizers_of(model))
    momenta = {
        f"momentum.{number}": values["momentum_buffer"]
        for number, values in enumerate(optimizers[0].state.values())
    }
    run = {
        "stage": asdict(stage),
        "drawn before": drawn,
        "precision": config.mixed_precision,
        "seed": config.seed,
        "processes": processes,
    }
    done = Progress()
    if state_file.exists():
        done = load_state(state_file, run, model, optimizers[1], scaler=None, averages=momenta)
    bar.advance(task, done.step)
    rates = learning_rates(stage)
    numbers = range(drawn + done.step, drawn + stage.steps)
    batches = Batches(stage, numbers, config.seed, rank, processes)
    loader = DataLoader(batches, batch_size=None, num_workers=config.workers, prefetch_factor=4)
    log: dict[str, list[float]] = {}
    for step, batch in enumerate(loader, done.step):
        for optimizer, share in zip(optimizers, (1, ADAMW_SHARE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = share * rates[step]
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        source = f"{stage.image_size} pixels, step {drawn + step}, process {rank}"
        generator = seeded_generator(config.seed, source)
        loss, iou = objective(batch, generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} in step {step} of {stage}")
        for optimizer in optimizers:
            optimizer.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        bar.advance(task)
        for name, value in {"loss": loss.item(), **iou}.items():
            log.setdefault(name, []).append(value)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
            means = "  ".join(f"{name} {np.mean(log[name]):.3f}" for name in sorted(log))
            bar.console.print(
                f"{stage.image_size} pixels, step {step + 1}  {means}", highlight=False
            )
            log.clear()
            if accelerator.is_main_process:
                state = Progress(step=step + 1)
                save_state(state_file, run, state, model, optimizers[1], None, averages=momenta)
    # The next stage begins with momenta of its own.
    accelerator.free_memory(objective, *optimizers)


def optimizers_of(model: Pretraining) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Muon for the matrices of the transformers, AdamW for the rest.

    Source: Jordan et al. 2024, Muon, https://kellerjordan.github.io/posts/muon; Liu et al. 2025,
    Muon is Scalable for LLM Training, arXiv 2502.16982, for the rate that both share.
    """
    matrices = [
        each
        for name, each in model.named_parameters()
        if each.ndim == 2
        and ("image_encoder.blocks" in name or "mask_decoder.transformer" in name)
        and "rel_pos" not in name
    ]
    known = set(matrices)
    others = [each for each in model.parameters() if each not in known]
    muon = torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for each in matrices:
        muon.state[each]["momentum_buffer"] = torch.zeros_like(each)
    return muon, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.05, fused=True)


def learning_rates(stage: Stage) -> list[float]:
    """Of each step: a rise over the first 2 %, then half a cosine."""
    settings = Settings(
        epochs=1,
        batch_size=stage.batch_size,
        learning_rate=stage.learning_rate,
        schedule="cosine",
        warmup_steps=stage.steps // 50,
    )
    return settings.learning_rates(stage.steps)


def stages(config: Config) -> list[Stage]:
    return [replace(stage, steps=math.ceil(config.length * stage.steps)) for stage in STAGES]


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


def step_loss(
    sam: Sam,
    borders_of: Callable[[Tensor], Tensor],
    batch: Mapping[str, Tensor],
    rounds: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss of the borders and of the masks of all rounds; and the mean IoU of each round's."""
    segmenter = Segmenter(sam)
    target = batch["masks"]
    embedding = segmenter.encode(batch["images"].float())
    borders = F.binary_cross_entropy_with_logits(
        borders_of(embedding.image).float(), batch["borders"]
    )
    points = labels = boxes = masks = None
    if torch.rand((), generator=generator) < 0.4:
        boxes = shaken(batch["boxes"], segmenter.image_size, generator)
    else:
        points, labels = clicks(target, target, segmenter.image_size, generator)

    loss = borders.new_zeros(())
    iou: dict[str, float] = {}
    for number in range(rounds):
        found = segmenter.decode(embedding, Prompts(points, labels, boxes, masks))
        logits, predicted_iou = found.all_logits.float(), found.all_iou.float()
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

        # What is still wrong is corrected by up to three clicks, beside the mask itself.
        masks = logits.detach().take_along_dim(best[..., None, None], dim=2)[:, :, 0]
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            new = clicks((masks > 0) != target, target, segmenter.image_size, generator)
            points = new[0] if points is None else torch.cat([points, new[0]], dim=2)
            labels = new[1] if labels is None else torch.cat([labels, new[1]], dim=2)
    return loss / rounds + 5 * borders, iou


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
    moved = boxes + noise * (0.1 * sides).clamp(max=0.02 * image_size)
    return moved.clamp(0, image_size)


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


def progress_bar() -> ProgressBar:
    return ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
