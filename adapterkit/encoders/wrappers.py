"""Seeing through what PyTorch wraps around a module to compile, checkpoint or distribute it."""

from collections.abc import Callable

from torch import Tensor, nn

CONTAINER = "adapterkit"
"""The encoder's attribute, and so the state-dict prefix, under which adapters live."""

_NAMES = ("_orig_mod", "module", "_checkpoint_wrapped_module")


def unwrapped(module: nn.Module) -> nn.Module:
    """The module within `DistributedDataParallel`, `torch.compile`'s and other wrappers, if any."""
    while (name := _name_of_wrapped(module)) is not None:
        module = module.get_submodule(name)
    return module


def check_not_flattened(model: nn.Module) -> None:
    """Refuse a model within `FullyShardedDataParallel`, whose parameters are pieces of one vector.

    Raises:
        ValueError: it is in one, or holds one.
    """
    if any(getattr(each, "_fsdp_flattened", False) for each in model.parameters()):
        raise ValueError(
            "FullyShardedDataParallel (FSDP1) leaves a process pieces of parameters, of which no "
            "adapter can be made; after inject, use torch.distributed.fsdp.fully_shard (FSDP2) or "
            "DistributedDataParallel instead"
        )


def plain_names(model: nn.Module) -> Callable[[str], str]:
    """What removes wrappers from the names of `model`'s modules, parameters and buffers.

    "image_encoder._orig_mod.blocks.0" becomes "image_encoder.blocks.0".
    """
    wrappers: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        name = _name_of_wrapped(module)
        if name is not None:
            wrappers.append((f"{path}." if path else "", name))

    def plain(name: str) -> str:
        for path, wrapped in reversed(wrappers):  # The inner ones first.
            if name == path + wrapped:
                name = path.removesuffix(".")
            elif name.startswith(f"{path}{wrapped}."):
                name = path + name.removeprefix(f"{path}{wrapped}.")
        return name

    return plain


def whole(value: Tensor) -> Tensor:
    """A tensor that `fully_shard` has distributed, gathered; every process has to ask for it."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def _name_of_wrapped(module: nn.Module) -> str | None:
    defined_in = type(module).__module__
    if not defined_in.startswith("torch.") or defined_in.startswith("torch.nn.modules."):
        return None
    return next((name for name in _NAMES if list(module._modules) == [name]), None)
