"""The masks of structures that an adapter knows by name, found once and kept on disk.

A file for each frame, in a folder for each adapter, named by its digest; of an image whose file has
been replaced since, they are found again.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from adapterkit.system.files import atomic_write
from adapterkit.web.model import Ask, Found, Model
from adapterkit.web.worklist import WorkList


class Predictions:
    """Masks by class prompts of a work list.

    Args:
        worklist: whose images.
        model: shared.
    """

    def __init__(self, worklist: WorkList, model: Model) -> None:
        self._worklist = worklist
        self._model = model
        # By adapter, image and frame.
        self._doubts: dict[str, dict[str, dict[int, float]]] = {}

    def get(self, name: str, frame: int, adapter: str | None, urgent: bool) -> dict[str, Found]:
        """Of a frame, by the structures' names as the adapter has them; found if need be.

        Args:
            name: of an image.
            frame: of it.
            adapter: with which; None: the base alone.
            urgent: whether a user waits for it.

        Raises:
            ValueError: the image cannot be read, or the model cannot take it.
        """
        classes = self._model.classes(adapter)
        if not classes:
            return {}
        stamp, file = self._worklist.stamp(name), self._file(name, frame, adapter)
        found = None if file is None else _read(file, stamp)
        if found is None:
            answers = self._model.ask(
                self.key(name, frame),
                lambda: (self._worklist.read(name), frame),
                adapter,
                [Ask(each) for each in classes],
                urgent,
            )
            found = dict(zip(classes, answers, strict=True))
            if file is not None:
                _write(file, stamp, found)
        doubts = self._doubts.setdefault(self._model.digest(adapter), {})
        doubts.setdefault(name, {})[frame] = doubt(found)
        return found

    def key(self, name: str, frame: int) -> tuple[str, str, str, int]:
        """What the model knows a frame by."""
        return str(self._worklist.folder), name, self._worklist.stamp(name), frame

    def has(self, name: str, frame: int, adapter: str | None) -> bool:
        """Whether a frame's masks have been found since the server started."""
        return frame in self._doubts.get(self._model.digest(adapter), {}).get(name, {})

    def uncertainty(self, name: str, adapter: str | None) -> float | None:
        """How doubtful the masks of an image are, from 0, certain, to 1.

        The mean over its frames that were looked at; None before, and where the adapter knows no
        names.
        """
        of_image = [*self._doubts.get(self._model.digest(adapter), {}).get(name, {}).values()]
        return sum(of_image) / len(of_image) if of_image else None

    def _file(self, name: str, frame: int, adapter: str | None) -> Path | None:
        digest = self._model.digest(adapter)
        if not digest:
            return None
        return self._worklist.own / "predictions" / digest / name / f"{frame:04d}.json"


def doubt(found: Mapping[str, Found]) -> float:
    """From 0 to 1: the mean over structures of what is missing to a predicted IoU of 1, and of the
    entropy in bits for each pixel of the mask, half each."""
    if not found:
        return 0.0
    each = [(1 - one.iou + min(1.0, one.entropy)) / 2 for one in found.values()]
    return sum(each) / len(each)


class Worker(threading.Thread):
    """Finds the masks of all images that are not accepted, at low priority, first frames first.

    Args:
        predictions: where they are kept.
        wanted: gives the frames that are wanted now, as (image, frame, adapter), in order.
    """

    def __init__(self, predictions: Predictions, wanted) -> None:
        super().__init__(name="masks in the background", daemon=True)
        self._predictions = predictions
        self._wanted = wanted
        self._awake = threading.Event()
        self._ended = threading.Event()
        self._refused: set[tuple[str, int, str | None]] = set()

    def wake(self) -> None:
        """There may be something new to do."""
        self._awake.set()

    def end(self) -> None:
        """Stop after the present frame."""
        self._ended.set()
        self._awake.set()
        self.join()

    def run(self) -> None:
        while not self._ended.is_set():
            self._awake.clear()
            wanted = (each for each in self._wanted() if each not in self._refused)
            now = next(wanted, None)
            if now is None:
                self._awake.wait(5)
                continue
            try:
                self._predictions.get(*now, urgent=False)
            except (ValueError, OSError, KeyError):  # Opening it says why.
                self._refused.add(now)


def _read(file: Path, stamp: str) -> dict[str, Found] | None:
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        if stated["stamp"] != stamp:
            return None
        return {name: Found(**each) for name, each in stated["found"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, stamp: str, found: Mapping[str, Found]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"stamp": stamp, "found": {name: asdict(each) for name, each in found.items()}}
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
