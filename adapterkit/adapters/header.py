"""What an adapter file says about itself, and the schema that every header is held to.

The header is a JSON object. Whatever is in it was written by someone else, so names, types and
ranges are checked before anything is built from it.
"""

import json
import math
import re
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from adapterkit.adapters.patterns import ways_to_match
from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import Block
from adapterkit.parts import PARTS, Peft, Resize
from adapterkit.system.pages import see

FORMAT_VERSION = 2
"""2: a base's tensor has two checksums, of its values in bfloat16 and in float16."""

MAX_IMAGE_SIZE = 8192
MAX_CLASSES = 255
"""As many as a mask of 8 bits can tell apart."""

_MAX_INTEGER = 65_536
_MAX_NUMBER = 1e6
_MAX_ITEMS = 10_000
_MAX_TEXT = 1_000
_MAX_DEPTH = 6
_MAX_PARTS = 100
_MAX_WAYS_TO_MATCH = 500_000
_MAX_WAYS_WITHIN = 5_000
_FINGERPRINT = re.compile(r"\([\d, ]{0,100}\)(:[0-9a-f]{8}){1,2}")


class AdapterFileError(ValueError):
    """An adapter file that cannot be read, or does not fit the model; the model is as before."""


@dataclass(frozen=True)
class AdapterHeader:
    """What an adapter file says about itself.

    Attributes:
        parts: the parts that `load_adapter` injects.
        image_size: side of the square input, in pixels, 1 to 8,192.
        mean: red, green, blue subtracted from an image in [0, 255]; None: left to the caller.
        std: what the difference is divided by, above 0.
        classes: names of the structures that the adapter was trained to segment, at most 255, of
            printable characters without brackets.
        family: of the base, as `ViT.family`.
        fingerprint: for each tensor of the base that the adapter does not replace as a whole, its
            shape and checksums.
        training: whatever its maker noted: data, epochs, scores.
        format_version: of the file.

    Raises:
        ValueError: a value has another type, or is out of its range.
    """

    parts: tuple[Part, ...]
    image_size: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: tuple[str, ...]
    family: str
    fingerprint: Mapping[str, str] = field(repr=False)
    training: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _expect(1 <= len(self.parts) <= _MAX_PARTS, f"parts: 1 to {_MAX_PARTS}", self.parts)
        size = self.image_size
        is_size = _is_integer(size) and 1 <= size <= MAX_IMAGE_SIZE
        _expect(is_size, f"image_size: 1 to {MAX_IMAGE_SIZE} pixels", size)
        resized = [part.image_size for part in self.parts if isinstance(part, Resize)]
        _expect(resized in ([], [size]), "image_size: that of its part Resize", size)
        _expect((self.mean is None) == (self.std is None), "std: given as mean is", self.std)
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = () if values is None else values
            fits = len(numbers) <= 16 and all(map(_is_number, numbers))
            _expect(fits and numbers != [], f"{name}: a number for each channel", values)
        _expect(self.std is None or min(self.std, default=0) > 0, "std: above 0", self.std)
        classes = self.classes
        _expect(len(classes) <= MAX_CLASSES, f"classes: at most {MAX_CLASSES}", len(classes))
        for name in (*classes, self.family):
            _expect(is_name(name), "names: up to 100 printable characters without brackets", name)
        count = len(self.fingerprint)
        _expect(count <= _MAX_ITEMS, "fingerprint: of the base's tensors", f"{count:,} of them")
        for key, value in self.fingerprint.items():
            is_print = isinstance(value, str) and _FINGERPRINT.fullmatch(value)
            _expect(len(key) <= _MAX_TEXT and is_print, "fingerprint: (shape):checksum", value)
        _check_plain(self.training, "training")

    def to_json(self) -> str:
        """What `from_json` takes, with sorted keys."""
        values = {**vars(self), "parts": [_part_to_json(part) for part in self.parts]}
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "AdapterHeader":
        """The header that a JSON object holds.

        Args:
            text: what `to_json` gives.

        Raises:
            ValueError: the text is no header; the message says what was found and expected.
        """
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("its JSON is nested too deeply") from None
        _expect(isinstance(values, dict), "a JSON object", values)
        version = values.get("format_version")
        _expect(_is_integer(version) and version >= 1, "format_version: 1 or more", version)
        if version > FORMAT_VERSION:
            raise ValueError(
                f"its format version is {version}, and this adapterkit reads up to "
                f"{FORMAT_VERSION}; upgrade adapterkit"
            )
        _check_names(cls, values, "the header")
        for name in ("parts", "classes", "mean", "std"):
            may_be_none = name in ("mean", "std") and values[name] is None
            _expect(may_be_none or isinstance(values[name], list), f"{name}: a list", values[name])
            values[name] = None if may_be_none else tuple(values[name])
        for name in ("fingerprint", "training"):
            value = values.get(name, {})
            _expect(isinstance(value, dict), f"{name}: a JSON object", value)
        values["parts"] = tuple(_part_from_json(part) for part in values["parts"][: _MAX_PARTS + 1])
        return cls(**values)


def _part_to_json(part: Any) -> dict[str, Any]:
    name, how = type(part).__name__, see("tutorials/extending.md", "a-part")
    registered = PARTS.get(name)
    if registered is None or registered.__module__ != type(part).__module__:
        raise ValueError(
            f"the part {name} is not registered, so no process could load a file with it; expected "
            f"@register_part at its class; {how}"
        )
    try:
        json.dumps(options := asdict(part))
    except TypeError as error:
        raise ValueError(
            f"{part} cannot be written to a file: {error}; expected a part whose fields are plain "
            f"values; {how}"
        ) from error
    return {"part": name, **options}


