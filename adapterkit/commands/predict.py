"""The command `adapterkit predict`."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.progress import Progress
from tyro.conf import Positional, UseAppendAction, arg

import adapterkit as ak
from adapterkit.system.command_line import console

if TYPE_CHECKING:
    from adapterkit.inference.archive import Outcome
    from adapterkit.inference.prompt_files import ImagePrompts
    from adapterkit.inference.tasks import Task

_ENDINGS = {"nifti": ".nii.gz", "png": ".png", "dicom-seg": ".dcm"}
_errors = Console(stderr=True)
_SILENCE = 30.0
"""Seconds after which something is said where no bar can be drawn."""
_PLAIN: dict[str, Any] = {"soft_wrap": True, "markup": False, "highlight": False}


def predict(
    paths: Positional[tuple[Path, ...]],
    out: Path,
    adapter: Path | None = None,
    checkpoint: Path | None = None,
    point: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="X,Y[,0] ...")] = (),
    box: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="X0,Y0,X1,Y1")] = (),
    prompts: Path | None = None,
    frame: int | None = None,
    min_score: float = 0.88,
    min_stability: float = 0.95,
    format: Literal["nifti", "png", "dicom-seg"] = "nifti",
    ray: Annotated[tuple[str, ...] | None, arg(metavar="[ADDRESS]")] = None,
    workers: int | None = None,
) -> None:
    """Segment images: files, and folders with their subfolders.

    Without prompts, the structures that the adapter knows by name; or a grid of points finds what
    there is. Given again, it goes on where it was.

    Example: adapterkit predict scans --adapter echo.safetensors --checkpoint \
