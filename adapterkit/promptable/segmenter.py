"""A (patched) Sam as a batched, differentiable, promptable model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from segment_anything.modeling import MaskDecoder, Sam
from torch import Tensor, nn


@dataclass(frozen=True)
class Masks:
    """What a `Segmenter` predicts for K prompts of each of B images.

    Attributes:
        low_res_logits: (B, K, h, w), a quarter of the input's size at SAM's patch stride; above 0
            is foreground.
        predicted_iou: (B, K), the mask decoder's own estimate of each mask's quality.
        image_size: side of the input, in pixels.
    """

    low_res_logits: Float[Tensor, "b k h w"]
    predicted_iou: Float[Tensor, "b k"]
    image_size: int

    def logits(self, size: tuple[int, int] | None = None) -> Float[Tensor, "b k H W"]:
        """The logits, interpolated bilinearly to `size`; None: to the input's size."""
        size = size or (self.image_size, self.image_size)
        return F.interpolate(self.low_res_logits, size, mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """A `Sam`, with or without adapters, that segments K prompted structures in each of B images.

    An image is encoded once, whatever the number of its prompts, and the K prompts are decoded in
    one batch. Outputs and gradients equal those of one prompt at a time.

    Args:
        sam: a `segment_anything` `Sam`; its pixel_mean and pixel_std normalise the images, its
            parameters stay its own.
    """

    def __init__(self, sam: Sam):
        super().__init__()
        self.sam = sam

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.sam.image_encoder.img_size

    def forward(
        self,
        images: Float[Tensor, "b 3 H W"],
        points: Float[Tensor, "b k n 2"] | None = None,
        labels: Int[Tensor, "b k n"] | None = None,
        boxes: Float[Tensor, "b k 4"] | None = None,
        masks: Float[Tensor, "b k mask_h mask_w"] | None = None,
    ) -> Masks:
        """Segment the prompted structures.

        Args:
            images: RGB in [0, 255], square, of side `image_size`.
            points: (x, y) in pixels of the input.
            labels: 1 foreground, 0 background, -1 padding, for each point.
            boxes: (x0, y0, x1, y1) in pixels of the input.
            masks: low-resolution logits of a previous prediction.

        Raises:
            ValueError: the image has another size, there is no prompt, or points lack labels.
        """
        return self.decode(self.encode(images), points, labels, boxes, masks)

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The image embedding of RGB images in [0, 255]."""
        if tuple(images.shape[-2:]) != (self.image_size, self.image_size):
            raise ValueError(
                f"images are {images.shape[-2]}x{images.shape[-1]} pixels, and this model takes "
                f"{self.image_size}x{self.image_size}; resize them first"
            )
        mean, std = self.sam.get_buffer("pixel_mean"), self.sam.get_buffer("pixel_std")
        return self.sam.image_encoder((images - mean) / std)

    def decode(
        self,
        embedding: Float[Tensor, "b c h w"],
        points: Float[Tensor, "b k n 2"] | None = None,
        labels: Int[Tensor, "b k n"] | None = None,
        boxes: Float[Tensor, "b k 4"] | None = None,
        masks: Float[Tensor, "b k mask_h mask_w"] | None = None,
    ) -> Masks:
        """Decode K prompts of each embedded image; the arguments are those of `forward`."""
        logits, iou = self.decode_all(embedding, points, labels, boxes, masks)
        return Masks(logits[:, :, 0].contiguous(), iou[:, :, 0].contiguous(), self.image_size)

    def decode_all(
        self,
        embedding: Float[Tensor, "b c h w"],
        points: Float[Tensor, "b k n 2"] | None = None,
        labels: Int[Tensor, "b k n"] | None = None,
        boxes: Float[Tensor, "b k 4"] | None = None,
        masks: Float[Tensor, "b k mask_h mask_w"] | None = None,
    ) -> tuple[Float[Tensor, "b k m mask_h mask_w"], Float[Tensor, "b k m"]]:
        """All masks of the decoder, as low-resolution logits, and its estimates of their IoU.

        Of SAM's four, the first is the one that `decode` gives; the other three answer an ambiguous
        prompt, and the one of highest estimated IoU is what `SamPredictor` prefers.
        """
        given = [prompt for prompt in (points, boxes, masks) if prompt is not None]
        if not given:
            raise ValueError("no prompt: give points with labels, boxes, or masks")
        if (points is None) != (labels is None):
            raise ValueError("points and labels belong together; give both or neither")
        batch, prompts = given[0].shape[:2]
        if batch != len(embedding):
            raise ValueError(f"{len(embedding)} images but prompts for {batch}")

        def flat(prompt: Tensor | None) -> Tensor | None:
            return None if prompt is None else prompt.flatten(0, 1)

        sparse, dense = self.sam.prompt_encoder(
            points=None if points is None else (flat(points), flat(labels)),
            boxes=flat(boxes),
            masks=None if masks is None else flat(masks[:, :, None]),
        )
        logits, iou = predict_masks(
            self.sam.mask_decoder,
            embedding.repeat_interleave(prompts, dim=0),
            self.sam.prompt_encoder.get_dense_pe(),
            sparse,
            dense,
        )
        return logits.unflatten(0, (batch, prompts)), iou.unflatten(0, (batch, prompts))


def predict_masks(
    decoder: MaskDecoder,
    embedding: Float[Tensor, "p c h w"],
    position: Float[Tensor, "1 c h w"],
    sparse: Float[Tensor, "p n c"],
    dense: Float[Tensor, "p c h w"],
) -> tuple[Float[Tensor, "p m mask_h mask_w"], Float[Tensor, "p m"]]:
    """`MaskDecoder.predict_masks`, with an image embedding per prompt.

    The original takes the prompts of one image at a time.
    """
    prompts = sparse.shape[0]  # and not len, which fixes it where the decoder is exported
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(prompts, -1, -1), sparse], dim=1)
    tokens, features = decoder.transformer(
        embedding + dense, position.expand(prompts, -1, -1, -1), tokens
    )
    upscaled = decoder.output_upscaling(features.transpose(1, 2).reshape(embedding.shape))
    mask_tokens = tokens[:, 1 : 1 + decoder.num_mask_tokens].unbind(dim=1)
    weights = [
        mlp(token)
        for mlp, token in zip(decoder.output_hypernetworks_mlps, mask_tokens, strict=True)
    ]
    logits = torch.stack(weights, dim=1) @ upscaled.flatten(2)
    return logits.unflatten(2, upscaled.shape[2:]), decoder.iou_prediction_head(tokens[:, 0])
