"""The adapter file: one safetensors file with the trained tensors and, in its header, the rest.

The header's metadata holds, under "adapterkit", a JSON object: the format version, the parts, the
input's size and normalisation, the names of the classes, the base's family and fingerprint, and a
summary of the training. Tensors are named as under the adapter, `feature_adapter.mlp.2.up.weight`.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from adapterkit.adapters.injection import Model, adapters_of, attach, base_state_dict, deactivated
from adapterkit.attach.attachment import Adapter, Part
from adapterkit.encoders.views import view
from adapterkit.parts import PARTS, Normalise
from adapterkit.system.files import save_tensors

FORMAT_VERSION = 1
_KEY = "adapterkit"


class AdapterFileError(ValueError):
    """An adapter file that cannot be read, or does not fit the model; the model is as before."""


@dataclass(frozen=True)
class AdapterHeader:
    """What an adapter file says about itself.

    Attributes:
        parts: the parts that `load_adapter` injects.
        image_size: side of the square input, in pixels.
        mean: red, green, blue subtracted from an image in [0, 255]; None: left to the caller.
        std: what the difference is divided by.
        classes: names of the structures that the adapter was trained to segment.
        family: of the base, as `ViT.family`.
        fingerprint: for each tensor of the base, its shape and checksum.
        training: whatever its maker noted: data, epochs, scores.
        format_version: of the file.
    """

    parts: tuple[Part, ...]
    image_size: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: tuple[str, ...]
    family: str
    fingerprint: Mapping[str, str]
    training: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        fields = {**vars(self), "parts": [_part_to_json(part) for part in self.parts]}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "AdapterHeader":
        """Raises KeyError, TypeError or ValueError where the text is no header."""
        fields = json.loads(text)
        if fields["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"its format version is {fields['format_version']}, and this adapterkit reads up "
                f"to {FORMAT_VERSION}; upgrade adapterkit"
            )
        fields["parts"] = tuple(_part_from_json(part) for part in fields["parts"])
        for name in ("mean", "std", "classes"):
            fields[name] = fields[name] and tuple(fields[name])
        return cls(**fields)


def save_adapter(
    model: nn.Module,
    path: str | Path,
    name: str | None = None,
    classes: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter of `model` to one safetensors file, atomically.

    It holds every tensor that injection added or made trainable, and nothing of the base.

    Args:
        model: with an adapter on it.
        path: the file, `*.safetensors` by custom; replaced if it exists.
        name: which adapter; None: the active one.
        classes: names of the structures that it segments.
        training: a summary of the training, of JSON values.

    Raises:
        ValueError: there is no adapter, or `name` is None and not exactly one is active.
        FileNotFoundError: the file's folder does not exist.
        OSError: it cannot be written; the disk is full, say.
    """
    found = adapters_of(model)
    if found is None:
        raise ValueError("this model has no adapter to save; inject one first")
    if name is None and len(found.active) != 1:
        raise ValueError(f"{len(found.active)} adapters are active; name one of {found.names}")
    adapter = found[name or found.active[0]]
    with deactivated(model) as base:
        adapter.activate()
        try:
            mean, std = _normalisation(model, adapter)
        finally:
            adapter.deactivate()
        header = AdapterHeader(
            parts=adapter.parts,
            image_size=adapter.image_size,
            mean=mean,
            std=std,
            classes=tuple(classes),
            family=base.family,
            fingerprint=fingerprint(model),
            training=dict(training or {}),
        )
    save_tensors(path, adapter.added.state_dict(), {_KEY: header.to_json()})


