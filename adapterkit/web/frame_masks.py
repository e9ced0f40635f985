"""The masks of a frame: what the model, given masks, brush and eraser come to, without overlaps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt8

from adapterkit.web import rle
from adapterkit.web.drafts import Draft, Marked
from adapterkit.web.model import Ask, Found, Model
from adapterkit.web.overlaps import Claim, resolve
from adapterkit.web.predictions import Predictions
from adapterkit.web.worklist import WorkList

Mask = Bool[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class Shown:
    """A structure's mask in a frame, before overlaps are resolved."""

    mask: Mask
    found: Found | None
    marked: Marked


class FrameMasks:
    """The masks of a work list's frames.

    Args:
        worklist: whose.
        model: which is asked.
        predictions: of the structures that it knows by name.
        adapter: gives the name of the one in use.
    """

    def __init__(
        self,
        worklist: WorkList,
        model: Model,
        predictions: Predictions,
        adapter: Callable[[], str | None],
    ) -> None:
        self._worklist = worklist
        self._model = model
        self._predictions = predictions
        self._adapter = adapter

    def known(self) -> dict[int, str]:
        """Of the labels that the adapter in use knows by name, that name."""
        classes = {each.casefold(): each for each in self._model.classes(self._adapter())}
        return {
            label: classes[name.casefold()]
            for label, name in self._worklist.structures.names.items()
            if name.casefold() in classes
        }

    def shown(self, name: str, draft: Draft, frame: int, urgent: bool = True) -> dict[int, Shown]:
        """The mask of each structure in a frame, as the draft and the model have it."""
        size = self.size(name)
        marks = draft.frames[frame].marks if frame in draft.frames else {}
        known = self.known()
        by_name: Mapping[str, Found] = {}
        if any(not marks.get(label) for label in known):
            by_name = self._predictions.get(name, frame, self._adapter(), urgent)
        found: dict[int, Found | None] = {}
        asks: dict[int, Ask] = {}
        for label in self._worklist.structures.names:
            marked = marks.get(label, Marked())
            if marked.is_prompted:
                asks[label] = Ask.of(marked, known.get(label))
            elif marked.given is not None:
                found[label] = None
            elif label in known:
                of_class = by_name.get(known[label])
                if of_class is None:
                    asks[label] = Ask(known[label])
                else:
                    found[label] = of_class
            elif marked.is_edited:
                found[label] = None
        answers = self.ask(name, frame, list(asks.values()), urgent) if asks else []
        found |= dict(zip(asks, answers, strict=True))
        shown = {}
        for label in self._worklist.structures.names:
            if label in found:
                marked = marks.get(label, Marked())
                shown[label] = Shown(_mask(found[label], marked, size), found[label], marked)
        return shown

    def prepare(self, name: str, frame: int, urgent: bool) -> None:
        """Encode a frame for the first click on it."""
        self._model.prepare(
            self._predictions.key(name, frame),
            lambda: (self._worklist.read(name), frame),
            self._adapter(),
            urgent,
        )

    def ask(self, name: str, frame: int, asks: list[Ask], urgent: bool = True) -> list[Found]:
        """What the model says about a frame, with the adapter in use."""
        return self._model.ask(
            self._predictions.key(name, frame),
            lambda: (self._worklist.read(name), frame),
            self._adapter(),
            asks,
            urgent,
        )

    def resolved(self, shown: Mapping[int, Shown]) -> tuple[dict[int, Mask], list[str]]:
        """Without overlaps, and what is to be said of these."""
        claims = {
            label: Claim(
                each.mask,
                None
                if each.marked.won is None
                else each.mask & rle.decode(each.marked.won, each.mask.shape),
                [(p.x, p.y) for p in each.marked.points if p.inside],
            )
            for label, each in shown.items()
        }
        return resolve(claims, self._worklist.structures.names)

    def labels(self, name: str, draft: Draft) -> UInt8[np.ndarray, "T H W"]:
        """The label maps of all frames; what is not in use stays as it is on disk."""
        if draft.accepted:
            return self._worklist.read_mask(name)
        labels = np.zeros(self._worklist.read(name).frames.shape[:3], np.uint8)
        if self._worklist.images[name].mask is not None:
            before = self._worklist.read_mask(name)
            # Of structures that nobody works on now.
            others = ~np.isin(before, list(self._worklist.structures.names))
            labels[others] = before[others]
        for frame in range(len(labels)):
            masks, _ = self.resolved(self.shown(name, draft, frame))
            for label, mask in masks.items():
                labels[frame][mask] = label
        return labels

    def size(self, name: str) -> tuple[int, int]:
        """Rows and columns of an image."""
        height, width = self._worklist.read(name).frames.shape[1:3]
        return height, width


def _mask(found: Found | None, marked: Marked, size: tuple[int, int]) -> Mask:
    """What the model or a given mask says, with what was painted."""
    source = marked.given if found is None else found.rle
    mask = np.zeros(size, bool) if source is None else rle.decode(source, size)
    if marked.added is not None:
        mask = mask | rle.decode(marked.added, size)
    if marked.removed is not None:
        mask = mask & ~rle.decode(marked.removed, size)
    return mask


def painted(before: Marked, claim: Mask, shown: Mask, wanted: Mask) -> Marked:
    """Marks by which a structure's mask becomes what is wanted.

    Args:
        before: its marks until now.
        claim: its mask by them, with what it lost to others.
        shown: the same without.
        wanted: what it is to be.
    """
    none = np.zeros_like(shown)
    added = none if before.added is None else rle.decode(before.added, shown.shape)
    removed = none if before.removed is None else rle.decode(before.removed, shown.shape)
    return replace(
        before,
        added=or_none((added | (wanted & ~shown)) & wanted),
        removed=or_none((removed | (claim & ~wanted)) & ~wanted),
        won=or_none(wanted),
    )


def without(marked: Marked, pixels: Mask) -> Marked:
    """Marks of which the paint of some pixels is gone, since they were painted for another."""
    masks = {"added": marked.added, "won": marked.won}
    kept = {
        name: None if each is None else or_none(rle.decode(each, pixels.shape) & ~pixels)
        for name, each in masks.items()
    }
    return replace(marked, **kept)


def or_none(mask: Mask) -> dict[str, list[int]] | None:
    """A mask as run lengths; None of an empty one."""
    return rle.encode(mask) if mask.any() else None
