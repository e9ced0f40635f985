"""What annotators do to the frames of images: clicks, boxes, paint, undo, carrying on.

Every change is on disk before it is answered. It says which revision of the image it was made on;
where that is no longer the last, it is refused, unless it is to count whatever that is.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from adapterkit.data.dataset import doubt_of_levels
from adapterkit.web import rle
from adapterkit.web.draft_store import DraftStore, Status
from adapterkit.web.drafts import Draft, Marked, Point
from adapterkit.web.frame_masks import FrameMasks, Mask, Shown, painted, without
from adapterkit.web.model import Ask
from adapterkit.web.worklist import WorkList


@dataclass
class Answer:
    """A frame as the page shows it."""

    revision: int
    frame: int
    prompts: list[dict[str, Any]]
    masks: list[dict[str, Any]]
    notes: list[str]
    status: Status
    undo: bool
    redo: bool
    milliseconds: float = 0


class Annotation:
    """What annotators do to the images of a work list.

    Args:
        worklist: whose images.
        store: its drafts.
        masks: what these come to.
    """

    def __init__(self, worklist: WorkList, store: DraftStore, masks: FrameMasks) -> None:
        self._worklist = worklist
        self._store = store
        self._masks = masks
        self._doubts: dict[tuple[str, int, str], str] = {}

    def answer(self, name: str, frame: int) -> Answer:
        """A frame with its prompts and masks.

        Raises:
            KeyError: there is no such image.
            ValueError: there is no such frame, or the model cannot take it.
        """
        with self._store.locked(name):
            return self._answer(name, self._store.draft(name), frame)

    def prepare(self, name: str, frame: int, urgent: bool = False) -> None:
        """Encode a frame for the first click on it; the errors are those of `answer`."""
        self._store.check_frame(name, frame)
        self._masks.prepare(name, frame, urgent)

    def prompt(
        self,
        name: str,
        frame: int,
        structure: int,
        points: tuple[Point, ...],
        box: tuple[float, float, float, float] | None,
        revision: int | None,
    ) -> Answer:
        """Replace the clicks and the box of a structure in a frame; what was painted stays.

        Args:
            name: of the image.
            frame: of it.
            structure: its label.
            points: all of its clicks.
            box: the box, if there is one.
            revision: on which this was made; None: whatever it is.

        Raises:
            KeyError: there is no such image.
            StaleError: the image has been changed since.
            ValueError: there is no such frame or structure, or the model cannot take a prompt;
                nothing has changed.
        """
        self._worklist.structures.check(structure)
        with self._store.changing(name, frame, revision) as draft:
            before = draft.frame(frame).marks.get(structure, Marked())
            draft.frame(frame).change({structure: replace(before, points=points, box=box)})
            return self._answered(name, draft, frame)

    def paint(
        self, name: str, frame: int, structure: int, mask: rle.RunLengths, revision: int | None
    ) -> Answer:
        """Say by brush or eraser what a structure's mask is, as `prompt` says by clicks.

        Args:
            name: of the image.
            frame: of it.
            structure: its label.
            mask: all of it, as run lengths.
            revision: on which this was made; None: whatever it is.

        Raises:
            KeyError: there is no such image.
            StaleError: the image has been changed since.
            ValueError: there is no such frame or structure, or the mask is not of the image's size.
        """
        self._worklist.structures.check(structure)
        wanted = rle.decode(mask, self._masks.size(name))
        with self._store.changing(name, frame, revision) as draft:
            claimed = self._masks.shown(name, draft, frame)
            masks, _ = self._masks.resolved(claimed)
            shown, of_frame = masks.get(structure, np.zeros_like(wanted)), draft.frame(frame)
            # Also what it lost to others: it is not to come back where these are erased.
            claim = claimed[structure].mask if structure in claimed else shown
            before = of_frame.marks.get(structure, Marked())
            changes: dict[int, Marked | None] = {structure: painted(before, claim, shown, wanted)}
            for label, marked in of_frame.marks.items():
                if label != structure and marked.is_edited:
                    changes[label] = without(marked, wanted)
            of_frame.change(changes)
            return self._answered(name, draft, frame)

    def undo(self, name: str, frame: int, revision: int | None) -> Answer:
        """Take the last change of a frame back; the errors are those of `prompt`."""
        with self._store.changing(name, frame, revision) as draft:
            draft.frame(frame).undo()
            return self._answered(name, draft, frame)

    def redo(self, name: str, frame: int, revision: int | None) -> Answer:
        """Make the last change that was taken back again; the errors are those of `prompt`."""
        with self._store.changing(name, frame, revision) as draft:
            draft.frame(frame).redo()
            return self._answered(name, draft, frame)

    def clear(self, name: str, frame: int, revision: int | None) -> Answer:
        """Drop all prompts and paint of a frame, as one change; the errors are `prompt`'s."""
        with self._store.changing(name, frame, revision) as draft:
            draft.frame(frame).change(dict.fromkeys(draft.frame(frame).marks))
            return self._answered(name, draft, frame)

    def carry(self, name: str, frame: int, to: int, revision: int | None) -> int:
        """Give the masks of a frame to the following ones, each as the mask prompt of the next.

        What was clicked or painted in a following frame stays, and is carried on from there.

        Args:
            name: of the image.
            frame: from which.
            to: the last frame that gets masks.
            revision: on which this was made; None: whatever it is.

        Returns:
            The new revision.

        Raises:
            KeyError: there is no such image.
            StaleError: the image has been changed since.
            ValueError: there are no such frames, or nothing in the first to carry.
        """
        count = len(self._worklist.read(name).frames)
        if not frame < to < count:
            raise ValueError(f"to is {to}: expected a frame from {frame + 1} to {count - 1}")
        with self._store.changing(name, frame, revision) as draft:
            for now in range(frame + 1, to + 1):
                before, _ = self._masks.resolved(self._masks.shown(name, draft, now - 1))
                there = {label: mask for label, mask in before.items() if mask.any()}
                if not there and now == frame + 1:
                    raise ValueError(f"frame {frame + 1} has no mask: outline a structure first")
                marks = draft.frame(now).marks
                free = [
                    label
                    for label in there
                    if not (label in marks and (marks[label].is_prompted or marks[label].is_edited))
                ]
                asks = [
                    Ask(self._masks.known().get(k), given=tuple(rle.encode(there[k])["counts"]))
                    for k in free
                ]
                found = self._masks.ask(name, now, asks) if asks else []
                draft.frame(now).change(
                    {k: Marked(given=each.rle) for k, each in zip(free, found, strict=True)}
                )
            self._store.save(name, draft)
            return draft.revision

    def _answer(self, name: str, draft: Draft, frame: int) -> Answer:
        self._store.check_frame(name, frame)
        began = time.perf_counter()
        if draft.accepted:
            labels = self._worklist.read_mask(name)[frame]
            masks = {k: labels == k for k in self._worklist.structures.names}
            shown, notes = {}, []
        else:
            shown = self._masks.shown(name, draft, frame)
            masks, notes = self._masks.resolved(shown)
        doubt = self._doubt_of_levels(name, frame)
        answer = Answer(
            draft.revision,
            frame,
            [
                {
                    "structure": label,
                    "points": [asdict(point) for point in each.marked.points],
                    "box": each.marked.box,
                }
                for label, each in shown.items()
                if each.marked.is_prompted
            ],
            [_told(label, mask, shown.get(label)) for label, mask in masks.items()],
            [*notes, doubt] if doubt else notes,
            self._store.status(name),
            bool(draft.frames[frame].undone) if frame in draft.frames else False,
            bool(draft.frames[frame].redone) if frame in draft.frames else False,
        )
        answer.milliseconds = round(1000 * (time.perf_counter() - began), 1)
        return answer

    def _doubt_of_levels(self, name: str, frame: int) -> str:
        key = name, frame, self._worklist.stamp(name)
        if key not in self._doubts:
            pixels = self._worklist.read(name).frames[frame]
            self._doubts[key] = doubt_of_levels(pixels, name)
        return self._doubts[key]

    def _answered(self, name: str, draft: Draft, frame: int) -> Answer:
        """The answer to a changed draft, which is saved if there is one."""
        answer = self._answer(name, draft, frame)
        self._store.save(name, draft)
        answer.revision, answer.status = draft.revision, self._store.status(name)
        return answer


def _told(label: int, mask: Mask, shown: Shown | None) -> dict[str, Any]:
    found = None if shown is None else shown.found
    return {
        "structure": label,
        "rle": rle.encode(mask),
        "area": int(mask.sum()),
        "predicted_iou": None if found is None else found.iou,
        "presence": None if found is None else found.presence,
        "edited": shown is not None and shown.marked.is_edited,
    }
