"""What differs between the families of Segment Anything models, and the registry of these.

A `Segmenter` knows this file and no family. A family is a class decorated with `sam_family`, in a
file of its own, which `families.py` imports.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class DecoderInput:
    """What a mask decoder is given.

    Attributes:
        image: the embeddings of B images.
        maps: what else of the images the decoder reads, by name.
        positions: of the image embedding's cells.
        sparse: embeddings of the P prompts, those of an image one after the other.
        dense: the same.
        count: how many prompts are of each image.
    """

    image: Float[Tensor, "b c h w"]
    maps: Mapping[str, Float[Tensor, "b ..."]]
    positions: Float[Tensor, "1 c h w"]
    sparse: Float[Tensor, "..."]
    dense: Float[Tensor, "p c h w"]
    count: int


class SamFamily(ABC):
    """One model, as a `Segmenter` asks for what its family does in a way of its own.

    P are the prompts of all B images, those of an image one after the other. How the axes of the
    sparse embeddings of prompts lie is the family's affair.

    Args:
        model: of this family; its parameters stay its own.

    Attributes:
        title: what people call the models.
        keeps_proportions: images are padded to a square, and not squashed.
        model_types: of transformers, in a `config.json`; none for another library's.
        box_tokens: tokens that a box has beside the two of its corners, of no point.
    """

    title: ClassVar[str]
    keeps_proportions: ClassVar[bool]
    model_types: ClassVar[tuple[str, ...]] = ()
    box_tokens: ClassVar[int] = 0

    def __init__(self, model: Any):
        self.model = model

    @classmethod
    @abstractmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether a model is of this family; without importing its library."""

    @classmethod
    def load(cls, folder: Path) -> tuple[nn.Module, list[str]]:
        """The model in a folder whose `config.json` has one of `model_types`, in float32, and the
        names of the tensors that are not there.

        Raises:
            ValueError: it cannot be read.
        """
        raise NotImplementedError

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the model, which has no adapter, to what can be loaded again."""

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The image encoder, without what wraps it, as in the model's view."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the square input, in pixels."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """That of the model's weights."""

    @abstractmethod
    def encode(
        self, pixels: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b c h w"], dict[str, Float[Tensor, "b ..."]]]:
        """The embedding of normalised images, and what else of them the decoder reads, by name."""

    @abstractmethod
    def embed(
        self, prompts: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "p c h w"]]:
        """The sparse and the dense embeddings of P prompts; `prompts` as in `Prompts.given`."""

    @abstractmethod
    def positions(self) -> Float[Tensor, "1 c h w"]:
        """The positions of the image embedding's cells."""

    @abstractmethod
    def predict(self, given: DecoderInput) -> tuple[Float[Tensor, "p m H W"], Float[Tensor, "p m"]]:
        """The logits of all masks of each prompt, as in `Masks`, and their estimated IoU."""

    # For an export, in which an absent prompt is a value.

    @abstractmethod
    def kinds(self) -> Float[Tensor, "5 c"]:
        """What is added for a point of label -1, none; 0, outside; 1, inside; 2 and 3, a box's
        upper left and lower right corner."""

    @abstractmethod
    def embed_place(self, place: Float[Tensor, "p n 2"]) -> Float[Tensor, "p n c"]:
        """Of points (x, y) in [0, 1]."""

    @abstractmethod
    def embed_masks(self, masks: Float[Tensor, "p 1 H W"]) -> Float[Tensor, "p c h w"]:
        """The dense embeddings of masks."""

    @abstractmethod
    def no_mask(self) -> Float[Tensor, "1 c 1 1"]:
        """The dense embedding where there is no mask."""

    @abstractmethod
    def as_sparse(self, tokens: Float[Tensor, "p n c"]) -> Float[Tensor, "..."]:
        """Tokens as the family's prompt encoder gives them."""

    @property
    def prompt_encoder(self) -> nn.Module:
        """It, whose hooks run after `embed`."""
        return self.model.prompt_encoder


_FAMILIES: list[type[SamFamily]] = []

Family = TypeVar("Family", bound=type[SamFamily])


def sam_family(cls: Family) -> Family:
    """Decorates the class of a family."""
    _FAMILIES.append(cls)
    return cls


def all_families() -> tuple[type[SamFamily], ...]:
    """In the order in which they were registered."""
    return tuple(_FAMILIES)
