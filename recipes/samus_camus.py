"""Adapt a Segment Anything model to CAMUS echocardiography with SAMUS, and measure what it gained.

    python -m recipes.samus_camus                      synthetic echo, a small SAM, no files needed
    python -m recipes.samus_camus --data CAMUS_public --checkpoint sam_vit_b_01ec64.pth --augment
    accelerate launch -m recipes.samus_camus ...       on several GPUs or machines

The protocol is the paper's: patients split 7:2:1 at random into training, test and validation;
one random positive point per structure as prompt; Dice + BCE; Adam at 1e-4, batches of 8 images.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from segment_anything.modeling import Sam

import adapterkit as ak
from adapterkit.data.augmentation import SamusAugmentation
from adapterkit.data.collections.camus import (
    STRUCTURES,
    CamusDataset,
    Frame,
    find_frames,
    read_split,
)
from adapterkit.data.splits import Split, split_patients
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.evaluation.evaluation import Evaluation, evaluate
from adapterkit.evaluation.plots import segmentation_figure, training_curves
from adapterkit.evaluation.tables import (
    extreme_cases,
    markdown_table,
    peak_memory,
    summaries,
    tables,
)
from adapterkit.promptable.points import PromptStrategy
from adapterkit.system.allocator import keep_freed_memory
from adapterkit.system.command_line import check_positive, run
from adapterkit.training.loop import Settings, log_to, make_accelerator, train
from adapterkit.training.run_folder import (
    interrupted_run,
    new_folder,
    resumable,
    write_json,
    write_text,
)
from adapterkit.training.state import Epoch


@dataclass(frozen=True)
class Config:
    data: Path | None = None
    """CAMUS as it is unpacked. Without it, synthetic echo is made and used."""
    checkpoint: Path | None = None
    """A SAM checkpoint, sam_vit_b_01ec64.pth say. Without it, adapterkit's own small SAM."""
    out: Path | None = None
    """Folder for the results, new or empty. By default, a new one under runs/samus_camus."""
    resume: Path | None = None
    """Folder of an interrupted run, which goes on as it was configured, without other options."""
    split: Literal["random", "release"] = "random"
    """Patients 7:2:1 at random, or as the release's own split files say."""
    patients: int | None = None
    """Use only so many patients, drawn at random, for a quick look."""
    image_size: int | None = None
    """Side of SAMUS's square input, in pixels. By default a quarter of the base's: 256 for SAM."""
    train_decoder: bool = False
    """Also train the mask decoder, which SAMUS keeps frozen."""
    points: PromptStrategy = "1"
    """One random point per structure, or a second one: random, by entropy, or by distance."""
    augment: bool = False
    """Augment the training images as the published SAMUS does."""
    epochs: int | None = None
    """Passes over the training images. By default the paper's 50, or 12 without a checkpoint."""
    batch_size: int = 8
    """Images per batch and process; each is encoded once for all its structures."""
    accumulate: int = 1
    """Batches per step."""
    learning_rate: float | None = None
    """Of Adam. By default the paper's 1e-4, or 1e-3 without a checkpoint."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises."""
    clip_norm: float | None = None
    """Shorten gradients to this norm."""
    patience: int | None = None
    """Stop after so many epochs without a better validation Dice."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """By default what `accelerate launch` says, or no."""
    activation_checkpointing: bool = False
    """Save memory by computing the encoder's blocks twice."""
    tensorboard: bool = False
    """Write loss, learning rate and Dice for TensorBoard too."""
    zero_shot: bool = True
    """Also evaluate the base as it comes, at its own input size."""
    seed: int = 0
    """Of the split, the initial weights, the order and the prompts."""


@dataclass(frozen=True)
class Base:
    """The model to adapt, and what of the protocol depends on it."""

    sam: Sam
    name: str
    epochs: int
    learning_rate: float


def choose_base(checkpoint: Path | None) -> Base:
    if checkpoint is not None:
        return Base(ak.load_sam(checkpoint), checkpoint.name, 50, 1e-4)
    return Base(ak.mini_sam(), "adapterkit's small SAM (no --checkpoint given)", 12, 1e-3)


