"""What a promptable model is: images in, an embedding of them, prompts in, masks out.

Everything that uses a model (predictor, archive, page, export, training, evaluation) knows this
file and no family of models. A family implements `_encode` and `_decode`.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from wadler_lindig import pformat

from adapterkit.attach.context import check_frames
from adapterkit.promptable.prompts import Prompts

ABSENT = -20.0
"""The logit of a structure that is judged absent: a probability of 2e-9."""


@dataclass(frozen=True)
class Embedding:
    """What a model computes of B images, once, and decodes for any number of prompts.

    Attributes:
        image: what the prompts are decoded with.
        image_size: side of the square images, in pixels; prompts are in these pixels.
        maps: what else the decoder reads, by name: maps of higher resolution, or what an adapter's
            parts hand on to the decoder. Each has one entry per image, first axis first.
    """

    image: Float[Tensor, "b c h w"]
    image_size: int
    maps: Mapping[str, Float[Tensor, "b ..."]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return pformat(self)

    def __len__(self) -> int:
        return len(self.image)

    def __iter__(self) -> Iterator["Embedding"]:
        """The embedding of each image, as a batch of one."""
        return (self.select(slice(i, i + 1)) for i in range(len(self)))

    def select(self, images: slice | Sequence[int]) -> "Embedding":
        """Of some of the images."""
        return self.map(lambda each: each[images])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Embedding":
        """With `change` of each tensor."""
        maps = {name: change(value) for name, value in self.maps.items()}
        return Embedding(change(self.image), self.image_size, maps)


@dataclass(frozen=True)
class Masks:
    """What a model predicts for K prompts of each of B images.

    Attributes:
        all_logits: of the M masks for each prompt, at the model's own resolution; above 0 is
            foreground. The first is the answer; of SAM's four, the other three answer an ambiguous
            prompt, and the one of highest estimated IoU is what `SamPredictor` prefers.
        all_iou: the model's own estimate of each mask's quality.
        image_size: side of the images, in pixels.
        presence: logits of whether the structure that was asked for is in the image at all; None
            where the model does not judge it.
    """

    all_logits: Float[Tensor, "b k m h w"]
    all_iou: Float[Tensor, "b k m"]
    image_size: int
    presence: Float[Tensor, "b k"] | None = None

    def __repr__(self) -> str:
        return pformat(self)

    @property
    def low_res_logits(self) -> Float[Tensor, "b k h w"]:
        """Of the answer: a quarter of the images' size at SAM's patch stride, their whole size
        where an adapter adds detail."""
        return self.all_logits[:, :, 0]

    @property
    def predicted_iou(self) -> Float[Tensor, "b k"]:
        """Of the answer."""
        return self.all_iou[:, :, 0]

    def logits(self, size: tuple[int, int] | None = None) -> Float[Tensor, "b k H W"]:
        """The answer's, interpolated bilinearly to `size`; None: to the images' size.

        A structure that is judged absent has an empty mask.
        """
        size = size or (self.image_size, self.image_size)
        logits = F.interpolate(self.low_res_logits, size, mode="bilinear", align_corners=False)
        if self.presence is None:
            return logits
        return logits.masked_fill((self.presence < 0)[..., None, None], ABSENT)


class Promptable(nn.Module):
    """A model that segments K prompted structures in each of B images.

    An image is encoded once, whatever the number of its prompts, and the K prompts of all images
    are decoded in one batch. Outputs and gradients equal those of one prompt at a time.
    """

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the square input, in pixels."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model within: what `inject`, `activate` and `save_adapter` take."""

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of the structures that can be asked for by their class, in order."""
        return ()

    @property
    def padding(self) -> Float[Tensor, "3"] | None:
        """The colour, in [0, 255], around an image that keeps its proportions in the square input;
        None for a model whose images are squashed."""
        return None

    @property
    def parts(self) -> str:
        """What adapters in use add to the model, in words; "" for none."""
        return ""

    @property
    def reach(self) -> int:
        """How many frames before and after it in a sequence an image's embedding depends on; 0 for
        a model to which each image is on its own."""
        return 0

    def sequences(self, frames: int) -> AbstractContextManager[None]:
        """Within it, images that are encoded are sequences of so many frames."""
        return nullcontext()

    @abstractmethod
    def encoder_tensors(self) -> dict[str, Tensor]:
        """All that an embedding depends on beside the images, by name."""

    @abstractmethod
    def _encode(self, images: Float[Tensor, "b 3 H W"]) -> Embedding: ...

    @abstractmethod
    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks: ...

    def forward(
        self, images: Float[Tensor, "b 3 H W"], prompts: Prompts | None = None, frames: int = 1
    ) -> Masks:
        """Segment the prompted structures.

        Args:
            images: RGB in [0, 255], square, of side `image_size`.
            prompts: in pixels of the images; None: none.
            frames: as in `encode`.

        Raises:
            ValueError: as `encode` and `decode`.
        """
        return self.decode(self.encode(images, frames), prompts)

    def encode(self, images: Float[Tensor, "b 3 H W"], frames: int = 1) -> Embedding:
        """The embedding of RGB images in [0, 255].

        Args:
            images: square, of side `image_size`; of N sequences of T frames the N * T frames, those
                of a sequence one after the other.
            frames: T. 1: each image is on its own.

        Raises:
            ValueError: the images have another shape or size than the model takes, or values that
                are not in this range, or are no whole number of sequences.
        """
        _check_images(images)
        # `len` would fix the batch of what is exported.
        check_frames(images.shape[0], frames)
        with self.sequences(frames):
            return self._encode(images)

    def decode(self, embedding: Embedding, prompts: Prompts | None = None) -> Masks:
        """Decode K prompts of each embedded image.

        Raises:
            ValueError: there is no prompt where the model needs one, or there are prompts for
                another number of images.
        """
        prompts = Prompts() if prompts is None else prompts
        if prompts.shape is not None and prompts.shape[0] != len(embedding):
            raise ValueError(f"{len(embedding)} images but prompts for {prompts.shape[0]}")
        prompts.check_within(embedding.image_size)
        return self._decode(embedding, prompts)


def _check_images(images: object) -> None:
    """Refuse what are no images in [0, 255]; values are looked at unless this is traced."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images is a {type(images).__name__}: expected a tensor, (B, 3, H, W)")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            f"images has the shape {tuple(images.shape)}: expected (B, 3, H, W), red, green and "
            "blue; of a grey image, the same three times: images.expand(-1, 3, -1, -1)"
        )
    if images.is_complex() or images.dtype == torch.bool:
        raise ValueError(f"images is {images.dtype}: expected numbers from 0 to 255")
    if torch.compiler.is_compiling() or images.is_meta:
        return
    low, high = (each.item() for each in images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("images has values that are NaN or infinite: expected 0 to 255")
    # What was interpolated may leave the range by a little.
    if low < -1 or high > 256:
        raise ValueError(
            f"images has values from {low:g} to {high:g}: expected 0 to 255, before any "
            "normalisation, which the model does itself"
        )
    if images.is_floating_point() and 0 < high <= 1:
        raise ValueError(
            f"images has values from {low:g} to {high:g}, as if in [0, 1]: expected 0 to 255; "
            "multiply them by 255"
        )
