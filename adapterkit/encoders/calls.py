"""What shapes the modules of an encoder are given and give when an image goes through it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from adapterkit.encoders.dry_run import copied_without_data, undisturbed
from adapterkit.encoders.wrappers import CONTAINER

BATCH = 2
"""Images that go through together, so that windows of an image can be told from images."""


@dataclass(frozen=True)
class Call:
    """The first call of a module: shapes; None for what is no tensor.

    Attributes:
        given: its first positional argument.
        gave: the items of the tuple that it gave, or the one tensor.
        a_tuple: which of the two.
    """

    given: tuple[int, ...] | None
    gave: tuple[tuple[int, ...] | None, ...]
    a_tuple: bool

    @classmethod
    def of(cls, args: Sequence[Any], output: Any) -> "Call":
        a_tuple = isinstance(output, tuple | list)
        items = output if a_tuple else (output,)
        return cls(_shape(args[0]) if args else None, tuple(map(_shape, items)), a_tuple)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


_LAST: WeakKeyDictionary[nn.Module, tuple[Any, dict[nn.Module, Call]]] = WeakKeyDictionary()
"""What was found last of each encoder, and what it depends on."""


def calls_with_an_image(
    encoder: nn.Module, like: Tensor, image_size: int, channels: int
) -> dict[nn.Module, Call]:
    """The first call of each module that the forward calls, found without data where that can be.

    It is found again only for other images, or after modules or strides have changed.

    Args:
        encoder: it takes a batch of images as its one argument that has no default.
        like: images are of its dtype and on its device.
        image_size: side of the square images, in pixels.
        channels: of them.

    Raises:
        Exception: whatever the forward raises of such images.
    """
    modules = {
        name: module
        for name, module in encoder.named_modules()
        if name and CONTAINER not in name.split(".")
    }
    strides = [getattr(each, "stride", None) for each in modules.values()]
    depends_on = (image_size, channels, like.dtype, strides, list(modules.values()))
    if encoder in _LAST and _LAST[encoder][0] == depends_on:
        return _LAST[encoder][1]
    size = (BATCH, channels, image_size, image_size)
    try:
        with copied_without_data(encoder) as replica:
            copies = {name: replica.get_submodule(name) for name in modules}
            found = _calls(replica, copies, torch.zeros(size, dtype=like.dtype))
    except Exception:
        # It needs values, or hooks that the copy lacks.
        with undisturbed(encoder, like.device):
            images = torch.zeros(size, dtype=like.dtype, device=like.device)
            found = _calls(encoder, modules, images)
    calls = {modules[name]: call for name, call in found.items()}
    _LAST[encoder] = depends_on, calls
    return calls


@torch.no_grad()
def _calls(encoder: nn.Module, modules: Mapping[str, nn.Module], images: Tensor) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    names = {module: name for name, module in modules.items()}

    def record(module: nn.Module, args: Sequence[Any], output: Any) -> None:
        calls.setdefault(names[module], Call.of(args, output))

    handles = [each.register_forward_hook(record) for each in names]
    try:
        encoder(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls
