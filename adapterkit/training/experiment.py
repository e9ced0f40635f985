"""An experiment: a base, a method and a collection, trained and evaluated into a folder.

What it leaves in the folder:

    adapter.safetensors      what was trained, at the best validation Dice
    table.md                 the metrics of each structure, and by what the collection reports
    metrics.json             the same with statistics over groups, the history, time and memory;
                             written last, so that it tells a finished run
    per_image.csv            every metric of every test image and structure
    report.html              all of this as one page, with the outlines of every test image
    segmentations.png        the best, median and worst case of each structure
    curves.png               loss and Dice by epoch
    training_state.safetensors  while it runs: where it goes on if it is interrupted
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from segment_anything.modeling import Sam

from adapterkit.adapters.file import load_adapter, save_adapter
from adapterkit.adapters.injection import disabled, eject, inject
from adapterkit.adapters.overview import summary
from adapterkit.data.collections.collection import Collection
from adapterkit.data.dataset import Augmentation, SegmentationDataset
from adapterkit.data.splits import Split
from adapterkit.evaluation.drawings import draw_images
from adapterkit.evaluation.evaluation import Evaluation, evaluate
from adapterkit.evaluation.plots import segmentation_figure, training_curves
from adapterkit.evaluation.report import Contents, write_report
from adapterkit.evaluation.tables import (
    extreme_cases,
    extremes,
    markdown_table,
    peak_memory,
    summaries,
    tables,
)
from adapterkit.kernels.fast_forward import fast
from adapterkit.promptable.segmenter import Segmenter
from adapterkit.promptable.stock_sam import load_sam, mini_sam
from adapterkit.promptable.strategies import PromptStrategy
from adapterkit.training.loop import log_to, train
from adapterkit.training.run_folder import resumable, write_json, write_text
from adapterkit.training.settings import Settings
from adapterkit.training.state import Epoch


@dataclass(frozen=True)
class Base:
    """The model that is adapted.

    Attributes:
        sam: it.
        name: for tables.
        epochs: that it takes by default.
        learning_rate: by default.
    """

    sam: Sam
    name: str
    epochs: int
    learning_rate: float

    @classmethod
    def of(cls, checkpoint: Path | None) -> "Base":
        """A checkpoint of a `Sam`, trained as in the paper; None for the small one that comes with
        adapterkit.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint of a `Sam`.
        """
        if checkpoint is not None:
            return cls(load_sam(checkpoint), checkpoint.name, 50, 1e-4)
        return cls(mini_sam(), "adapterkit's small SAM (no --checkpoint given)", 12, 1e-3)


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, and how it is measured.

    Attributes:
        base: the model that is adapted.
        title: of the method, in tables.
        parts: of the method.
        collection: the data.
        data: what they are called in tables.
        split: of the collection's groups.
        settings: of the training.
        image_size: side of the adapted model's input, in pixels.
        augmentation: of the training images.
        prompts: with which the test images are segmented; the first is the table's main one.
        zero_shot: whether the base as it comes is measured too, at its own input size.
    """

    base: Base
    title: str
    parts: Sequence[Any]
    collection: Collection
    data: str
    split: Split
    settings: Settings
    image_size: int
    augmentation: Augmentation | None = None
    prompts: tuple[PromptStrategy, ...] = ("1",)
    zero_shot: bool = True

    def dataset(self, part: str, image_size: int | None = None) -> SegmentationDataset:
        """The images for "train", "validation" or "test"."""
        return SegmentationDataset(
            self.collection.of_groups(getattr(self.split, part)),
            image_size or self.image_size,
            self.augmentation if part == "train" else None,
            self.settings.seed,
        )

    def save(self, path: Path, epoch: Epoch) -> None:
        """Write the adapter as an epoch left it."""
        notes = {
            "data": self.data,
            "base": self.base.name,
            "seed": self.settings.seed,
            **asdict(epoch),
        }
        classes = list(self.collection.structures.values())
        save_adapter(self.base.sam, path, classes=classes, training=notes)


@dataclass(frozen=True)
class Run:
    """A finished experiment.

    Attributes:
        folder: where its results are.
        adapter: the file of what was trained.
        metrics: what metrics.json holds.
    """

    folder: Path
    adapter: Path
    metrics: Mapping[str, Any]


