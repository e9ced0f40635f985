"""A base's fingerprint: by which an adapter file knows the model that it was trained on."""

import zlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from adapterkit.adapters.header import AdapterFileError
from adapterkit.adapters.injection import base_state_dict
from adapterkit.attach.actions import Overlay, StandIn
from adapterkit.attach.attachment import Adapter
from adapterkit.attach.overlay import Override
from adapterkit.encoders.registry import view
from adapterkit.encoders.sam_names import as_in_sam
from adapterkit.encoders.views import ViT
from adapterkit.encoders.wrappers import plain_names
from adapterkit.system.pages import see

_PRECISIONS = (torch.bfloat16, torch.float16)


def fingerprint(model: nn.Module) -> dict[str, str]:
    """The shape and the checksums of each tensor of `model`'s base.

    One checksum is of the values rounded to bfloat16 and one of them rounded to float16, so that a
    base and the same base cast to either agree in one. A bare encoder's tensors are named as within
    a `Sam`.
    """
    return {key: _print(value) for key, value in base_state_dict(view(model)).items()}


def replaced_tensors(base: ViT, adapter: Adapter) -> set[str]:
    """Names, as in a fingerprint, of what the adapter replaces as a whole by tensors of its own."""
    prefix = "image_encoder." if base.model is base.encoder else ""
    plain_name = plain_names(base.model)
    paths = {module: plain_name(path) for path, module in base.model.named_modules()}
    replaced = {
        prefix + ".".join(filter(None, (paths[action.module], action.name)))
        for action in adapter.actions
        if isinstance(action, Overlay) and isinstance(action.transform, Override)
    }
    for action in adapter.actions:
        if isinstance(action, StandIn):
            path = paths[action.replaced]
            replaced |= {f"{prefix}{path}.{name}" for name in action.replaced.state_dict()}
    return replaced


def compare_base(
    expected: Mapping[str, str], base: ViT, replaced: Collection[str], path: object, family: str
) -> None:
    """Refuse a base that is another than the one that an adapter was trained on.

    Args:
        expected: the fingerprint in the adapter file.
        base: the model's.
        replaced: names of what the adapter replaces, whose values do not matter.
        path: of the file, for the message.
        family: of the base that the adapter was trained on. Where it is another than the model's,
            which can have the same weights, tensors are known by their names in a `Sam`.

    Raises:
        AdapterFileError: a tensor differs; it is named as the model names it.
    """
    own = base_state_dict(base)
    if family != base.family:
        expected = {as_in_sam(family, name): each for name, each in expected.items()}
        own = {as_in_sam(base.family, name): each for name, each in own.items()}
        replaced = {as_in_sam(base.family, name) for name in replaced}
    # An encoder alone may carry a whole model's encoder adapter, and the other way round.
    components = {key.split(".")[0] for key in own}
    # A file of nothing is one that replaces all there is, and not one that fits any base.
    if expected:
        components &= {key.split(".")[0] for key in expected}
    for key in {**expected, **own}:
        if key.split(".")[0] not in components or key in replaced:
            continue
        wanted, value = expected.get(key), own.get(key)
        if value is None or wanted is None or not _agrees(value, wanted):
            name = key.removeprefix("image_encoder.") if base.model is base.encoder else key
            found = "absent" if value is None else _print(value)
            raise AdapterFileError(
                f"{path} was trained on another base: {name} is {found} in this model and "
                f"{wanted or 'absent'} in its base (shape:checksums). Load the adapter onto the "
                "base it was trained on, or give load_adapter check_base=False if you mean to mix "
                f"them; {see('concepts/adapter_file.md', 'it-fits-one-base')}"
            )


def _print(value: Tensor) -> str:
    checksums = [_checksum(value, each) for each in _PRECISIONS]
    return ":".join((str(tuple(value.shape)), *dict.fromkeys(checksums)))


def _agrees(value: Tensor, expected: str) -> bool:
    """Whether the shape and a checksum of the same precision are equal."""
    shape, *checksums = expected.split(":")
    if shape != str(tuple(value.shape)):
        return False
    # Where both precisions give one checksum, as in an older file, only one is written.
    return any(
        _checksum(value, precision) == each
        for precision, each in zip(_PRECISIONS, checksums, strict=False)
    )


def _checksum(value: Tensor, precision: torch.dtype) -> str:
    if value.is_floating_point():
        value = value.to(precision).view(torch.int16)
    return f"{zlib.crc32(value.cpu().contiguous().numpy().data):08x}"
