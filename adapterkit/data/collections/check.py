"""What a data set holds, and what is wrong with it, before anything is trained on it."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from adapterkit.adapters.header import is_name
from adapterkit.data.collections.collection import Collection
from adapterkit.data.dataset import LabelledImage, Record, doubt_of_levels, is_labelled
from adapterkit.data.image_file import DataError, Spacing
from adapterkit.data.splits import Split


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or that looks wrong, with what shows it."""

    message: str
    is_error: bool
    """Whether training on it would be wrong; else it is for a look."""


@dataclass
class Report:
    """The fingerprint of a collection, and its problems.

    Attributes:
        collection: what was looked at.
        images: in how many images each structure occurs, by name.
        sizes: how many images have which size, (rows, columns).
        spacings: how many have which pixel size in mm, None where it is not known.
        lowest: the lowest value in an image.
        highest: the highest.
        problems: the errors first.
    """

    collection: Collection
    images: dict[str, int] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    spacings: Counter[Spacing | None] = field(default_factory=Counter)
    lowest: float = np.inf
    highest: float = -np.inf
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_wrong(self) -> bool:
        """Whether training would be wrong."""
        return any(problem.is_error for problem in self.problems)


def check_collection(collection: Collection, split: Split | None = None) -> Report:
    """Read each image and mask of a collection once, and say what it holds and what is wrong.

    Errors are: names of structures that an adapter file cannot hold, files that cannot be read or
    do not fit, a structure that no image shows, the same image on two sides of the split, and too
    few groups for training, validation and test. For a look are: masks without any structure, the
    same image twice, images that show one value alone or of which few grey levels remain, and names
    that look like several images of one patient without groups.

    Args:
        collection: what `open_collection` gave.
        split: of its groups; None: its own, if it has one.
    """
    report = Report(collection, images=dict.fromkeys(collection.structures.values(), 0))
    places: dict[bytes, list[int]] = defaultdict(list)
    unreadable, blank, flat, dark = [], [], [], []
    for index, record in enumerate(collection.records):
        try:
            native = record.read()
        except DataError as error:
            unreadable.append(str(error))
            continue
        _count(report, record, native)
        if is_labelled(record) and not np.isin(native.labels, list(record.structures)).any():
            blank.append(record.name)
        if native.image.min() == native.image.max():
            flat.append(record.name)
        else:
            if doubt_of_levels(native.image, record.name):
                dark.append(record.name)
            places[_digest(native.image)].append(index)
    report.problems = [
        *(Problem(message, True) for message in unreadable),
        *_unfit_names(collection),
        *_absent(report),
        *_twice(collection, places, split or collection.split),
        *_few_groups(collection),
        *_for_a_look("no structure in the mask of", blank),
        *_for_a_look("one value alone in the image", flat),
        *_for_a_look("fewer than 16 grey levels would remain of the image", dark),
        *_ungrouped(collection),
    ]
    report.problems.sort(key=lambda problem: not problem.is_error)
    return report


def _count(report: Report, record: Record, native: LabelledImage) -> None:
    for label, name in record.structures.items():
        report.images[name] = report.images.get(name, 0) + bool((native.labels == label).any())
    rows, columns = native.labels.shape
    report.sizes[rows, columns] += 1
    report.spacings[native.spacing] += 1
    report.lowest = min(report.lowest, float(native.image.min()))
    report.highest = max(report.highest, float(native.image.max()))


def _digest(image: np.ndarray) -> bytes:
    digest = blake2b(f"{image.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image, dtype=np.float32).data)
    return digest.digest()


def _unfit_names(collection: Collection) -> Iterable[Problem]:
    for label, name in collection.structures.items():
        if name == "mean" or not is_name(name):
            yield Problem(
                f"a structure is called {name!r}: expected up to 100 printable characters, none "
                f'of them <, >, [ or ], and not "mean"; --structures {label}=NAME renames it.',
                True,
            )


def _absent(report: Report) -> Iterable[Problem]:
    for name, count in report.images.items():
        if count == 0:
            yield Problem(
                f"{name} is in no mask: expected it in some; leave it out, or correct its label.",
                True,
            )


def _twice(
    collection: Collection, places: dict[bytes, list[int]], split: Split | None
) -> Iterable[Problem]:
    """One image under several names: of several groups, it can be on two sides of a split."""
    parts = {} if split is None else vars(split)
    side = {group: part for part, names in parts.items() for group in names}
    for indices in places.values():
        # Records of several structures may share an image file, as those of US30K do.
        files = {getattr(collection.records[i], "image", i): i for i in indices}
        names = [collection.records[i].name for i in files.values()]
        groups = sorted({collection.groups[i] for i in files.values()})
        if len(files) < 2:
            continue
        same = f"{' and '.join(names[:2])} are the same image"
        sides = sorted({side[group] for group in groups if group in side})
        if len(sides) > 1:
            yield Problem(f"{same}, in {' and in '.join(sides)}: keep one of them.", True)
        elif len(groups) > 1 and not side:
            yield Problem(
                f"{same}, of the groups {' and '.join(groups[:2])}, which a split may put on two "
                "sides: keep one of them, or give them one group.",
                False,
            )
        else:
            yield Problem(f"{same}.", False)


def _few_groups(collection: Collection) -> Iterable[Problem]:
    count = len(collection.group_names)
    if count < 3:
        yield Problem(
            f"{collection.name} has {count} group{'s' * (count != 1)} of images: expected at least "
            "3, for training, validation and test.",
            True,
        )


def _for_a_look(what: str, names: Sequence[str]) -> Iterable[Problem]:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield Problem(f"{what} {names[0]}{more}.", False)


def _ungrouped(collection: Collection) -> Iterable[Problem]:
    """Names that differ in their last part alone, where each image is its own group."""
    if collection.is_grouped:
        return
    stems: dict[str, list[str]] = defaultdict(list)
    for record in collection.records:
        # What comes before the last part, if it has a number: p1_a, 017-2.
        found = re.fullmatch(r"(.*\d.*?)[_\-. ][^_\-. ]+", Path(record.name).name)
        if found:
            stems[found.group(1)].append(record.name)
    several = [names for names in stems.values() if len(names) > 1]
    if several:
        first, second = several[0][:2]
        yield Problem(
            f"{first} and {second} look like one patient's ({len(several)} such), and no group is "
            "given: --group says what of a name is the patient.",
            False,
        )
