"""Training and evaluating a promptable segmenter, every structure of an image being one prompt."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from jaxtyping import Bool, Float
from monai.metrics.meandice import compute_dice
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adapterkit.losses import dice_bce_loss, low_res_target
from adapterkit.metrics import segmentation_metrics
from adapterkit.prompts import random_points, seeded_generator
from adapterkit.segmenter import Segmenter

Batch = dict[str, Any]
"""Of a data set whose samples have "image" (3, S, S) in [0, 255], "masks" (K, S, S) of 0 and 1,
and a "name" that no other sample has."""


@dataclass(frozen=True)
class Predictions:
    """What a segmenter predicts for a batch of images, and what is right.

    Attributes:
        names: of the images.
        predicted: one mask per structure.
        reference: the same, by an expert.
        points: the prompt of each structure, (x, y) in pixels.
    """

    names: Sequence[str]
    predicted: Bool[Tensor, "b k S S"]
    reference: Bool[Tensor, "b k S S"]
    points: Float[Tensor, "b k n 2"]


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training came to: mean loss, and mean validation Dice in [0, 1]."""

    epoch: int
    loss: float
    validation_dice: float


def make_accelerator(seed: int) -> Accelerator:
    """accelerate's device handling, with a shuffling that depends on seed and epoch alone."""
    return Accelerator(
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed)
    )


def train(
    segmenter: Segmenter,
    training: Dataset,
    validation: Dataset,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    accelerator: Accelerator,
    on_improvement: Callable[[Epoch], None],
) -> list[Epoch]:
    """Train what requires gradients with Adam, showing progress.

    The loss is the published SAMUS's, on the low-resolution logits of all structures of a batch;
    the prompt of each is one point drawn at random from its foreground at every visit.

    Args:
        training: samples as `Batch` says.
        validation: the same; after each epoch the mean Dice over its images and structures is
            measured, from one point per structure that `seed` fixes.
        epochs: passes over the training set.
        batch_size: images, not structures, per step and process.
        learning_rate: of Adam, constant.
        seed: of order and prompts; the same seed gives the same result on the same machine.
        accelerator: from `make_accelerator`.
        on_improvement: called after each epoch with the highest validation Dice so far.

    Returns:
        The epochs, in order.

    Raises:
        ValueError: a number is out of its range.
        FloatingPointError: the loss is not finite; the message names the images of the batch.
    """
    if epochs < 1 or batch_size < 1 or not learning_rate > 0:
        raise ValueError(
            f"epochs={epochs}, batch_size={batch_size}, learning_rate={learning_rate}: expected at "
            "least 1, at least 1 and above 0"
        )
    parameters = [each for each in segmenter.parameters() if each.requires_grad]
    loader = DataLoader(training, batch_size=batch_size, shuffle=True)
    model, optimizer, loader = accelerator.prepare(
        segmenter, torch.optim.Adam(parameters, lr=learning_rate), loader
    )
    history: list[Epoch] = []
    with _progress(accelerator) as progress:
        task = progress.add_task("training", total=epochs * len(loader), loss="", dice="")
        for epoch in range(1, epochs + 1):
            model.train()
            loader.set_epoch(epoch)
            generator = seeded_generator(seed, f"epoch {epoch}, {accelerator.process_index}")
            losses: list[float] = []
            for batch in loader:
                loss = _loss(model, batch, generator)
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss is {loss.item()} in epoch {epoch}, on {list(batch['name'])}; "
                        "look at these images, or lower the learning rate"
                    )
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                losses.append(loss.item())
                progress.update(task, advance=1, loss=f"{losses[-1]:.4f}")
            dice = mean_dice(accelerator.unwrap_model(model), validation, seed, batch_size)
            history.append(Epoch(epoch, sum(losses) / len(losses), dice))
            progress.update(task, dice=f"{dice:.4f}")
            progress.console.print(
                f"epoch {epoch}/{epochs}  loss {history[-1].loss:.4f}  validation Dice {dice:.4f}"
            )
            if dice >= max(each.validation_dice for each in history):
                on_improvement(history[-1])
    return history


def predict(
    segmenter: Segmenter, dataset: Dataset, seed: int, batch_size: int = 8
) -> Iterator[Predictions]:
    """Segment every structure of every image from one random point of its foreground.

    An image's points depend on `seed` and its name, not on the other images.
    """
    segmenter.eval()
    device = next(segmenter.parameters()).device
    for batch in DataLoader(dataset, batch_size=batch_size):
        reference = batch["masks"].bool()
        pairs = [
            random_points(masks, seeded_generator(seed, name))
            for masks, name in zip(reference, batch["name"], strict=True)
        ]
        points, labels = map(torch.stack, zip(*pairs, strict=True))
        with torch.no_grad():
            masks = segmenter(batch["image"].to(device), points.to(device), labels.to(device))
        predicted = masks.logits().cpu() > 0
        yield Predictions(batch["name"], predicted, reference, points)


def mean_dice(segmenter: Segmenter, dataset: Dataset, seed: int, batch_size: int = 8) -> float:
    """Dice, in [0, 1], averaged over the images and structures of a data set."""
    values = [
        compute_dice(each.predicted, each.reference, include_background=True, ignore_empty=False)
        for each in predict(segmenter, dataset, seed, batch_size)
    ]
    return float(torch.cat(values).mean())


def evaluate(
    segmenter: Segmenter, dataset: Dataset, seed: int, batch_size: int = 8
) -> tuple[list[str], dict[str, Float[Tensor, "n k"]]]:
    """The names of a data set's images, and each metric for each of their structures.

    Distances are in pixels of the model's input.
    """
    names: list[str] = []
    values: dict[str, list[Tensor]] = {}
    for each in predict(segmenter, dataset, seed, batch_size):
        names += each.names
        for metric, value in segmentation_metrics(each.predicted, each.reference).items():
            values.setdefault(metric, []).append(value)
    return names, {metric: torch.cat(value) for metric, value in values.items()}


def _loss(model: torch.nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    masks = batch["masks"].bool()
    points, labels = random_points(masks, generator)
    logits = model(batch["image"], points, labels).low_res_logits
    return dice_bce_loss(logits, low_res_target(masks, (logits.shape[-2], logits.shape[-1])))


def _progress(accelerator: Accelerator) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  Dice {task.fields[dice]}"),
        TimeRemainingColumn(),
        disable=not accelerator.is_main_process,
    )
