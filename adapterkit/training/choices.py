"""The names among which the options of a training choose."""

from typing import Literal

Loss = Literal["samus", "dice-ce", "dice-focal"]
AugmentationName = Literal["none", "samus", "medical"]
Flip = Literal["horizontal", "vertical"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
