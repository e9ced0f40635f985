"""Attaching adapters to a model, switching them, and taking them off again."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from keyword import iskeyword
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adapterkit.adapters.named import Adapters
from adapterkit.attach.attachment import CONTAINER, Adapter, Part
from adapterkit.attach.probe import check_reached
from adapterkit.encoders import registry
from adapterkit.encoders.views import ViT
from adapterkit.encoders.wrappers import plain_names, unwrapped, whole
from adapterkit.kernels.fast_forward import keep_fast
from adapterkit.methods import parts_of
from adapterkit.parts import as_part

Model = TypeVar("Model", bound=nn.Module)


def adapters_of(model: nn.Module) -> Adapters | None:
    """The adapters on `model`'s encoder.

    Args:
        model: one that `view` knows.

    Returns:
        The adapters by name, in the order in which they were injected; None where there are none.

    Raises:
        TypeError: `model` is of no family that adapterkit knows.
    """
    return adapters_on(registry.view(model).encoder)


def adapters_on(encoder: nn.Module) -> Adapters | None:
    """The adapters on an image encoder, as `view(model).encoder` gives it; None if it has none."""
    found = encoder._modules.get(CONTAINER)
    return found if isinstance(found, Adapters) else None


def inject(
    model: Model,
    method: str | Sequence[Any],
    name: str = "default",
    view: Callable[[Any], ViT] | None = None,
    **options: Any,
) -> Model:
    """Attach a method to `model`, in place, and freeze everything else.

    Afterwards `model.parameters()` that require gradients are the adapter's. Earlier adapters stay
    loaded but inactive; `activate` switches or stacks them.

    Args:
        model: one that `adapterkit.view` knows: a `Sam`, an encoder of timm or transformers, a
            module with one in it; compiled or not. Wrap it for several processes afterwards.
        method: the name of a method, such as "samus", whose parts fit this encoder; or a list of
            parts, attached in order. A configuration of peft is a part too, see `parts.Peft`.
        name: of this adapter, unique on this model.
        view: for a model of your own, gives its view; from then on all models of its class, in this
            process, are known by it. `encoders.described.Description` makes one of names.
        **options: of the named method, such as `image_size=256`.

    Returns:
        The same model.

    Raises:
        TypeError: `model` is of no family that adapterkit knows.
        ValueError: there is no such method or option, a part does not fit this encoder or would do
            nothing there, or the name is taken; the model is as before.
    """
    if view is not None:
        registry.register_class(type(unwrapped(model)), view)
    with deactivated(model) as base:
        parts = parts_of(method, base, **options) if isinstance(method, str) else method
        if options and not isinstance(method, str):
            raise ValueError(
                f"options {', '.join(options)} are for a named method; a list of parts has none"
            )
        attach(base, Adapter(base, _checked(parts)), name)
    if any(isinstance(each, DistributedDataParallel) for each in model.modules()):
        warnings.warn(
            "the model is in DistributedDataParallel already, which knows nothing of the adapter's "
            "parameters and will not share their gradients; to train, inject first, then wrap",
            stacklevel=2,
        )
    return model


def inject_samus(
    model: Model, image_size: int = 256, patch_stride: int = 8, name: str = "default"
) -> Model:
    """Attach SAMUS to `model`, in place, and freeze everything else.

    The same as `inject(model, "samus", name, image_size=image_size, patch_stride=patch_stride)`.

    Args:
        model: one that `view` knows.
        image_size: side of the square input, in pixels.
        patch_stride: pixels between patches, which keep SAM's 16x16 kernel and so overlap.
        name: of this adapter, unique on this model.

    Returns:
        The same model.

    Raises:
        TypeError: `model` is of no family that adapterkit knows.
        ValueError: it has no place for SAMUS, or the name is taken; the model is as before.
    """
    return inject(model, "samus", name, image_size=image_size, patch_stride=patch_stride)


def eject(model: Model) -> Model:
    """Take every adapter off `model`: each bit, key, flag, hook and attribute is as before.

    Args:
        model: one with adapters.

    Returns:
        The same model.

    Raises:
        ValueError: there is no adapter on it.
    """
    encoder = registry.view(model).encoder
    found = _or_raise(adapters_on(encoder))
    found.activate(())
    found.unfreeze()
    delattr(encoder, CONTAINER)
    return model


def remove(model: Model, name: str) -> Model:
    """Take one adapter off `model`; the others stay. Without any left, the model is ejected.

    Args:
        model: one with adapters.
        name: of the adapter.

    Returns:
        The same model.

    Raises:
        ValueError: there is no adapter of that name.
    """
    found = _or_raise(adapters_of(model))
    found.activate([each for each in found.active if found[name] is not found[each]])
    delattr(found, name)
    return model if found.names else eject(model)


def activate(model: Model, *names: str) -> Model:
    """Make exactly the named adapters take part in `model`'s forward, applied in this order.

    Args:
        model: one with adapters.
        *names: of adapters on it; none of them for the base alone.

    Returns:
        The same model.

    Raises:
        ValueError: a name is unknown or given twice, or the adapters cannot be stacked because two
            of them set the same (input size, normalisation), are made for images of other sizes,
            or change one module that peft adapts; the model is as before.
    """
    _or_raise(adapters_of(model)).activate(names)
    return model


@contextmanager
def disabled(model: Model) -> Iterator[Model]:
    """Within the context, `model` computes what the base computes, at the base's input size.

    Args:
        model: one with adapters.

    Yields:
        The same model.

    Raises:
        ValueError: there is no adapter on it.
    """
    _or_raise(adapters_of(model))
    with deactivated(model):
        yield model


@contextmanager
def deactivated(model: nn.Module) -> Iterator[ViT]:
    """The view of the base: within the context, no adapter of `model` is active.

    On leaving, those that were active and are still there are so again, unless others were
    activated meanwhile.
    """
    base = registry.view(model)
    found = adapters_on(base.encoder)
    was_active = found.active if found else ()
    if found and was_active:
        found.activate(())
        base = registry.view(model)
    try:
        yield base
    finally:
        if found and adapters_on(base.encoder) is found and not found.active:
            found.activate([name for name in was_active if name in found.names])


def attach(base: ViT, adapter: Adapter, name: str) -> None:
    """Put a built adapter on the base's encoder under `name`, active, and freeze the base.

    Raises:
        ValueError: the name is taken or is no valid name, or the encoder's forward does not reach
            what the adapter is attached to; nothing has changed then.
    """
    found = adapters_on(base.encoder) or Adapters()
    check_name(found, name)
    check_reached(base, adapter)
    adapter.train(base.encoder.training)
    keep_fast(base.encoder, adapter)
    adapter.activate()
    found.add_module(name, adapter)
    found.active = (name,)
    found.freeze(base.model)
    base.encoder.add_module(CONTAINER, found)


def check_name(found: Adapters | None, name: str) -> None:
    """Refuse a name that no adapter can have beside those that are `found`.

    Raises:
        ValueError: the name is taken or is no valid name.
    """
    found = found or Adapters()
    if name in found.names:
        raise ValueError(
            f"an adapter named {name!r} is on this model; eject it first, or give another name"
        )
    if not name.isidentifier() or iskeyword(name) or hasattr(found, name):
        raise ValueError(f"adapter name {name!r}: expected a Python identifier that is no keyword")


def trained_tensors(base: ViT) -> dict[str, str]:
    """Names of the base's parameters that are trained, and the part that would save each.

    No adapter holds them: `inject` freezes the base, so someone has thawed them since. "" where no
    part can.
    """
    plain_name = plain_names(base.model)
    paths = {module: plain_name(path) for path, module in base.model.named_modules()}
    found: dict[str, str] = {}
    for wrapped_name, parameter in base.model.named_parameters():
        name = plain_name(wrapped_name)
        if parameter.requires_grad and CONTAINER not in name.split("."):
            holders = [
                what
                for what, component in base.components.items()
                if component is not base.encoder
                and component in paths
                and name.startswith(f"{paths[component]}.")
            ]
            found[name] = f'Train("{holders[0]}")' if holders else ""
    return found


def base_state_dict(base: ViT) -> dict[str, Tensor]:
    """The tensors of the base, not of its adapters, named as within a `Sam` also where the model
    is an encoder alone."""
    prefix = "image_encoder." if base.model is base.encoder else ""
    plain_name = plain_names(base.model)
    return {
        prefix + plain_name(key): whole(value)
        for key, value in base.model.state_dict().items()
        if CONTAINER not in key.split(".")
    }


def _checked(parts: Sequence[Any]) -> list[Part]:
    if not isinstance(parts, Sequence) or not parts:
        raise ValueError(f"parts={parts!r}: expected a list of parts, or the name of a method")
    checked = [as_part(part) for part in parts]
    for part in checked:
        if isinstance(part, type):
            raise ValueError(f"parts holds the class {part.__name__}; write {part.__name__}()")
        if not hasattr(part, "attach"):
            raise ValueError(f"parts holds {part!r}, which is not a part; see adapterkit.parts")
    return checked


def _or_raise(found: Adapters | None) -> Adapters:
    if found is None:
        raise ValueError("this model has no adapter; inject or load one first")
    return found
