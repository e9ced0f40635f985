"""Folding what is linear in an adapter into the base's own weights."""

import torch
from torch import nn

from adapterkit.attachment import Adapter, AttachedPart, Overlay
from adapterkit.inject import Model, adapters, eject
from adapterkit.overlay import Override, raw_parameter
from adapterkit.parts import LowRankUpdate


def merge(model: Model) -> Model:
    """Fold the active adapters' LoRA and `Train` parts into the base, and keep the other parts.

    The model then computes the same, to the bit, with fewer steps. A `Train` part whose copy has
    another shape than the original (resized relative positions) stays. The base is changed for
    good: `eject` afterwards gives the merged base, with which an adapter saved before no longer
    fits. An adapter of which nothing is left is removed.

    Returns:
        The same model.

    Raises:
        ValueError: there is no adapter, or nothing in the active ones can be merged; the model is
            as before.
    """
    found = adapters(model)
    if found is None:
        raise ValueError("this model has no adapter to merge; inject or load one first")
    active = found.active
    mergeable = [
        (found[name], each) for name in active for each in found[name].attached if _is_linear(each)
    ]
    if not mergeable:
        raise ValueError(
            f"nothing in the active adapters {active} is linear in the base's weights; LoRA and "
            "Train parts are"
        )
    found.activate(())
    for adapter, attached in mergeable:
        _fold(adapter, attached)
    for name in active:
        if not found[name].attached:
            delattr(found, name)
    found.activate([name for name in active if name in found.names])
    return model if found.names else eject(model)


def _is_linear(attached: AttachedPart) -> bool:
    actions = [*attached.actions, *attached.last_actions]
    return bool(actions) and all(
        isinstance(each, Overlay) and _keeps_shape(each.transform, each.module, each.name)
        for each in actions
    )


def _keeps_shape(transform: object, module: nn.Module, name: str) -> bool:
    if isinstance(transform, Override):
        return transform.value.shape == raw_parameter(module, name).shape
    return isinstance(transform, LowRankUpdate)


@torch.no_grad()
def _fold(adapter: Adapter, attached: AttachedPart) -> None:
    for each in attached.actions:
        assert isinstance(each, Overlay)
        parameter = raw_parameter(each.module, each.name)
        parameter.copy_(each.transform(parameter))
    adapter.remove(attached)
