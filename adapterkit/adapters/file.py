"""The adapter file: one safetensors file with the trained tensors and, in its header, the rest.

The header's metadata holds, under "adapterkit", a JSON object: the format version, the parts, the
input's size and normalisation, the names of the classes, the base's family and fingerprint, and a
summary of the training. Tensors are named as under the adapter, `feature_adapter.mlp.2.up.weight`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from adapterkit.adapters.fingerprint import compare_base, fingerprint, replaced_tensors
from adapterkit.adapters.header import AdapterFileError, AdapterHeader
from adapterkit.adapters.injection import (
    Model,
    adapters_of,
    attach,
    check_name,
    deactivated,
    trained_tensors,
)
from adapterkit.attach.attachment import Adapter
from adapterkit.encoders.registry import view
from adapterkit.encoders.sam_names import share_weights, trained_as_in_sam
from adapterkit.encoders.views import ViT
from adapterkit.encoders.wrappers import whole
from adapterkit.parts import Peft
from adapterkit.parts.normalise import normalisation_of
from adapterkit.parts.structures import structures_of
from adapterkit.system.files import check_metadata, check_tensors, save_tensors
from adapterkit.system.pages import see

_KEY = "adapterkit"
_MAX_HEADER_BYTES = 2**24
_MAX_UNCOUNTED = 256
"""Of a number among peft's options, where how much it would add cannot be counted."""


def save_adapter(
    model: nn.Module,
    path: str | Path,
    name: str | None = None,
    classes: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter of `model` to one safetensors file, atomically.

    It holds every tensor that injection added or made trainable, and nothing of the base. Its
    header has a digest of each, so that damage is found when it is loaded.

    Args:
        model: with an adapter on it.
        path: the file, `*.safetensors` by custom; replaced if it exists.
        name: which adapter; None: the active one.
        classes: names of the structures that it segments; none: those of its class prompts.
        training: a summary of the training, of JSON values.

    Raises:
        ValueError: there is no adapter; `name` is None and not exactly one is active; a parameter
            of the base is trained, which no adapter holds; a value is not finite; or a class's name
            is none that a file can hold.
        FileNotFoundError: the file's folder does not exist.
        OSError: it cannot be written; the disk is full, say.
    """
    found = adapters_of(model)
    if found is None:
        raise ValueError("this model has no adapter to save; inject one first")
    if name is None and len(found.active) != 1:
        raise ValueError(f"{len(found.active)} adapters are active; name one of {found.names}")
    adapter = found[name or found.active[0]]
    tensors = {key: whole(value) for key, value in adapter.added.state_dict().items()}
    for key, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(f"{key} of the adapter is not finite everywhere; it is not saved")
    with deactivated(model) as base:
        if outside := trained_tensors(base):
            first = next(iter(outside))
            how = f"a part {outside[first]} saves it" if outside[first] else "freeze it"
            raise ValueError(
                f"{first} is trained and not part of the adapter, so the file would lack it "
                f"({len(outside)} such tensors). Freeze it before training; or {how}"
            )
        replaced = replaced_tensors(base, adapter)
        adapter.activate()
        try:
            mean, std = _normalisation(view(model), adapter)
        finally:
            adapter.deactivate()
        header = AdapterHeader(
            parts=adapter.parts,
            image_size=adapter.image_size,
            mean=mean,
            std=std,
            classes=tuple(classes) or structures_of(adapter.parts),
            family=base.family,
            fingerprint={k: v for k, v in fingerprint(model).items() if k not in replaced},
            training=dict(training or {}),
        )
    save_tensors(path, tensors, {_KEY: header.to_json()})


def load_adapter(
    model: Model, path: str | Path, name: str = "default", check_base: bool = True
) -> Model:
    """Inject the adapter of a file into `model` and make it the active one.

    Args:
        model: the base that the adapter was trained on, or another adapter's model on that base;
            the same weights of SAM may be held by segment_anything, timm or transformers.
        path: what `save_adapter` wrote.
        name: what the adapter is called on this model.
        check_base: refuse a base whose fingerprint differs. False: take any that the parts fit.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: the file is damaged or foreign, the base differs, or its tensors do not
            fit the parts; the message names what differs, and the model is as before.
        ValueError: the name is taken, or a part does not fit this encoder.
    """
    header, shapes = _read_header(path)
    own = view(model).family
    if check_base and not share_weights(own, header.family):
        raise AdapterFileError(
            f"{path} was trained on a {header.family} encoder, and this is a {own} one; load it "
            "onto the base it was trained on; "
            + see("concepts/adapter_file.md", "it-fits-one-base")
        )
    check_name(adapters_of(model), name)
    with deactivated(model) as base:
        try:
            adapter = _build(base, header, sum(map(math.prod, shapes.values())))
        except _UNFIT as error:
            if check_base:
                compare_base(header.fingerprint, base, (), path, header.family)
            raise AdapterFileError(f"{path}: its parts do not fit this model: {error}") from error
        if check_base:
            replaced = replaced_tensors(base, adapter)
            compare_base(header.fingerprint, base, replaced, path, header.family)
        names = _own_names(adapter, base.family, header.family, shapes)
        shapes = {names[key]: shape for key, shape in shapes.items()}
        _check_shapes(adapter, shapes, path)
        _load_tensors(adapter, path, names, base.patch_projection.weight)
        try:
            attach(base, adapter, name)
        except ValueError as error:
            raise AdapterFileError(f"{path}: its parts do not fit this model: {error}") from error
    return model


def inspect_adapter(path: str | Path) -> AdapterHeader:
    """The header of an adapter file; its tensors are not read.

    Args:
        path: of the file.

    Returns:
        What it says about itself.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: it is damaged, or not an adapter file.
    """
    return _read_header(path)[0]


_UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError)
"""What parts raise, in any way, that were made for another model or by no one's hand."""


def _read_header(path: str | Path) -> tuple[AdapterHeader, dict[str, tuple[int, ...]]]:
    """What a file says of itself, and the shapes of its tensors."""
    metadata, shapes = _read_layout(path)
    if _KEY not in metadata:
        raise AdapterFileError(
            f"{path} is a safetensors file without adapterkit's header, so not an adapter file; "
            "load_published reads checkpoints of other projects; " + see("checkpoints.md")
        )
    try:
        check_metadata(metadata)
        return AdapterHeader.from_json(metadata[_KEY]), shapes
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise AdapterFileError(f"{path} has a header that cannot be read: {error}") from error


def _read_layout(path: str | Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The metadata of a safetensors file, and the shapes of its tensors."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no adapter file at {path}")
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise AdapterFileError(
            f"{path} is no adapter file: its header would have {length:,} bytes, and "
            f"{_MAX_HEADER_BYTES:,} are the most"
        )
    try:
        with safe_open(path, framework="pt") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
            return opened.metadata() or {}, shapes
    except SafetensorError as error:
        raise AdapterFileError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again; "
            + see("concepts/adapter_file.md", "it-comes-from-someone-else")
        ) from error


