"""What was found in an image: masks in its own pixels."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Real, UInt8
from wadler_lindig import pformat

from adapterkit.data.image_file import Spacing
from adapterkit.inference.obeying import obeying


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a `Predictor` found for K prompted structures of an image of H x W pixels.

    Attributes:
        logits: (K, H, W), above 0 is inside; (K, 3, H, W) with the three masks of each structure
            that `multimask` gives.
        scores: (K,) or (K, 3), the model's own estimate of each mask's IoU.
        low_res_logits: (K, h, w) or (K, 3, h, w), the logits at the model's resolution, which a
            further `predict` takes as `masks`.
        presence: (K,), how probable it is that the structure is in the image at all; None where the
            model does not judge it. Below one half, the mask is empty.
        spacing: pixel size of the image in mm, (row, column), or None where it is not known.
    """

    logits: Float[np.ndarray, "K *three H W"]
    scores: Float[np.ndarray, "K *three"]
    low_res_logits: Float[np.ndarray, "K *three h w"]
    spacing: Spacing | None
    presence: Float[np.ndarray, "K"] | None = None

    def __repr__(self) -> str:
        return pformat(self)

    @property
    def masks(self) -> Bool[np.ndarray, "K *three H W"]:
        """True inside."""
        return self.logits > 0

    @property
    def areas(self) -> Real[np.ndarray, "K *three"]:
        """In pixels."""
        return self.masks.sum(axis=(-2, -1))

    @property
    def areas_mm2(self) -> Float[np.ndarray, "K *three"] | None:
        """In square millimetres, or None where the spacing is not known."""
        return None if self.spacing is None else self.areas * (self.spacing[0] * self.spacing[1])

    def best(self) -> "Prediction":
        """Of the three masks of each structure, the one of the highest score."""
        if self.scores.ndim == 1:
            return self
        chosen = np.arange(len(self.scores)), self.scores.argmax(axis=1)
        return replace(
            self,
            logits=self.logits[chosen],
            scores=self.scores[chosen],
            low_res_logits=self.low_res_logits[chosen],
        )

    def obeying(self, points: Any, labels: Any) -> "Prediction":
        """With masks that follow each of the points that they were asked by.

        A model can pass over a point, above all one that was trained on few images. Where it does,
        the logits around it move until they follow, the less the farther away: in the middle of
        what a mask lacks, a point fills it up to the outline. `low_res_logits` stay the model's.

        Args:
            points: as `Predictor.predict` takes them.
            labels: of each point.

        Raises:
            ValueError: there are three masks of each structure, or not as many entries.
        """
        if self.logits.ndim != 3 or not len(points) == len(labels) == len(self.logits):
            raise ValueError(
                f"logits have the shape {self.logits.shape}, points {len(points)} entries and "
                f"labels {len(labels)}: expected one of each for each structure; of three masks, "
                "take best()"
            )
        logits = [
            each if at is None else obeying(each, np.asarray(at), np.asarray(inside, float))
            for each, at, inside in zip(self.logits, points, labels, strict=True)
        ]
        return replace(self, logits=np.stack(logits) if logits else self.logits)

    def label_map(self) -> UInt8[np.ndarray, "H W"]:
        """0 is background, k + 1 the k-th structure; where masks overlap, the highest logit's.

        Raises:
            ValueError: there are more than 255 structures, or three masks of each.
        """
        if self.scores.ndim != 1 or len(self.scores) > 255:
            raise ValueError(
                f"logits have the shape {self.logits.shape}: expected one mask of each of at most "
                "255 structures; of three masks, take best()"
            )
        background = np.zeros_like(self.logits, shape=(1, *self.logits.shape[1:]))
        return np.concatenate([background, self.logits]).argmax(axis=0).astype(np.uint8)
