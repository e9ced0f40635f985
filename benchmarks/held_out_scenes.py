"""What a Segment Anything model makes of clicks and boxes on scenes that it has not seen."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.data.synthetic.canvas import Scene
from adapterkit.data.synthetic.scenes import draw_scene
from adapterkit.promptable.points import boxes_around
from adapterkit.promptable.prompts import Prompts
from adapterkit.system.files import atomic_write

SCENE_SIZE = 512
"""Side of the scenes in pixels; a model of another input size sees them resized."""


@dataclass(frozen=True)
class Answers:
    """IoUs of K masks with their targets, in [0, 1].

    Attributes:
        click: by one click, the best of three by predicted IoU.
        oracle: by one click, the best of three by true IoU.
        box: by the exact box.
        five_clicks: after five clicks.
        predicted, true: of the three masks of one click, the decoder's estimate and the truth.
        raggedness: of the outline by the box, as a multiple of the target's: 1 is as smooth.
    """

    click: Float[Tensor, "k"]
    oracle: Float[Tensor, "k"]
    box: Float[Tensor, "k"]
    five_clicks: Float[Tensor, "k"]
    predicted: Float[Tensor, "k 3"]
    true: Float[Tensor, "k 3"]
    raggedness: Float[Tensor, "k"]


@dataclass(frozen=True)
class Everything:
    """What `SamAutomaticMaskGenerator` finds in a scene with its default thresholds.

    Attributes:
        masks: their number.
        found: of each thing that covers more than 1 % of the scene, whether one of the masks has an
            IoU of at least 0.7 with it.
    """

    masks: int
    found: Bool[np.ndarray, "n"]


def held_out(number: int) -> np.random.Generator:
    """The source of a held-out scene; no seed of the pretraining has four numbers."""
    return np.random.default_rng((0, number, 0, 1))


@torch.no_grad()
def ask(segmenter: ak.Segmenter, image: np.ndarray, targets: Bool[np.ndarray, "k S S"]) -> Answers:
    """Segment K masks of an image in each way."""
    size = segmenter.image_size
    scale = size / SCENE_SIZE
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    embedding = segmenter.encode(F.interpolate(pixels, (size, size), mode="bilinear"))
    points = torch.from_numpy(np.stack([middle(target) for target in targets]))[None, :, None]
    points = scale * points
    labels = torch.ones(points.shape[:3], dtype=torch.long)

    def iou(logits: Float[Tensor, "1 k m h w"]) -> Float[Tensor, "k m"]:
        found, target = full_size(logits[0]) > 0, torch.from_numpy(targets)[:, None]
        return (found & target).sum((2, 3)) / (found | target).sum((2, 3))

    found = segmenter.decode(embedding, Prompts(points, labels))
    logits, estimate = found.all_logits, found.all_iou
    true, predicted = iou(logits[:, :, 1:]), estimate[0, :, 1:]
    best = predicted.argmax(1, keepdim=True)
    previous = logits[:, :, 1:].take_along_dim(best[None, :, :, None, None], dim=2)[:, :, 0]
    for _ in range(4):
        error = (full_size(previous)[0] > 0).numpy() != targets
        places = np.stack([middle(each) for each in error])
        inside = targets[
            np.arange(len(targets)), places[:, 1].astype(int), places[:, 0].astype(int)
        ]
        points = torch.cat([points, scale * torch.from_numpy(places)[None, :, None]], dim=2)
        labels = torch.cat([labels, torch.from_numpy(inside).long()[None, :, None]], dim=2)
        previous = segmenter.decode(
            embedding, Prompts(points, labels, masks=previous)
        ).low_res_logits

    boxes = boxes_around(torch.from_numpy(targets))[None]
    by_box = segmenter.decode(embedding, Prompts(boxes=scale * boxes)).low_res_logits
    outlined = raggedness((full_size(by_box)[0] > 0).numpy())
    return Answers(
        click=true.gather(1, best)[:, 0],
        oracle=true.amax(1),
        box=iou(by_box[:, :, None])[:, 0],
        five_clicks=iou(previous[:, :, None])[:, 0],
        predicted=predicted,
        true=true,
        raggedness=torch.from_numpy(outlined / raggedness(targets)),
    )


def find_everything(sam: Sam, scene: Scene) -> Everything:
    """Segment a scene without a prompt."""
    answers = SamAutomaticMaskGenerator(sam).generate(scene.image)
    things = scene.masks[scene.masks.mean((1, 2)) > 0.01].reshape(-1, SCENE_SIZE**2).astype(int)
    found = np.zeros(len(things), bool)
    for answer in answers:
        mask = answer["segmentation"].ravel().astype(int)
        common = things @ mask
        found |= common >= 0.7 * (things.sum(1) + mask.sum() - common)
    return Everything(len(answers), found)


def raggedness(masks: Bool[np.ndarray, "k S S"]) -> Float[np.ndarray, "k"]:
    """Perimeter squared over 4 pi times the area: 1 for a disc, more the more ragged it is; NaN for
    an empty mask. The perimeter is by Crofton's formula in two directions, pi / 4 times the
    borders of pixels."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1))).astype(int)
    borders = sum(np.abs(np.diff(padded, axis=axis)).sum((1, 2)) for axis in (1, 2))
    with np.errstate(invalid="ignore"):
        return (np.pi / 4 * borders) ** 2 / (4 * np.pi * masks.sum((1, 2)))


def full_size(logits: Float[Tensor, "k m h w"]) -> Float[Tensor, "k m S S"]:
    """Low-resolution logits at the size of the scene."""
    return F.interpolate(logits, (SCENE_SIZE, SCENE_SIZE), mode="bilinear")


def middle(region: Bool[np.ndarray, "S S"]) -> Float[np.ndarray, "2"]:
    """The pixel (x, y) of a region that is farthest from its border; (0, 0) if it is empty."""
    # The border of the image counts as the region's.
    distance = np.asarray(ndimage.distance_transform_edt(np.pad(region, 1)))[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), region.shape)
    return np.array([column, row], np.float32)


def draw_figure(sam: Sam, path: Path, rows: int = 4) -> None:
    """Scenes, three masks of each by one click, and all that is found without a prompt."""
    figure = Figure(figsize=(12.5, 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 5, squeeze=False)
    generator = SamAutomaticMaskGenerator(
        sam, points_per_side=16, pred_iou_thresh=0.5, stability_score_thresh=0.7
    )
    predictor = SamPredictor(sam)
    for number, row in enumerate(axes):
        rng = held_out(number)
        scene = draw_scene(rng, SCENE_SIZE)
        predictor.set_image(scene.image)
        row[0].imshow(scene.image)
        for axis, target in zip(row[1:4], rng.permutation(scene.masks)[:3], strict=True):
            point = middle(target)
            masks, scores, _ = predictor.predict(point[None], np.ones(1))
            axis.imshow(scene.image)
            axis.contour(target, [0.5], colors="white", linewidths=1)
            axis.contour(masks[scores.argmax()], [0.5], colors="red", linewidths=1)
            axis.plot(*point, "o", color="lime", markeredgecolor="black", markersize=5)
        found = generator.generate(scene.image)
        labels = np.zeros(scene.image.shape[:2], int)
        for label, mask in enumerate(sorted(found, key=lambda mask: -mask["area"]), 1):
            labels[mask["segmentation"]] = label
        row[4].imshow(labels, cmap="nipy_spectral")
    titles = ("scene", "one click", "one click", "one click", "everything")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.axis("off")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=80)
