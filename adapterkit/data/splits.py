"""Patients divided into training, validation and test, so that none is in two parts."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapterkit.data.image_file import DataError


@dataclass(frozen=True)
class Split:
    """Patient names of the three parts, each sorted; no patient is in two parts.

    Raises `DataError` where a name is listed twice.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        names = Counter([*self.train, *self.validation, *self.test])
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise DataError(
                f"{twice[0]} is in the split more than once ({len(twice)} such names): expected "
                "each patient once, in one of the three parts."
            )

    def among(self, names: Collection[str]) -> "Split":
        """Of these patients alone.

        Raises `DataError` where none of them is for a part.
        """
        parts = [
            tuple(name for name in part if name in names)
            for part in (self.train, self.validation, self.test)
        ]
        for part, kept in zip(("training", "validation", "test"), parts, strict=True):
            if not kept:
                raise DataError(
                    f"none of the {len(names)} patients is for {part}, by the data's own split: "
                    "expected some for each part; take more, or a random split."
                )
        return Split(*parts)


_PARTS = {"train": "train", "training": "train", "val": "validation", "validation": "validation",
          "valid": "validation", "test": "test", "testing": "test"}  # fmt: skip


def stated_split(assigned: Sequence[tuple[str, str]], path: Path, line: str) -> Split:
    """The split that a file states, in which a group may have several lines.

    Args:
        assigned: the group of each line, and what it is for: train, validation (val) or test.
        path: of the file.
        line: what one of its lines is called in errors.

    Raises:
        DataError: a part is none of these or has no group, or a group is in two.
    """
    parts: dict[str, str] = {}
    for number, (group, value) in enumerate(assigned, start=1):
        part = _PARTS.get(str(value).strip().lower())
        if part is None:
            raise DataError(
                f"{path}, {line} {number}, has the split {value!r}: expected train, validation or "
                "test."
            )
        if parts.setdefault(group, part) != part:
            raise DataError(
                f"{path}, {line} {number}: {group} is in {part} and in {parts[group]}; expected "
                "all of a group on one side."
            )
    sides = {side: tuple(sorted(g for g, part in parts.items() if part == side))
             for side in ("train", "validation", "test")}  # fmt: skip
    missing = [side for side, names in sides.items() if not names]
    if missing:
        raise DataError(f"{path} has no {line} of the split {missing[0]}: expected some of each.")
    return Split(**sides)


def split_patients(
    patients: Iterable[str],
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
) -> Split:
    """Splits the patients at random into train, validation and test.

    The split depends on the set of names and the seed, not on their order. The sizes follow
    `fractions` (three positive numbers that sum to 1) by largest remainders, and each part gets
    at least one patient. Pass each patient once, for example `{frame.patient for frame in frames}`.

    Raises `DataError` for fewer than three patients, duplicates or fractions that do not fit.
    """
    names = sorted(patients)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"patients lists {twice[0]} more than once ({len(twice)} such names): expected each "
            "patient once; pass a set of names, not one name per frame."
        )
    if len(names) < 3:
        raise DataError(
            f"patients has {len(names)} names: expected at least 3, one each for train, "
            "validation and test."
        )
    sizes = _part_sizes(len(names), fractions)
    order = np.random.default_rng(seed).permutation(len(names))
    parts = np.split(order, np.cumsum(sizes)[:2])
    return Split(*(tuple(names[index] for index in sorted(part)) for part in parts))


def _part_sizes(count: int, fractions: tuple[float, float, float]) -> list[int]:
    fit = len(fractions) == 3 and min(fractions) > 0 and math.isclose(sum(fractions), 1)
    if not fit:
        raise DataError(
            f"fractions is {fractions}: expected three positive numbers that sum to 1, for train, "
            "validation and test."
        )
    # Rounded because 0.7 * 10 and its like fall a hair short of the whole number.
    quotas = [round(fraction * count, 6) for fraction in fractions]
    sizes = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(3), key=lambda part: sizes[part] - quotas[part])
    for part in by_remainder[: count - sum(sizes)]:
        sizes[part] += 1
    while min(sizes) == 0:
        sizes[sizes.index(max(sizes))] -= 1
        sizes[sizes.index(0)] += 1
    return sizes
