"""Adapt a Segment Anything model to CAMUS echocardiography with SAMUS, and measure what it gained.

    python -m recipes.samus_camus                      synthetic echo, a small SAM, no files needed
    python -m recipes.samus_camus --data CAMUS_public --checkpoint sam_vit_b_01ec64.pth --augment
    accelerate launch -m recipes.samus_camus ...       on several GPUs or machines

The protocol is the paper's: patients split 7:2:1 at random into training, test and validation;
one random positive point per structure as prompt; Dice + BCE; Adam at 1e-4, batches of 8 images.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from adapterkit.data.augmentation import SamusAugmentation
from adapterkit.data.collections import Collection, open_collection
from adapterkit.data.splits import Split, split_patients
from adapterkit.data.synthetic.phantom import write_phantom
from adapterkit.methods import find_method, parts_of
from adapterkit.parts import Train
from adapterkit.promptable.strategies import PromptStrategy
from adapterkit.system.allocator import keep_freed_memory
from adapterkit.system.command_line import check_positive, run
from adapterkit.training.experiment import Base, Experiment, perform
from adapterkit.training.loop import make_accelerator
from adapterkit.training.run_folder import interrupted_run, new_folder, write_json
from adapterkit.training.settings import Settings


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


def main(config: Config) -> None:
    if config.resume is not None:
        if config != Config(resume=config.resume):
            raise ValueError("--resume goes on as the run was configured; drop the other options")
        config = replace(interrupted_run(config.resume, Config), resume=config.resume)
    check_positive(config, "image_size", "epochs", "batch_size", "learning_rate", "patients")
    keep_freed_memory()
    accelerator = make_accelerator(config.mixed_precision, config.tensorboard)

    base = Base.of(config.checkpoint)
    image_size = config.image_size or base.sam.image_encoder.img_size // 4
    data, folder = str(config.data), config.data
    if folder is None:
        data = "SYNTHETIC echo made by adapterkit (no --data given)"
        with accelerator.main_process_first():
            folder = write_phantom(Path("runs/phantom_48_patients"), patients=48)
    collection = open_collection(folder, "camus")
    if config.patients is not None:
        collection = replace(collection, split=None).take(config.patients, config.seed)
    decoder = [Train("mask_decoder")] if config.train_decoder else []
    experiment = Experiment(
        base=base,
        title=find_method("samus").title + (" + trained mask decoder" if decoder else ""),
        parts=[*parts_of("samus", image_size=image_size), *decoder],
        collection=collection,
        data=data,
        split=split_of(collection, folder, config),
        settings=Settings(
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
        ),
        image_size=image_size,
        augmentation=SamusAugmentation(image_size) if config.augment else None,
        prompts=(config.points,),
        zero_shot=config.zero_shot,
    )

    def open_folder() -> Path:
        """With what the run is, for whoever reads it or resumes it."""
        folder = config.resume or new_folder(config.out, "samus_camus")
        resolved = replace(
            config,
            data=config.data and config.data.resolve(),
            checkpoint=config.checkpoint and config.checkpoint.resolve(),
            resume=None,
            image_size=image_size,
            epochs=experiment.settings.epochs,
            learning_rate=experiment.settings.learning_rate,
        )
        if accelerator.is_main_process:
            write_json(folder / "config.json", asdict(resolved))
        return folder

    perform(experiment, open_folder, accelerator, Console(quiet=not accelerator.is_main_process))


def split_of(collection: Collection, folder: Path, config: Config) -> Split:
    """Who of the patients is for what."""
    if config.split == "random":
        return split_patients(collection.group_names, config.seed)
    own = open_collection(folder, "camus").split
    if own is None:
        raise ValueError(
            f"--split release: {folder} has no folder database_split; expected the release's own, "
            "or --split random"
        )
    return own.among(collection.group_names)


if __name__ == "__main__":
    run(main, Config)