def _part_from_json(values: Any) -> Part:
    _expect(isinstance(values, dict), "parts: JSON objects", values)
    name = values.get("part")
    if not isinstance(name, str) or name not in PARTS:
        raise ValueError(
            f"it has a part {_short(name)}, and known are {', '.join(sorted(PARTS))}; import the "
            "module that registers it (adapterkit --plugin FILE.py), or upgrade adapterkit; "
            + see("tutorials/extending.md", "in-another-process")
        )
    options = {key: value for key, value in values.items() if key != "part"}
    kind: Any = PARTS[name]
    _check_names(kind, options, name)
    hints = get_type_hints(kind, localns={"Block": Block})
    for key, value in options.items():
        options[key] = _as_hinted(value, hints[key], f"{name}({key}=...)")
    if kind is Peft:
        _check_patterns(options.get("options", {}))
    return kind(**options)


def _check_names(kind: Any, values: Mapping[str, Any], what: str) -> None:
    """Exactly the fields of a dataclass that it does not leave to a default, and none it lacks."""
    known = {each.name: each for each in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(
                f"{what} has a field {_short(name)}, which this adapterkit does not know; upgrade "
                "adapterkit if a later version wrote the file"
            )
    for name, each in known.items():
        has_default = each.default is not MISSING or each.default_factory is not MISSING
        _expect(name in values or has_default, f"{what}: a field {name!r}", sorted(values))


def _as_hinted(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as a dataclass's field of this type takes it.

    Raises:
        ValueError: it is of another type, or out of range.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for each in arguments:
            try:
                return _as_hinted(value, each, where)
            except ValueError:
                continue
        raise ValueError(f"{where}: expected {_hint_name(hint)}, found {_short(value)}")
    if origin is Literal:
        fits = isinstance(value, str | int | None) and value in arguments
    elif hint is type(None):
        fits = value is None
    elif hint is bool:
        fits = isinstance(value, bool)
    elif hint is int:
        fits = _is_integer(value) and abs(value) <= _MAX_INTEGER
    elif hint is float:
        fits = _is_number(value)
    elif hint is str:
        fits = isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        fits = isinstance(value, dict)
        _check_plain(value, where)
    elif isinstance(origin, type) and issubclass(origin, Collection):
        fits = isinstance(value, list) and len(value) <= _MAX_ITEMS
        if fits:
            return _items(value, origin, arguments, where)
    else:  # A callable, which no JSON value is.
        fits = False
    _expect(fits, f"{where}: {_hint_name(hint)}", value)
    return value


def _items(values: list[Any], origin: type, hints: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if origin is tuple and hints[-1] is not Ellipsis:
        _expect(len(values) == len(hints), f"{where}: {len(hints)} values", values)
    else:
        hints = (hints[0],) * len(values)
    return tuple(_as_hinted(*each, where) for each in zip(values, hints, strict=True))


def _check_plain(value: Any, where: str, depth: int = 0) -> None:
    """JSON of a moderate size, depth and range."""
    _expect(depth <= _MAX_DEPTH, f"{where}: at most {_MAX_DEPTH} levels", "more")
    if isinstance(value, dict | list | tuple):
        _expect(len(value) <= _MAX_ITEMS, f"{where}: at most {_MAX_ITEMS} items", len(value))
        for key in value if isinstance(value, dict) else ():
            _expect(isinstance(key, str) and len(key) <= _MAX_TEXT, f"{where}: names", key)
        for each in value.values() if isinstance(value, dict) else value:
            _check_plain(each, where, depth + 1)
    elif isinstance(value, str):
        _expect(len(value) <= 100 * _MAX_TEXT, f"{where}: shorter text", value)


def _check_patterns(options: Any, within: bool = False) -> None:
    """Options of peft hold neither numbers out of range nor expressions that take for ever."""
    if isinstance(options, dict):
        for key, value in options.items():
            whole = key in ("target_modules", "exclude_modules")
            _check_patterns(key, within=True)
            # Seeds may be of any size; whole expressions are matched alone, others as a part.
            if not (_is_integer(value) and ("seed" in key or "key" in key)):
                _check_patterns(value, within=not whole)
    elif isinstance(options, list):
        for each in options:
            _check_patterns(each, within)
    elif isinstance(options, str):
        most = _MAX_WAYS_WITHIN if within else _MAX_WAYS_TO_MATCH
        if ways_to_match(options) > most:
            raise ValueError(
                f"the expression {_short(options)} in a part of peft could take for ever to match; "
                "expected names of modules, or an expression without repeated groups"
            )
    elif isinstance(options, int | float):
        fits = math.isfinite(options) and abs(options) <= _MAX_NUMBER
        _expect(fits, f"an option of peft: up to {_MAX_NUMBER:,.0f}", options)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and abs(value) <= _MAX_NUMBER


def is_name(value: Any) -> bool:
    """Whether an adapter file can hold it as the name of a structure."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= 100
        and value.isprintable()
        and not set(value) & set("<>[]")
    )


def _expect(holds: Any, expected: str, found: Any) -> None:
    if not holds:
        raise ValueError(f"expected {expected}, found {_short(found)}")


def _hint_name(hint: Any) -> str:
    if get_origin(hint) is Callable:
        return "a callable"
    return getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
