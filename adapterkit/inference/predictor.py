"""Images in, masks out: segmenting with a base and adapter files.

Prompts are in pixels (x, y) = (column, row) of the image as it is, and so are the masks. Reading
files needs `adapterkit[recipes]`, and DICOM `adapterkit[dicom]`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Real, UInt8
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    batched_mask_to_box,
    build_point_grid,
    calculate_stability_score,
)
from torch import Tensor
from torchvision.ops import nms
from wadler_lindig import pformat

from adapterkit.adapters.file import inspect_adapter, load_adapter
from adapterkit.adapters.injection import activate, adapters_of
from adapterkit.attach.attachment import Adapter
from adapterkit.data.dataset import to_native, to_square
from adapterkit.data.files.image_file import DataError, ImageFile, Spacing, check_finite
from adapterkit.data.files.images import read_image
from adapterkit.kernels.fast_forward import fast
from adapterkit.promptable.segmenter import Masks, Segmenter
from adapterkit.promptable.stock_sam import load_sam

MIN_SIDE = 8
"""Rows and columns that an image has at least, in pixels."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a `Predictor` found for K prompted structures of an image of H x W pixels.

    Attributes:
        logits: (K, H, W), above 0 is inside; (K, 3, H, W) with the three masks of each structure
            that `multimask` gives.
        scores: (K,) or (K, 3), the model's own estimate of each mask's IoU.
        low_res_logits: (K, h, w) or (K, 3, h, w), the logits at the model's resolution, which a
            further `predict` takes as `masks`.
        spacing: pixel size of the image in mm, (row, column), or None where it is not known.
    """

    logits: Float[np.ndarray, "K *three H W"]
    scores: Float[np.ndarray, "K *three"]
    low_res_logits: Float[np.ndarray, "K *three h w"]
    spacing: Spacing | None

    def __repr__(self) -> str:
        return pformat(self)

    @property
    def masks(self) -> Bool[np.ndarray, "K *three H W"]:
        """True inside."""
        return self.logits > 0

    @property
    def areas(self) -> Real[np.ndarray, "K *three"]:
        """In pixels."""
        return self.masks.sum(axis=(-2, -1))

    @property
    def areas_mm2(self) -> Float[np.ndarray, "K *three"] | None:
        """In square millimetres, or None where the spacing is not known."""
        return None if self.spacing is None else self.areas * (self.spacing[0] * self.spacing[1])

    def best(self) -> "Prediction":
        """Of the three masks of each structure, the one of the highest score."""
        if self.scores.ndim == 1:
            return self
        chosen = np.arange(len(self.scores)), self.scores.argmax(axis=1)
        return replace(
            self,
            logits=self.logits[chosen],
            scores=self.scores[chosen],
            low_res_logits=self.low_res_logits[chosen],
        )

    def label_map(self) -> UInt8[np.ndarray, "H W"]:
        """0 is background, k + 1 the k-th structure; where masks overlap, the highest logit's.

        Raises:
            ValueError: there are more than 255 structures, or three masks of each.
        """
        if self.scores.ndim != 1 or len(self.scores) > 255:
            raise ValueError(
                f"logits have the shape {self.logits.shape}: expected one mask of each of at most "
                "255 structures; of three masks, take best()"
            )
        background = np.zeros_like(self.logits, shape=(1, *self.logits.shape[1:]))
        return np.concatenate([background, self.logits]).argmax(axis=0).astype(np.uint8)


class Predictor:
    """Segments images with a `Sam` and any of its adapters.

        predictor = Predictor.from_files("sam_vit_b_01ec64.pth", "echo.safetensors")
        predictor.set_image("patient.dcm")
        found = predictor.predict(points=[[(120, 80)]], labels=[[1]])

    Images are brought to the model's input as training brings them, so the result on an image of a
    data set is that of its evaluation. An image is encoded once for each adapter that is used on
    it: a further prompt costs the decoder alone.

    It is about one image at a time, and so for one thread at a time. A server gives each of its
    users one that is `sharing` the model, and uses them behind one lock.

    Args:
        base: with or without adapters on it; put in evaluation mode, made `fast`, and used where
            it is.
        adapter: a file to `load`; None: the base as it is.

    Attributes:
        image: what was set, all its frames; None before.
        frame: which of them was set.
    """

    def __init__(self, base: Sam, adapter: str | Path | None = None) -> None:
        self.segmenter = Segmenter(fast(base)).eval()
        self.image: ImageFile | None = None
        self.frame = 0
        self._structures: dict[str, tuple[str, ...]] = {}
        # By the adapters themselves, since another may come to have the name of one.
        self._embeddings: dict[tuple[Adapter, ...], Tensor] = {}
        if adapter is not None:
            self.load(adapter)

    @classmethod
    def from_files(
        cls, checkpoint: str | Path, *adapter_files: str | Path, device: str = "cpu"
    ) -> "Predictor":
        """A predictor on the checkpoint of a `Sam`; the first adapter is in use, if there is one.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the checkpoint is none of a `Sam`, or as `load`.
        """
        predictor = cls(load_sam(checkpoint).to(device))
        names = [predictor.load(file) for file in adapter_files]
        if names:
            predictor.use(names[0])
        return predictor

    def sharing(self) -> "Predictor":
        """A predictor for another image, with the same model and adapters. Those in use are the
        model's: `use` one again where the other may have switched."""
        predictor = Predictor(self.segmenter.sam)
        predictor._structures = self._structures
        return predictor

    # Adapters

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters on the base, which `use` takes."""
        found = adapters_of(self.segmenter.sam)
        return found.names if found else ()

    @property
    def in_use(self) -> str | None:
        """The name of the adapter in use; None for the base alone. Several, as `activate` stacks
        them, are joined by " + "."""
        found = adapters_of(self.segmenter.sam)
        return " + ".join(found.active) or None if found else None

    @property
    def structures(self) -> tuple[str, ...]:
        """What the adapter in use segments, in the order of its training; () where no file says."""
        return self._structures.get(self.in_use or "", ())

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
        load_adapter(self.segmenter.sam, path, name)
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
            activate(self.segmenter.sam, *([] if name is None else [name]))

    # Images

    def set_image(
        self, image: str | Path | ImageFile | np.ndarray, frame: int | None = None
    ) -> None:
        """Encode an image, which `predict` is then about.

        Args:
            image: a file that `read_image` reads, what that gave, or an array, grey (H, W) or
                colour (H, W, 3). Values within [0, 255] are taken as they are; an image with
                others, or with none above 1, is scaled from its own minimum and maximum.
            frame: of a sequence or stack, from 0; None: the only one.

        Raises:
            DataError: as `read_image`, or the image is a DICOM segmentation, or has another shape,
                fewer than 8 x 8 pixels, or values that are NaN, infinite or no numbers; the image
                set before stays.
            ValueError: there is no such frame, or there are several and none is chosen.
        """
        image = image if isinstance(image, ImageFile) else _image_file(image, frames=False)
        if image.dicom is not None and image.dicom.get("Modality") == "SEG":
            raise DataError(
                f"{image.path} is a DICOM segmentation: expected an image; give the one that it "
                "refers to."
            )
        count, height, width = image.frames.shape[:3]
        if frame is None and count != 1:
            raise ValueError(
                f"{image.path} has {count} frames: choose one with frame=, or take predict_frames"
            )
        if not 0 <= (frame or 0) < count:
            raise ValueError(f"frame is {frame}, and {image.path} has frames 0 to {count - 1}")
        if min(height, width) < MIN_SIDE:
            raise DataError(
                f"{image.path} is {height} x {width} pixels (rows x columns): expected at least "
                f"{MIN_SIDE} x {MIN_SIDE}."
            )
        self.image, self.frame = image, frame or 0
        self._embeddings.clear()
        self.embedding()

    def embedding(self) -> Float[Tensor, "1 c h w"]:
        """Of the image that was set, by the adapter in use; computed if it has not been.

        Raises:
            ValueError: no image was set.
        """
        if self.image is None:
            raise ValueError("there is no image to segment: give set_image one first")
        found = adapters_of(self.segmenter.sam)
        active = tuple(found[name] for name in found.active) if found else ()
        if active not in self._embeddings:
            square = to_square(self.image.frames[self.frame], self.segmenter.image_size)
            device = next(self.segmenter.parameters()).device
            with torch.no_grad():
                self._embeddings[active] = self.segmenter.encode(
                    square.expand(1, 3, -1, -1).float().to(device)
                )
        return self._embeddings[active]

    # Masks

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
        multimask: bool = False,
    ) -> Prediction:
        """Segment K prompted structures of the image that was set.

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
            multimask: give three masks of each structure, for prompts that are ambiguous. A trained
                mask decoder has usually been trained for the single one alone.

        Raises:
            ValueError: no image was set, a structure has no prompt, points lack labels, an argument
                has another shape than stated, or a point or a box lies outside of the image.
        """
        embedding = self.embedding()
        given = {"points": points, "labels": labels, "boxes": boxes, "masks": masks}
        low_res = 4 * embedding.shape[-2], 4 * embedding.shape[-1]
        prompts = _prompts(given, self._size, low_res, self.segmenter.image_size)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        # Prompts of one kind are decoded together. To pad the others would change their masks.
        for kind in dict.fromkeys(map(_kind, prompts)):
            alike = [k for k, prompt in enumerate(prompts) if _kind(prompt) == kind]
            batch = {
                name: torch.stack([prompts[k][name] for k in alike])[None].to(embedding.device)
                for name, _ in kind
            }
            with torch.no_grad():
                logits, scores = self.segmenter.decode_all(embedding, **batch)
            found.update(zip(alike, zip(logits[0], scores[0], strict=True), strict=True))
        chosen = slice(1, None) if multimask else 0
        ordered = [
            (logits[chosen], scores[chosen]) for _, (logits, scores) in sorted(found.items())
        ]
        logits, scores = zip(*ordered, strict=True)
        return self._prediction(torch.stack(logits), torch.stack(scores))

    def predict_frames(
        self, image: str | Path | ImageFile | np.ndarray, **prompts: Any
    ) -> Iterator[Prediction]:
        """Segment each frame of a sequence or stack in turn, from the same prompts.

        Args:
            image: as in `set_image`; an array has the axes (T, H, W) or (T, H, W, 3).
            prompts: the arguments of `predict`.

        Yields:
            The prediction of each frame, which is then the one that is set.
        """
        image = image if isinstance(image, ImageFile) else _image_file(image, frames=True)
        for frame in range(len(image.frames)):
            self.set_image(image, frame)
            yield self.predict(**prompts)

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
        embedding = self.embedding()
        side = self.segmenter.image_size
        grid = side * torch.from_numpy(build_point_grid(points_per_side)).float()
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for points in grid.to(embedding.device).split(points_per_batch):
            labels = torch.ones(1, len(points), 1, dtype=torch.int64, device=points.device)
            with torch.no_grad():
                each = self.segmenter.decode_all(embedding, points[None, :, None], labels)
            logits, scores = (values[0, :, 1:].flatten(0, 1) for values in each)
            logits, scores = logits[scores > min_score], scores[scores > min_score]
            at_side = Masks(logits[None], scores[None], side).logits()[0] if len(logits) else logits
            stable = calculate_stability_score(at_side, 0, 1) >= min_stability
            boxes = batched_mask_to_box(at_side[stable] > 0).float()
            found.append((logits[stable], scores[stable], boxes))
        logits, scores, boxes = (torch.cat(values) for values in zip(*found, strict=True))
        kept = nms(boxes, scores.float(), max_overlap)[:count]
        return self._prediction(logits[kept], scores[kept])

    @property
    def _size(self) -> tuple[int, int]:
        assert self.image is not None
        return self.image.frames.shape[1], self.image.frames.shape[2]

    def _prediction(
        self, low_res: Float[Tensor, "K *three h w"], scores: Float[Tensor, "K *three"]
    ) -> Prediction:
        assert self.image is not None
        logits = low_res.new_zeros(*scores.shape, *self._size)
        if len(scores):
            flat = low_res.flatten(0, -3)[None]
            square = Masks(flat, scores.flatten()[None], self.segmenter.image_size).logits()
            logits = to_native(square[0], self._size).view(logits.shape)
        return Prediction(
            *(each.float().cpu().numpy() for each in (logits, scores, low_res)),
            spacing=self.image.spacing,
        )


# Images


def _image_file(image: str | Path | np.ndarray, frames: bool) -> ImageFile:
    if isinstance(image, str | Path):
        return read_image(image)
    array, path = np.asarray(image), Path("the array")
    expected = "(T, H, W) or (T, H, W, 3)" if frames else "(H, W) or (H, W, 3)"
    axes = array.ndim - frames
    if array.dtype.kind not in "iuf" or not (axes == 2 or (axes == 3 and array.shape[-1] == 3)):
        raise DataError(
            f"{path} has the shape {array.shape} and type {array.dtype}: expected numbers, "
            f"{expected}."
        )
    if 0 in array.shape:
        raise DataError(f"{path} has the shape {array.shape}: expected some pixels.")
    check_finite(array, path)
    return ImageFile(path, array if frames else array[None], None, np.eye(4))


# Prompts


def _kind(prompt: Mapping[str, Tensor]) -> tuple[tuple[str, torch.Size], ...]:
    """What prompts that are decoded together have in common."""
    return tuple((name, value.shape) for name, value in prompt.items())


def _prompts(
    given: Mapping[str, Any], size: tuple[int, int], low_res: tuple[int, int], side: int
) -> list[dict[str, Tensor]]:
    """For each structure its prompts, in pixels of the model's square input, under the names that
    `Segmenter.decode_all` has for them."""
    present = {name: entries for name, entries in given.items() if entries is not None}
    counts = {name: _length(name, entries) for name, entries in present.items()}
    if not counts:
        raise ValueError(
            "no prompt: give points with labels, boxes, or masks, or take predict_automatic"
        )
    for name, count in counts.items():
        if count == 0:
            raise ValueError(f"{name} has no entry: expected one for each structure")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"one entry for each structure is expected, but there are: {told}")
    prompts = []
    for k in range(max(counts.values())):
        entry = {name: values[k] for name, values in present.items() if values[k] is not None}
        if not entry:
            raise ValueError(f"structure {k} has no prompt: give points with labels, or a box")
        if ("points" in entry) != ("labels" in entry):
            missing = "points" if "labels" in entry else "labels"
            raise ValueError(
                f"structure {k} lacks {missing}: give both, and for each point the label 1 if it "
                "is inside of the structure, 0 if outside"
            )
        prompts.append(_prompt(k, entry, size, low_res, side))
    return prompts


def _prompt(
    k: int, entry: Mapping[str, Any], size: tuple[int, int], low_res: tuple[int, int], side: int
) -> dict[str, Tensor]:
    height, width = size
    scale = np.array([side / width, side / height])
    prompt: dict[str, np.ndarray] = {}
    if "points" in entry:
        points = _numbers(f"points[{k}]", entry["points"], "(n, 2), n points (x, y)", None, 2)
        labels = _numbers(f"labels[{k}]", entry["labels"], f"({len(points)},)", len(points))
        inside = ((points >= -0.5) & (points <= np.array([width, height]) - 0.5)).all(axis=1)
        if not inside.all():
            x, y = points[~inside][0]
            raise ValueError(
                f"points[{k}] has ({x:g}, {y:g}), outside of the image: expected x from 0 to "
                f"{width - 1} and y from 0 to {height - 1}"
            )
        if not np.isin(labels, [0, 1]).all():
            raise ValueError(f"labels[{k}] is {labels.tolist()}: expected 1 inside, 0 outside")
        # A point names a pixel, whose centre lies half a pixel further.
        prompt["points"] = (points + 0.5) * scale - 0.5
        prompt["labels"] = labels.astype(np.int64)
    if "boxes" in entry:
        box = _numbers(f"boxes[{k}]", entry["boxes"], "(4,), x0, y0, x1, y1", 4)
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"boxes[{k}] is {box.tolist()}: expected (x0, y0, x1, y1) with 0 <= x0 < x1 <= "
                f"{width} and 0 <= y0 < y1 <= {height}"
            )
        prompt["boxes"] = box * np.tile(scale, 2)
    if "masks" in entry:
        prompt["masks"] = _mask_prompt(k, entry["masks"], size, low_res)
    return {
        name: torch.from_numpy(value if name == "labels" else value.astype(np.float32))
        for name, value in prompt.items()
    }


def _mask_prompt(
    k: int, mask: Any, size: tuple[int, int], low_res: tuple[int, int]
) -> Float[np.ndarray, "h w"]:
    array = np.asarray(mask)
    if array.dtype != bool:
        expected = f"{size}, bool, or {low_res}, low_res_logits of a prediction"
        return _numbers(f"masks[{k}]", array, expected, *low_res)
    if array.shape != size:
        raise ValueError(f"masks[{k}] has the shape {array.shape}: expected {size}, as the image")
    share = F.interpolate(
        torch.from_numpy(array.astype(np.float32))[None, None],
        low_res,
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    # The decoder is used to logits of this size where it is sure.
    return torch.logit(share[0, 0], eps=1e-3).numpy()


def _length(name: str, entries: Any) -> int:
    try:
        return len(entries)
    except TypeError:
        raise ValueError(f"{name} is {entries!r}: expected an entry for each structure") from None


def _numbers(name: str, value: Any, expected: str, *shape: int | None) -> Float[np.ndarray, "..."]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}: expected numbers, {expected}") from None
    fits = array.ndim == len(shape) and all(
        n in (side, None) for n, side in zip(shape, array.shape, strict=True)
    )
    if not fits or array.size == 0:
        raise ValueError(
            f"{name} has the shape {array.shape}: expected {expected}, for each structure"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are NaN or infinite: expected finite ones")
    return array
