"""How to train: the optimiser, its learning rate, batches and prompts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    PolynomialLR,
    SequentialLR,
)

from adapterkit.promptable.strategies import TrainingStrategy
from adapterkit.training.choices import Loss


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults are the SAMUS reproduction study's.

    Attributes:
        epochs: passes over the training set.
        batch_size: images, not structures, per batch and process; or clips.
        frames: of a clip: so many consecutive frames of a sequence, of which some are labelled,
            are seen together, and the loss is of the labelled ones. 1: each image on its own.
        accumulate: batches per step of the optimiser.
        optimizer: "sgd" has a momentum of 0.9.
        learning_rate: the highest, with a schedule.
        weight_decay: of the optimiser; decoupled from the gradient in "adamw" alone.
        schedule: of the learning rate after the warm-up; "cosine" and "polynomial", (1 - t)^0.9
            where t goes from 0 to 1, fall towards 0.
        warmup_steps: steps of the optimiser over which the learning rate rises linearly from 0.
        clip_norm: the norm to which longer gradients are shortened; None: as they come.
        points: how the prompts are chosen, anew at every visit of an image.
        activation_checkpointing: compute the blocks of the encoder, and of convolutions beside it,
            again in the backward pass, rather than keep what they computed: less memory, more time,
            equal results.
        ema: what of an exponential moving average of the trained weights stays at each step; it is
            that average which is validated, saved and tested. None: the weights themselves.
        loss: the published SAMUS's, or MONAI's Dice with cross-entropy or with a focal loss.
        patience: epochs without a better validation Dice after which to stop; None: never.
        seed: of all that is random; it gives the same result on the same machine.

    Raises:
        ValueError: a number is out of its range.
    """

    epochs: int = 50
    batch_size: int = 8
    frames: int = 1
    accumulate: int = 1
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 0
    schedule: Literal["constant", "cosine", "polynomial"] = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    points: TrainingStrategy = "1"
    activation_checkpointing: bool = False
    ema: float | None = None
    loss: Loss = "samus"
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (
            "epochs", "batch_size", "frames", "accumulate", "learning_rate", "clip_norm",
            "patience",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: expected a positive number")
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema={self.ema}: expected a share between 0 and 1, 0.99 say")

    def learning_rates(self, steps: int) -> list[float]:
        """The learning rate of each of so many steps of the optimiser."""
        optimizer = self.make_optimizer([nn.Parameter(torch.zeros(()))])
        rest = max(1, steps - self.warmup_steps)
        if self.schedule == "cosine":
            course = CosineAnnealingLR(optimizer, rest)
        elif self.schedule == "polynomial":
            course = PolynomialLR(optimizer, rest, power=0.9)
        else:
            course = ConstantLR(optimizer, factor=1)
        if self.warmup_steps:
            first = 1 / (self.warmup_steps + 1)
            rise = LinearLR(optimizer, first, total_iters=self.warmup_steps)
            course = SequentialLR(optimizer, [rise, course], [self.warmup_steps])
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            course.step()
        return rates

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of `parameters`."""
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, rate, weight_decay=decay)


_LEAST_STEPS = 320


def enough_epochs(usual: int, images: int, images_per_step: int) -> int:
    """The usual epochs, and where images are few, as many as take 320 steps of the optimiser.

    Args:
        usual: for many images.
        images: to train on.
        images_per_step: of all batches of a step and of all processes.
    """
    return max(usual, math.ceil(_LEAST_STEPS / math.ceil(images / images_per_step)))


def short_warmup(images: int, epochs: int, images_per_step: int) -> int:
    """The steps of a warm-up over a twentieth of a training.

    Args:
        images: to train on.
        epochs: passes over them.
        images_per_step: of all batches of a step and of all processes.
    """
    return round(0.05 * epochs * math.ceil(images / images_per_step))


def settings_from(options: Any, **decided: Any) -> Settings:
    """The settings that a command's options have fields for, by the same names.

    Args:
        options: a dataclass.
        **decided: what the options leave open, or call otherwise.

    Raises:
        ValueError: a number is out of its range.
    """
    known = {each.name for each in fields(Settings)}
    given = {name: value for name, value in vars(options).items() if name in known}
    return Settings(**{**given, **decided})
