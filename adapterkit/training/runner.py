"""The runner of experiments: it trains and evaluates one into a folder.

What it leaves in the folder:

    adapter.safetensors      what was trained, at the best validation Dice
    table.md                 the metrics of each structure, and by what the collection reports
    metrics.json             the same with statistics over groups, the history, what it cost;
                             written last, so that it tells a finished run
    per_image.csv            every metric of every test image and structure; by further kinds of
                             prompts in per_image_box.csv and so on
    report.html              all of this as one page, with the outlines of every test image
    segmentations.png        the best, median and worst case of each structure
    patients.csv             of apical views at ED and ES, as CAMUS's, volumes and ejection fraction
    agreement.png            of each patient, and how far they agree with the reference masks'
    curves.png               loss and Dice by epoch
    batch.png                the first batch as the model sees it, with masks and prompts
    training_state.safetensors  while it runs: where it goes on if it is interrupted
"""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from adapterkit.data.dataset import SegmentationDataset
from adapterkit.evaluation.batch_figure import batch_figure
from adapterkit.evaluation.clicks import ClicksNeeded, clicks_needed
from adapterkit.evaluation.cost import machine, peak_memory
from adapterkit.evaluation.drawings import Drawings
from adapterkit.evaluation.evaluation import Evaluation, Predictions, evaluate
from adapterkit.evaluation.hearts import HeartsOfTest
from adapterkit.evaluation.tables import predict_extremes
from adapterkit.promptable.protocol import Promptable
from adapterkit.promptable.strategies import PROMPTS_IN_WORDS, PromptStrategy
from adapterkit.system.allocator import keep_freed_memory
from adapterkit.system.files import remove_half_written
from adapterkit.system.lock import locked_folder
from adapterkit.training.accelerator import log_to
from adapterkit.training.experiment import Experiment
from adapterkit.training.loop import train
from adapterkit.training.outcome import Outcome
from adapterkit.training.run_folder import resumable
from adapterkit.training.state import Epoch
from adapterkit.training.subjects import trained_numbers


