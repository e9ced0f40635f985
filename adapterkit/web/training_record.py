"""What is on disk of a folder's trainings: what the last one is at, its curve and its log."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from adapterkit.system.files import atomic_write
from adapterkit.training.state import read_progress

_FILE = "training.json"


@dataclass(frozen=True)
class TrainingWish:
    """What a training is asked for; None is for the default.

    Attributes:
        method: of `adapterkit methods`.
        epochs: so many.
        batch_size: images of a step.
        learning_rate: the highest.
        image_size: side of the square input.
        augment: of the images, as `adapterkit train` has it: "none", "samus" or "medical".
    """

    method: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    image_size: int | None = None
    augment: str = "medical"


@dataclass(frozen=True)
class Job:
    """A training and what came of it.

    Attributes:
        number: of the trainings of the folder.
        status: where it is.
        images: that were accepted when it began.
        epochs: of it.
        held_out: the images that it is measured on.
        before: the adapter in use when it began.
        process: its id.
        dice: of the new adapter on the held-out images.
        dice_before: of the one before.
        offer: whether the new one is better, and nobody has decided yet.
        message: in words.
    """

    number: int
    status: Literal["running", "done", "failed", "stopped"]
    images: int
    epochs: int
    held_out: tuple[str, ...]
    before: str | None
    process: int | None = None
    dice: float | None = None
    dice_before: float | None = None
    offer: bool = False
    message: str = ""

    @property
    def name(self) -> str:
        """Of the adapter that comes of it."""
        return f"trained_{self.number:03d}"


def read_job(own: Path) -> Job | None:
    """The last training of a folder; None where there was none.

    Args:
        own: the folder .adapterkit.
    """
    try:
        stated = json.loads((own / _FILE).read_text(encoding="utf-8"))
        return Job(**{**stated, "held_out": tuple(stated["held_out"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_job(own: Path, job: Job) -> None:
    """Keep what a training is at, atomically."""
    with atomic_write(own / _FILE) as temporary:
        temporary.write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_curve(run: Path) -> list[dict[str, float]]:
    """Loss and validation Dice of the epochs of a run that are complete."""
    try:
        if (run / "metrics.json").is_file():
            history = json.loads((run / "metrics.json").read_text())["history"]
        else:
            state = read_progress(run / "training_state.safetensors")
            history = [asdict(epoch) for epoch in state.history]
    except (OSError, ValueError, KeyError):
        return []
    return [
        {"epoch": each["epoch"], "loss": each["loss"], "dice": each["validation_dice"]}
        for each in history
    ]


def log_tail(file: Path, lines: int = 12) -> str:
    """The last lines of a log; "" of none."""
    try:
        text = file.read_bytes()[-20_000:].decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.replace("\r", "\n").splitlines()[-lines:])
