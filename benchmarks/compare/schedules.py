"""How each system is trained: the common schedule, and the published ones.

A schedule is the optimiser, the learning rate and its course, and the batch. The loss, the number
of epochs, the images and their augmentation are the comparison's, and the same for all systems.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from adapterkit.methods import find_method
from adapterkit.training.settings import Settings, short_warmup
from benchmarks.compare.systems import SYSTEMS, Base, Network, Prompted, ScheduleName

COMMON_RATES = {
    ("small base", "adapters"): 1e-3,
    ("small base", "networks"): 1e-3,
    ("checkpoint", "adapters"): 1e-4,
    ("checkpoint", "networks"): 1e-4,
}
"""Adam's highest rate: one for all adapters and one for all networks. With a checkpoint, the
paper's. On the small base, that of `recipes.samus_camus`; at 5e-3 the small Swin-Unet does not
learn. Another one is chosen on the validation patients alone: by `--learning-rate`, and the column
validation_dice of results.csv."""

_SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "weight_decay": 1e-4,
    "schedule": "polynomial",
    "batch_size": 24,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    # Guzaiwang/CE-Net, main.py; its halving of the rate when the loss stagnates is left out.
    "ce-net": {"learning_rate": 2e-4, "batch_size": 8},
    # HuCaoFighting/Swin-Unet, README.md and trainer.py.
    "swin-unet": {**_SGD, "learning_rate": 0.05},
    # Beckschen/TransUNet, train.py.
    "transunet": {**_SGD, "learning_rate": 0.01},
    # MIC-DKFZ/nnUNet, nnUNetTrainer.py; its momentum of 0.99 is left at 0.9.
    "dynunet": {**_SGD, "learning_rate": 0.01, "weight_decay": 3e-5, "batch_size": 12},
    # NKUhealong/H2Former, train.py.
    "h2former": {
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 3e-5,
        "schedule": "polynomial",
        "batch_size": 20,
    },
}
"""Of the networks; methods bring their own. U-Net's paper gives no learning rate; it has the common
one."""


def schedule_of(
    system: str, name: ScheduleName, base: Base, warmup_steps: int
) -> Mapping[str, Any]:
    """What `Settings` takes of the schedule of a system; the warm-up is the common schedule's."""
    size = "small base" if base.is_small else "checkpoint"
    found = SYSTEMS[system]
    kind = "networks" if isinstance(found, Network) else "adapters"
    common = {
        "learning_rate": COMMON_RATES[size, kind],
        # At a constant rate every system's Dice jumps by points from epoch to epoch.
        "schedule": "cosine",
        "warmup_steps": warmup_steps,
    }
    if name == "common":
        return common
    if isinstance(found, Network):
        return PUBLISHED.get(system, common)
    schedule = None if found.method is None else find_method(found.method).schedule
    return common if schedule is None else asdict(schedule)


def settings_of(
    system: str,
    schedule: ScheduleName,
    base: Base,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float | None,
    activation_checkpointing: bool,
    images: int,
    seed: int,
) -> Settings:
    """How a run is trained.

    Args:
        system: its key in `SYSTEMS`.
        schedule: which.
        base: what is adapted.
        epochs: of the comparison.
        batch_size: of the common schedule.
        learning_rate: instead of the schedule's, to choose one on the validation patients.
        activation_checkpointing: for what adapts a Sam.
        images: to train on.
        seed: of the run.
    """
    warmup_steps = short_warmup(images, epochs, batch_size)
    values = {"batch_size": batch_size, **schedule_of(system, schedule, base, warmup_steps)}
    if learning_rate is not None:
        values["learning_rate"] = learning_rate
    found = SYSTEMS[system]
    if isinstance(found, Prompted):
        values |= {"activation_checkpointing": activation_checkpointing, **found.settings}
    return Settings(epochs=epochs, points=found.trained_with, seed=seed, **values)
