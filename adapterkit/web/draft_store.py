"""The drafts of a work list, in memory and on disk, and who may change one: one at a time, and only
who has seen what it is now."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from adapterkit.web import rle
from adapterkit.web.drafts import Draft, Marked, read_draft, write_draft
from adapterkit.web.worklist import WorkList

Status = Literal["new", "draft", "accepted"]


class StaleError(Exception):
    """A change was made on what somebody else has changed since."""

    def __init__(self, revision: int, annotator: str) -> None:
        who = f" by {annotator}" if annotator else ""
        super().__init__(f"this image has been changed elsewhere{who} since it was shown here")
        self.revision = revision


class DraftStore:
    """The drafts of a work list.

    Args:
        worklist: whose.
        annotator: who changes them.
    """

    def __init__(self, worklist: WorkList, annotator: str) -> None:
        self._worklist = worklist
        self._annotator = annotator
        self._locks: dict[str, threading.RLock] = {}
        self._drafts: dict[str, Draft] = {}
        for name in worklist.images:
            draft = read_draft(worklist.draft_file(name))
            if draft is not None:
                self._drafts[name] = draft

    def status(self, name: str) -> Status:
        """How far an image is."""
        draft, mask = self._drafts.get(name), self._worklist.images[name].mask
        if mask is not None and (draft is None or draft.accepted):
            return "accepted"
        changed = draft is not None and any(each.marks for each in draft.frames.values())
        return "draft" if mask is not None or changed else "new"

    def revision(self, name: str) -> int:
        """How often an image has been changed."""
        draft = self._drafts.get(name)
        return 0 if draft is None else draft.revision

    def draft(self, name: str) -> Draft:
        """Of an image; not to be changed.

        Raises:
            KeyError: there is no such image.
        """
        if name not in self._worklist.images:
            raise KeyError(name)
        has_mask = self._worklist.images[name].mask is not None
        found = self._drafts.get(name) or Draft(accepted=True)
        return replace(found, accepted=found.accepted and has_mask)

    def checked(self, name: str, revision: int | None) -> Draft:
        """Of an image, if `revision` is its last, or None.

        Raises:
            KeyError: there is no such image.
            StaleError: it is not.
        """
        draft = self.draft(name)
        if revision is not None and revision != draft.revision:
            raise StaleError(draft.revision, draft.annotator)
        return draft

    @contextmanager
    def changing(self, name: str, frame: int, revision: int | None) -> Iterator[Draft]:
        """A copy of an image's draft to change and save, while nobody else does.

        That of an accepted image begins with its masks.

        Raises:
            KeyError: there is no such image.
            StaleError: `revision` is neither its last nor None.
            ValueError: there is no such frame, or the image or its mask cannot be read.
        """
        with self.locked(name):
            draft = self.checked(name, revision).copy()
            self.check_frame(name, frame)
            if draft.accepted:
                draft = self._from_mask(name, draft)
            yield draft

    def _from_mask(self, name: str, draft: Draft) -> Draft:
        """A draft that begins with the masks that were accepted."""
        begun = Draft(draft.revision, False, {}, draft.annotator)
        for frame, labels in enumerate(self._worklist.read_mask(name)):
            begun.frame(frame).marks = {
                label: Marked(given=rle.encode(labels == label))
                for label in self._worklist.structures.names
            }
        return begun

    def save(self, name: str, draft: Draft) -> None:
        """Keep a changed draft, with the next revision.

        Raises:
            OSError: it cannot be written; the one before is as it was.
        """
        draft.revision += 1
        draft.annotator = self._annotator
        write_draft(self._worklist.draft_file(name), draft)
        self._drafts[name] = draft

    def forget(self, name: str) -> None:
        """Of an image that is no longer there."""
        self._drafts.pop(name, None)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Nobody else changes an image within it; KeyError where there is none."""
        if name not in self._worklist.images:
            raise KeyError(name)
        with self._locks.setdefault(name, threading.RLock()):
            yield

    def check_frame(self, name: str, frame: int) -> None:
        """Raises ValueError where an image has no such frame, or cannot be read."""
        count = len(self._worklist.read(name).frames)
        if not 0 <= frame < count:
            raise ValueError(f"frame is {frame}: expected 0 to {count - 1}")
