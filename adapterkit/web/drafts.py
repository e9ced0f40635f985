"""What an annotator has done to an image and not accepted yet, on disk after every change.

A draft is one JSON file for each image. It holds prompts and what was painted, not the masks that
the model makes of them, so that another adapter answers the same clicks.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterkit.system.files import atomic_write

MAX_UNDO = 100
"""Changes of a frame that can be taken back."""


@dataclass(frozen=True)
class Point:
    """The pixel (x, y) lies inside of a structure, or outside of it."""

    x: int
    y: int
    inside: bool


@dataclass(frozen=True)
class Marked:
    """What an annotator has said of a structure in a frame; masks are run lengths.

    Attributes:
        points: clicks, in their order.
        box: (x0, y0, x1, y1) in pixels, from edge to edge.
        given: a mask to begin with, carried from another frame or accepted before: the structure's
            mask as it is, and with clicks a prompt beside them.
        added: pixels that were painted, whatever the model says.
        removed: pixels that were erased.
        won: the mask as it was when it was painted last: where it still is, no other structure is.
    """

    points: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None
    given: Mapping[str, Any] | None = None
    added: Mapping[str, Any] | None = None
    removed: Mapping[str, Any] | None = None
    won: Mapping[str, Any] | None = None

    @property
    def is_prompted(self) -> bool:
        """Whether the model is to be asked, whatever it knows by name."""
        return bool(self.points) or self.box is not None

    @property
    def is_edited(self) -> bool:
        """Whether something was painted or erased."""
        return any(each is not None for each in (self.added, self.removed, self.won))


Marks = dict[int, Marked]
"""By the structures' labels."""


@dataclass
class FrameDraft:
    """A frame's marks, and those that changes replaced: None where there was none."""

    marks: Marks = field(default_factory=dict)
    undone: list[dict[int, Marked | None]] = field(default_factory=list)
    redone: list[dict[int, Marked | None]] = field(default_factory=list)

    def change(self, marks: Mapping[int, Marked | None]) -> None:
        """Replace some structures' marks by others, as one step to undo."""
        self.undone = [*self.undone, self._put(marks)][-MAX_UNDO:]
        self.redone = []

    def undo(self) -> None:
        """Take the last change back, if there is one."""
        if self.undone:
            self.redone.append(self._put(self.undone.pop()))

    def redo(self) -> None:
        """Make the last change that was taken back again, if there is one."""
        if self.redone:
            self.undone.append(self._put(self.redone.pop()))

    def _put(self, marks: Mapping[int, Marked | None]) -> dict[int, Marked | None]:
        before = {label: self.marks.get(label) for label in marks}
        for label, marked in marks.items():
            self.marks.pop(label, None)
            if marked is not None and marked != Marked():
                self.marks[label] = marked
        return before


@dataclass
class Draft:
    """How far the annotation of an image is.

    Attributes:
        revision: how often it was changed; who changes it says which one was seen.
        accepted: whether the mask on disk is what there is to say.
        frames: those that were changed.
        annotator: who changed it last.
    """

    revision: int = 0
    accepted: bool = False
    frames: dict[int, FrameDraft] = field(default_factory=dict)
    annotator: str = ""

    def frame(self, index: int) -> FrameDraft:
        """A frame's own, made if there is none."""
        return self.frames.setdefault(index, FrameDraft())

    @property
    def clicks(self) -> int:
        """Points in all frames."""
        marks = (mark for frame in self.frames.values() for mark in frame.marks.values())
        return sum(len(mark.points) for mark in marks)

    def copy(self) -> "Draft":
        """One whose changes leave this as it is."""
        frames = {
            index: FrameDraft(dict(each.marks), list(each.undone), list(each.redone))
            for index, each in self.frames.items()
        }
        return replace(self, frames=frames)


def read_draft(path: Path) -> Draft | None:
    """The draft in a file; None where there is none, or not as `write_draft` writes it."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        frames = {
            int(index): FrameDraft(
                {int(label): _marked(mark) for label, mark in each["marks"].items()},
                [_changes(change) for change in each["undone"]],
                [_changes(change) for change in each["redone"]],
            )
            for index, each in stated["frames"].items()
        }
        return Draft(
            int(stated["revision"]), bool(stated["accepted"]), frames, str(stated["annotator"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_draft(path: Path, draft: Draft) -> None:
    """Write a draft, atomically.

    Raises:
        OSError: it cannot be written; the one before is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(asdict(draft)), encoding="utf-8")


def _changes(change: Mapping[str, Any]) -> dict[int, Marked | None]:
    return {int(k): None if mark is None else _marked(mark) for k, mark in change.items()}


def _marked(stated: Mapping[str, Any]) -> Marked:
    box = stated["box"]
    return Marked(
        tuple(Point(each["x"], each["y"], each["inside"]) for each in stated["points"]),
        None if box is None else (box[0], box[1], box[2], box[3]),
        stated["given"],
        stated["added"],
        stated["removed"],
        stated["won"],
    )
