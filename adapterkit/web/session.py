"""What one user of the page does: opens an image, clicks on it, and takes the masks away."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from jaxtyping import UInt8

from adapterkit.data.files.images import stem
from adapterkit.data.files.masks import write_masks
from adapterkit.data.image_file import ImageFile
from adapterkit.inference.prediction import Prediction
from adapterkit.inference.predictor import Predictor

MAX_STRUCTURES = 255
"""As many as a label map of bytes can hold beside the background."""


@dataclass(frozen=True)
class Click:
    """A prompt: the pixel (x, y) lies inside of a structure, counted from 0, or outside of it."""

    structure: int
    x: int
    y: int
    inside: bool


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model says to the clicks on a frame.

    Attributes:
        structures: those that were clicked on, and those that the adapter knows by name, in the
            order of the prediction's masks.
        prediction: one mask of each.
    """

    structures: tuple[int, ...]
    prediction: Prediction

    def label_map(self) -> UInt8[np.ndarray, "H W"]:
        """0 is background, k + 1 structure k; where masks overlap, the highest logit's."""
        labels = np.array([0, *(k + 1 for k in self.structures)], dtype=np.uint8)
        return labels[self.prediction.label_map()]


class Session:
    """One user's image, clicks and masks. The image is encoded once; a click costs the decoder.

    Args:
        predictor: the model and adapters, which many sessions share.
        lock: held while the model works; one for all sessions of a predictor.

    Attributes:
        adapter: the name of the one in use, at first the predictor's first; None: the base alone.
        image: what was opened, all its frames; None before.
        frame: which of them is shown.
        structure: which one a click is about, from 0.
        ending: of the name of the file that `save` writes; at first, of the image's own kind.
        answer: to the clicks on this frame; None without any, unless the adapter knows structures
            by name.
    """

    def __init__(self, predictor: Predictor, lock: Lock) -> None:
        self._predictor = predictor.sharing()
        self._lock = lock
        self.adapter = next(iter(predictor.names), None)
        self.image: ImageFile | None = None
        self.frame = 0
        self.structure = 0
        self.ending = ".nii.gz"
        self.answer: Answer | None = None
        self._count = 1
        self._named: tuple[str, ...] = ()
        self._clicks: dict[int, tuple[Click, ...]] = {}
        self._label_maps: dict[int, UInt8[np.ndarray, "H W"]] = {}
        self.use(self.adapter)

    @property
    def structures(self) -> tuple[str, ...]:
        """The names: the adapter's own, then numbers for those that the user added."""
        numbered = range(len(self._named), self._count)
        return *self._named, *(f"structure {k + 1}" for k in numbered)

    @property
    def clicks(self) -> tuple[Click, ...]:
        """On this frame, in their order."""
        return self._clicks.get(self.frame, ())

    # The image

    def open(self, image: ImageFile) -> None:
        """Show the first frame of an image, without clicks.

        Raises:
            DataError: the model cannot take it, as `Predictor.set_image` says; the image opened
                before stays.
        """
        with self._lock:
            self._set_frame(image, 0)
            self.image, self.structure, self._count = image, 0, max(1, len(self._named))
            self.ending = self.endings[0]
            self._clicks.clear()
            self._label_maps.clear()
            self._prompt(())

    def show(self, frame: int) -> None:
        """Show another frame, with its own clicks.

        Raises:
            ValueError: there is no image, or no such frame.
        """
        with self._lock:
            self._set_frame(self._opened(), frame)
            self._prompt(self.clicks)

    # Clicks

    def click(self, x: int, y: int, inside: bool = True) -> None:
        """Mark a pixel as inside of the structure, or as outside of it.

        Raises:
            ValueError: there is no image, or it has no such pixel.
        """
        with self._lock:
            self._opened()
            self._prompt((*self.clicks, Click(self.structure, x, y, inside)))

    def undo(self) -> None:
        """Take the last click on this frame back, if there is one."""
        with self._lock:
            self._prompt(self.clicks[:-1])

    def clear(self) -> None:
        """Take all clicks on this frame back."""
        with self._lock:
            self._prompt(())

    # Structures and adapters

    def add_structure(self) -> None:
        """Click on one more structure.

        Raises:
            ValueError: a label map cannot hold more.
        """
        if self._count == MAX_STRUCTURES:
            raise ValueError(f"there are {MAX_STRUCTURES} structures, and no mask can hold more")
        self.structure = self._count
        self._count += 1

    def choose(self, structure: int) -> None:
        """Click on this structure.

        Raises:
            ValueError: there is none of this number.
        """
        if not 0 <= structure < self._count:
            raise ValueError(f"structure is {structure}: expected 0 to {self._count - 1}")
        self.structure = structure

    def use(self, adapter: str | None) -> None:
        """Segment with another adapter, or with None the base alone, from the same clicks.

        Raises:
            ValueError: no adapter has this name.
        """
        with self._lock:
            self._predictor.use(adapter)
            self.adapter, self._named = adapter, self._predictor.structures
            self._count = max(self._count, len(self._named))
            self._label_maps.clear()
            self._prompt(self.clicks)

    # Masks

    def label_maps(self) -> UInt8[np.ndarray, "T H W"]:
        """Of all frames: 0 is background, k + 1 structure k; background where no click is, unless
        the adapter knows structures by name.

        Raises:
            ValueError: there is no image, or nothing that could be segmented in it.
        """
        with self._lock:
            image, shown = self._opened(), self.frame
            self._predictor.use(self.adapter)
            by_name = self._predictor.promptable.structures
            if not self._clicks and not by_name:
                raise ValueError("there is no mask yet: click on a structure first")
            asked = set(range(len(image.frames))) if by_name else set(self._clicks)
            # Those not shown yet, or answered by another adapter.
            for frame in sorted(asked - self._label_maps.keys()):
                self._set_frame(image, frame)
                self._prompt(self.clicks)
            if self.frame != shown:
                self._set_frame(image, shown)
                self._prompt(self.clicks)
            found = np.zeros(image.frames.shape[:3], dtype=np.uint8)
            for frame, labels in self._label_maps.items():
                found[frame] = labels
            return found

    @property
    def endings(self) -> tuple[str, ...]:
        """Those of the kinds of file that can hold the masks, the image's own first."""
        image = self.image
        found = [".nii.gz"]
        if image is not None and len(image.frames) == 1:
            found.insert(image.nifti is not None, ".png")
        if image is not None and image.dicom is not None:
            found.insert(0, ".dcm")
        return tuple(found)

    def save_as(self, ending: str) -> None:
        """Choose the kind of file that `save` writes.

        Raises:
            ValueError: it cannot hold the masks.
        """
        if ending not in self.endings:
            raise ValueError(f"ending is {ending!r}: expected {', '.join(self.endings)}")
        self.ending = ending

    def save(self, folder: Path) -> Path:
        """Write the label maps, as `write_masks` does.

        Args:
            folder: exists.

        Returns:
            The file, named after the image.

        Raises:
            ValueError: there is no click, or a DICOM image lacks what a DICOM-SEG must state.
            OSError: it cannot be written.
        """
        labels, image = self.label_maps(), self._opened()
        path = folder / f"{stem(image.path.name)}_mask{self.ending}"
        write_masks(path, labels, image, self.structures)
        return path

    def _opened(self) -> ImageFile:
        if self.image is None:
            raise ValueError("there is no image yet: open one first")
        return self.image

    def _set_frame(self, image: ImageFile, frame: int) -> None:
        self._predictor.use(self.adapter)
        self._predictor.set_image(image, frame)
        self.frame = frame

    def _prompt(self, clicks: Sequence[Click]) -> None:
        """Take these for the clicks on this frame, if the model can answer them."""
        self._predictor.use(self.adapter)
        by_name = len(self._predictor.promptable.structures)
        structures = tuple(sorted({*range(by_name), *(click.structure for click in clicks)}))
        if self.image is None or not structures:
            self._clicks.pop(self.frame, None)
            self._label_maps.pop(self.frame, None)
            self.answer = None
            return
        of_each = [[click for click in clicks if click.structure == k] for k in structures]
        prediction = self._predictor.predict(
            points=[[(click.x, click.y) for click in each] or None for each in of_each],
            labels=[[int(click.inside) for click in each] or None for each in of_each],
            classes=[k if k < by_name else None for k in structures] if by_name else None,
        )
        self.answer = Answer(structures, prediction)
        self._clicks.pop(self.frame, None)
        if clicks:
            self._clicks[self.frame] = tuple(clicks)
        self._label_maps[self.frame] = self.answer.label_map()
