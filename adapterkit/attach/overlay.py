"""Parameters that a module sees through a transform.

An overlay changes what a module reads from one of its parameters, `module.pos_embed` say, and
nothing else: the parameter stays where it is, under its own state-dict key, so base checkpoints
load, optimisers find it, and taking the overlay off gives the same parameter back.

`torch.nn.utils.parametrize` has the same purpose but renames the state-dict key, lists the
transform's own parameters a second time, cannot be pickled, and breaks deep copies of a module
when the original is unparametrised, since both share one class that the removal edits. Here a
class is made once per (base class, overlaid names) and never edited.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Transform = Callable[[Tensor], Tensor]
_OVERLAYS = "_overlays"


def overlays(module: nn.Module) -> dict[str, tuple[Transform, ...]]:
    """The transforms on each overlaid parameter of `module`, in the order they are applied."""
    return module.__dict__.get(_OVERLAYS, {})


def set_overlay(module: nn.Module, name: str, transforms: tuple[Transform, ...]) -> None:
    """Let `module` read its parameter `name` through `transforms`, replacing those it has now.

    Args:
        module: the module whose own parameter (not a child's) is overlaid.
        name: the parameter's name in `module`.
        transforms: applied in order at every read. Objects rather than closures, so that a deep
            copy of the module has transforms of its own. Empty: the plain parameter again.
    """
    current = {**overlays(module), name: transforms}
    current = {key: value for key, value in current.items() if value}
    base = plain_class(module)
    if current:
        module.__dict__[_OVERLAYS] = current
        module.__class__ = _overlaid(base, frozenset(current))
    else:
        module.__dict__.pop(_OVERLAYS, None)
        module.__class__ = base


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of `module` without its overlays."""
    return getattr(type(module), "_overlaid_class", type(module))


def set_class(module: nn.Module, base: type[nn.Module]) -> None:
    """Make `module` one of class `base`, with the overlays that it has."""
    names = frozenset(overlays(module))
    module.__class__ = _overlaid(base, names) if names else base


def raw_parameter(module: nn.Module, name: str) -> Tensor:
    """The parameter itself, whatever lies over it."""
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def _read_through(name: str) -> property:
    def read(module: nn.Module) -> Tensor:
        value = raw_parameter(module, name)
        for transform in module.__dict__[_OVERLAYS][name]:
            value = transform(value)
        return value

    return property(read)


def _rebuild(base: type[nn.Module], names: frozenset[str]) -> nn.Module:
    overlaid = _overlaid(base, names)
    return overlaid.__new__(overlaid)


@cache
def _overlaid(base: type[nn.Module], names: frozenset[str]) -> type[nn.Module]:
    def reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (base, names), module.__dict__

    members: dict[str, Any] = {name: _read_through(name) for name in names}
    members |= {
        "_overlaid_class": base,
        "__reduce_ex__": reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (base,), members)


class Override(nn.Module):
    """A trained stand-in for a frozen parameter, as an overlay: it ignores what lies below.

    Args:
        initial: any shape; the starting value, copied. It may differ in shape from the parameter
            that it stands for (a relative-position table resized to another grid).
    """

    def __init__(self, initial: Tensor):
        super().__init__()
        self.value = nn.Parameter(initial.detach().clone(memory_format=torch.contiguous_format))

    def forward(self, frozen: Tensor) -> Tensor:
        return self.value
