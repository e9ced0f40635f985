"""A data set as it lies on disk: records, their groups, their structures, their split.

A format is a function in a file of this package that opens a folder or file, registered under a
name beside it:

    @collection_format("camus", recognises=lambda path: (path / "database_nifti").is_dir())
    def open_camus(path): ...
"""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adapterkit.data.collections.labels import counted_as, merged, relabelled
from adapterkit.data.dataset import LabelledImage, Record, is_labelled
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split, split_patients
from adapterkit.system.pages import see


@dataclass(frozen=True)
class Collection:
    """A data set: what it holds, and which images belong together.

    Attributes:
        name: for tables and folders of runs.
        format: how it lies on disk.
        records: its images with their masks.
        groups: of each record, what must not be on two sides of a split: the patient, say.
        split: of the groups, where the data state one.
        reported: attributes of the records by whose values results are also tabulated.

    Raises:
        DataError: there is no record, or not one group for each.
    """

    name: str
    format: str
    records: tuple[Record, ...]
    groups: tuple[str, ...]
    split: Split | None = None
    reported: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.records:
            raise DataError(f"{self.name} holds no image with a mask.")
        if len(self.groups) != len(self.records):
            raise DataError(f"{len(self.records)} records, but {len(self.groups)} groups.")

    @property
    def structures(self) -> Mapping[int, str]:
        """The labels to segment, in the order of the masks, and what they stand for."""
        return self.records[0].structures

    @property
    def group_names(self) -> tuple[str, ...]:
        """Each group once, sorted."""
        return tuple(sorted(set(self.groups)))

    @property
    def is_grouped(self) -> bool:
        """Whether some images belong together."""
        return len(set(self.groups)) < len(self.groups)

    def of_groups(self, names: Sequence[str]) -> list[Record]:
        """The records of some groups, in order."""
        wanted = set(names)
        pairs = zip(self.records, self.groups, strict=True)
        return [record for record, group in pairs if group in wanted]

    def take(self, groups: int, seed: int = 0) -> "Collection":
        """With so many of its groups, drawn at random.

        Raises:
            DataError: there are fewer, or `groups` is below 1.
        """
        names = self.group_names
        if not 1 <= groups <= len(names):
            raise DataError(f"{groups} groups are asked for: {self.name} has {len(names)}.")
        drawn = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:groups]}
        kept = [i for i, group in enumerate(self.groups) if group in drawn]
        return replace(
            self,
            records=tuple(self.records[i] for i in kept),
            groups=tuple(self.groups[i] for i in kept),
            split=None if self.split is None else self.split.among(drawn),
        )

    def random_split(
        self, seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    ) -> Split:
        """A random split of the groups, whatever the data state.

        Args:
            seed: of it.
            fractions: of the groups for training, validation and test.

        Raises:
            DataError: there are fewer than three groups.
        """
        return split_patients(self.group_names, seed, fractions)

    def stated_split(self) -> Split:
        """The split that the data state.

        Raises:
            DataError: they state none.
        """
        if self.split is None:
            raise DataError(f"{self.name} states no split of its own: expected a random one.")
        return self.split

    def divided(self, seed: int = 0) -> Split:
        """The split that the data state, or else a random one by this seed.

        Raises:
            DataError: they state none, and there are fewer than three groups.
        """
        return self.split or self.random_split(seed)

    def folds(self, count: int, seed: int = 0) -> list[Split]:
        """Splits of which each group is once in the test part, and once in another's validation.

        Raises:
            DataError: `count` is below 3, or there are fewer groups.
        """
        names = self.group_names
        if not 3 <= count <= len(names):
            raise DataError(f"{count} folds of {len(names)} groups: expected 3 to {len(names)}.")
        order = np.random.default_rng(seed).permutation(len(names))
        parts = [tuple(sorted(names[i] for i in part)) for part in np.array_split(order, count)]
        splits = []
        for test in range(count):
            validation = (test + 1) % count
            rest = [n for i, part in enumerate(parts) if i not in (test, validation) for n in part]
            splits.append(Split(tuple(sorted(rest)), parts[validation], parts[test]))
        return splits

    def choose(
        self,
        structures: Mapping[int, str] | None = None,
        leave_out: Sequence[int | str] = (),
    ) -> "Collection":
        """With other names of structures, with some merged, or without some.

        Args:
            structures: new names of some labels; labels of one name are merged.
            leave_out: labels, or names, that count as background.

        Raises:
            DataError: a label or name is not there, or none is left.
        """
        known = {label: name for each in self.records for label, name in each.structures.items()}
        named = known | dict(structures or {})
        gone = [label for label in known if {label, str(label), known[label]} & {*leave_out}]
        found = {*known, *map(str, known), *known.values()}
        strange = [each for each in (*(structures or {}), *leave_out) if each not in found]
        if strange:
            have = ", ".join(f"{label}={name}" for label, name in known.items())
            raise DataError(f"{self.name} has no structure {strange[0]}: expected some of {have}.")
        records = tuple(
            _Chosen(
                record,
                {label: named[label] for label in record.structures if label not in gone},
                tuple(label for label in record.structures if label in gone),
            )
            for record in self.records
        )
        if not all(record.kept for record in records):
            raise DataError(f"all structures of {self.name} are left out: keep one.")
        return replace(self, records=records)


