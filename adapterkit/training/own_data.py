"""Training on a data set of one's own by one call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, overload

from rich.console import Console

from adapterkit.data.augmentation import MedicalAugmentation, SamusAugmentation
from adapterkit.data.collections import Collection, open_collection
from adapterkit.data.collections.check import check_collection
from adapterkit.data.collections.labels import named_colours, named_labels
from adapterkit.data.collections.split_files import read_split
from adapterkit.data.dataset import Augmentation
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split
from adapterkit.data.synthetic.phantom import SYNTHETIC, synthetic_echo
from adapterkit.encoders.registry import view
from adapterkit.methods import Method, find_method, from_file
from adapterkit.parts import ClassMasks, PromptGenerator
from adapterkit.promptable.loading import absolute
from adapterkit.promptable.strategies import PromptStrategy, TrainingStrategy
from adapterkit.system.command_line import bytes_in_words, check_positive
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.cross_validation import CrossValidation, cross_validate
from adapterkit.training.experiment import Experiment
from adapterkit.training.options import TrainingOptions
from adapterkit.training.run_folder import as_configured, open_run
from adapterkit.training.runner import Run, perform
from adapterkit.training.settings import enough_epochs, settings_from, short_warmup
from adapterkit.training.subjects import Adapted, Base


@overload
def train(data: str | Path | None = None, *, folds: None = None, **options: Any) -> Run | None: ...


@overload
def train(
    data: str | Path | None = None, *, folds: int, **options: Any
) -> CrossValidation | None: ...


def train(
    data: str | Path | None = None, *, folds: int | None = None, **options: Any
) -> Run | CrossValidation | None:
    """Adapt a Segment Anything model to a data set, and measure it on held-out groups.

    Args:
        data: a folder with `images` and `masks`, or whatever `adapterkit check` takes; None for
            synthetic echo.
        folds: of a cross-validation; None for one training.
        **options: the fields of `training.options.TrainingOptions`, the options of the command
            `adapterkit train`: `method="samed"`, `checkpoint="sam_vit_b_01ec64.pth"`, `epochs=20`.
            What `--set` says are `options={"rank": 8}`; so may be `structures={1: "nodule"}` and
            `colours={"nodule": (255, 0, 0)}`.

    Returns:
        The run: its `folder`, the file of its `adapter`, its `metrics`. With `folds`, a
        `CrossValidation`: the `folder` of all, the `adapters` of the folds, and `metrics` over
        them. None in processes other than the main one.

    Raises:
        ValueError: an option or the data are not as expected; the message says what is.
        FileNotFoundError: there is no such checkpoint.
        FloatingPointError: the loss is not finite.
    """
    given = {name: _as_option(name, value) for name, value in options.items()}
    config = TrainingOptions(data=None if data is None else Path(data), folds=folds, **given)
    return train_as(config, Console(quiet=True))


def _as_option(name: str, value: Any) -> Any:
    """An option as the command line has it: a path, or for a mapping its items as NAME=VALUE."""
    known = [each.name for each in fields(TrainingOptions)]
    if name not in known:
        near = ["options"] if name == "set" else get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]}?" if near else ";"
        raise ValueError(
            f"train has no option {name}{meant} `adapterkit train --help` lists all of them"
        )
    if name in ("checkpoint", "images", "masks", "split", "out", "resume") and value is not None:
        return Path(value)
    if name == "options" and isinstance(value, Mapping):
        return tuple(f"{key}={json.dumps(each)}" for key, each in value.items())
    if name == "structures" and isinstance(value, Mapping):
        return tuple(f"{label}={structure}" for label, structure in value.items())
    if name == "colours" and isinstance(value, Mapping):
        return tuple(f"{key}={','.join(map(str, colour))}" for key, colour in value.items())
    return value


def train_as(config: TrainingOptions, console: Console) -> Run | CrossValidation | None:
    """`train`, as a configuration says, telling on a console what comes of it."""
    config = as_configured(config)
    check_positive(
        config, "image_size", "epochs", "batch_size", "frames", "accumulate", "learning_rate",
        "patients",
    )  # fmt: skip
    bytes_in_words(config.cache)
    accelerator = make_accelerator(config.mixed_precision, config.track)
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    with accelerator.main_process_first():
        collection = _open(config)
    said = f"{config.data or 'synthetic echo'} is of the format {collection.format}"
    console.print(said, soft_wrap=True)
    if accelerator.is_main_process and config.resume is None:
        _check(collection, console)

    def open_folder(experiment: Experiment) -> Path:
        settings = experiment.settings
        return open_run(
            config,
            collection.name,
            image_size=experiment.image_size,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            prompts=settings.points,
            method=_from_anywhere(config.method),
            checkpoint=absolute(config.checkpoint),
        )

    if config.folds is not None:
        return cross_validate(
            collection.folds(config.folds, config.seed),
            lambda split: _experiment(config, collection, split, accelerator.num_processes),
            open_folder,
            lambda: make_accelerator(config.mixed_precision, config.track),
            config.resume,
            console,
        )
    split = collection.divided(config.seed)
    experiment = _experiment(config, collection, split, accelerator.num_processes)
    return perform(experiment, lambda: open_folder(experiment), accelerator, console)


def _check(collection: Collection, console: Console) -> None:
    """What `adapterkit check` finds: errors end it, and the rest is told."""
    problems = check_collection(collection).problems
    errors = [problem.message for problem in problems if problem.is_error]
    if errors:
        raise DataError(
            f"{errors[0]} ({len(errors)} such problem{'s' * (len(errors) > 1)}; `adapterkit check` "
            "shows all of them.)"
        )
    for problem in problems:
        console.print(f"note  {problem.message}", soft_wrap=True, markup=False)


def _open(config: TrainingOptions) -> Collection:
    if config.data is None:
        return open_collection(synthetic_echo())
    collection = open_collection(
        config.data,
        config.format,
        images=config.images,
        masks=config.masks,
        structures=named_labels(config.structures) or None,
        leave_out=config.leave_out,
        colours=named_colours(config.colours) or None,
        group=config.group,
        axis=config.axis,
    )
    if config.split is not None:
        if config.folds is not None:
            raise ValueError("--split and --folds both say who is for what: give one of them")
        collection = replace(collection, split=read_split(config.split, collection))
    return collection if config.patients is None else collection.take(config.patients, config.seed)


def _experiment(
    config: TrainingOptions, collection: Collection, split: Split, processes: int
) -> Experiment:
    base = Base.of(config.checkpoint)
    name = from_file(config.method) if ":" in config.method else config.method
    method = find_method(name)
    image_size = _image_size(config, method, base)
    structures = tuple(collection.structures.values())
    fitting = {"image_size": image_size, "structures": structures}
    by_name = "structures" in method.options
    options = _options(config.options)
    for option, instead in {"image_size": "--image-size", "structures": "--structures"}.items():
        if option in options and option in method.options:
            raise ValueError(
                f"--set {option}={options[option]}: the training gives the method this one; give "
                f"{instead}, or leave it out"
            )
    fitting = {name: value for name, value in fitting.items() if name in method.options}
    parts = method.parts(view(base.sam), **fitting, **options)
    takes_clicks = not any(isinstance(part, ClassMasks) for part in parts)
    alone = any(isinstance(part, ClassMasks | PromptGenerator) for part in parts)
    prompts = config.prompts or ("class" if alone else "mixed" if by_name else "1")
    if prompts != "class" and not takes_clicks:
        raise ValueError(
            f"--prompts {prompts}: method {method.name} gives a mask for each structure at once, "
            "and takes no clicks; expected class"
        )
    if prompts in ("class", "class+1", "mixed") and not by_name:
        raise ValueError(
            f"--prompts {prompts}: method {method.name} cannot be asked for a structure by name; "
            "expected clicks or a box, or the method samus_plus"
        )
    images = len(collection.of_groups(split.train))
    images_per_step = config.batch_size * config.frames * config.accumulate * processes
    epochs = config.epochs or enough_epochs(base.epochs, images, images_per_step)
    return Experiment(
        subject=Adapted(base.sam, base.name, method.title, parts),
        collection=collection,
        data=SYNTHETIC if config.data is None else str(config.data),
        split=split,
        settings=settings_from(
            config,
            epochs=epochs,
            learning_rate=config.learning_rate or base.learning_rate,
            warmup_steps=short_warmup(images, epochs, images_per_step),
            clip_norm=1.0,
            points=prompts,
        ),
        image_size=image_size,
        augmentation=_augmentation(config, image_size),
        workers=config.workers,
        cache=bytes_in_words(config.cache),
        prompts=_tested_with(prompts),
        zero_shot=config.zero_shot,
    )


def _augmentation(config: TrainingOptions, image_size: int) -> Augmentation | None:
    if config.flips and config.augment != "medical":
        raise ValueError(
            f"--flips belongs to --augment medical, and the augmentation is {config.augment}"
        )
    if config.augment == "medical":
        return MedicalAugmentation(image_size, flips=config.flips)
    return SamusAugmentation(image_size) if config.augment == "samus" else None


def _image_size(config: TrainingOptions, method: Method, base: Base) -> int:
    """Of the input; a method that has no option for it leaves the base's."""
    own = view(base.sam).image_size
    if "image_size" in method.options:
        return config.image_size or own // 4
    if config.image_size not in (None, own):
        raise ValueError(
            f"--image-size {config.image_size}: method {method.name} has no option image_size; "
            f"expected the base's, {own}"
        )
    return own


def _from_anywhere(method: str) -> str:
    """With the whole path of its file, if it has one."""
    path, colon, name = method.rpartition(":")
    return f"{Path(path).resolve()}:{name}" if colon else method


def _tested_with(prompts: TrainingStrategy) -> tuple[PromptStrategy, ...]:
    """By what the test images are asked for: all that was trained."""
    if prompts == "mixed":
        return "class", "1", "3", "box", "class+1"
    return ("class+1", "class") if prompts == "class+1" else (prompts,)


def _options(options: Sequence[str]) -> Mapping[str, Any]:
    """{"rank": 8} of "rank=8"; what is no JSON is text."""
    values: dict[str, Any] = {}
    for each in options:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {each}: expected NAME=VALUE, rank=8 say")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values
