"""Whether what is to be trained gets gradients."""

import warnings
from collections.abc import Iterator

from torch import nn

from adapterkit.adapters.named import Adapters
from adapterkit.attach.attachment import CONTAINER


def warn_of_missing_gradients(model: nn.Module) -> None:
    """Name what is trained in an image encoder and has no gradient after a backward pass.

    Call it after the first one. Activation checkpointing in its reentrant form
    (`checkpoint(..., use_reentrant=True)`) is the common cause: it gives none to what is trained in
    a block whose input needs no gradient, as the first block's, and says nothing. What is trained
    in a decoder may rightly have none, where the loss does not ask for it, and is not looked at.

    Args:
        model: whatever holds an encoder with active adapters.

    Warns:
        UserWarning: there are such parameters.
    """
    missing = [
        name for name, each in _in_encoders(model) if each.requires_grad and each.grad is None
    ]
    if missing:
        warnings.warn(
            f"{len(missing)} trained parameters have no gradient after the first step, so that "
            f"they stay as they are: {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}."
            " If you checkpoint blocks yourself, do it with use_reentrant=False",
            stacklevel=2,
        )


def _in_encoders(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of active adapters' parts that act within their encoder alone, by name."""
    for encoder in model.modules():
        adapters = encoder._modules.get(CONTAINER)
        if not isinstance(adapters, Adapters):
            continue
        inside = set(encoder.modules())
        for adapter in (adapters[name] for name in adapters.active):
            for attached in adapter.attached:
                if all(getattr(each, "module", encoder) in inside for each in attached.actions):
                    for path in attached.paths:
                        module = adapter.added.get_submodule(path)
                        yield from ((f"{path}.{name}", p) for name, p in module.named_parameters())
