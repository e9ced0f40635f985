"""A work list with the adapter in use on it, and the acceptance of its images."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from adapterkit.system.files import atomic_write
from adapterkit.web.annotation import Annotation
from adapterkit.web.draft_store import DraftStore, Status
from adapterkit.web.drafts import Draft
from adapterkit.web.frame_masks import FrameMasks
from adapterkit.web.model import Model
from adapterkit.web.predictions import Predictions
from adapterkit.web.worklist import Acceptance, WorkList

Order = Literal["name", "uncertainty"]


@dataclass
class _Settings:
    adapter: str | None = None
    order: Order = "name"


class Workspace:
    """A work list, its drafts, and the adapter in use on it.

    Args:
        worklist: the images.
        model: shared with other workspaces.
        annotator: who works on it.

    Attributes:
        worklist: as given.
        annotator: as given.
        predictions: masks by class prompts.
        frames: what is done to the frames of an image.
    """

    def __init__(self, worklist: WorkList, model: Model, annotator: str = "") -> None:
        self.worklist = worklist
        self.annotator = annotator
        self.predictions = Predictions(worklist, model)
        self._model = model
        self._settings = self._read_settings()
        self._store = DraftStore(worklist, annotator)
        self._masks = FrameMasks(worklist, model, self.predictions, lambda: self.adapter)
        self.frames = Annotation(worklist, self._store, self._masks)
        self._adopt_structures()

    # The list

    @property
    def adapter(self) -> str | None:
        """The name of the one in use; None: the base alone."""
        return self._settings.adapter

    @property
    def order(self) -> Order:
        """Of the images."""
        return self._settings.order

    def use(self, adapter: str | None) -> None:
        """Segment with another adapter, or with None the base alone, from the same prompts.

        Raises:
            ValueError: no adapter has this name.
        """
        self._model.check(adapter)
        self._settings = replace(self._settings, adapter=adapter)
        self._write_settings()
        self._adopt_structures()

    def sort(self, order: Order) -> None:
        """Show the images in another order."""
        self._settings = replace(self._settings, order=order)
        self._write_settings()

    def names(self) -> list[str]:
        """The images' names in their order; by uncertainty, the most doubtful first."""
        names = list(self.worklist.images)
        if self.order == "name":
            return names
        doubts = {each: self.predictions.uncertainty(each, self.adapter) for each in names}
        return sorted(names, key=lambda each: -(doubts[each] or 0.0))

    def status(self, name: str) -> Status:
        """How far an image is."""
        return self._store.status(name)

    def revision(self, name: str) -> int:
        """How often an image has been changed."""
        return self._store.revision(name)

    def wanted(self) -> Iterator[tuple[str, int, str | None]]:
        """Frames of which the background is to find masks, first frames first."""
        adapter = self.adapter
        if not self._model.classes(adapter):
            return
        open_images = [n for n in self.names() if self.status(n) != "accepted"]
        for name in open_images:
            if not self.predictions.has(name, 0, adapter):
                yield name, 0, adapter
        for name in open_images:
            for frame in range(1, self.worklist.frames_of(name)):
                if not self.predictions.has(name, frame, adapter):
                    yield name, frame, adapter

    def remove(self, name: str) -> None:
        """Delete an image with all that belongs to it."""
        with self._store.locked(name):
            self.worklist.remove(name)
            self._store.forget(name)

    # Acceptance

    def accept(self, name: str, revision: int | None) -> Path:
        """Write the masks of an image into the folder masks; gives the file.

        Raises:
            KeyError: there is no such image.
            StaleError: the image has been changed since.
            ValueError: no structure is named yet, or the image cannot be read.
            OSError: the mask cannot be written; nothing has changed.
        """
        if not self.worklist.structures.names:
            raise ValueError("no structure is named yet: add one first")
        with self._store.locked(name):
            draft = self._store.checked(name, revision).copy()
            labels = self._masks.labels(name, draft)
            path = self.worklist.accept(name, labels, self._acceptance(draft))
            draft.accepted = True
            self._store.save(name, draft)
            return path

    def reopen(self, name: str, revision: int | None) -> None:
        """Take an accepted image up again; its mask on disk stays until it is accepted again.

        Raises:
            KeyError: there is no such image.
            StaleError: the image has been changed since.
            ValueError: it is not accepted, or its mask cannot be read.
        """
        with self._store.changing(name, 0, revision) as draft:
            self._store.save(name, draft)

    def next(self, name: str) -> str | None:
        """The next image in order that is not accepted, after the last from the beginning."""
        names = self.names()
        after = names.index(name) + 1 if name in names else 0
        order = [*names[after:], *names[:after]]
        return next((n for n in order if n != name and self.status(n) != "accepted"), None)

    def labels(self, name: str) -> UInt8[np.ndarray, "T H W"]:
        """The label maps of an image as they are now.

        Raises:
            KeyError: there is no such image.
            ValueError: it cannot be read, or the model cannot take it.
        """
        with self._store.locked(name):
            return self._masks.labels(name, self._store.draft(name))

    # Inside

    def _adopt_structures(self) -> None:
        """Where nothing is named yet, the adapter's own structures are."""
        if not self.worklist.structures.all:
            for name in self._model.structures(self.adapter):
                self.worklist.structures.add(name)

    def _acceptance(self, draft: Draft) -> Acceptance:
        return Acceptance(
            self.annotator,
            datetime.now(UTC).isoformat(timespec="seconds"),
            self.adapter,
            self._model.digest(self.adapter),
            draft.clicks,
            {
                str(index): {
                    str(label): {
                        "points": [asdict(point) for point in marked.points],
                        "box": marked.box,
                        "painted": marked.is_edited,
                    }
                    for label, marked in each.marks.items()
                }
                for index, each in draft.frames.items()
                if each.marks
            },
        )

    def _read_settings(self) -> _Settings:
        first = next(iter(self._model.names), None)
        try:
            stated = json.loads(self._settings_file.read_text(encoding="utf-8"))
            settings = _Settings(stated["adapter"], stated["order"])
            self._model.check(settings.adapter)
            return settings
        except (OSError, ValueError, KeyError, TypeError):
            return _Settings(first)

    def _write_settings(self) -> None:
        with atomic_write(self._settings_file) as temporary:
            temporary.write_text(json.dumps(asdict(self._settings)), encoding="utf-8")

    @property
    def _settings_file(self) -> Path:
        return self.worklist.own / "settings.json"
