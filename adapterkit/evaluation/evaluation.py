"""What a promptable segmenter predicts on a data set, and how good that is.

With several processes, as `accelerate launch` starts them, each predicts its share of the images,
and all get the whole result.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import Bool, Float
from monai.metrics.meandice import compute_dice
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adapterkit.data.clips import sequences_in, stretches
from adapterkit.data.dataset import Sample, SegmentationDataset, to_native
from adapterkit.evaluation.metrics import (
    DISTANCES,
    Statistics,
    segmentation_metrics,
    summarise,
    with_unit,
)
from adapterkit.promptable.points import choose_prompts
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable
from adapterkit.promptable.strategies import PromptStrategy
from adapterkit.system.files import atomic_write
from adapterkit.system.random import seeded_generator


@dataclass(frozen=True)
class Predictions:
    """What a segmenter predicts for a batch of images, and what is right.

    Attributes:
        indices: of the images in their data set.
        names: of the images.
        attributes: what else is known of each image, such as its patient and view.
        images: as the segmenter was given them, in [0, 255].
        logits: one map per structure; above 0 is foreground.
        reference: the masks by an expert.
        points: those that each structure was asked for by, (x, y) in pixels; 0 of them where it
            was by others.
    """

    indices: Sequence[int]
    names: Sequence[str]
    attributes: Sequence[Mapping[str, str]]
    images: Float[Tensor, "b 3 S S"]
    logits: Float[Tensor, "b k S S"]
    reference: Bool[Tensor, "b k S S"]
    points: Float[Tensor, "b k n 2"]

    @property
    def predicted(self) -> Bool[Tensor, "b k S S"]:
        return self.logits > 0

    def __iter__(self) -> Iterator["Predictions"]:
        """Those for each image, as of a batch of one."""
        for i in range(len(self.indices)):
            yield Predictions(**{name: of[i : i + 1] for name, of in vars(self).items()})


def predict(
    segmenter: Promptable,
    dataset: Dataset,
    *,
    seed: int,
    points: PromptStrategy = "1",
    batch_size: int = 8,
    progress: str = "",
    only: Collection[int] | None = None,
) -> Iterator[Predictions]:
    """Segment every structure of every labelled image of this process's share of a data set.

    An image's points depend on `seed` and its name, not on the other images. Frames of a sequence
    are encoded with those around them that the model looks at, whether these are labelled or not.

    Args:
        segmenter: any promptable model; put in evaluation mode.
        dataset: samples as `data.dataset.Sample` says.
        seed: of the points.
        points: how the prompts are chosen.
        batch_size: images at a time.
        progress: what to call this in a progress bar; "" shows none.
        only: which images, labelled or not; None: all that are labelled.
    """
    for embedding, batch in embedded(segmenter, dataset, batch_size, progress, only):
        with torch.no_grad():
            prompts, logits = _segment(segmenter, embedding, batch, points, seed)
        names = batch["name"]
        others = [key for key in batch if key not in Sample.__annotations__]
        yield Predictions(
            indices=batch["index"].tolist(),
            names=names,
            attributes=[{key: batch[key][i] for key in others} for i in range(len(names))],
            images=batch["image"],
            logits=logits.float().cpu(),
            reference=batch["masks"].bool(),
            points=prompts,
        )


def embedded(
    segmenter: Promptable,
    dataset: Dataset,
    batch_size: int,
    progress: str = "",
    only: Collection[int] | None = None,
) -> Iterator[tuple[Embedding, dict[str, Any]]]:
    """Embeddings of the labelled images of this process's share of a data set, and their batches.

    The arguments are those of `predict`.
    """
    segmenter.eval()
    state = PartialState()
    device = next(segmenter.parameters()).device
    batches = _batches(dataset, segmenter.reach, batch_size, only)
    batches = batches[state.process_index :: state.num_processes]
    loaded = DataLoader(dataset, batch_sampler=[images for images, _, _ in batches])
    shown = bool(progress) and state.is_main_process
    shown_batches = track(loaded, progress, len(batches), disable=not shown, transient=True)
    for batch, (_, places, frames) in zip(shown_batches, batches, strict=True):
        with torch.no_grad():
            embedding = segmenter.encode(batch["image"].to(device), frames)
        yield embedding.select(places), select(batch, places)


def select(batch: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """Some of the images of a batch."""
    return {
        key: value[places] if isinstance(value, Tensor) else [value[place] for place in places]
        for key, value in batch.items()
    }


def _batches(
    dataset: Any, reach: int, size: int, only: Collection[int] | None
) -> list[tuple[list[int], list[int], int]]:
    """The images of each batch, which of them are asked for, and how many frames are a sequence."""
    labelled = getattr(dataset, "labelled", None) or [True] * len(dataset)
    chosen = None if only is None else {*only}
    wanted = [each if chosen is None else i in chosen for i, each in enumerate(labelled)]
    if not reach:
        asked = [i for i, each in enumerate(wanted) if each]
        pieces = [asked[i : i + size] for i in range(0, len(asked), size)]
        return [(piece, list(range(len(piece))), 1) for piece in pieces]
    return [
        (piece, places, len(piece))
        for images in sequences_in(dataset)
        for piece, places in stretches(
            images, [wanted[i] for i in images], max(size, 2 * reach), reach
        )
    ]


def _segment(
    segmenter: Promptable,
    embedding: Embedding,
    batch: Mapping[str, Any],
    strategy: PromptStrategy,
    seed: int,
) -> tuple[Float[Tensor, "b k n 2"], Float[Tensor, "b k S S"]]:
    device = embedding.image.device

    def segment(prompts: Prompts) -> Masks:
        return segmenter.decode(embedding, prompts.to(device))

    generators = [seeded_generator(seed, name) for name in batch["name"]]
    masks = batch["masks"].bool()
    prompts = choose_prompts(masks, strategy, generators, segment)
    points = masks.new_zeros((*masks.shape[:2], 0, 2), dtype=torch.float32)
    return points if prompts.points is None else prompts.points, segment(prompts).logits()


def dice_of_images(
    segmenter: Promptable,
    dataset: Dataset,
    *,
    seed: int,
    points: PromptStrategy = "1",
    batch_size: int = 8,
) -> Float[Tensor, "n k"]:
    """Dice, in [0, 1], of each labelled image and structure of a data set, in order."""
    found: list[tuple[int, Tensor]] = []
    for each in predict(segmenter, dataset, seed=seed, points=points, batch_size=batch_size):
        dice = compute_dice(
            each.predicted, each.reference, include_background=True, ignore_empty=False
        )
        found += zip(each.indices, dice, strict=True)
    dice = [value for _, value in sorted(gather_object(found), key=lambda pair: pair[0])]
    return torch.stack(dice)


@dataclass(frozen=True)
class Evaluation:
    """The metrics of every image and structure of a data set.

    Attributes:
        structures: the K structures' names.
        names: the N images' names.
        attributes: what else is known of each image; each has the same keys.
        values: per metric, the values of the N images and K structures.
        without_mm: why there are no distances in mm: which image states no spacing; "" where there
            are some, or it is not known.
    """

    structures: Sequence[str]
    names: Sequence[str]
    attributes: Sequence[Mapping[str, str]]
    values: Mapping[str, Float[Tensor, "N K"]]
    without_mm: str = ""

    def summary(self) -> Statistics:
        """Mean and standard deviation over images, as `metrics.summarise` says."""
        return summarise(self.values, self.structures)

    def summary_by(self, attribute: str) -> dict[str, Statistics]:
        """The summary of the images of each value of an attribute, "view" say."""
        return {value: summarise(of, self.structures) for value, of in self._groups(attribute)}

    def summary_over(self, attribute: str) -> Statistics:
        """Mean and standard deviation over the groups of images that share an attribute.

        Over "patient", each patient counts once, with the mean of their images.
        """
        means = {metric: self.means_of(attribute, metric) for metric in self.values}
        return summarise(means, self.structures)

    def means_of(self, attribute: str, metric: str) -> Float[Tensor, "g K"]:
        """The mean of a metric over the images of each value of an attribute, in sorted order."""
        values = pd.DataFrame(self.values[metric].double().numpy())
        of_images = [each[attribute] for each in self.attributes]
        means: pd.DataFrame = values.groupby(of_images).mean()  # pyright: ignore[reportAssignmentType]
        return torch.tensor(means.to_numpy())

    def of_volumes(self) -> "Evaluation | None":
        """Dice and IoU of whole volumes, over all their slices, at the model's input size.

        None where the images are no slices of volumes.
        """
        counts = ("shared_pixels", "predicted_pixels", "reference_pixels")
        if "volume" not in self.attributes[0] or any(name not in self.values for name in counts):
            return None
        names, sums = [], []
        for name, values in self._groups("volume"):
            names.append(name)
            sums.append([values[count].double().sum(dim=0) for count in counts])
        shared, predicted, reference = (torch.stack(each) for each in zip(*sums, strict=True))
        both, union = predicted + reference, predicted + reference - shared
        values = {
            "dice": torch.where(both > 0, 2 * shared / both, 1).float(),
            "iou": torch.where(union > 0, shared / union, 1).float(),
        }
        return Evaluation(self.structures, names, [{} for _ in names], values)

    def in_pixels_of(self, size: int, measured_at: int) -> "Evaluation":
        """With distances in pixels of another input size than the one they were measured at."""
        scaled = {
            metric: value * (size / measured_at) if metric.endswith("_px") else value
            for metric, value in self.values.items()
        }
        return Evaluation(self.structures, self.names, self.attributes, scaled)

    def table(self) -> pd.DataFrame:
        """A row per image and structure; columns "image", each attribute, "structure", metrics."""
        images = pd.DataFrame(
            [{"image": n, **a} for n, a in zip(self.names, self.attributes, strict=True)]
        )
        rows = images.loc[images.index.repeat(len(self.structures))].reset_index(drop=True)
        rows["structure"] = [*self.structures] * len(self.names)
        return rows.assign(**{name: each.flatten().numpy() for name, each in self.values.items()})

    def write_csv(self, path: Path) -> None:
        """Write `table`."""
        with atomic_write(path) as temporary:
            # Nine digits tell any two float32 values apart.
            self.table().to_csv(temporary, index=False, float_format="%.9g")

    @classmethod
    def read_csv(cls, path: Path) -> "Evaluation":
        """What `write_csv` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not such a file, or not whole.
        """
        try:
            rows = pd.read_csv(path, dtype=str, keep_default_na=False)
            split = list(rows).index("structure")
            structures = rows["structure"].unique().tolist()
            images = rows.iloc[:: len(structures)]
            values = rows.iloc[:, split + 1 :].astype("float32")
            return cls(
                structures,
                images["image"].tolist(),
                images.iloc[:, 1:split].to_dict("records"),
                {
                    metric: torch.tensor(values[metric].to_numpy()).view(-1, len(structures))
                    for metric in values
                },
            )
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no table of metrics: {error}; remove it") from error

    def _groups(self, attribute: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
        of_images = pd.Series([each[attribute] for each in self.attributes])
        for group, chosen in of_images.groupby(of_images).indices.items():
            yield str(group), {metric: value[chosen] for metric, value in self.values.items()}


def evaluate(
    segmenter: Promptable,
    dataset: SegmentationDataset,
    *,
    seed: int,
    points: PromptStrategy = "1",
    batch_size: int = 8,
    progress: str = "",
    show: Sequence[Callable[[Predictions], None]] = (),
) -> Evaluation:
    """Measure a segmenter on a data set; the arguments are those of `predict`.

    Each of `show` is called with each batch of this process's share, to draw it, say.

    The metrics are `segmentation_metrics`'s: "dice" and "iou" at the model's input size, distances
    in pixels at that size ("hausdorff_px", "hausdorff95_px", "average_surface_distance_px") and,
    if the spacing of every image is known, in mm at the images' own size ("hausdorff_mm" and so
    on), to which the logits are interpolated. Slices of volumes, which have the attribute "volume",
    have the counts of which `Evaluation.of_volumes` is made too: "shared_pixels",
    "predicted_pixels" and "reference_pixels".
    """
    found: list[tuple[int, str, Mapping[str, str], dict[str, Tensor]]] = []
    for each in predict(
        segmenter, dataset, seed=seed, points=points, batch_size=batch_size, progress=progress
    ):
        for look in show:
            look(each)
        in_pixels = with_unit(segmentation_metrics(each.predicted, each.reference), "px")
        for i, index in enumerate(each.indices):
            values = {metric: value[i] for metric, value in in_pixels.items()}
            values |= _distances_in_mm(each.logits[i], dataset, index)
            if "volume" in each.attributes[i]:
                values |= _pixels(each.predicted[i], each.reference[i])
            found.append((index, each.names[i], each.attributes[i], values))
    found = sorted(gather_object(found), key=lambda image: image[0])
    _, names, attributes, values = zip(*found, strict=True)
    unknown = [name for name, each in zip(names, values, strict=True) if "hausdorff_mm" not in each]
    return Evaluation(
        dataset.structures, names, attributes, _stack(values), _without_mm(unknown, len(names))
    )


def _pixels(
    predicted: Bool[Tensor, "k S S"], reference: Bool[Tensor, "k S S"]
) -> dict[str, Float[Tensor, "k"]]:
    masks = {"shared": predicted & reference, "predicted": predicted, "reference": reference}
    return {f"{name}_pixels": mask.sum(dim=(1, 2)).float() for name, mask in masks.items()}


def _distances_in_mm(
    logits: Float[Tensor, "k S S"], dataset: SegmentationDataset, index: int
) -> dict[str, Float[Tensor, "k"]]:
    reference, spacing = dataset.native_reference(index)
    if spacing is None:
        return {}
    predicted = to_native(logits, reference.shape[-2:]) > 0
    values = segmentation_metrics(predicted[None], reference[None], spacing)
    return {f"{metric}_mm": values[metric][0] for metric in DISTANCES}


def _without_mm(unknown: Sequence[str], count: int) -> str:
    if not unknown:
        return ""
    return (
        f"Distances are in pixels alone: {len(unknown)} of {count} images state no size of their "
        f"pixels, {unknown[0]} for one."
    )


def _stack(values: Iterable[Mapping[str, Tensor]]) -> dict[str, Float[Tensor, "n k"]]:
    values = list(values)
    shared = [metric for metric in values[0] if all(metric in each for each in values)]
    return {metric: torch.stack([each[metric] for each in values]) for metric in shared}
