"""Images in, masks out: segmenting with a base and adapter files.

Prompts are in pixels (x, y) = (column, row) of the image as it is, and so are the masks. Reading
files needs `adapterkit[files]`, and DICOM `adapterkit[dicom]`.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.adapters.file import inspect_adapter, load_adapter
from adapterkit.adapters.injection import activate, adapters_of
from adapterkit.attach.attachment import Adapter
from adapterkit.data.dataset import warn_of_few_levels
from adapterkit.data.image_file import ImageFile
from adapterkit.inference.automatic import good_masks, grid_of_points, without_overlaps
from adapterkit.inference.fitting import Fit, at_side, fit_of
from adapterkit.inference.given_images import chosen_frame, image_file
from adapterkit.inference.prediction import Prediction
from adapterkit.inference.prompt_arrays import kind_of, read_prompts, together
from adapterkit.inference.sequences import Embedded, carried, embeddings
from adapterkit.kernels.fast_forward import fast_if_known
from adapterkit.promptable.loading import load
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import ABSENT, Embedding, Masks
from adapterkit.promptable.segmenter import as_promptable


class Predictor:
    """Segments images with a promptable model and any of its adapters.

        predictor = Predictor.from_files("sam_vit_b_01ec64.pth", "echo.safetensors")
        predictor.set_image("patient.dcm")
        found = predictor.predict(points=[[(120, 80)]], labels=[[1]])

    With an adapter, images are brought to the model's input as training brings them, so the result
    on an image of a data set is that of its evaluation; a base alone gives what its own predictor
    gives, for a `Sam` `SamPredictor`. An image is encoded once for each adapter that is used on
    it: a further prompt costs the decoder alone.

    It is about one image, and so for one thread, at a time. A server gives each of its users one
    that is `sharing` the model, and uses them behind one lock.

    Args:
        base: a `Sam`, or any `Promptable`, with or without adapters on it; put in evaluation mode,
            made `fast`, and used where it is.
        adapter: a file to `load`; None: the base as it is.

    Raises:
        TypeError: the base cannot be prompted.
        ValueError: as `load`.

    Attributes:
        promptable: the base, as a promptable model.
        image: what was set, all its frames; None before.
        frame: which of them was set.
    """

    def __init__(self, base: nn.Module, adapter: str | Path | None = None) -> None:
        self.promptable = as_promptable(base).eval()
        fast_if_known(self.promptable.model)
        self.image: ImageFile | None = None
        self.frame = 0
        self._structures: dict[str, tuple[str, ...]] = {}
        # By the adapters themselves, since another may come to have the name of one.
        self._embeddings: dict[tuple[Adapter, ...], Embedding] = {}
        if adapter is not None:
            self.load(adapter)

    @classmethod
    def from_files(
        cls, checkpoint: str | Path, *adapter_files: str | Path, device: str = "cpu"
    ) -> "Predictor":
        """A predictor on a checkpoint; the first adapter is in use, if there is one.

        Args:
            checkpoint: as `load` takes it. On the small model: `Predictor(mini_sam())`, `load`.
            *adapter_files: each is an adapter under its file's name without ending.
            device: where the model computes, as PyTorch calls it.

        Raises:
            OSError: a file is missing, or the Hub cannot be reached.
            ValueError: the checkpoint is of no Segment Anything model, or as the method `load`.
        """
        predictor = cls(load(checkpoint).to(device))
        names = [predictor.load(file) for file in adapter_files]
        if names:
            predictor.use(names[0])
        return predictor

    def sharing(self) -> "Predictor":
        """A predictor for another image, with the same model and adapters; those in use are its."""
        predictor = Predictor(self.promptable)
        predictor._structures = self._structures
        return predictor

    # Adapters

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters on the base, which `use` takes."""
        found = adapters_of(self.promptable.model)
        return found.names if found else ()

    @property
    def in_use(self) -> str | None:
        """The name of the adapter in use; None for the base alone. Several, as `activate` stacks
        them, are joined by " + "."""
        found = adapters_of(self.promptable.model)
        return " + ".join(found.active) or None if found else None

    @property
    def structures(self) -> tuple[str, ...]:
        """What the adapter in use segments, in the order of its training; () where unknown."""
        return self._structures.get(self.in_use or "", ()) or self.promptable.structures

    def load(self, path: str | Path, name: str | None = None) -> str:
        """Load an adapter file and use it. The image stays set.

        Args:
            path: what `save_adapter` wrote.
            name: what to call it. None: the file's name without its ending, with _ for characters
                that a Python name cannot have.

        Returns:
            The name.

        Raises:
            FileNotFoundError: there is no such file.
            AdapterFileError: it is damaged, or of another base; the model is as before.
            ValueError: the name is taken, or a part does not fit the base; the model is as before.
        """
        name = name or re.sub(r"\W|^(?=\d)", "_", Path(path).stem)
        header = inspect_adapter(path)
        load_adapter(self.promptable.model, path, name)
        self._structures[name] = header.classes
        return name

    def use(self, name: str | None) -> None:
        """Switch to an adapter by its name, or with None to the base alone. The image stays set.

        Raises:
            ValueError: no adapter has this name.
        """
        if name is not None and name not in self.names:
            there = ", ".join(self.names) or "none"
            raise ValueError(f"no adapter is named {name!r}; loaded are: {there}")
        if self.names:
            activate(self.promptable.model, *([] if name is None else [name]))

    # Images

    def set_image(
        self,
        image: str | Path | ImageFile | np.ndarray,
        frame: int | None = None,
        embedding: Embedding | None = None,
    ) -> None:
        """Encode an image, which `predict` is then about.

        Args:
            image: a file that `read_image` reads, what that gave, or an array, grey (H, W) or
                colour (H, W, 3); its values become grey values as `SegmentationDataset` says.
            frame: of a sequence or stack, from 0; None: the only one.
            embedding: of it, by the adapter in use; None: it is computed.

        Raises:
            DataError: as `read_image`, or it is a DICOM segmentation, or has another shape, fewer
                than 8 x 8 pixels, or values that are not finite; the image set before stays.
            ValueError: there is no such frame, or there are several and none is chosen.
        """
        image = image_file(image, frames=False)
        chosen = chosen_frame(image, frame)
        warn_of_few_levels(image.frames[chosen], image.path)
        self.image, self.frame = image, chosen
        self._embeddings.clear()
        if embedding is not None:
            self._embeddings[self._active] = embedding
        self.embedding()

    def embedding(self) -> Embedding:
        """Of the image that was set, by the adapter in use; computed if it has not been. That of a
        frame depends on those around it where the adapter has temporal parts.

        Raises:
            ValueError: no image was set.
        """
        if self.image is None:
            raise ValueError("there is no image to segment: give set_image one first")
        if self._active not in self._embeddings:
            _, self._embeddings[self._active] = next(self._embedded(self.image, [self.frame]))
        return self._embeddings[self._active]

    # Masks

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
        classes: Any = None,
        multimask: bool = False,
    ) -> Prediction:
        """Segment K prompted structures of the image that was set.

        Without any prompt, and where the adapter in use knows structures by their names
        (`Promptable.structures`), these: each has a mask, empty where it is judged absent.

        An argument has an entry for each structure: an array, nested lists, or None where this
        structure has no such prompt. Structures can differ in their numbers of points and kinds of
        prompts, and do not influence each other.

        Args:
            points: (n, 2) each, (x, y) in pixels; (0, 0) is the centre of the upper left pixel.
            labels: (n,) each: 1 for a point inside of the structure, 0 for one outside.
            boxes: (4,) each, (x0, y0, x1, y1) in pixels, from edge to edge: (0, 0, W, H) is all of
                the image.
            masks: (H, W) each, bool, roughly the structure; or (h, w), the `low_res_logits` of a
                prediction with the same adapter.
            classes: the name of each, one of `Promptable.structures`, or its position there.
            multimask: give three masks of each structure, for prompts that are ambiguous. A trained
                mask decoder has usually been trained for the single one alone.

        Raises:
            ValueError: no image was set, a structure has no prompt, points lack labels, an argument
                has another shape than stated, a point or a box lies outside of the image, or there
                is no class of that name.
        """
        embedding = self.embedding()
        named = self.promptable.structures
        given = {"points": points, "labels": labels, "boxes": boxes, "masks": masks}
        given["classes"] = classes
        if named and all(each is None for each in given.values()):
            given["classes"] = named
        prompts = read_prompts(given, self._fit, self.mask_size, named)
        logits: list[Tensor] = [torch.empty(0)] * len(prompts)
        squares, scores, presence = list(logits), list(logits), list(logits)
        # Prompts of one kind are decoded together. To pad the others would change their masks.
        for kind in dict.fromkeys(map(kind_of, prompts)):
            alike = [k for k, prompt in enumerate(prompts) if kind_of(prompt) == kind]
            found = self._decode(embedding, together([prompts[k] for k in alike]))
            if multimask and found.all_iou.shape[2] == 1:
                raise ValueError("multimask: this model gives one mask of each structure alone")
            of_answers = found.logits()[0]
            for i, k in enumerate(alike):
                logits[k], scores[k] = found.all_logits[0, i], found.all_iou[0, i]
                squares[k] = of_answers[i]
                certain = scores[k].new_tensor(torch.inf)
                presence[k] = certain if found.presence is None else found.presence[0, i]
        chosen = slice(1, None) if multimask else 0
        return self._prediction(
            torch.stack(logits)[:, chosen],
            torch.stack(scores)[:, chosen],
            torch.stack(presence) if named else None,
            None if multimask else torch.stack(squares),
        )

    def predict_sequence(
        self, image: str | Path | ImageFile | np.ndarray, frame: int | None = None, **prompts: Any
    ) -> Iterator[tuple[int, Prediction]]:
        """Segment each frame of a sequence or stack, which temporal parts see with those around it.

        Frames are encoded in windows that overlap, so that memory does not grow with the sequence.

        Args:
            image: as in `set_image`; an array has the axes (T, H, W) or (T, H, W, 3).
            frame: the one that the prompts are in. Its masks, with the classes, prompt the next
                frame, and so on to the last and back to the first. None: they are in every frame.
            prompts: the arguments of `predict`.

        Yields:
            A frame, which is then set, and its prediction; from `frame` on, and then back from it.

        Raises:
            ValueError: there is no such frame, it has no prompt, or as `predict`.
        """
        image = image_file(image, frames=True)
        count, first = len(image.frames), 0 if frame is None else chosen_frame(image, frame)
        if frame is not None and all(each is None for each in prompts.values()):
            raise ValueError(f"frame={frame} has no prompt: give points, boxes or masks")
        given = back = prompts
        for order in (range(first, count), range(first - 1, -1, -1)):
            for number in self.each_frame(image, order):
                found = self.predict(**given)
                given = given if frame is None else carried(found, prompts, self.mask_size)
                back = given if number == first else back
                yield number, found
            given = back

    def each_frame(
        self, image: str | Path | ImageFile | np.ndarray, order: Sequence[int] | None = None
    ) -> Iterator[int]:
        """Set each frame of an image, as `predict_sequence` does, in order, and yield it."""
        image = image_file(image, frames=True)
        order = range(len(image.frames)) if order is None else order
        for number, embedding in self._embedded(image, order):
            self.set_image(image, number, embedding)
            yield number

    def predict_frames(
        self, image: str | Path | ImageFile | np.ndarray, **prompts: Any
    ) -> Iterator[Prediction]:
        """The predictions of each frame of an image by the prompts, as `predict_sequence` gives."""
        return (found for _, found in self.predict_sequence(image, **prompts))

    def predict_automatic(
        self,
        points_per_side: int = 16,
        min_score: float = 0.88,
        min_stability: float = 0.95,
        max_overlap: float = 0.7,
        count: int | None = None,
        points_per_batch: int = 16,
    ) -> Prediction:
        """Segment what there is in the image that was set, prompted by a grid of points.

        As `SamAutomaticMaskGenerator` does it: three masks for each point, of which the good ones
        stay and, of those that overlap, the best. They are ordered by their scores; K may be 0.

        Args:
            points_per_side: of the grid.
            min_score: the score that a mask must exceed.
            min_stability: the least IoU of the mask's two versions with logits above 1 and -1.
            max_overlap: the greatest IoU of the boxes around two masks.
            count: keep only so many.
            points_per_batch: decoded together; more need more memory.

        Raises:
            ValueError: no image was set, or an argument is out of its range.
        """
        if min(points_per_side, points_per_batch) < 1:
            raise ValueError("points_per_side and points_per_batch: expected 1 or more")
        embedding, shown = self.embedding(), self._fit.shown
        grid = [
            good_masks(self._decode(embedding, prompts), shown, min_score, min_stability)
            for prompts in grid_of_points(shown, points_per_side, points_per_batch)
        ]
        return self._prediction(*without_overlaps(grid, max_overlap, count))

    @torch.no_grad()
    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        return self.promptable.decode(embedding, prompts.to(embedding.image.device))

    def _embedded(self, image: ImageFile, order: Sequence[int]) -> Iterator[Embedded]:
        return embeddings(self.promptable, partial(self._square, image), order, len(image.frames))

    @property
    def _active(self) -> tuple[Adapter, ...]:
        found = adapters_of(self.promptable.model)
        return tuple(found[name] for name in found.active) if found else ()

    @property
    def mask_size(self) -> tuple[int, int]:
        """Of the logits that the model takes for a mask; an image was set."""
        rows, columns = self.embedding().image.shape[-2:]
        return 4 * rows, 4 * columns

    @property
    def _fit(self) -> Fit:
        assert self.image is not None
        return self._fit_of(self.image)

    def _fit_of(self, image: ImageFile) -> Fit:
        size = image.frames.shape[1], image.frames.shape[2]
        return fit_of(size, self.promptable.image_size, self.promptable.padding)

    def _square(self, image: ImageFile, frame: int) -> Float[Tensor, "3 S S"]:
        """A frame as the model's input."""
        return self._fit_of(image).image(image.frames[chosen_frame(image, frame)])

    def _prediction(
        self,
        low_res: Float[Tensor, "K *three h w"],
        scores: Float[Tensor, "K *three"],
        presence: Float[Tensor, "K"] | None = None,
        square: Float[Tensor, "K S S"] | None = None,
    ) -> Prediction:
        """`square` are the logits at the size of the model's input; None: interpolated ones."""
        assert self.image is not None
        fit = self._fit
        logits = low_res.new_zeros(*scores.shape, *fit.size)
        if len(scores):
            if square is None:
                square = at_side(low_res.flatten(0, -3), fit.side)
            logits = fit.logits(square).view(logits.shape)
        if presence is not None:
            logits[presence < 0] = ABSENT
        return Prediction(
            *(each.float().cpu().numpy() for each in (logits, scores, low_res)),
            spacing=self.image.spacing,
            presence=None if presence is None else presence.float().sigmoid().cpu().numpy(),
        )