def _build(base: ViT, header: AdapterHeader, values: int) -> Adapter:
    """The adapter without its tensors' values; the file has `values` of them."""
    for part in header.parts:
        if isinstance(part, Peft):
            # Unlike other parts, these are built with their values.
            count = part.count_values(base)
            if count is None and not _numbers_up_to(_MAX_UNCOUNTED, part.options):
                raise ValueError(f"{part}: expected numbers up to {_MAX_UNCOUNTED}")
            if count is not None and count > values:
                raise ValueError(f"{part} has {count:,} values, and the file {values:,}")
    # Random initial values would be overwritten; building on the meta device draws none, and
    # those that peft draws nevertheless leave the random state as it was.
    with torch.random.fork_rng(devices=()), torch.device("meta"):
        return Adapter(base, header.parts)


def _numbers_up_to(most: int, options: Any) -> bool:
    if isinstance(options, Mapping):
        return all(_numbers_up_to(most, each) for key, each in options.items() if "seed" not in key)
    return not isinstance(options, int | float) or options <= most


def _own_names(adapter: Adapter, own: str, theirs: str, names: Iterable[str]) -> dict[str, str]:
    """What the adapter calls the tensors of a file that was trained on a base of another family."""
    if own == theirs or not share_weights(own, theirs):
        return {name: name for name in names}
    expected = {trained_as_in_sam(own, name): name for name in adapter.added.state_dict()}
    return {name: expected.get(trained_as_in_sam(theirs, name), name) for name in names}


def _check_shapes(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], path: str | Path
) -> None:
    expected = {key: tuple(value.shape) for key, value in adapter.added.state_dict().items()}
    for key in {**expected, **shapes}:
        if key not in shapes:
            raise AdapterFileError(f"{path} lacks the tensor {key}, which its parts need")
        if key not in expected:
            raise AdapterFileError(f"{path} holds a tensor {key}, which none of its parts has")
        if shapes[key] != expected[key]:
            raise AdapterFileError(
                f"{path}: {key} has shape {shapes[key]}, and on this base its part has shape "
                f"{expected[key]}"
            )


def _load_tensors(
    adapter: Adapter, path: str | Path, names: Mapping[str, str], like: Tensor
) -> None:
    metadata, _ = _read_layout(path)
    tensors = load_file(path)
    try:
        check_tensors(tensors, metadata)
    except ValueError as error:
        raise AdapterFileError(f"{path} is damaged: {error}; copy or download it again") from error
    tensors = {names[key]: value for key, value in tensors.items()}
    for key, expected in adapter.added.state_dict().items():
        value = tensors[key]
        if value.is_floating_point() != expected.is_floating_point() or value.is_complex():
            raise AdapterFileError(
                f"{path}: {key} is {value.dtype}, and its part has {expected.dtype}"
            )
        if not value.isfinite().all():
            raise AdapterFileError(f"{path}: {key} holds values that are not finite")
    # Copies: what safetensors gives is a view of the file, which may be written to later.
    placed = {key: value.to(like.device, like.dtype, copy=True) for key, value in tensors.items()}
    adapter.added.load_state_dict(placed, assign=True)


def _normalisation(
    adapted: ViT, adapter: Adapter
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    found = normalisation_of(adapted, adapter.parts)
    if found is None:
        return None, None
    mean, std = (tuple(each.flatten().tolist()) for each in found)
    return mean, std
