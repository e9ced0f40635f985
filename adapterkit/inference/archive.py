"""Segmenting many image files into a folder of masks, here or on a Ray cluster.

A mask is written whole or not at all, so an interrupted run goes on where it was: masks that are
there, and no older than their images, are left as they are.
"""

import json
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from adapterkit.data.files.images import read_image
from adapterkit.data.files.masks import check_holds, write_masks
from adapterkit.data.files.series import read_series
from adapterkit.data.image_file import ImageFile
from adapterkit.inference.predictor import Predictor
from adapterkit.inference.prompt_files import predict_arguments
from adapterkit.inference.tasks import Task
from adapterkit.promptable.loading import absolute, is_on_the_hub
from adapterkit.promptable.stock_sam import mini_sam
from adapterkit.system.cluster import ray_cluster
from adapterkit.system.files import atomic_write
from adapterkit.system.lock import LOCK, locked_folder

SETTINGS = "adapterkit-predict.json"
"""The file in a folder of masks that says how they were made."""


@dataclass(frozen=True)
class Model:
    """What segments.

    Attributes:
        checkpoint: as `load` takes it; None: `mini_sam`.
        adapter: a file for it; None: the base as it is.
        automatic: what `Predictor.predict_automatic` is given where there are no prompts.
    """

    checkpoint: Path | None
    adapter: Path | None
    automatic: Mapping[str, Any]

    def predictor(self) -> Predictor:
        """Raises as `Predictor.from_files`."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        adapters = [] if self.adapter is None else [self.adapter]
        if self.checkpoint is None:
            return Predictor(mini_sam().to(device), *adapters)
        return Predictor.from_files(self.checkpoint, *adapters, device=device)

    def settings(self) -> dict[str, Any]:
        """What tells this model from another: of files their names and digests."""
        return {
            "checkpoint": _digest_of_base(self.checkpoint) if self.checkpoint else "mini_sam",
            "adapter": digest(self.adapter) if self.adapter else None,
            **self.automatic,
        }


def digest(path: Path) -> str:
    """A file's name and checksum. Raises FileNotFoundError where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}")
    with path.open("rb") as file:
        return f"{path.name} (sha256 {file_digest(file, 'sha256').hexdigest()[:16]})"


def _digest_of_base(checkpoint: Path) -> str:
    """Of a file, or of the files in a folder; what is on the Hub is known by its name."""
    if checkpoint.is_dir():
        files = sorted([*checkpoint.glob("*.json"), *checkpoint.glob("*.safetensors")])
        return f"{checkpoint.name}: {', '.join(map(digest, files))}"
    return checkpoint.as_posix() if is_on_the_hub(checkpoint) else digest(checkpoint)