def perform(
    experiment: Experiment,
    open_folder: Callable[[], Path],
    accelerator: Accelerator,
    say: Console | None = None,
) -> Run | None:
    """Train and measure, or go on where an interrupted run in the folder left off.

    Args:
        experiment: what.
        open_folder: gives the folder for the results; called when all that can be wrong with what
            was asked for has been found out, before anything is trained.
        accelerator: from `training.loop.make_accelerator`.
        say: where the results are told; None: nowhere.

    Returns:
        The run; None in processes other than the main one.

    Raises:
        ValueError: the parts do not fit the base, or the folder holds another run.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: it was interrupted; the message says how to go on.
    """
    began = time.monotonic()
    console = say or Console(quiet=True)
    sam, settings = experiment.base.sam, experiment.settings
    base_size = sam.image_encoder.img_size
    torch.manual_seed(settings.seed)
    segmenter = Segmenter(fast(inject(sam, experiment.parts))).to(accelerator.device)
    sets = {part: experiment.dataset(part) for part in ("train", "validation", "test")}
    folder = open_folder()
    log_to(folder, accelerator)
    _introduce(experiment, folder, console)

    evaluations: dict[str, Evaluation] = {}
    if experiment.zero_shot:
        with disabled(sam):
            evaluations["zero-shot"] = _zero_shot(
                experiment, segmenter, base_size, folder, accelerator
            )

    adapter_file, state_file = folder / "adapter.safetensors", folder / "training_state.safetensors"
    trained_from = time.monotonic()
    with resumable(folder):
        history = train(
            segmenter,
            sets["train"],
            sets["validation"],
            settings,
            accelerator=accelerator,
            on_improvement=lambda epoch: experiment.save(adapter_file, epoch),
            state_file=state_file,
        )
    seconds = time.monotonic() - trained_from

    # The adapter as it was saved, on the base that it came from.
    load_adapter(eject(sam), adapter_file)
    evaluations |= _with_each_prompt(experiment, segmenter, sets["test"])
    main = next(each for name, each in evaluations.items() if name.startswith(experiment.title))
    drawings = draw_images(
        segmenter,
        sets["test"],
        seed=settings.seed,
        points=experiment.prompts[0],
        batch_size=settings.batch_size,
        large={index for of_each in extremes(main) for index in of_each.values()},
    )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    cases = extreme_cases(segmenter, sets["test"], main, settings.seed, experiment.prompts[0])
    metrics = _write(experiment, folder, evaluations, main, history, cases)
    metrics |= {
        "trained_parameters": summary(sam).trained_parameters,
        # Of this process; a run that was resumed took longer in all.
        "seconds": {"training": seconds, "all": time.monotonic() - began},
        "peak_memory_bytes": peak_memory(),
    }
    contents = Contents(
        title=f"{experiment.title} on {experiment.collection.name}",
        setting=_setting(experiment, metrics),
        evaluations=evaluations,
        main=main,
        history=metrics["history"],
        reported=[each for each in experiment.collection.reported if each in main.attributes[0]],
        groups=_groups(experiment, main),
        images=drawings[0],
        cases=drawings[1],
    )
    write_report(folder / "report.html", contents)
    # Last, because this file tells that the run is finished.
    write_json(folder / "metrics.json", metrics)
    state_file.unlink(missing_ok=True)
    _conclude(evaluations, metrics, folder, console)
    return Run(folder, adapter_file, metrics)


PROMPTS_IN_WORDS: dict[PromptStrategy, str] = {
    "1": "1 click",
    "2-random": "2 random clicks",
    "2-entropy": "2 clicks, second by entropy",
    "2-max-distance": "2 clicks, second by max distance",
    "3": "3 clicks",
    "5": "5 clicks",
    "box": "box",
    "class": "class",
    "class+1": "class and 1 click",
    "mixed": "mixed",
}


def _introduce(experiment: Experiment, folder: Path, console: Console) -> None:
    collection = experiment.collection
    kind = "patients" if collection.is_grouped else "groups"
    console.print(f"base  {experiment.base.name}\ndata  {experiment.data}", soft_wrap=True)
    for part, members in asdict(experiment.split).items():
        images = len(collection.of_groups(members))
        console.print(f"      {part}: {len(members)} {kind}, {images} images")
    console.print(summary(experiment.base.sam).table())
    console.print(f"results go to {folder}", soft_wrap=True)


def _setting(experiment: Experiment, metrics: Mapping[str, Any]) -> dict[str, str]:
    """What was done and what it took, for a reader."""
    settings, collection = experiment.settings, experiment.collection
    kind = "patients" if collection.is_grouped else "groups"
    split = {
        part: f"{len(members)} {kind}, {len(collection.of_groups(members))} images"
        for part, members in asdict(experiment.split).items()
    }
    augmentation = experiment.augmentation
    return {
        "base": experiment.base.name,
        "data": f"{experiment.data} ({collection.format})",
        **split,
        "input": f"{experiment.image_size} x {experiment.image_size} pixels",
        "prompts in training": PROMPTS_IN_WORDS[settings.points],
        "prompts in the drawings": PROMPTS_IN_WORDS[experiment.prompts[0]],
        "epochs": f"{len(metrics['history'])} of {settings.epochs}",
        "batch": f"{settings.batch_size} images",
        "learning rate": f"{settings.learning_rate:g}, {settings.schedule}",
        "augmentation": "none" if augmentation is None else type(augmentation).__name__,
        "seed": str(settings.seed),
        "trained parameters": f"{metrics['trained_parameters']:,}",
        "training took": f"{metrics['seconds']['training'] / 60:.1f} min",
        "peak memory": f"{max(metrics['peak_memory_bytes'].values()) / 1e9:.1f} GB",
    }


