"""Parameters that a module sees through a transform.

An overlay changes what a module reads from one of its parameters, `module.pos_embed` say, and
nothing else: the parameter stays where it is, under its own state-dict key, so base checkpoints
load, optimisers find it, and taking the overlay off gives the same parameter back.

`torch.nn.utils.parametrize` has the same purpose but renames the state-dict key, lists the
transform's own parameters a second time, cannot be pickled, and breaks deep copies of a module
when the original is unparametrised, since both share one class that the removal edits. Here a
class is made once per (base class, overlaid names, number of hooks) and never edited.

Hooks count since a compiled forward is guarded by the classes of the modules that it goes through,
but not by whether there are hooks on them: a class of its own tells `torch.compile` that there are.
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
    if current:
        module.__dict__[_OVERLAYS] = current
    else:
        module.__dict__.pop(_OVERLAYS, None)
    _change(module, plain_class(module), _hooks(module))


def count_hooks(module: nn.Module, more: int) -> None:
    """Note that `module` has so many more hooks of adapters, or fewer."""
    _change(module, plain_class(module), _hooks(module) + more)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of `module` without its overlays and hooks."""
    return getattr(type(module), "_plain_class", type(module))


def set_class(module: nn.Module, base: type[nn.Module]) -> None:
    """Make `module` one of class `base`, with the overlays and hooks that it has."""
    _change(module, base, _hooks(module))


def _hooks(module: nn.Module) -> int:
    return getattr(type(module), "_number_of_hooks", 0)


def raw_parameter(module: nn.Module, name: str) -> Tensor:
    """The parameter itself, whatever lies over it."""
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def _read_through(name: str) -> property:
    def read(module: nn.Module) -> Tensor:
        value = raw_parameter(module, name)
        if type(value) is not nn.Parameter and hasattr(value, "full_tensor"):
            return value  # fully_shard's: it is seen as a whole during a forward, and so changed.
        for transform in module.__dict__[_OVERLAYS][name]:
            value = transform(value)
        return value

    return property(read)


def _change(module: nn.Module, base: type[nn.Module], hooks: int) -> None:
    """Give `module` the class that its overlays and so many hooks on class `base` ask for."""
    wanted = _changed(base, frozenset(overlays(module)), hooks)
    current = type(module)
    changed = vars(current).get("_plain_class", current) is not current
    inherits = getattr(current, "_plain_class", None) is not None
    if inherits and not changed:
        # fully_shard has made a class of its own on top.
        bases = tuple(wanted if hasattr(b, "_plain_class") else b for b in current.__bases__)
        wanted = type(current.__name__, bases, dict(vars(current)))
    module.__class__ = wanted


def _rebuild(base: type[nn.Module], names: frozenset[str], hooks: int) -> nn.Module:
    changed = _changed(base, names, hooks)
    return changed.__new__(changed)


@cache
def _changed(base: type[nn.Module], names: frozenset[str], hooks: int) -> type[nn.Module]:
    """The class of a module of class `base` with overlays of these names and so many hooks."""
    if not names and not hooks:
        return base

    def reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (base, names, hooks), module.__dict__

    def delete(module: nn.Module, name: str) -> None:
        # Its first step in making a vector of all parameters.
        if name in names:
            raise ValueError(
                f"the {base.__name__}'s {name} is changed by an adapter, and so cannot be deleted, "
                "as FullyShardedDataParallel (FSDP1) does; use torch.distributed.fsdp.fully_shard "
                "(FSDP2) or DistributedDataParallel instead, or eject the adapter first"
            )
        base.__delattr__(module, name)

    members: dict[str, Any] = {name: _read_through(name) for name in names}
    members |= {
        "_plain_class": base,
        "_number_of_hooks": hooks,
        "__reduce_ex__": reduce,
        "__delattr__": delete,
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
