"""Which parts an encoder takes, found out by attaching each."""

from collections.abc import Callable
from typing import Any

from torch import nn

from adapterkit.adapters.injection import eject, inject
from adapterkit.attach.attachment import Part
from adapterkit.attach.probe import run_once
from adapterkit.encoders.registry import view
from adapterkit.encoders.views import BLOCK_SITES, ENCODER_SITES, ViT
from adapterkit.parts import (
    CNNBranch,
    FeatureAdapter,
    LoRA,
    Peft,
    PositionAdapter,
    Resize,
    TemporalAttention,
    TemporalConv,
    Train,
)
from adapterkit.system.pages import without_page

SITES = (ENCODER_SITES[0], *BLOCK_SITES, ENCODER_SITES[1])


def _peft(base: ViT) -> list[Part]:
    """peft's LoRA on the last linear layer of the last block, or the last convolution."""
    within = {module: path for path, module in base.encoder.named_modules()}
    layers = [each for each in base.blocks[-1].module.modules() if each in within]
    dense = [each for each in layers if isinstance(each, nn.Conv2d) and each.groups == 1]
    linear = [each for each in layers if isinstance(each, nn.Linear)]
    target = within[(linear or dense)[-1]]
    return [Peft("LoraConfig", {"r": 2, "target_modules": [target]})]


def _branch(base: ViT) -> list[Part]:
    attends = any(block.attends_globally for block in base.blocks)
    return [
        CNNBranch(
            blocks="global" if attends else "last_of_stage",
            stem_channels=4,
            output_scale=0.5 if base.reads_patches else 0.0,
            zero_init=True,
        )
    ]


def _resize(base: ViT) -> list[Part]:
    return [Resize(2 * base.image_size)]


def _feature_adapter(at: Any) -> Callable[[ViT], list[Part]]:
    def parts(base: ViT) -> list[Part]:
        return [FeatureAdapter(at=at)]

    return parts


TRIED: dict[str, Callable[[ViT], list[Part]]] = {
    "LoRA": lambda base: [LoRA(rank=2)],
    **{f"FeatureAdapter at {at}": _feature_adapter(at) for at in SITES},
    "peft": _peft,
    "CNNBranch": _branch,
    "TemporalAttention": lambda base: [TemporalAttention(blocks="all")],
    "TemporalConv": lambda base: [TemporalConv(blocks="all")],
    "PositionAdapter": lambda base: [PositionAdapter()],
    "Resize": _resize,
    "Train rel_pos": lambda base: [Train("rel_pos")],
    "Train": lambda base: [Train(name) for name in list(base.components)[1:2] or ["image_encoder"]],
}
"""By name, the parts that are tried on an encoder."""


def refusals(model: nn.Module) -> dict[str, str | None]:
    """Why an encoder refuses each of `TRIED`, or None where it does not.

    They are attached and taken off again. The page that a refusal names is left out: a table of the
    reasons is on it.

    Args:
        model: one that `view` knows, without adapters; it is left as it is.
    """
    with run_once():
        return {name: _refusal(model, parts) for name, parts in TRIED.items()}


def _refusal(model: nn.Module, parts: Callable[[ViT], list[Part]]) -> str | None:
    try:
        inject(model, parts(view(model)))
    except ValueError as error:
        return without_page(str(error))
    eject(model)
    return None