@dataclass(frozen=True)
class Run:
    """A finished experiment.

    Attributes:
        folder: where its results are.
        adapter: the file of what was trained; None where there was nothing to train.
        metrics: what metrics.json holds.
        model: as that file has it.
    """

    folder: Path
    adapter: Path | None
    metrics: Mapping[str, Any]
    model: Promptable


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
        accelerator: from `training.accelerator.make_accelerator`.
        say: where the results are told; None: nowhere.

    Returns:
        The run; None in processes other than the main one.

    Raises:
        ValueError: the parts do not fit the base, or the folder holds another run.
        FolderLockedError: another process writes there.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: it was interrupted; the message says how to go on.
    """
    began = time.monotonic()
    keep_freed_memory()
    console = say or Console(quiet=True)
    torch.manual_seed(experiment.settings.seed)
    model = experiment.subject.build().to(accelerator.device)
    sets = {part: experiment.dataset(part) for part in ("train", "validation", "test")}
    folder = open_folder()
    lock = locked_folder(folder) if accelerator.is_main_process else nullcontext()
    with lock, resumable(folder):
        return _performed(experiment, model, sets, folder, accelerator, console, began)


def _performed(
    experiment: Experiment,
    model: Promptable,
    sets: Mapping[str, SegmentationDataset],
    folder: Path,
    accelerator: Accelerator,
    console: Console,
    began: float,
) -> Run | None:
    subject, settings, trained = experiment.subject, experiment.settings, trained_numbers(model)
    if accelerator.is_main_process:
        remove_half_written(folder)
    log_to(folder, accelerator, f"{subject.title} on {experiment.data}", asdict(settings))
    _introduce(experiment, model, folder, console)

    evaluations: dict[str, Evaluation] = {}
    if experiment.zero_shot:
        evaluations["zero-shot"] = _zero_shot(experiment, model, folder, accelerator)

    file = folder / subject.file if trained else None
    trained_from, history = time.monotonic(), []
    if file is not None:
        history = _train(experiment, model, sets, folder, accelerator)
        subject.load(model, file)
        model.to(accelerator.device)
    seconds = time.monotonic() - trained_from

    test, main = sets["test"], experiment.prompts[0]
    drawings, hearts = Drawings(test), HeartsOfTest(test)
    of_prompts = _with_each_prompt(experiment, model, test, drawings, hearts)
    clicks = _clicks(experiment, model, test)
    extremes = predict_extremes(model, test, of_prompts[main], seed=settings.seed, points=main)
    images, of_hearts = drawings.of_all(), hearts.of_all()
    for tracker in accelerator.trackers:
        tracker.finish()
    if not accelerator.is_main_process:
        return None
    outcome = Outcome(
        experiment,
        model,
        test,
        of_prompts,
        evaluations,
        history,
        extremes,
        images,
        of_hearts,
        clicks,
    )
    metrics = outcome.metrics() | {
        "images": {part: len(each) for part, each in sets.items()},
        "trained_parameters": trained,
        "file_bytes": 0 if file is None else file.stat().st_size,
        # Of this process; a run that was resumed took longer in all.
        "seconds": {"training": seconds, "all": time.monotonic() - began},
        "peak_memory_bytes": peak_memory(),
        "machine": machine(),
    }
    outcome.write(folder, metrics)
    (folder / _STATE).unlink(missing_ok=True)
    outcome.tell(metrics, folder, console)
    return Run(folder, file, metrics, model)


_STATE = "training_state.safetensors"


def _train(
    experiment: Experiment,
    model: Promptable,
    sets: Mapping[str, SegmentationDataset],
    folder: Path,
    accelerator: Accelerator,
) -> list[Epoch]:
    """Train, or go on; the epochs."""
    embeddings = folder / "embeddings"
    history = train(
        model,
        sets["train"],
        sets["validation"],
        experiment.settings,
        accelerator=accelerator,
        on_improvement=lambda epoch: experiment.save(
            model, folder / experiment.subject.file, epoch
        ),
        state_file=folder / _STATE,
        # Augmented images are new in every epoch; keeping their embeddings would gain nothing.
        embeddings=embeddings if experiment.augmentation is None else None,
        workers=experiment.workers,
        on_first_batch=lambda batch, prompts: batch_figure(
            batch, sets["train"].structures, prompts, folder / "batch.png"
        ),
    )
    if accelerator.is_main_process:
        shutil.rmtree(embeddings, ignore_errors=True)
    return history


def _introduce(experiment: Experiment, model: Promptable, folder: Path, console: Console) -> None:
    collection, kind = experiment.collection, experiment.groups_are
    console.print(f"base  {experiment.subject.base}\ndata  {experiment.data}", soft_wrap=True)
    for part, members in asdict(experiment.split).items():
        images = len(collection.of_groups(members))
        console.print(f"      {part}: {len(members)} {kind}, {images} images")
    console.print(experiment.subject.describe(model))
    console.print(f"results go to {folder}", soft_wrap=True)


def _with_each_prompt(
    experiment: Experiment,
    model: Promptable,
    test: SegmentationDataset,
    drawings: Drawings,
    hearts: HeartsOfTest,
) -> dict[PromptStrategy, Evaluation]:
    found = {}
    for prompts in experiment.prompts:
        show: list[Callable[[Predictions], None]] = []
        if prompts == experiment.prompts[0]:
            show.append(drawings.draw)
        if HeartsOfTest.has_some(test):
            show.append(hearts.measuring(experiment.title_with(prompts)))
        evaluation = evaluate(
            model,
            test,
            seed=experiment.settings.seed,
            points=prompts,
            batch_size=experiment.settings.batch_size,
            progress=f"test, {PROMPTS_IN_WORDS[prompts]}",
            show=show,
        )
        found[prompts] = experiment.with_groups(evaluation)
    return found


def _clicks(
    experiment: Experiment, model: Promptable, test: SegmentationDataset
) -> ClicksNeeded | None:
    """Of a model that is tested with clicks where its mask is wrong."""
    if not {"3", "5"} & {*experiment.prompts}:
        return None
    settings = experiment.settings
    return clicks_needed(
        model,
        test,
        seed=settings.seed,
        batch_size=settings.batch_size,
        progress="test, clicks to 90 % IoU",
    )


def _zero_shot(
    experiment: Experiment, model: Promptable, folder: Path, accelerator: Accelerator
) -> Evaluation:
    """Of the base as it comes, with one click, at the input size that it was made for; distances
    are in pixels of the adapted model's input, so that they compare."""
    file = folder / "per_image_zero_shot.csv"
    if file.exists():
        return Evaluation.read_csv(file)
    by_name: tuple[PromptStrategy, ...] = ("class", "class+1")
    clicks: list[PromptStrategy] = [each for each in experiment.prompts if each not in by_name]
    with experiment.subject.untrained():
        base_size = model.image_size
        found = evaluate(
            model,
            experiment.dataset("test", base_size),
            seed=experiment.settings.seed,
            points=(*clicks, "1")[0],
            batch_size=1,
            progress=f"zero-shot, {base_size}x{base_size} pixels",
        ).in_pixels_of(experiment.image_size, base_size)
    found = experiment.with_groups(found)
    if accelerator.is_main_process:
        found.write_csv(file)
    return found