@contextmanager
def masks_folder(out: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """A folder for masks, new or with masks that were made in the same way, for this run alone.

    One in which there is no mask yet, since a run failed at once, is as good as new.

    Raises:
        FileExistsError: it is no folder, or holds something else.
        FolderLockedError: another run writes there.
        ValueError: its masks were made in another way.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(
            f"--out {out} exists, and is not the folder of a run but a file; name a new folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    with locked_folder(out):
        _agree_on_settings(out, settings)
        yield


def _agree_on_settings(out: Path, settings: Mapping[str, Any]) -> None:
    path = out / SETTINGS
    if {each.name for each in out.iterdir()} <= {SETTINGS, LOCK}:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")
        return
    if not path.is_file():
        raise FileExistsError(
            f"--out {out} exists, and is not the folder of a run that could go on (there is "
            f"no {SETTINGS} in it); name a new or empty folder"
        )
    try:
        before = dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); name another --out") from error
    now = json.loads(json.dumps(settings))
    for key in {**now, **before}:
        if before.get(key) != now.get(key):
            raise ValueError(
                f"--out {out} holds masks that were made with another {key}: "
                f"{before.get(key)}, and now {now.get(key)}; name another --out, or remove this one"
            )


# Doing it


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        failure: the reason, in one line; None: the masks are written.
        found: there is a mask in them, in some frame.
    """

    failure: str | None
    found: bool


Told = Callable[[Task, int, int], None]
"""Is told which frame of how many of a task comes now; of 0 while it is read."""


def _to_nobody(task: Task, frame: int, frames: int) -> None:
    pass


def segment_file(
    predictor: Predictor, task: Task, automatic: Mapping[str, Any], told: Told = _to_nobody
) -> bool:
    """Write the masks of a task; of a stack or sequence those of each frame, as
    `Predictor.predict_sequence` gives them.

    Returns:
        Whether there is a mask in them, in some frame.

    Raises:
        ValueError, OSError: the image cannot be read or the masks not be written, or a prompt does
            not fit; nothing is written.
    """
    if task.prompts is not None and not task.prompts:
        raise ValueError(f"there is no prompt for {task.name}: add some, or leave the image out")
    told(task, 0, 0)
    image = read_series(task.slices, task.image) if task.slices else read_image(task.image)
    # Before the work is done, which takes minutes for a long sequence.
    check_holds(task.masks, image)
    maps = np.zeros(image.frames.shape[:3], dtype=np.uint8)
    told(task, 0, len(maps))
    for done, (frame, labels) in enumerate(_label_maps(predictor, task, image, automatic), start=1):
        maps[frame] = labels
        if done < len(maps):
            told(task, done, len(maps))
    # An adapter may have been asked for more structures than it has names for: two nodules, say.
    asked = max(task.prompts or (0,))
    named = (asked or predictor.promptable.structures) and asked <= len(predictor.structures)
    task.masks.parent.mkdir(parents=True, exist_ok=True)
    write_masks(task.masks, maps, image, predictor.structures if named else ())
    return bool(maps.any())


def _label_maps(
    predictor: Predictor, task: Task, image: ImageFile, automatic: Mapping[str, Any]
) -> Iterator[tuple[int, UInt8[np.ndarray, "H W"]]]:
    """Each frame of an image, in some order, and its label map."""
    by_name = len(predictor.promptable.structures)
    if task.prompts is None and not by_name:
        for frame in predictor.each_frame(image):
            # No more than a label map has room for.
            yield frame, predictor.predict_automatic(count=255, **automatic).label_map()
        return
    prompts = {} if task.prompts is None else predict_arguments(task.prompts, by_name)
    asked = range(1, by_name + 1) if task.prompts is None else sorted(task.prompts)
    labels = np.array([0, *asked], dtype=np.uint8)
    for frame, found in predictor.predict_sequence(image, task.frame, **prompts):
        yield frame, labels[found.label_map()]


class Worker:
    """A model that does one task after another, and says what became of each."""

    def __init__(
        self, predictor: Predictor, automatic: Mapping[str, Any], told: Told = _to_nobody
    ) -> None:
        self.predictor = predictor
        self.automatic = automatic
        self.told = told

    def __call__(self, task: Task) -> Outcome:
        try:
            return Outcome(None, segment_file(self.predictor, task, self.automatic, self.told))
        except (ValueError, OSError) as error:
            failure = str(error)
        except Exception as error:  # One file shall not stop an archive, whatever is wrong with it.
            failure = f"{task.image}: {type(error).__name__}: {error}"
        return Outcome(" ".join(failure.split()), found=False)


def segment_files(
    tasks: Iterable[Task],
    predictor: Predictor,
    automatic: Mapping[str, Any],
    told: Told = _to_nobody,
) -> Iterator[tuple[Task, Outcome]]:
    """Do the tasks one by one; each is given back when it is done, with what became of it."""
    worker = Worker(predictor, automatic, told)
    for task in tasks:
        yield task, worker(task)


def segment_files_on_ray(
    tasks: Sequence[Task], model: Model, address: str | None = None, workers: int | None = None
) -> Iterator[tuple[Task, Outcome]]:
    """As `segment_files`, but on a Ray cluster through Ray Data, in any order.

    The paths of images, masks and model are those that the workers see: on several machines, of a
    file system that they share. Needs `adapterkit[cluster]`.

    Args:
        address: of the cluster; None: one within this machine, for as long as this takes.
        workers: each with a model. None: one for each GPU, or without any, for each CPU.

    Raises:
        MissingExtraError: Ray is not installed.
        OSError: the cluster cannot be reached, or a worker died.
    """
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    with ray_cluster(address, **quiet):
        import ray.data
        from ray.exceptions import RayError

        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            there = ray.cluster_resources()
            gpus = int(there.get("GPU", 0))
            workers = min(workers or gpus or int(there["CPU"]), len(tasks))
            # Workers have other working folders.
            model = replace(
                model,
                checkpoint=absolute(model.checkpoint),
                adapter=model.adapter and model.adapter.resolve(),
            )
            resolved = (
                replace(
                    task,
                    image=task.image.resolve(),
                    masks=task.masks.resolve(),
                    slices=tuple(file.resolve() for file in task.slices),
                )
                for task in tasks
            )
            rows = [{"index": k, "task": pickle.dumps(task)} for k, task in enumerate(resolved)]
            # Blocks are handed to workers one by one: few of them would leave some without work.
            blocks = min(len(rows), 32 * workers)
            results = ray.data.from_items(rows, override_num_blocks=blocks).map(
                _RayWorker,  # pyright: ignore[reportArgumentType]
                fn_constructor_args=[model],
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=0 if gpus else 1,
                num_gpus=1 if gpus else 0,
            )
            for row in results.iter_rows():
                yield tasks[row["index"]], Outcome(row["failure"] or None, row["found"])
        except RayError as error:
            last = str(error).strip().splitlines()[-1:]
            raise OSError(f"a worker of the Ray cluster failed: {' '.join(last)}") from error


class _RayWorker:
    def __init__(self, model: Model) -> None:
        # Ray gives each worker its CPUs; several that use all of them would slow each other down.
        torch.set_num_threads(1)
        self.worker = Worker(model.predictor(), model.automatic)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        outcome = self.worker(pickle.loads(row["task"]))
        return {"index": row["index"], "failure": outcome.failure or "", "found": outcome.found}
