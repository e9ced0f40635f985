"""Devices, processes, precision and trackers of a training, by accelerate."""

import atexit
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import (
    ProjectConfiguration,
    is_mlflow_available,
    is_tensorboard_available,
    is_wandb_available,
)

from adapterkit.training.choices import Tracker

_INSTALLED = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "mlflow": is_mlflow_available,
}


def make_accelerator(
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None, track: Sequence[Tracker] = ()
) -> Accelerator:
    """accelerate's handling of devices, processes and precision, as `train` needs it.

    Args:
        mixed_precision: None for what `accelerate launch` says, or none.
        track: to whom `train` tells loss, learning rate and Dice, once `log_to` has said where.

    Raises:
        ValueError: one of them is not installed.
    """
    missing = [name for name in track if not _INSTALLED[name]()]
    if missing:
        raise ValueError(
            f"--track {missing[0]}: it is not installed: pip install {missing[0]}, or do without"
        )
    return Accelerator(
        # Processes that torchrun starts find each other without a GPU only if told so.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=mixed_precision,
        log_with=list(track) or None,
        project_config=ProjectConfiguration(".") if track else None,
        # The loss does not use all: not a trained decoder's estimate of its own quality, say.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


@atexit.register
def _end_processes() -> None:
    # Not at the end of a training, after which there may be another: a fold's, or a recipe's next.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def log_to(folder: Path, accelerator: Accelerator, run: str, config: Mapping[str, Any]) -> None:
    """Let the trackers write into a folder, as far as they do not write elsewhere.

    Args:
        folder: of the run.
        accelerator: from `make_accelerator`.
        run: its name, for trackers that compare several.
        config: what it was run with.
    """
    if not accelerator.log_with:
        return
    accelerator.project_configuration.logging_dir = str(folder)
    plain = {
        name: value if isinstance(value, int | float | str | bool) else str(value)
        for name, value in config.items()
    }
    accelerator.init_trackers(
        "adapterkit",
        plain,
        init_kwargs={
            "wandb": {"dir": str(folder), "name": run},
            "mlflow": {"run_name": run},
        },
    )