@dataclass(frozen=True)
class _Chosen:
    """A record with some of its structures, or with other names of them."""

    record: Record
    kept: Mapping[int, str]
    left_out: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def structures(self) -> Mapping[int, str]:
        return merged(self.kept)

    @property
    def attributes(self) -> Mapping[str, str]:
        return self.record.attributes

    @property
    def labelled(self) -> bool:
        return is_labelled(self.record)

    def read(self) -> LabelledImage:
        native = self.record.read()
        counts_as = counted_as(self.kept, self.left_out)
        return replace(native, labels=relabelled(native.labels, counts_as, Path(self.name)))


Open = TypeVar("Open", bound=Callable[..., Collection])


@dataclass(frozen=True)
class Format:
    """How some data sets lie on disk."""

    name: str
    recognises: Callable[[Path], bool]
    open: Callable[..., Collection]


_FORMATS: dict[str, Format] = {}
_CHOICE = ("structures", "leave_out")


def collection_format(name: str, *, recognises: Callable[[Path], bool]) -> Callable[[Open], Open]:
    """Decorates the function that opens data of a format: it takes a path, and options by name.

    Args:
        name: of the format, as `--format` has it.
        recognises: whether a path looks like it, at a glance.
    """

    def register(opens: Open) -> Open:
        _FORMATS[name] = Format(name, recognises, opens)
        return opens

    return register


def format_names() -> tuple[str, ...]:
    """The names of the formats that can be opened."""
    return tuple(_FORMATS)


def open_collection(path: str | Path, format: str | None = None, **options: Any) -> Collection:
    """The data set at a path, whatever its format.

    Args:
        path: a folder, or a file that lists images.
        format: None to find it out.
        **options: of the format; None and () count as not given. `structures` and `leave_out` any
            format takes: those that know their structures as `Collection.choose` does.

    Raises:
        DataError: there is nothing at `path`, it is of no known format, or the format lacks an
            option; and what the format's own function raises.
    """
    path = Path(path)
    if format is not None and format not in _FORMATS:
        raise DataError(f"format {format!r}: expected one of {', '.join(_FORMATS)}.")
    if not path.exists():
        raise DataError(f"{path} does not exist: expected a folder of images with masks.")
    recognised = [each for each in _FORMATS.values() if each.recognises(path)]
    if not recognised and options.get("images") and options.get("masks"):
        recognised = [_FORMATS["folders"]]
    if format is None and not recognised:
        raise DataError(
            f"{path} is no data set that adapterkit knows: expected folders images and masks in "
            f"it, or another of the formats {', '.join(_FORMATS)}; --format says which; "
            f"{see('own_data.md', 'how-data-lie-on-disk')}."
        )
    found = _FORMATS[format] if format is not None else recognised[0]
    given = {name: value for name, value in options.items() if value not in (None, ())}
    known = set(inspect.signature(found.open).parameters)
    # Where the data name their structures, any format can do with some of them.
    choice = {name: given.pop(name) for name in _CHOICE if name in given and name not in known}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise DataError(
            f"{path} is of the format {found.name}, which has no option {unknown[0]!r}: "
            f"expected {', '.join(sorted(known - {'path'})) or 'none'}."
        )
    collection = found.open(path, **given)
    return collection.choose(**choice) if choice else collection


def group_of(name: str, pattern: str | None) -> str:
    """What an image's name says of the group that it is in.

    Args:
        name: of a record, with subfolders.
        pattern: a regular expression; the group is what it finds, or what its first group does.
            None: the subfolder, or where there is none the name itself.

    Raises:
        DataError: the pattern is none, or finds nothing.
    """
    if pattern is None:
        return name.rpartition("/")[0] or name
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise DataError(f"--group {pattern!r} is no regular expression ({error}).") from error
    if found is None:
        raise DataError(
            f"--group {pattern!r} finds nothing in the name {name!r}: expected what images of one "
            f"group have in common; {see('own_data.md', 'who-is-in-the-test')}."
        )
    return found.group(1) if found.groups() else found.group()


_SUFFIX = re.compile(r"[_-](mask|masks|seg|segmentation|label|labels|gt|annotation)$", re.I)


def without_suffix(name: str) -> str:
    """A mask's name without what tells that it is a mask: "a" of "a_mask"."""
    return _SUFFIX.sub("", name)


def check_one_name_each(names: Sequence[str], where: Path) -> None:
    """Raises `DataError` where two images share a name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{twice[0]} is listed twice in {where}: expected one image of a name.")
