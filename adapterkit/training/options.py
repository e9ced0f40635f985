"""The options of a training on a data set of one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from adapterkit.promptable.strategies import TrainingStrategy
from adapterkit.training.choices import AugmentationName, Flip, Loss, Tracker


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained on what; the options of `adapterkit train`."""

    data: Positional[Path | None] = None
    """The data set: a folder with images and masks, CAMUS, US30K, or a file that lists images.
    Without it, synthetic echo is made and used."""
    method: str = "samus_plus"
    """A method's name, or FILE.py:FUNCTION for parts that a function of yours makes."""
    checkpoint: Path | None = None
    """What is adapted: a file, sam_vit_b_01ec64.pth say; a folder of transformers; or a name on the
    Hugging Face Hub, facebook/sam2.1-hiera-tiny say. Without it, adapterkit's own small SAM."""
    options: Annotated[tuple[str, ...], arg(name="set")] = ()
    """Options of the method, as NAME=VALUE: rank=8, say."""
    format: str | None = None
    """How the data lie on disk. By default it is found out."""
    images: Path | None = None
    """The images' folder, where it is not DATA/images, or a pattern of their paths, in which
    {name} stands for what an image and its mask share: raw/{name}/photo.png."""
    masks: Path | None = None
    """The masks' folder, where it is not DATA/masks, or a pattern of their paths."""
    structures: tuple[str, ...] = ()
    """What labels stand for, as LABEL=NAME; labels of one name are merged."""
    leave_out: tuple[int, ...] = ()
    """Labels that count as background."""
    colours: tuple[str, ...] = ()
    """What the colours of colour-coded masks stand for, as NAME=RED,GREEN,BLUE."""
    group: str | None = None
    """A regular expression for what a patient's images share in names; or a table's column."""
    axis: int | None = None
    """Along which volumes are cut into slices: 0 frames, as by default, 1 rows, 2 columns."""
    split: Path | None = None
    """A CSV or JSON file that says which image or group is for train, validation or test. By
    default the data's own split, or 7:1:2 at random."""
    folds: int | None = None
    """Cross-validation: so many trainings, each tested on other groups, and a table over them."""
    patients: int | None = None
    """Use so many of the groups, drawn at random."""
    prompts: TrainingStrategy | None = None
    """What asks for a structure in training; by default "mixed" or one click."""
    augment: AugmentationName = "none"
    """None, the published SAMUS's, or small changes of place and grey."""
    flips: tuple[Flip, ...] = ()
    """Also flip images, where a flipped one could be one of them."""
    loss: Loss = "samus"
    """The published SAMUS's, or MONAI's."""
    image_size: int | None = None
    """Side of the square input, in pixels. By default a quarter of the base's."""
    epochs: int | None = None
    """By default 12, of a checkpoint 50; 320 steps at least."""
    batch_size: int = 8
    """Images per batch and process, or clips."""
    frames: int = 1
    """Of a clip, consecutive ones of a sequence that are seen together."""
    accumulate: int = 1
    """Batches per step."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Of the trained parameters."""
    weight_decay: float = 0
    """Of the optimizer."""
    ema: float | None = None
    """Test and save a moving average of the weights, of which so much stays at a step, 0.99 say."""
    learning_rate: float | None = None
    """The highest; by default 1e-4, or 1e-3 with mini_sam."""
    schedule: Literal["cosine", "constant", "polynomial"] = "cosine"
    """Of the learning rate, after a short rise."""
    patience: int | None = None
    """Stop after so many epochs without a better Dice."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """By default what `accelerate launch` says, or no."""
    activation_checkpointing: bool = False
    """Save memory by computing the encoder's blocks twice."""
    workers: int = 0
    """Processes that read and augment images."""
    cache: str = "4GB"
    """Memory for decoded images."""
    track: tuple[Tracker, ...] = ()
    """Who is told loss, learning rate and Dice."""
    zero_shot: bool = False
    """Also evaluate the base as it comes, at its own size."""
    seed: int = 0
    """Of split, first weights, order and prompts."""
    out: Path | None = None
    """Folder for the results, new or empty. By default, a new one under runs/."""
    resume: Path | None = None
    """Folder of an interrupted run, which goes on as it was configured, without other options."""
