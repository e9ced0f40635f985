"""Which modules of an encoder its forward calls.

A hook on a module that is never called does nothing, and says nothing. Some encoders use a
projection's weight without calling the projection (EVA02, BEiT).
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.actions import Forward, ForwardHook, ForwardPreHook
from adapterkit.attach.attachment import Adapter
from adapterkit.encoders.dry_run import copied_without_data, undisturbed
from adapterkit.encoders.views import ViT
from adapterkit.system.pages import see

_known: dict[nn.Module, set[nn.Module]] | None = None
"""For each encoder, which of its modules are called, while that is remembered."""


@contextmanager
def run_once() -> Iterator[None]:
    """Within it, an encoder is run once without data, for whichever adapters are attached to it.

    Nothing else about it may be changed meanwhile.
    """
    global _known
    _known = {}
    try:
        yield
    finally:
        _known = None


def check_reached(base: ViT, adapter: Adapter) -> None:
    """Refuse an adapter of which some part is at a module that the encoder's forward never calls.

    Args:
        base: without an active adapter.
        adapter: built for it, and not active.

    Raises:
        ValueError: there is such a part, or the encoder's forward fails on a black image.
    """
    _check_decoder(base, adapter)
    paths = {module: path for path, module in base.encoder.named_modules()}
    sites = {
        action.module: attached.part
        for attached in adapter.attached
        for action in (*attached.actions, *attached.last_actions)
        if isinstance(action, Forward | ForwardHook | ForwardPreHook) and action.module in paths
    }
    if not sites:
        return
    missed = _never_called(base, sites)
    if missed:
        raise ValueError(
            f"{sites[missed[0]]}: the forward of this {base.family} encoder never calls "
            f"{', '.join(paths[module] for module in missed)}, so what is attached there would do "
            "nothing. adapterkit.parts.LoRA, which lies over the weight, reaches a "
            "query-key-value projection that is used without being called; else choose other "
            "modules; " + see("concepts/parts_sites_views.md", "parts")
        )


def _check_decoder(base: ViT, adapter: Adapter) -> None:
    """The same of the model around the encoder: its prompt encoder and mask decoder."""
    within = set(base.encoder.modules())
    paths = {module: path for path, module in base.model.named_modules() if module not in within}
    sites = {
        action.module: attached.part
        for attached in adapter.attached
        for action in (*attached.actions, *attached.last_actions)
        if isinstance(action, Forward | ForwardHook | ForwardPreHook) and action.module in paths
    }
    if not sites or base.decoder is None:
        return
    try:
        called = _called(base.model, base.decoder.try_out)
    except RuntimeError:
        # A stock prompt encoder cannot run in half or double precision.
        return
    missed = [module for module in sites if module not in called]
    if missed:
        raise ValueError(
            f"{sites[missed[0]]}: {paths[missed[0]]} of this {base.family} model is not called "
            "where prompts are decoded, so what is attached there would do nothing; attach it to a "
            f"module in it that is called, such as {_some_called(paths, called)}"
        )


def _some_called(paths: dict[nn.Module, str], called: set[nn.Module]) -> str:
    return ", ".join([paths[each] for each in called if each in paths][:3])


def _never_called(base: ViT, modules: Collection[nn.Module]) -> list[nn.Module]:
    try:
        called = _called_in_a_copy_without_data(base)
    except Exception:
        called = set()
    if all(module in called for module in modules):
        return []
    # A forward that a user has replaced may refer to the original's modules, and another may need
    # values or hooks that the copy lacks.
    called = _called_on_a_black_image(base)
    return [module for module in modules if module not in called]


def _called_in_a_copy_without_data(base: ViT) -> set[nn.Module]:
    """Of the encoder, found with a copy that has its structure and neither data nor hooks."""
    if _known is not None and base.encoder in _known:
        return _known[base.encoder]
    with copied_without_data(base.encoder, base.model) as replica:
        image = _black_image(base, torch.device("meta"))
        called = _called(replica, lambda: replica(image))
    originals = dict(base.encoder.named_modules())
    found = {originals[path] for path, module in replica.named_modules() if module in called}
    if _known is not None:
        _known[base.encoder] = found
    return found


def _called_on_a_black_image(base: ViT) -> set[nn.Module]:
    """Of the encoder, found by running it; its modes, buffers and the random state are restored."""
    image = _black_image(base, base.patch_projection.weight.device)
    try:
        with undisturbed(base.encoder, image.device):
            return _called(base.encoder, lambda: base.encoder(image))
    except Exception as error:
        raise ValueError(
            f"the forward of this {base.family} encoder fails on a black image of "
            f"{base.image_size}x{base.image_size} pixels, before anything is attached: {error}"
        ) from error


def _black_image(base: ViT, device: torch.device) -> Float[Tensor, "1 channels size size"]:
    size = (1, base.in_channels, base.image_size, base.image_size)
    return torch.zeros(size, dtype=base.patch_projection.weight.dtype, device=device)


@torch.no_grad()
def _called(model: nn.Module, run: Callable[[], object]) -> set[nn.Module]:
    """The modules of the model that are called when something of it runs."""
    called: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, args: called.add(module))
        for module in model.modules()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return called
