"""The structures of a work list, in its file structures.json: named, coloured, left out."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from adapterkit.adapters.header import is_name
from adapterkit.data.collections.annotated import Structure, read_structures
from adapterkit.data.files.palette import colour
from adapterkit.system.files import atomic_write

MAX_LABEL = 255
"""As a label map of bytes has."""


class Structures:
    """What labels stand for, in the order of the labels.

    Args:
        path: the file; made when something is first named.

    Raises:
        DataError: the file is not as `read_structures` expects it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._all = list(read_structures(path)) if path.is_file() else []

    @property
    def all(self) -> tuple[Structure, ...]:
        """Those that are wanted, with a colour each."""
        return tuple(
            replace(each, colour=each.colour or hexadecimal(each.label))
            for each in self._all
            if not each.left_out
        )

    @property
    def names(self) -> dict[int, str]:
        """By label, of those that are wanted."""
        return {each.label: each.name for each in self.all}

    def label_of(self, name: str) -> int | None:
        """Of a name, in whatever case; None where there is none."""
        found = (label for label, own in self.names.items() if own.casefold() == name.casefold())
        return next(found, None)

    def check(self, label: int) -> None:
        """Raises ValueError where no structure has this label."""
        if label not in self.names:
            known = ", ".join(f"{label} ({name})" for label, name in self.names.items()) or "none"
            raise ValueError(f"there is no structure {label}: expected one of {known}")

    def add(self, name: str = "", colour: str = "") -> Structure:
        """One more; of a name that was left out, that one again.

        Args:
            name: "" for a number.
            colour: as HTML writes it; "" for the next of the palette, which the colour-blind can
                tell apart.

        Raises:
            ValueError: the name or the colour is not as expected, or a label map holds no more.
        """
        again = next((s for s in self._all if s.left_out and name and s.name == name), None)
        if again is not None:
            self._put(replace(again, left_out=False, colour=_colour(colour) or again.colour))
            return self._of(again.label)
        label = max((each.label for each in self._all), default=0) + 1
        if label > MAX_LABEL:
            raise ValueError(f"there are {MAX_LABEL} structures, and no mask can hold more")
        self._put(Structure(label, self._name(name or f"structure {label}"), _colour(colour)))
        return self._of(label)

    def add_all(self, named: Sequence[Structure]) -> None:
        """Several at once, where there is none of their labels yet."""
        known = {each.label for each in self._all}
        self._all = sorted(
            [*self._all, *(each for each in named if each.label not in known)],
            key=lambda each: each.label,
        )
        self._write()

    def rename(self, label: int, name: str | None = None, colour: str | None = None) -> Structure:
        """Give a structure another name, colour or both.

        Raises:
            ValueError: there is no such structure, or the name or colour is not as expected.
        """
        self.check(label)
        found = self._of(label)
        if name is not None:
            found = replace(found, name=self._name(name, but=label))
        self._put(found if colour is None else replace(found, colour=_colour(colour)))
        return self._of(label)

    def leave_out(self, label: int) -> None:
        """Want a structure no longer. Masks on disk keep its label, which counts as background.

        Raises:
            ValueError: there is no such structure.
        """
        self.check(label)
        self._put(replace(self._of(label), left_out=True))

    def _of(self, label: int) -> Structure:
        return next(each for each in self._all if each.label == label)

    def _put(self, structure: Structure) -> None:
        others = [each for each in self._all if each.label != structure.label]
        self._all = sorted([*others, structure], key=lambda each: each.label)
        self._write()

    def _write(self) -> None:
        kept = [
            {key: value for key, value in asdict(each).items() if value not in ("", False)}
            for each in self._all
        ]
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps({"structures": kept}, indent=2) + "\n", "utf-8")

    def _name(self, name: str, but: int | None = None) -> str:
        name = name.strip()
        if name == "mean" or not is_name(name):
            raise ValueError(
                f"a structure cannot be called {name!r}: expected up to 100 printable characters, "
                'none of them <, >, [ or ], and not "mean"'
            )
        if self.label_of(name) not in (None, but):
            raise ValueError(f"there is a structure {name!r} already: expected another name")
        return name


def hexadecimal(label: int) -> str:
    """The palette's colour of a label, as HTML writes it."""
    return f"#{bytes(colour(label)).hex().upper()}"


def _colour(given: str) -> str:
    if given and not re.fullmatch(r"#[0-9a-fA-F]{6}", given):
        raise ValueError(f"the colour is {given!r}: expected #RRGGBB, #E69F00 say")
    return given
