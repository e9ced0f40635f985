"""Folding what is linear in an adapter into the base's own weights."""

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn

from adapterkit.adapters.injection import Model, adapters_of, deactivated, eject
from adapterkit.attach.actions import Action, Forward, Overlay
from adapterkit.attach.attachment import AttachedPart
from adapterkit.attach.overlay import Override, raw_parameter
from adapterkit.parts import Adapted, LowRankUpdate


def merge(model: Model) -> Model:
    """Fold the active adapters' LoRA, `Train` and peft parts into the base; keep the other parts.

    The model then computes the same with fewer steps: to the bit for LoRA and `Train`, and up to
    rounding for peft, whose layers compute beside the weight what merging adds to it. A `Train`
    part whose copy has another shape than the original (resized relative positions) stays. The base
    is changed for good: `eject` afterwards gives the merged base, with which an adapter saved
    before no longer fits. An adapter of which nothing is left is removed.

    Args:
        model: one with adapters.

    Returns:
        The same model.

    Raises:
        ValueError: there is no adapter, nothing in the active ones can be merged, peft cannot merge
            one of its methods, or two modules of the base share a parameter that one of them would
            change; the model is as before.
    """
    found = adapters_of(model)
    if found is None:
        raise ValueError("this model has no adapter to merge; inject or load one first")
    active = found.active
    mergeable = [
        (found[name], each) for name in active for each in found[name].attached if _is_linear(each)
    ]
    if not mergeable:
        raise ValueError(
            f"nothing in the active adapters {active} is linear in the base's weights; LoRA, Train "
            "and peft parts are"
        )
    with deactivated(model) as base:
        folded = _folded([each for _, each in mergeable])
        _check_untied(base.model, folded)
    found.activate(())
    with torch.no_grad():
        for (module, name), value in folded.items():
            raw_parameter(module, name).copy_(value)
    for adapter, attached in mergeable:
        adapter.remove(attached)
    for name in active:
        if not found[name].attached:
            delattr(found, name)
    found.activate([name for name in active if name in found.names])
    return model if found.names else eject(model)


def _is_linear(attached: AttachedPart) -> bool:
    actions = [*attached.actions, *attached.last_actions]
    return bool(actions) and all(
        (isinstance(each, Forward) and isinstance(each.layer, Adapted))
        or (isinstance(each, Overlay) and _keeps_shape(each.transform, each.module, each.name))
        for each in actions
    )


def _is_copy(action: Action) -> bool:
    return isinstance(action, Overlay) and isinstance(action.transform, Override)


def _keeps_shape(transform: object, module: nn.Module, name: str) -> bool:
    if isinstance(transform, Override):
        return transform.value.shape == raw_parameter(module, name).shape
    return isinstance(transform, LowRankUpdate)


def _check_untied(model: nn.Module, folded: Collection[tuple[nn.Module, str]]) -> None:
    names: dict[nn.Parameter, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(path)
    for module, name in folded:
        shared = names.get(cast("nn.Parameter", raw_parameter(module, name)), [])
        if len(shared) > 1:
            raise ValueError(
                f"{' and '.join(shared)} are one parameter, so that merging what adapts one would "
                "change the others; give each a copy of its own first, or keep the adapter"
            )


@torch.no_grad()
def _folded(parts: list[AttachedPart]) -> dict[tuple[nn.Module, str], Tensor]:
    """The parameters, by module and name, as the parts let them be seen."""
    folded: dict[tuple[nn.Module, str], Tensor] = {}
    actions = [action for part in parts for action in part.actions]
    # Trained copies first, since they lie below the other overlays.
    for each in sorted(actions, key=lambda action: not _is_copy(action)):
        if isinstance(each, Overlay):
            key = each.module, each.name
            folded[key] = each.transform(folded.get(key, raw_parameter(*key)))
        elif isinstance(each, Forward) and isinstance(each.layer, Adapted):
            folded |= {(each.module, name): value for name, value in each.layer.merged().items()}
    return folded