def _groups(experiment: Experiment, evaluation: Evaluation) -> list[str] | None:
    """The group of each image, where that is not told by one of its attributes."""
    collection = experiment.collection
    pairs = zip(collection.records, collection.groups, strict=True)
    group_of = {record.name: group for record, group in pairs}
    groups = [group_of[name] for name in evaluation.names]
    told = [[each[key] for each in evaluation.attributes] for key in evaluation.attributes[0]]
    return groups if collection.is_grouped and groups not in told else None


def _conclude(
    evaluations: Mapping[str, Evaluation],
    metrics: Mapping[str, Any],
    folder: Path,
    console: Console,
) -> None:
    columns = ["dice", "hausdorff_px", "hausdorff95_px", "hausdorff_mm"]
    table = markdown_table({name: each.summary() for name, each in evaluations.items()}, columns)
    console.print(table, markup=False, soft_wrap=True)
    peak = max(metrics["peak_memory_bytes"].values())
    console.print(
        f"trained in {metrics['seconds']['training'] / 60:.1f} min, peak memory "
        f"{peak / 1e9:.1f} GB\nresults in {folder}",
        soft_wrap=True,
    )


def _with_each_prompt(
    experiment: Experiment, segmenter: Segmenter, test: SegmentationDataset
) -> dict[str, Evaluation]:
    found: dict[str, Evaluation] = {}
    for prompts in experiment.prompts:
        asked = "" if len(experiment.prompts) == 1 else f", {PROMPTS_IN_WORDS[prompts]}"
        found[experiment.title + asked] = evaluate(
            segmenter,
            test,
            seed=experiment.settings.seed,
            points=prompts,
            batch_size=experiment.settings.batch_size,
            progress=f"test{asked}",
        )
    return found


def _zero_shot(
    experiment: Experiment,
    segmenter: Segmenter,
    base_size: int,
    folder: Path,
    accelerator: Accelerator,
) -> Evaluation:
    """Of the base as it comes, with one click, at the input size that it was made for; distances
    are in pixels of the adapted model's input, so that they compare."""
    file = folder / "per_image_zero_shot.csv"
    if file.exists():
        return Evaluation.read_csv(file)
    by_name: tuple[PromptStrategy, ...] = ("class", "class+1", "mixed")
    clicks: list[PromptStrategy] = [each for each in experiment.prompts if each not in by_name]
    found = evaluate(
        segmenter,
        experiment.dataset("test", base_size),
        seed=experiment.settings.seed,
        points=(*clicks, "1")[0],
        batch_size=1,
        progress=f"zero-shot, {base_size}x{base_size} pixels",
    ).in_pixels_of(experiment.image_size, base_size)
    if accelerator.is_main_process:
        found.write_csv(file)
    return found


def _write(
    experiment: Experiment,
    folder: Path,
    evaluations: Mapping[str, Evaluation],
    main: Evaluation,
    history: Sequence[Epoch],
    cases: Sequence[Any],
) -> dict[str, Any]:
    """Tables and figures; and what metrics.json holds of them."""
    collection, size = experiment.collection, experiment.image_size
    reported = [each for each in collection.reported if each in main.attributes[0]]
    test = experiment.split.test
    kind = "patients" if collection.is_grouped else "groups"
    main.write_csv(folder / "per_image.csv")
    write_text(
        folder / "table.md",
        f"Base: {experiment.base.name}. Data: {experiment.data}. Test: {len(test)} {kind}, "
        f"{len(main.names)} images. Mean ± standard deviation over images; px are of "
        f"{size}x{size}.\n\n{tables(evaluations, reported)}\n",
    )
    training_curves([asdict(epoch) for epoch in history], folder / "curves.png")
    segmentation_figure(cases, folder / "segmentations.png")
    return {
        "base": experiment.base.name,
        "data": experiment.data,
        kind: asdict(experiment.split),
        "test": {name: summaries(each, reported) for name, each in evaluations.items()},
        "history": [asdict(epoch) for epoch in history],
    }
