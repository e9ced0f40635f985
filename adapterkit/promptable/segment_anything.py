"""`segment_anything`'s `Sam`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from torch import Tensor, nn

from adapterkit.encoders.prompt_decoder import for_each_prompt
from adapterkit.encoders.wrappers import unwrapped
from adapterkit.promptable.sam_family import DecoderInput, SamFamily, sam_family
from adapterkit.promptable.stock_sam import save_sam


@sam_family
class SegmentAnything(SamFamily):
    """A `Sam`; its pixel_mean and pixel_std normalise the images."""

    title = "a segment_anything Sam"
    keeps_proportions = True
    model: Sam

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        return isinstance(model, Sam)

    def save(self, path: Path) -> None:
        save_sam(self.model, path)

    @property
    def encoder(self) -> nn.Module:
        return unwrapped(self.model.image_encoder)

    @property
    def image_size(self) -> int:
        return self.model.image_encoder.img_size

    @property
    def dtype(self) -> torch.dtype:
        return self.model.prompt_encoder.no_mask_embed.weight.dtype

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.image_encoder(pixels), {}

    def embed(self, prompts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with _positions_in_float32(self.model.prompt_encoder):
            sparse, dense = self.model.prompt_encoder(
                points=(prompts["points"], prompts["labels"]) if "points" in prompts else None,
                boxes=prompts.get("boxes"),
                masks=prompts["masks"][:, None].to(self.dtype) if "masks" in prompts else None,
            )
        return sparse.to(self.dtype), dense.to(self.dtype)

    def positions(self) -> Float[Tensor, "1 c h w"]:
        with _positions_in_float32(self.model.prompt_encoder):
            return self.model.prompt_encoder.get_dense_pe().to(self.dtype)

    def predict(self, given: DecoderInput) -> tuple[Tensor, Tensor]:
        """By the decoder's own forward, whose hooks run."""
        decoder: MaskDecoder = self.model.mask_decoder
        own = cast(MaskDecoder, unwrapped(decoder))
        with _every_mask_of_several_images(own, given.count):
            return decoder(given.image, given.positions, given.sparse, given.dense, True)

    def kinds(self) -> Float[Tensor, "5 c"]:
        prompts: Any = self.model.prompt_encoder
        kinds = [prompts.not_a_point_embed, *prompts.point_embeddings]
        return torch.cat([each.weight for each in kinds])

    def embed_place(self, place: Float[Tensor, "p n 2"]) -> Float[Tensor, "p n c"]:
        return self.model.prompt_encoder.pe_layer._pe_encoding(place)

    def embed_masks(self, masks: Float[Tensor, "p 1 H W"]) -> Float[Tensor, "p c h w"]:
        return self.model.prompt_encoder.mask_downscaling(masks)

    def no_mask(self) -> Float[Tensor, "1 c 1 1"]:
        return self.model.prompt_encoder.no_mask_embed.weight[:, :, None, None]

    def as_sparse(self, tokens: Float[Tensor, "p n c"]) -> Float[Tensor, "p n c"]:
        return tokens


@contextmanager
def _every_mask_of_several_images(decoder: MaskDecoder, count: int) -> Iterator[None]:
    """Within it, the decoder's forward, asked for several masks, gives all of `count` prompts of
    each image.

    Its `predict_masks` takes the prompts of one image at a time, whose embedding it repeats and
    adds to each dense prompt; here that sum is given as the dense prompt, and the image's embedding
    is zero. Its forward leaves out the first mask; here one is put before it.
    """
    own, before = decoder.predict_masks, vars(decoder).get("predict_masks")

    def predict(
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        image = for_each_prompt(image_embeddings, count)
        logits, iou = own(
            image_embeddings=torch.zeros_like(image[:1]),
            image_pe=image_pe,
            sparse_prompt_embeddings=sparse_prompt_embeddings,
            dense_prompt_embeddings=image + dense_prompt_embeddings,
        )
        return torch.cat([logits[:, :1], logits], dim=1), torch.cat([iou[:, :1], iou], dim=1)

    decoder.predict_masks = predict
    try:
        yield
    finally:
        del decoder.predict_masks
        if before is not None:
            decoder.predict_masks = before


@contextmanager
def _positions_in_float32(prompt_encoder: PromptEncoder) -> Iterator[None]:
    """Within it, a prompt encoder of another dtype computes positions, which it takes in float32,
    with a matrix of float32 too."""
    buffers, name = prompt_encoder.pe_layer._buffers, "positional_encoding_gaussian_matrix"
    matrix = buffers[name]
    assert matrix is not None
    if matrix.dtype == torch.float32:
        yield
        return
    buffers[name] = matrix.float()
    try:
        yield
    finally:
        buffers[name] = matrix
