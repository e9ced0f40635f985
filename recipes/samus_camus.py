"""Adapt a Segment Anything model to CAMUS echocardiography with SAMUS, and measure what it gained.

    python -m recipes.samus_camus                      synthetic echo, a small SAM, no files needed
    python -m recipes.samus_camus --data CAMUS_public --checkpoint sam_vit_b_01ec64.pth --augment
    accelerate launch -m recipes.samus_camus ...       on several GPUs or machines

The protocol is the paper's: patients split 7:2:1 at random into training, test and validation;
one random positive point per structure as prompt; Dice + BCE; Adam at 1e-4, batches of 8 images.
SAMUS+, asked by the structures' names instead, is trained beside it on the same images, in the
folder `samus_plus` of the run, and stands in the same tables.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapterkit.promptable.strategies import PromptStrategy
from adapterkit.system.command_line import check_positive, run

if TYPE_CHECKING:
    from adapterkit.training.experiment import Experiment
    from adapterkit.training.subjects import Base

PLUS = "samus_plus"
"""The folder of SAMUS+, within that of the run."""


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
    samus_plus: bool = True
    """Also train SAMUS+, which needs no click."""
    seed: int = 0
    """Of the split, the initial weights, the order and the prompts."""


def main(config: Config) -> None:
    from rich.console import Console

    from adapterkit.data.augmentation import SamusAugmentation
    from adapterkit.data.collections import open_collection
    from adapterkit.data.synthetic.phantom import SYNTHETIC, synthetic_echo
    from adapterkit.encoders.registry import view
    from adapterkit.evaluation.evaluation import Evaluation
    from adapterkit.methods import parts_of
    from adapterkit.parts import Train
    from adapterkit.training.accelerator import make_accelerator
    from adapterkit.training.experiment import Experiment
    from adapterkit.training.run_folder import as_configured, open_run, subfolder
    from adapterkit.training.runner import perform
    from adapterkit.training.settings import settings_from
    from adapterkit.training.subjects import Adapted, Base

    config = as_configured(config)
    check_positive(config, "image_size", "epochs", "batch_size", "learning_rate", "patients")
    trackers = ("tensorboard",) if config.tensorboard else ()
    accelerator = make_accelerator(config.mixed_precision, trackers)
    console = Console(quiet=not accelerator.is_main_process)
    base = Base.of(config.checkpoint)
    image_size = config.image_size or view(base.sam).image_size // 4
    rate = config.learning_rate or base.learning_rate
    decided = {"epochs": config.epochs or base.epochs, "learning_rate": rate}
    title, parts = "SAMUS", parts_of("samus", image_size=image_size)
    if config.train_decoder:
        title, parts = f"{title} + trained mask decoder", [*parts, Train("mask_decoder")]
    with accelerator.main_process_first():
        collection = open_collection(config.data or synthetic_echo(), "camus")
    if config.patients is not None:
        collection = collection.take(config.patients, config.seed)
    is_random = config.split == "random"
    experiment = Experiment(
        subject=Adapted(base.sam, base.name, title, parts),
        collection=collection,
        data=SYNTHETIC if config.data is None else str(config.data),
        split=collection.random_split(config.seed) if is_random else collection.stated_split(),
        settings=settings_from(config, **decided),
        image_size=image_size,
        augmentation=SamusAugmentation(image_size) if config.augment else None,
        prompts=(config.points,),
        zero_shot=config.zero_shot,
    )

    @cache
    def folder_of_run() -> Path:
        return open_run(config, "samus_camus", image_size=image_size, **decided)

    if config.samus_plus:
        done = config.resume is not None and (config.resume / PLUS / "metrics.json").exists()
        if not done:
            perform(
                samus_plus(experiment, Base.of(config.checkpoint), accelerator.num_processes),
                lambda: subfolder(folder_of_run(), PLUS),
                accelerator,
                console,
            )
            accelerator.free_memory()
            accelerator.wait_for_everyone()
        found = Evaluation.read_csv(folder_of_run() / PLUS / "per_image.csv")
        experiment = replace(experiment, others={"SAMUS+, by name": found})
    perform(experiment, folder_of_run, accelerator, console)


def samus_plus(samus: "Experiment", base: "Base", processes: int) -> "Experiment":
    """SAMUS+, asked by name, trained as `adapterkit train` does on what SAMUS is trained on.

    Args:
        samus: the experiment that it stands beside.
        base: another one like that experiment's.
        processes: that train.
    """
    from adapterkit.methods import parts_of
    from adapterkit.training.settings import short_warmup
    from adapterkit.training.subjects import Adapted

    structures = tuple(samus.collection.structures.values())
    parts = parts_of("samus_plus", image_size=samus.image_size, structures=structures)
    settings, images = samus.settings, len(samus.collection.of_groups(samus.split.train))
    images_per_step = settings.batch_size * settings.accumulate * processes
    return replace(
        samus,
        subject=Adapted(base.sam, base.name, "SAMUS+", parts),
        settings=replace(
            settings,
            schedule="cosine",
            warmup_steps=short_warmup(images, settings.epochs, images_per_step),
            clip_norm=1.0,
            points="class",
        ),
        prompts=("class",),
        zero_shot=False,
    )


if __name__ == "__main__":
    run(main, Config)