sam_vit_b_01ec64.pth --point 120,80 --out masks

    Args:
        paths: NIfTI, MetaImage, DICOM, pictures; DICOM series are volumes.
        out: the folder for the masks; subfolders are kept.
        adapter: an adapter file; without, the base alone.
        checkpoint: of the base: a file, folder or Hub name; without, the small model.
        point: the points of a structure in pixels, with 0 outside of it; again for the next one.
        box: of the structure of the k-th --point.
        prompts: a CSV or JSON file of each image's prompts; see docs/segmenting.md.
        frame: the prompted one of a sequence, from 0.
        min_score: of a grid, the least predicted IoU.
        min_stability: of a grid, a mask's least stability.
        format: of the masks.
        ray: run on a Ray cluster, by default here.
        workers: of Ray; without, one per GPU or CPU.
    """
    from adapterkit.inference import archive, prompt_files, tasks

    _check_options(paths, point, box, prompts, frame, ray, workers)
    automatic = {"min_score": min_score, "min_stability": min_stability}
    model = archive.Model(checkpoint, adapter, automatic)
    made_of = _made_of(point, box, prompts, frame)
    settings = {**model.settings(), "format": format, "prompts": made_of}
    structures = ak.inspect_adapter(adapter).classes if adapter else ()
    by_image = None if prompts is None else prompt_files.read_prompts(prompts, structures)
    for_all = prompt_files.parse_prompts(point, box) or None

    def prompts_of(name: str) -> "ImagePrompts | None":
        return for_all if by_image is None else by_image.get(name, {})

    found = tasks.find_tasks(paths, out, _ENDINGS[format], prompts_of, frame)
    for note in found.notes:
        _errors.print(note, **_PLAIN)
    unknown = sorted({*(by_image or ())} - {task.name for task in found.tasks})
    if unknown:
        raise ValueError(f"{prompts} has prompts for {unknown[0]}, which is no image of these")
    to_do = [task for task in found.tasks if not task.done]
    # What does not fit is told before anything is written.
    predictor = model.predictor() if to_do else None
    by_name = predictor is not None and bool(predictor.promptable.structures)
    if ray is not None:
        predictor = None  # The workers have their own.
    with archive.masks_folder(out, settings):
        to_do = [task for task in to_do if not task.done]  # By a run that had the folder before.
        results: Iterator[tuple[Task, Outcome]] = iter(())
        progress = _Progress(len(to_do))
        if to_do and predictor is not None:
            results = archive.segment_files(to_do, predictor, model.automatic, progress.told)
        elif to_do and ray is not None:
            results = archive.segment_files_on_ray(to_do, model, *ray, workers=workers)
        outcomes = _shown(results, progress, alone=len(found.tasks) == 1)
    by_grid = not (for_all or by_image or by_name)
    hint = "" if not by_grid else "; lower --min-score and --min-stability find more"
    _report(outcomes, len(found.tasks), out, hint)


class _Progress:
    """Bars of images and of the frames of this one; lines now and then where there is no screen."""

    def __init__(self, images: int) -> None:
        self.bars = Progress(console=_errors, transient=True, disable=not _errors.is_terminal)
        self.images = self.bars.add_task("images", total=images)
        self.frames = self.bars.add_task("", visible=False)
        self.last = monotonic()

    def told(self, task: "Task", frame: int, frames: int) -> None:
        """As `archive.Told`."""
        name = task.name
        self.bars.update(
            self.frames,
            description=name if frames else f"reading {name}",
            completed=frame,
            total=frames or None,
            visible=frames != 1,
        )
        if not _errors.is_terminal and monotonic() - self.last > _SILENCE:
            self.last = monotonic()
            place = f"frame {frame + 1} of {frames} of {name}" if frames else f"reading {name}"
            _errors.print(place, **_PLAIN)


def _shown(
    results: "Iterator[tuple[Task, Outcome]]", progress: _Progress, alone: bool
) -> "list[Outcome]":
    """All outcomes; warnings, and the reason of each that failed, are printed as they happen."""
    outcomes = []

    def warning(message: Warning | str, *_: Any, **__: Any) -> None:
        _errors.print(f"warning: {message}", **_PLAIN)

    with progress.bars, warnings.catch_warnings():
        warnings.showwarning = warning
        for _, outcome in results:
            outcomes.append(outcome)
            progress.bars.advance(progress.images)
            if outcome.failure is not None and not alone:
                _errors.print(f"failed: {outcome.failure}", **_PLAIN)
    return outcomes


def _report(outcomes: "Sequence[Outcome]", images: int, out: Path, hint: str) -> None:
    """Says what became of the images; raises ValueError where some failed."""
    failed = [each.failure for each in outcomes if each.failure is not None]
    empty = sum(each.failure is None and not each.found for each in outcomes)
    before = images - len(outcomes)
    there = f", {before} of them from before" if before else ""
    done = images - len(failed)
    if done:
        count = "1 image" if done == 1 else f"{done} images"
        console.print(f"the masks of {count} are in {out}{there}", soft_wrap=True)
    if empty:
        console.print(f"nothing was found in {empty} of them{hint}", soft_wrap=True)
    if images == 1 and failed:
        raise ValueError(failed[0])
    if failed:
        raise ValueError(f"{len(failed)} of {images} images failed, for the reasons above")


def _check_options(
    paths: Sequence[Path],
    point: Sequence[Sequence[str]],
    box: Sequence[str],
    prompts: Path | None,
    frame: int | None,
    ray: Sequence[str] | None,
    workers: int | None,
) -> None:
    if not paths:
        raise ValueError("there is nothing to segment: give files or folders of images")
    if prompts is not None and (point or box):
        raise ValueError("--prompts are for each image, --point and --box for all: give one kind")
    if frame is not None and (frame < 0 or not (point or box or prompts)):
        raise ValueError(f"--frame {frame}: expected 0 or more, with prompts that are in it")
    if ray is not None and len(ray) > 1:
        raise ValueError(f"--ray {' '.join(ray)}: expected one address, or none")
    if workers is not None and (workers < 1 or ray is None):
        raise ValueError(f"--workers {workers}: expected 1 or more, together with --ray")


def _made_of(
    point: Sequence[Sequence[str]], box: Sequence[str], prompts: Path | None, frame: int | None
) -> str:
    """What tells the prompts from others."""
    within = "" if frame is None else f" --frame {frame}"
    if prompts is not None:
        from adapterkit.inference.archive import digest

        return digest(prompts) + within
    options = [f"--point {' '.join(each)}" for each in point] + [f"--box {each}" for each in box]
    return " ".join(options) + within or "automatic"
