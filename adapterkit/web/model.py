"""The one model of a server, for many users and a worker in the background, one at a time.

Embeddings of the frames that were asked about last are kept, and so are answers: a click costs the
decoder, once for the structure that it is about.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from adapterkit.adapters.injection import remove
from adapterkit.data.image_file import ImageFile
from adapterkit.inference.fitting import logits_as_mask_prompt
from adapterkit.inference.prediction import Prediction
from adapterkit.inference.predictor import Predictor
from adapterkit.web import rle
from adapterkit.web.drafts import Marked, Point

_KEPT = 12
"""Frames of which embeddings and answers are kept."""

_QUIET = 0.4
"""Seconds without a user's request after which the background goes on."""


@dataclass(frozen=True)
class Ask:
    """What the model is asked for one structure.

    Attributes:
        name: of those that the adapter knows; None for one that it does not.
        points: clicks.
        box: (x0, y0, x1, y1) in pixels.
        given: the counts of a mask's run lengths.
    """

    name: str | None = None
    points: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None
    given: tuple[int, ...] | None = None

    @property
    def before(self) -> "Ask | None":
        """What was asked before the last click; None where nothing was."""
        earlier = replace(self, points=self.points[:-1])
        return earlier if self.points and earlier != Ask() else None

    @classmethod
    def of(cls, marked: Marked, name: str | None) -> "Ask":
        """What a structure's marks ask; what was painted is none of the model's."""
        given = None if marked.given is None else tuple(marked.given["counts"])
        return cls(name, marked.points, marked.box, given)


@dataclass(frozen=True)
class Found:
    """What the model says to an `Ask`.

    Attributes:
        rle: the mask, as run lengths.
        iou: the model's own estimate of it.
        presence: how probable it is that the structure is there; None where that is not judged.
        entropy: bits of doubt for each pixel of the mask.
    """

    rle: dict[str, list[int]]
    iou: float
    presence: float | None
    entropy: float


@dataclass
class _Frame:
    """A frame that was asked about, with its answers by adapter, and these as mask prompts."""

    predictor: Predictor
    found: dict[tuple[str | None, Ask], Found] = field(default_factory=dict)
    masks: dict[tuple[str | None, Ask], Shaped[np.ndarray, "_ _"]] = field(default_factory=dict)


