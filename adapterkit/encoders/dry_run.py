"""Running an encoder so that nothing is changed: in a copy without data, or with all put back."""

import copy
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def copied_without_data(module: nn.Module, model: nn.Module | None = None) -> Iterator[nn.Module]:
    """Within it, all is made on the meta device.

    Nothing is computed there, and nothing that a forward may do to buffers or the random state is
    done to the original, nor is a hook of the user's run. What is kept by functions that remember
    their results is forgotten in the end, for it has no data either.

    Args:
        module: an encoder, say.
        model: what it is in, and may share tensors with; None: nothing else.

    Yields:
        A copy of the module on the meta device, in evaluation, that has neither data nor hooks.
    """
    memo: dict[int, object] = {}
    model = module if model is None else model
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    for each in model.modules():
        memo |= {
            id(value): OrderedDict()
            for name, value in vars(each).items()
            if name.endswith("_hooks") and isinstance(value, OrderedDict)
        }
    replica = copy.deepcopy(module, memo).eval()
    try:
        with torch.device("meta"):
            yield replica
    finally:
        for cache in _caches(module):
            cache.cache_clear()


def _caches(module: nn.Module) -> Iterator[Any]:
    """The functions with a cache in the classes of a module's modules, and beside them."""
    classes = {cls for each in module.modules() for cls in type(each).__mro__}
    own = {cls for cls in classes if not cls.__module__.startswith(("torch.", "builtins"))}
    namespaces = [vars(cls) for cls in own]
    namespaces += [vars(sys.modules[name]) for name in {cls.__module__ for cls in own}]
    for namespace in namespaces:
        for value in list(namespace.values()):
            function = getattr(value, "__func__", value)
            cells = getattr(function, "__closure__", None) or ()
            within = [cell.cell_contents for cell in cells] if callable(function) else []
            yield from (each for each in (function, *within) if hasattr(each, "cache_clear"))


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it, a module is in evaluation; afterwards its modes, buffers and the random state are
    as before."""
    training = [each for each in module.modules() if each.training]
    buffers = [
        (each, name, buffer, buffer.clone())
        for each in module.modules()
        for name, buffer in each._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            module.eval()
            yield
    finally:
        for each in training:
            each.training = True
        for each, name, buffer, value in buffers:
            each._buffers[name] = buffer
            buffer.data.copy_(value)
