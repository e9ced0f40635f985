"""Training on the images of one kind alone: of one view, say, or of one quality."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapterkit.data.collections import Collection
from adapterkit.data.collections.camus import Frame, read_info
from adapterkit.data.dataset import LabelledImage, Record, is_labelled
from adapterkit.data.image_file import DataError
from adapterkit.data.splits import Split

QUALITY = "quality"
"""Of CAMUS's images, which their Info files state beside what the names of the files do."""


@dataclass(frozen=True)
class _Described:
    """A record, of which more is known, or which comes again under another name."""

    record: Record
    name: str
    attributes: Mapping[str, str]

    @property
    def structures(self) -> Mapping[int, str]:
        return self.record.structures

    @property
    def labelled(self) -> bool:
        return is_labelled(self.record)

    def read(self) -> LabelledImage:
        return self.record.read()


def kind_in_words(kind: str) -> tuple[str, str]:
    """Attribute and value of "view=2CH".

    Raises:
        ValueError: it is not written so.
    """
    attribute, equals, value = kind.partition("=")
    if not (attribute and equals and value):
        raise ValueError(
            f"--trained-on {kind}: expected ATTRIBUTE=VALUE, view=2CH or {QUALITY}=Good say"
        )
    return attribute, value


def trained_on(collection: Collection, split: Split, kind: str) -> tuple[Collection, Split]:
    """With the images of one kind alone of the patients for training and validation, and all
    images of those for the test.

    Args:
        collection: all images.
        split: of its groups.
        kind: "view=2CH", say.

    Raises:
        DataError: the data do not state it of all images, none for a part is of this kind, or none
            of the test's is of another.
    """
    attribute, value = kind_in_words(kind)
    described = [_with(record, attribute) for record in collection.records]
    pairs = zip(described, collection.groups, strict=True)
    kept = [
        (record, group)
        for record, group in pairs
        if group in split.test or record.attributes[attribute] == value
    ]
    records, groups = zip(*kept, strict=True) if kept else ((), ())
    left = set(groups)
    parts = {
        "training": tuple(each for each in split.train if each in left),
        "validation": tuple(each for each in split.validation if each in left),
    }
    for part, members in parts.items():
        if not members:
            known = sorted({each.attributes[attribute] for each in described})
            raise DataError(
                f"--trained-on {kind}: no image for {part} is of it; {attribute} is one of "
                f"{', '.join(known)}."
            )
    of_the_test = {r.attributes[attribute] for r, g in kept if g in split.test}
    if of_the_test <= {value}:
        raise DataError(f"--trained-on {kind}: all images of the test are of it too.")
    reported = tuple(dict.fromkeys((*collection.reported, attribute)))
    filtered = replace(
        collection, records=tuple(records), groups=tuple(groups), split=None, reported=reported
    )
    return filtered, Split(parts["training"], parts["validation"], split.test)


def _with(record: Record, attribute: str) -> _Described:
    known = dict(record.attributes)
    if attribute == QUALITY and isinstance(record, Frame):
        info = read_info(record)
        if info is not None and info.image_quality is not None:
            known[QUALITY] = info.image_quality
    if attribute not in known:
        raise DataError(
            f"--trained-on: {record.name} does not state its {attribute}; it has "
            f"{', '.join(known) or 'nothing'}."
        )
    return _Described(record, record.name, known)


def repeated(collection: Collection, split: Split, times: int) -> Collection:
    """With each training image so many times, under names of their own: clicks and augmentation,
    which are drawn by name, then differ."""
    records, groups = [], []
    for record, group in zip(collection.records, collection.groups, strict=True):
        for time in range(times if group in split.train else 1):
            name = record.name if time == 0 else f"{record.name}, again {time}"
            records.append(_Described(record, name, record.attributes))
            groups.append(group)
    return replace(collection, records=tuple(records), groups=tuple(groups))