class Model:
    """A predictor behind a lock. A user's request comes before the background's.

    Args:
        predictor: with its adapters; not to be used otherwise meanwhile.
        files: of the adapters, by name, as far as they are known.
    """

    def __init__(self, predictor: Predictor, files: dict[str, Path] | None = None) -> None:
        self._predictor = predictor
        self._lock = threading.Lock()
        self._urgent = 0
        self._last_urgent = 0.0
        self._closed = False
        self._frames: OrderedDict[Hashable, _Frame] = OrderedDict()
        self._known: dict[str | None, tuple[str, ...]] = {}
        self._classes: dict[str | None, tuple[str, ...]] = {}
        self._digests = {name: _digest(file) for name, file in (files or {}).items()}
        for name in (None, *predictor.names):
            self._look_at(name)

    # Adapters

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters."""
        return tuple(name for name in self._known if name is not None)

    @property
    def device(self) -> str:
        """Where the model computes."""
        return str(next(self._predictor.promptable.parameters()).device)

    def structures(self, adapter: str | None) -> tuple[str, ...]:
        """What an adapter segments, in the order of its training; () where no file says."""
        return self._known.get(adapter, ())

    def classes(self, adapter: str | None) -> tuple[str, ...]:
        """What it can be asked for by name."""
        return self._classes.get(adapter, ())

    def digest(self, adapter: str | None) -> str:
        """Of its file; "" where none is known."""
        return self._digests.get(adapter or "", "")

    def check(self, adapter: str | None) -> None:
        """Raises ValueError where no adapter has this name."""
        if adapter is not None and adapter not in self._known:
            there = ", ".join(self.names) or "none"
            raise ValueError(f"no adapter is named {adapter!r}; loaded are: {there}")

    def load(self, file: Path, name: str | None = None) -> str:
        """Load an adapter file, as `Predictor.load` does, and give its name."""
        with self._turn(urgent=True):
            name = self._predictor.load(file, name)
            self._digests[name] = _digest(file)
            self._look_at(name)
            return name

    def remove(self, name: str) -> None:
        """Take an adapter off the model.

        Raises:
            ValueError: no adapter has this name.
        """
        self.check(name)
        with self._turn(urgent=True):
            remove(self._predictor.promptable.model, name)
            del self._known[name], self._classes[name]
            self._digests.pop(name, None)
            self._frames.clear()

    # Images

    def ask(
        self,
        key: Hashable,
        read: Callable[[], tuple[ImageFile, int]],
        adapter: str | None,
        asks: Sequence[Ask],
        urgent: bool = True,
    ) -> list[Found]:
        """What the model says to each `Ask` about a frame.

        Clicks are answered in their order, each beside the mask of those before it, as SAM is
        trained: so a click costs the decoder once, however many there are. Each is obeyed, as
        `Prediction.obeying` says.

        Args:
            key: of the frame; another content of it has another key.
            read: gives the image and which of its frames it is; called if it is needed.
            adapter: with which; None: the base alone.
            asks: what.
            urgent: whether a user waits for it.

        Raises:
            ValueError: the model cannot take the image or a prompt, there is no such adapter, or
                the model is closed.
        """
        with self._turn(urgent):
            frame = self._frame(key, read, adapter, encode=False)
            if not all((adapter, each) in frame.found for each in asks):
                self._frame(key, read, adapter, encode=True)
                _answer(frame, adapter, asks)
            return [frame.found[adapter, each] for each in asks]

    def prepare(
        self,
        key: Hashable,
        read: Callable[[], tuple[ImageFile, int]],
        adapter: str | None,
        urgent: bool = False,
    ) -> None:
        """Encode a frame, so that the first click on it costs the decoder alone; as `ask`."""
        with self._turn(urgent):
            self._frame(key, read, adapter, encode=True)

    def _frame(
        self,
        key: Hashable,
        read: Callable[[], tuple[ImageFile, int]],
        adapter: str | None,
        encode: bool,
    ) -> _Frame:
        self.check(adapter)
        frame = self._frames.get(key) or _Frame(self._predictor.sharing())
        if encode:
            frame.predictor.use(adapter)
            if frame.predictor.image is None:
                frame.predictor.set_image(*read())
            frame.predictor.embedding()
        self._frames[key] = frame
        self._frames.move_to_end(key)
        while len(self._frames) > _KEPT:
            self._frames.popitem(last=False)
        return frame

    def predict(self, image: ImageFile, frame: int, adapter: str | None, **prompts: Any):
        """`Predictor.predict` on an image that is not kept, with each click obeyed."""
        with self._turn(urgent=True):
            self.check(adapter)
            predictor = self._predictor.sharing()
            predictor.use(adapter)
            predictor.set_image(image, frame)
            found = predictor.predict(**prompts)
            if prompts.get("points") is None:
                return found
            return found.obeying(prompts["points"], prompts["labels"])

    def close(self) -> None:
        """Let the present answer be completed, and refuse those who wait for theirs.

        To be called before the interpreter ends, which a thread that still computes would abort.
        """
        self._closed = True
        with self._lock:
            pass

    @contextmanager
    def _turn(self, urgent: bool) -> Iterator[None]:
        if not urgent:
            while not self._closed and (
                self._urgent or time.monotonic() - self._last_urgent < _QUIET
            ):
                time.sleep(0.05)
            with self._lock:
                self._check_open()
                yield
            return
        self._urgent += 1
        try:
            with self._lock:
                self._check_open()
                yield
        finally:
            self._urgent -= 1
            self._last_urgent = time.monotonic()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the server is ending")

    def _look_at(self, name: str | None) -> None:
        self._predictor.use(name)
        self._known[name] = self._predictor.structures
        self._classes[name] = self._predictor.promptable.structures


def _answer(frame: _Frame, adapter: str | None, asks: Sequence[Ask]) -> None:
    """Find what was not found yet, by the adapter in use, and first what it corrects."""
    new = [each for each in dict.fromkeys(asks) if (adapter, each) not in frame.found]
    if not new:
        return
    earlier = [each.before for each in new]
    _answer(frame, adapter, [each for each in earlier if each])
    masks = [
        _given(each, frame.predictor) if before is None else frame.masks[adapter, before]
        for each, before in zip(new, earlier, strict=True)
    ]
    by_model, obeying = _predict(frame.predictor, new, masks)
    for k, each in enumerate(new):
        frame.found[adapter, each] = _found(obeying, k)
        mask = obeying.masks[k]
        if np.array_equal(mask, by_model.masks[k]):
            logits = logits_as_mask_prompt(by_model.low_res_logits[k], frame.predictor.mask_size)
            mask = logits.astype(np.float16)
        frame.masks[adapter, each] = mask


def _predict(
    predictor: Predictor, asks: Sequence[Ask], masks: Sequence[Shaped[np.ndarray, "_ _"] | None]
) -> tuple[Prediction, Prediction]:
    """What the model says, and that with each click obeyed."""
    by_name = bool(predictor.promptable.structures)
    points = [[(p.x, p.y) for p in each.points] or None for each in asks]
    labels = [[int(p.inside) for p in each.points] or None for each in asks]
    found = predictor.predict(
        points=points,
        labels=labels,
        boxes=[each.box for each in asks],
        masks=masks,
        classes=[each.name for each in asks] if by_name else None,
    )
    return found, found.obeying(points, labels)


def _given(ask: Ask, predictor: Predictor) -> Bool[np.ndarray, "H W"] | None:
    if ask.given is None:
        return None
    assert predictor.image is not None
    size = (predictor.image.frames.shape[1], predictor.image.frames.shape[2])
    return rle.decode({"size": list(size), "counts": list(ask.given)}, size)


def _found(prediction: Prediction, k: int) -> Found:
    mask: Bool[np.ndarray, "H W"] = prediction.logits[k] > 0
    presence = None if prediction.presence is None else float(prediction.presence[k])
    iou = float(np.clip(prediction.scores[k], 0, 1))
    return Found(rle.encode(mask), iou, presence, _doubt(prediction.low_res_logits[k]))


def _doubt(logits: Float[np.ndarray, "h w"]) -> float:
    """The entropy of all pixels in bits, for each pixel that is expected inside."""
    inside = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    outside = 1 - inside
    bits = -(inside * np.log2(inside + 1e-12) + outside * np.log2(outside + 1e-12))
    return float(bits.sum() / max(1.0, inside.sum()))


def _digest(file: Path) -> str:
    digest = blake2b(digest_size=8)
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
