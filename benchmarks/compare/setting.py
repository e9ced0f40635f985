"""What all runs of a comparison share, and where they are kept."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np

from adapterkit.data.collections import Collection, open_collection
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split
from adapterkit.promptable.strategies import PromptStrategy
from adapterkit.system.files import is_new_folder
from adapterkit.training.run_folder import write_json
from benchmarks.compare.domains import repeated, trained_on
from benchmarks.compare.systems import Base, Precision, ScheduleName, System

REPORTED_SIZE = 256
"""Distances in pixels are of images of this side, as the paper's are."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share; the file comparison.json in its folder.

    Attributes:
        data: a data set as `open_collection` takes it.
        data_name: for the tables.
        checkpoint: of the base; None for the small Sam that comes with adapterkit.
        base_size: side of the base's input, in pixels.
        paper: whether all is as in the paper, so that its numbers can stand beside.
        schedule: by which each system is trained.
        learning_rate: instead of the schedules'.
        patients: how many are used, drawn at random; None: all.
        training_patients: to how many of those for training it is limited; each number's are among
            those of a greater one. None: all.
        epochs: of every training.
        batch_size: images per batch, where the published schedule has no other.
        augment: whether the training images are augmented.
        mixed_precision: of the training.
        activation_checkpointing: of what adapts a Sam.
        trained_on: the kind of images to train and validate on, "view=2CH" say; None: all.
        repeats: how often each training image comes in an epoch.
        main_prompts_alone: whether a system that is tested with several kinds of prompts is tested
            with the first of them alone.
    """

    data: Path
    data_name: str
    checkpoint: Path | None
    base_size: int
    paper: bool
    schedule: ScheduleName
    learning_rate: float | None
    patients: int | None
    epochs: int
    batch_size: int
    augment: bool
    mixed_precision: Precision | None
    activation_checkpointing: bool
    training_patients: int | None = None
    trained_on: str | None = None
    repeats: int = 1
    main_prompts_alone: bool = False

    @property
    def base(self) -> Base:
        return Base(self.checkpoint, self.base_size)

    @property
    def image_size(self) -> int:
        """Side of the images that every system is given, clicked at and measured on."""
        return self.base_size // 2

    def prompts_of(self, system: System) -> tuple[PromptStrategy, ...]:
        """Those with which a system is tested."""
        return system.tested_with[:1] if self.main_prompts_alone else system.tested_with


def data_of(setting: Setting) -> tuple[Collection, Split]:
    """The data of all runs of a comparison, and their split by groups.

    Raises:
        DataError: there are none, or too few groups.
    """
    collection = open_collection(setting.data)
    if setting.patients is not None:
        collection = collection.take(setting.patients)
    split = collection.random_split()
    if setting.training_patients is not None:
        if setting.training_patients > len(split.train):
            raise DataError(
                f"--training-patients {setting.training_patients}: there are {len(split.train)}."
            )
        order = np.random.default_rng(0).permutation(len(split.train))
        kept = sorted(split.train[i] for i in order[: setting.training_patients])
        split = replace(split, train=tuple(kept))
    if setting.trained_on is not None:
        collection, split = trained_on(collection, split, setting.trained_on)
    if setting.repeats > 1:
        collection = repeated(collection, split, setting.repeats)
    return collection, split


def begin(folder: Path, setting: Setting) -> None:
    """Make the folder of a comparison, or go on in one of the same setting.

    Raises:
        ValueError: it holds something else.
    """
    path = folder / "comparison.json"
    if path.exists():
        there = read_setting(folder)
        for each in fields(Setting):
            was, now = getattr(there, each.name), getattr(setting, each.name)
            if was != now:
                raise ValueError(
                    f"{folder} holds a comparison with {each.name} {was}, and this one has {now}; "
                    "name another folder with --out"
                )
        return
    if not is_new_folder(folder):
        raise ValueError(f"--out {folder} exists and is no comparison's folder; name another")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(setting))


def read_setting(folder: Path) -> Setting:
    """The setting of the comparison in a folder.

    Raises:
        ValueError: there is none.
    """
    path = folder / "comparison.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no comparison: expected a comparison.json in it")
    hints = get_type_hints(Setting)
    try:
        values = json.loads(path.read_text())
        setting = Setting(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not of a comparison: {error}; remove the folder") from error
    paths = {
        name: Path(value)
        for name, value in values.items()
        if value is not None and Path in (hints[name], *get_args(hints[name]))
    }
    return replace(setting, **paths)
