"""What can be set of the pretraining of the small Segment Anything model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Config:
    out: Path = Path("runs/minisam")
    """Folder for the weights and the states to resume from."""
    length: float = 1.0
    """Factor on the steps of all stages; 0.01 for a trial."""
    mixed_precision: Literal["no", "bf16"] = "bf16"
    """Of the forward passes; "no" where the processor has no arithmetic in bfloat16."""
    seed: int = 0
    """Of weights, scenes and prompts."""
    workers: int = 1
    """Processes that draw scenes, for each one that trains."""
    resume: bool = False
    """Go on from the state in the folder, with the other options as they were."""
