"""The command `adapterkit train`."""

from typing import Annotated

from tyro.conf import arg

from adapterkit.system.command_line import console
from adapterkit.training.options import TrainingOptions


def train(options: Annotated[TrainingOptions, arg(name="")]) -> None:
    """Adapt a Segment Anything model to images of your own, and measure it.

    Patients, or whatever images belong together, are split 7:1:2 into training, validation and
    test. What is trained, tables and figures come into a folder; interrupted, it goes on with
    --resume.

    Example: adapterkit train thyroid --method samus_plus --checkpoint sam_vit_b_01ec64.pth
    """
    from adapterkit.training.own_data import train_as

    train_as(options, console)