def main(config: Config) -> None:
    start = time.monotonic()
    if config.resume is not None:
        if config != Config(resume=config.resume):
            raise ValueError("--resume goes on as the run was configured; drop the other options")
        config = replace(interrupted_run(config.resume, Config), resume=config.resume)
    check_positive(config, "image_size", "epochs", "batch_size", "learning_rate", "patients")
    keep_freed_memory()
    accelerator = make_accelerator(config.mixed_precision, config.tensorboard)
    console = Console(quiet=not accelerator.is_main_process)

    # The base, and SAMUS on it.
    base = choose_base(config.checkpoint)
    base_size = base.sam.image_encoder.img_size
    image_size = config.image_size or base_size // 4
    settings = Settings(
        epochs=config.epochs or base.epochs,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        learning_rate=config.learning_rate or base.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        clip_norm=config.clip_norm,
        points=config.points,
        activation_checkpointing=config.activation_checkpointing,
        patience=config.patience,
        seed=config.seed,
    )
    parts = ak.methods.parts_of("samus", image_size=image_size)
    method = "SAMUS"
    if config.train_decoder:
        parts.append(ak.parts.Train("mask_decoder"))
        method = "SAMUS + trained mask decoder"
    torch.manual_seed(config.seed)
    segmenter = ak.Segmenter(ak.fast(ak.inject(base.sam, parts))).to(accelerator.device)

    # The data.
    data = "SYNTHETIC echo made by adapterkit (no --data given)"
    data_folder = config.data
    if data_folder is None:
        with accelerator.main_process_first():
            data_folder = write_phantom(Path("runs/phantom_48_patients"), patients=48)
    else:
        data = str(config.data)
    frames = find_frames(data_folder)
    split = split_of(frames, data_folder, config)
    sets = {
        name: [frame for frame in frames if frame.patient in members]
        for name, members in asdict(split).items()
    }
    augmentation = SamusAugmentation(image_size) if config.augment else None
    training = CamusDataset(sets["train"], image_size, augmentation, config.seed)
    validation, test = (CamusDataset(sets[name], image_size) for name in ("validation", "test"))

    # The folder, and what the run is, for whoever reads it or resumes it.
    folder = config.resume or new_folder(config.out, "samus_camus")
    resolved = replace(
        config,
        data=config.data and config.data.resolve(),
        checkpoint=config.checkpoint and config.checkpoint.resolve(),
        resume=None,
        image_size=image_size,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
    )
    if accelerator.is_main_process:
        write_json(folder / "config.json", asdict(resolved))
    log_to(folder, accelerator)
    console.print(f"base  {base.name}\ndata  {data}")
    for name, members in asdict(split).items():
        console.print(f"      {name}: {len(members)} patients, {len(sets[name])} images")
    console.print(ak.summary(base.sam).table())
    console.print(f"results go to {folder}", soft_wrap=True)

    # Before: the base as it comes, at the input size that it was made for.
    evaluations: dict[str, Evaluation] = {}
    zero_shot_file = folder / "per_image_zero_shot.csv"
    if config.zero_shot and zero_shot_file.exists():
        evaluations["zero-shot"] = Evaluation.read_csv(zero_shot_file)
    elif config.zero_shot:
        with ak.disabled(base.sam):
            at_base_size = CamusDataset(sets["test"], base_size)
            found = evaluate(
                segmenter,
                at_base_size,
                seed=config.seed,
                points=config.points,
                batch_size=1,
                progress=f"zero-shot, {base_size}x{base_size} pixels",
            )
        # Both are reported in pixels of SAMUS's input, so that distances compare.
        evaluations["zero-shot"] = found.in_pixels_of(image_size, base_size)
        if accelerator.is_main_process:
            evaluations["zero-shot"].write_csv(zero_shot_file)

    # Training. The adapter of the best epoch is kept.
    adapter_file, state_file = folder / "adapter.safetensors", folder / "training_state.safetensors"

    def save(epoch: Epoch) -> None:
        notes = {"data": data, "base": base.name, "seed": config.seed, **asdict(epoch)}
        ak.save_adapter(base.sam, adapter_file, classes=list(STRUCTURES.values()), training=notes)

    training_start = time.monotonic()
    with resumable(folder):
        history = train(
            segmenter,
            training,
            validation,
            settings,
            accelerator=accelerator,
            on_improvement=save,
            state_file=state_file,
        )
    training_seconds = time.monotonic() - training_start

    # After: the adapter as it was saved, on the base that it came from.
    ak.load_adapter(ak.eject(base.sam), adapter_file)
    evaluations[method] = evaluate(
        segmenter,
        test,
        seed=config.seed,
        points=config.points,
        batch_size=config.batch_size,
        progress="test",
    )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    evaluations[method].write_csv(folder / "per_image.csv")
    write_text(
        folder / "table.md",
        f"Base: {base.name}. Data: {data}. Test: {len(split.test)} patients, {len(test)} images. "
        f"Mean ± standard deviation over images; px are of {image_size}x{image_size}.\n\n"
        f"{tables(evaluations, ['view', 'phase'])}\n",
    )
    training_curves([asdict(epoch) for epoch in history], folder / "curves.png")
    cases = extreme_cases(segmenter, test, evaluations[method], config.seed, config.points)
    segmentation_figure(cases, folder / "segmentations.png")
    peak = peak_memory()
    # Last, because this file tells that the run is finished.
    write_json(
        folder / "metrics.json",
        {
            "base": base.name,
            "data": data,
            "patients": asdict(split),
            "test": {
                name: summaries(each, ["view", "phase"]) for name, each in evaluations.items()
            },
            "history": [asdict(epoch) for epoch in history],
            "trained_parameters": ak.summary(base.sam).trained_parameters,
            # Of this process; a run that was resumed took longer in all.
            "seconds": {"training": training_seconds, "all": time.monotonic() - start},
            "peak_memory_bytes": peak,
        },
    )
    state_file.unlink(missing_ok=True)
    table = markdown_table(
        {name: each.summary() for name, each in evaluations.items()},
        ["dice", "hausdorff_px", "hausdorff95_px", "hausdorff_mm"],
    )
    console.print(table, markup=False, soft_wrap=True)
    console.print(
        f"trained in {training_seconds / 60:.1f} min, "
        f"peak memory {max(peak.values()) / 1e9:.1f} GB\nresults in {folder}",
        soft_wrap=True,
    )


def split_of(frames: list[Frame], folder: Path, config: Config) -> Split:
    """Who of the patients of `frames`, or of so many of them, is for what."""
    patients = sorted({frame.patient for frame in frames})
    if config.patients is not None:
        order = torch.randperm(len(patients), generator=torch.Generator().manual_seed(config.seed))
        patients = [patients[i] for i in order[: config.patients]]
    if config.split == "random":
        return split_patients(patients, config.seed)
    split = read_split(folder)
    if split is None:
        raise ValueError(
            f"--split release: {folder} has no folder database_split; expected the release's own, "
            "or --split random"
        )
    here = {
        name: tuple(each for each in members if each in patients)
        for name, members in asdict(split).items()
    }
    for name, members in here.items():
        if not members:
            raise ValueError(
                f"--split release: none of the {len(patients)} patients is for {name}; expected "
                "some for each part, or --split random"
            )
    return Split(**here)


if __name__ == "__main__":
    run(main, Config)
