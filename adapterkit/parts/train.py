"""Training some of the base's own parameters, without changing the base."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import CONTAINER, Attachment
from adapterkit.attach.overlay import Override, raw_parameter
from adapterkit.encoders.views import Blocks
from adapterkit.encoders.wrappers import plain_names
from adapterkit.parts.registry import register_part
from adapterkit.system.pages import see


@register_part
@dataclass(frozen=True)
class Train:
    """Trains a component of the model: the model sees a trained copy, the base keeps its own.

    Starts as the identity: the copy begins with the base's values.

    Args:
        what: "rel_pos", the relative-position tables of the chosen blocks, resized linearly to the
            grid that `Resize`, earlier in the list, asks for, as SAM itself does at every forward;
            or a component of the model ("mask_decoder", "prompt_encoder", "neck").
        blocks: of which blocks, for "rel_pos".
    """

    what: str
    blocks: Blocks = "all"

    def attach(self, to: Attachment) -> None:
        if self.what == "rel_pos":
            self._attach_rel_pos(to)
        elif self.what in to.view.components:
            self._attach_component(to, to.view.components[self.what])
        else:
            raise ValueError(
                f"Train({self.what!r}): expected 'rel_pos' or a component of this model, one of "
                f"{sorted(to.view.components)}"
            )

    def _attach_rel_pos(self, to: Attachment) -> None:
        tables = [
            (block, owner, name)
            for block in to.select(self.blocks)
            for owner, name in block.rel_pos
        ]
        if not tables:
            raise ValueError(
                "Train('rel_pos'): this encoder has no relative-position tables as SAM's; leave it "
                "out, or train whatever positions it has with Train('image_encoder'); "
                + see("encoders.md", "which-family-takes-which-part")
            )
        for block, owner, name in tables:
            table = _initial(raw_parameter(owner, name))
            if block.attends_globally:
                table = resize_rel_pos(table, 2 * to.grid[0] - 1)
            trained = Override(table)
            to.add(f"trained.blocks.{block.index}.{name}", trained)
            to.overlay(owner, name, trained)

    def _attach_component(self, to: Attachment, component: nn.Module) -> None:
        plain_name = plain_names(component)
        left_out = {part for module in to.view.not_trained for part in module.modules()}
        tied = _tied(to.view.model, component)
        for module_path, module in component.named_modules():
            if CONTAINER in module_path.split(".") or module in left_out:
                continue  # Other adapters' parameters are no part of the model.
            module_path = plain_name(module_path)
            for name, parameter in module.named_parameters(recurse=False):
                if parameter in tied or parameter in to.replaced:
                    continue
                trained = Override(_initial(parameter))
                path = ".".join(filter(None, ("trained", self.what, module_path, name)))
                to.add(path, trained)
                to.overlay(module, name, trained)


def _tied(model: nn.Module, component: nn.Module) -> set[nn.Parameter]:
    """The component's parameters that the rest of the model has too: a trained copy for one of the
    places would part what is to stay one."""
    within = set(component.modules())
    others = (module for module in model.modules() if module not in within)
    elsewhere = {each for module in others for each in module.parameters(recurse=False)}
    return elsewhere & set(component.parameters())


def _initial(parameter: Tensor) -> Tensor:
    """The base's values, or none where what is built on the meta device is to be filled."""
    return parameter.detach().to("meta") if torch.get_default_device().type == "meta" else parameter


def resize_rel_pos(table: Float[Tensor, "old d"], length: int) -> Float[Tensor, "length d"]:
    """A relative-position table, (2 * size - 1, d), interpolated linearly to another length."""
    if len(table) == length:
        return table
    rows = rearrange(table, "old d -> 1 d old")
    resized = F.interpolate(rows, length, mode="linear", align_corners=False)
    return rearrange(resized, "1 d length -> length d")