def load_adapter(
    model: Model, path: str | Path, name: str = "default", check_base: bool = True
) -> Model:
    """Inject the adapter of a file into `model` and make it the active one.

    Args:
        model: the base that the adapter was trained on, or another adapter's model on that base.
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
    header = inspect_adapter(path)
    if check_base:
        _check_base(header, model, path)
    with deactivated(model) as base:
        # Random initial values would be overwritten; building on the meta device draws none, and
        # those that peft draws nevertheless leave the random state as it was.
        with torch.random.fork_rng(devices=()), torch.device("meta"):
            adapter = Adapter(base, header.parts)
        _load_tensors(adapter, path, base.patch_projection.weight)
        attach(base, adapter, name)
    return model


def inspect_adapter(path: str | Path) -> AdapterHeader:
    """The header of an adapter file; its tensors are not read.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: it is damaged, or not an adapter file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no adapter file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise AdapterFileError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from error
    if _KEY not in metadata:
        raise AdapterFileError(
            f"{path} is a safetensors file without adapterkit's header, so not an adapter file; "
            "load_published reads checkpoints of other projects"
        )
    try:
        return AdapterHeader.from_json(metadata[_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterFileError(f"{path} has a header that cannot be read: {error}") from error


def fingerprint(model: nn.Module) -> dict[str, str]:
    """The shape and a checksum of each tensor of `model`'s base.

    The checksum is of the values rounded to bfloat16, so that a base and the same base cast to
    bfloat16 agree. A bare encoder's tensors are named as within a `Sam`.
    """
    return {
        key: f"{tuple(value.shape)}:{_checksum(value)}"
        for key, value in base_state_dict(view(model)).items()
    }


def _checksum(value: Tensor) -> str:
    if value.is_floating_point():
        value = value.to(torch.bfloat16).view(torch.int16)
    return f"{zlib.crc32(value.cpu().contiguous().numpy().data):08x}"


def _check_base(header: AdapterHeader, model: nn.Module, path: str | Path) -> None:
    def differs(tensor: str, found: str | None, expected: str | None) -> AdapterFileError:
        return AdapterFileError(
            f"{path} was trained on another base: {tensor} is {found or 'absent'} in this model "
            f"and {expected or 'absent'} in its base (shape:checksum). Load the adapter onto the "
            "base it was trained on, or give load_adapter check_base=False if you mean to mix them"
        )

    family = view(model).family
    if family != header.family:
        raise AdapterFileError(
            f"{path} was trained on a {header.family} encoder, and this is a {family} one"
        )
    own = fingerprint(model)
    # An encoder alone may carry a whole model's encoder adapter, and the other way round.
    components = {key.split(".")[0] for key in own} & {
        key.split(".")[0] for key in header.fingerprint
    }
    for key in {**header.fingerprint, **own}:
        if key.split(".")[0] in components and own.get(key) != header.fingerprint.get(key):
            raise differs(key, own.get(key), header.fingerprint.get(key))


def _load_tensors(adapter: Adapter, path: str | Path, like: Tensor) -> None:
    expected = {key: value.shape for key, value in adapter.added.state_dict().items()}
    tensors = load_file(path)
    for key in {**expected, **tensors}:
        if key not in tensors:
            raise AdapterFileError(f"{path} lacks the tensor {key}, which its parts need")
        if key not in expected:
            raise AdapterFileError(f"{path} holds a tensor {key}, which none of its parts has")
        if tensors[key].shape != expected[key]:
            raise AdapterFileError(
                f"{path}: {key} has shape {tuple(tensors[key].shape)}, and on this base its part "
                f"has shape {tuple(expected[key])}"
            )
    # Copies: what safetensors gives is a view of the file, which may be written to later.
    placed = {key: value.to(like.device, like.dtype, copy=True) for key, value in tensors.items()}
    adapter.added.load_state_dict(placed, assign=True)


def _normalisation(
    model: nn.Module, adapter: Adapter
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if isinstance(mean, Tensor) and isinstance(std, Tensor):
        return tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())
    for part in adapter.parts:
        if isinstance(part, Normalise):
            return part.mean, part.std
    return None, None


def _part_to_json(part: Any) -> dict[str, Any]:
    return {"part": type(part).__name__, **asdict(part)}


def _part_from_json(fields: Mapping[str, Any]) -> Part:
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    name = values.pop("part")
    if name not in PARTS:
        raise ValueError(
            f"it has a part {name!r}, and known are {', '.join(sorted(PARTS))}; import the module "
            "that registers it, or upgrade adapterkit"
        )
    return PARTS[name](**values)
